"""What every command of `gemma-rag` shares: the options before the command, and the exit codes. Heavy modules are
imported where they are needed, so that `--help` answers at once."""

import logging
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from gemma_cli.rag import PythonRAGBackend, Settings

T = TypeVar("T")


class ExitCode(IntEnum):
    """What a shell script can go by."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOTHING_FOUND = 3
    STORE_UNREACHABLE = 4


@dataclass(frozen=True, slots=True)
class CliSession:
    """The options that stand before the command."""

    url: str | None = None
    namespace: str | None = None
    config: Path | None = None

    def settings(self) -> "Settings":
        from gemma_cli.rag import load_settings

        return load_settings(config=self.config)

    def check_there(self) -> None:
        """Raises `StoreUnavailableError` where the option or a variable names a file that is not there: opening it
        would make it, and a mistyped one be found empty. The store of a configuration file may be yet to come."""
        settings = self.settings()
        if self.url is not None:
            check_file("url", self.url)
        elif settings.origins["store.url"].startswith("environment "):
            check_file("url", settings.store.url)

    @asynccontextmanager
    async def backend(self, *, require_model: bool = True, creates: bool = False) -> AsyncIterator["PythonRAGBackend"]:
        """An open backend, closed afterwards whatever happens. creates: whether a store that is named may be new."""
        from gemma_cli.rag import PythonRAGBackend

        if not creates:
            self.check_there()
        backend = PythonRAGBackend(url=self.url, namespace=self.namespace, settings=self.settings())
        await backend.open(require_model=require_model)
        try:
            yield backend
        finally:
            await backend.close()

    def ask(
        self,
        work: "Callable[[PythonRAGBackend], Coroutine[Any, Any, T]]",
        *,
        require_model: bool = True,
        creates: bool = False,
    ) -> T:
        """The result of `work` on an open backend; see `backend`."""

        import asyncio

        async def asked() -> T:
            async with self.backend(require_model=require_model, creates=creates) as backend:
                return await work(backend)

        return asyncio.run(asked())


def missing_file(url: str) -> Path | None:
    """The file that a URL stands for, where there is none yet."""
    from gemma_cli.rag.stores import sqlite_path

    path = sqlite_path(url)
    return path if path is not None and not path.exists() else None


def check_file(name: str, url: str) -> None:
    """Raises `StoreUnavailableError` where a URL stands for a file that is not there. name: who gave it."""
    from gemma_cli.rag import StoreUnavailableError

    if (path := missing_file(url)) is not None:
        raise StoreUnavailableError(f"{name}: there is no file {path}")


def log_to_stderr(verbose: bool) -> None:
    """Shows the library's events; without `verbose` only errors."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_EventFormatter())
    logger = logging.getLogger("gemma_cli")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if verbose else logging.ERROR)
    logger.propagate = False


class _EventFormatter(logging.Formatter):
    """An event's name and its fields on one line."""

    _COMMON = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={value}" for name, value in vars(record).items() if name not in self._COMMON)
        return f"{record.levelname.lower()}: {super().format(record)} {fields}".rstrip()


def exit_code(error: Exception) -> ExitCode | None:
    """What a command ends with that failed with an error of this project, or for want of a place for its output; None
    for any other error."""
    from gemma_cli.rag import GemmaRagError, InvalidInputError, SettingsError, StoreBusyError, StoreUnavailableError

    if isinstance(error, StoreUnavailableError | StoreBusyError):
        return ExitCode.STORE_UNREACHABLE
    if isinstance(error, InvalidInputError | SettingsError):
        return ExitCode.USAGE
    return ExitCode.FAILED if isinstance(error, GemmaRagError | OSError) else None
