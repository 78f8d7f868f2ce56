"""What all tests share: a home of their own, one event loop kind, a clock that is ticked by hand."""

import os
import signal
import site
import tempfile
from pathlib import Path

import pytest

try:
    from hypothesis import settings
except ModuleNotFoundError:  # some of the tests run without it
    pass
else:
    settings.register_profile("unhurried", deadline=None)  # a busy machine takes as long as it takes
    settings.load_profile("unhurried")

START = 1_767_225_600.0
"""2026-01-01T00:00:00Z in seconds since the epoch: where the hand-ticked clock begins."""

HOME_VARIABLES = {
    "HOME": "",
    "USERPROFILE": "",
    "APPDATA": "AppData/Roaming",
    "LOCALAPPDATA": "AppData/Local",
    "XDG_CACHE_HOME": ".cache",
    "XDG_CONFIG_HOME": ".config",
    "XDG_DATA_HOME": ".local/share",
    "XDG_STATE_HOME": ".local/state",
    "HF_HOME": ".cache/huggingface",
}
"""Variables that point to the user's directories, and the part of the tests' home that each gets."""

OVERRIDES = ("GEMMA_RAG_", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
"""Variables that begin so would bring the developer's own settings or models into the tests."""

_environment = pytest.MonkeyPatch()
_home = tempfile.TemporaryDirectory(prefix="gemma-rag-tests-", ignore_cleanup_errors=True)


def pytest_configure() -> None:
    """Isolates the run before any test module is imported: some libraries read these variables at import. Whoever runs
    the tests in a shell's background has SIGINT ignored, and what they start would be deaf to it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _environment.setenv("PYTHONUSERBASE", site.getuserbase())  # packages stay where they are, whatever HOME says
    for name, part in HOME_VARIABLES.items():
        _environment.setenv(name, os.path.normpath(os.path.join(_home.name, part)))  # noqa: PTH118
    for name in [name for name in os.environ if name.startswith(OVERRIDES)]:
        _environment.delenv(name)


def pytest_unconfigure() -> None:
    _environment.undo()
    _home.cleanup()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, the one event loop that the library is written for."""
    return "asyncio"


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store of the test's own, in a file."""
    return f"sqlite:///{tmp_path / 'memory.db'}"


@pytest.fixture
def hashing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model: for tests that are not about meaning."""
    monkeypatch.setenv("GEMMA_RAG_EMBEDDING__PROVIDER", "hashing")


class Clock:
    """Seconds since the epoch that pass only when a test says so."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def tick(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    """A hand-ticked clock: `clock()` is the time, `clock.tick(60)` lets a minute pass."""
    return Clock()
