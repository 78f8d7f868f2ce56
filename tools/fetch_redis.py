"""Fetches Redis and Valkey servers of Debian's releases for the tests, without installing anything.

    python tools/fetch_redis.py FOLDER [RELEASE ...]

RELEASE: code names; default: the machine's own and the next, "trixie". Needs a Debian with apt, not its superuser.
The machine's own package sources are used, with the release's name changed, and a state of apt's in FOLDER. Each server
runs through the C library of its own release. Prints the command that tests with all of them:

    GEMMA_TEST_REDIS_SERVERS=FOLDER/7.0/redis-server:FOLDER/8.0/redis-server:FOLDER/valkey-8.1/valkey-server make test
"""

import argparse
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SERVERS: Final = ("redis-server", "valkey-server")
TOOLS: Final = ("cli", "benchmark", "server")
SOURCES: Final = Path("/etc/apt")


def run(*command: str | Path) -> str:
    """The command's output. Raises CalledProcessError; what the command says on stderr is shown."""
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout  # noqa: S603 - all from here


def sources(own: str, release: str) -> dict[str, str]:
    """The machine's files of package sources that name its release, with another release in its place."""
    files = [SOURCES / "sources.list", *sorted((SOURCES / "sources.list.d").glob("*"))]
    texts = {file.name: file.read_text() for file in files if file.suffix in (".list", ".sources") and file.exists()}
    pattern = re.compile(rf"\b{own}\b")
    return {name: pattern.sub(release, text) for name, text in texts.items() if pattern.search(text)}


def apt(folder: Path) -> list[str]:
    """Options that make apt keep to a folder, in which it believes that nothing is installed."""
    places = {
        "Dir::Etc::SourceList": "/dev/null",
        "Dir::Etc::SourceParts": folder / "sources",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
        "Debug::NoLocking": "true",
        "APT::Install-Recommends": "false",
    }
    return [word for name, value in places.items() for word in ("-o", f"{name}={value}")]


def unpack(folder: Path, own: str, release: str) -> Path:
    """Downloads the servers of a release with all that they need; returns the folder that holds their `usr`."""
    for name in ("sources", "state/lists/partial", "cache/archives/partial", "root"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    for name, text in sources(own, release).items():
        (folder / "sources" / name).write_text(text)
    options = apt(folder)
    run("apt-get", *options, "--quiet=2", "update")
    known = run("apt-cache", *options, "pkgnames").split()
    packages = [name for name in SERVERS if name in known]
    run("apt-get", *options, "--quiet=2", "--yes", "--download-only", "install", *packages)
    for package in sorted((folder / "cache/archives").glob("*.deb")):
        run("dpkg", "-x", package, folder / "root")
    return folder / "root"


def command_of(root: Path, program: Path) -> str:
    """The shell's words that run a program with the C library below `root` instead of the machine's."""
    folders = [path for part in ("lib", "usr/lib") for path in sorted((root / part).glob("*-linux-gnu*"))]
    loaders = [path for folder in folders for path in folder.glob("ld-linux*.so.*") if not path.is_symlink()]
    if not loaders:
        raise FileNotFoundError(f"no loader of programs below {root}")
    return shlex.join([str(loaders[0]), "--library-path", ":".join(map(str, folders)), str(program)])


def wrapped(folder: Path, root: Path) -> Iterator[Path]:
    """Makes a script for each program, in a folder named for the version; yields those of the servers."""
    for server in SERVERS:
        kind = server.partition("-")[0]
        program = root / "usr/bin" / server
        if not program.exists():
            continue
        says = run("/bin/sh", "-c", f"{command_of(root, program)} --version")
        version = re.search(r"v=(\d+\.\d+)", says)
        if version is None:
            raise ValueError(f"{program} does not name its version: {says}")
        place = folder / (version[1] if kind == "redis" else f"{kind}-{version[1]}")
        place.mkdir(exist_ok=True)
        for tool in TOOLS:
            script = place / f"{kind}-{tool}"
            script.write_text(f'#!/bin/sh\nexec {command_of(root, root / "usr/bin" / script.name)} "$@"\n')
            script.chmod(0o755)
        yield place / server


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("releases", nargs="*", metavar="RELEASE")
    arguments = parser.parse_args()
    own = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    if not own or not sources(own, own):
        print(f"fetch_redis.py: no package sources of a Debian release in {SOURCES}", file=sys.stderr)
        return 1
    folder = arguments.folder.resolve()
    found: dict[Path, None] = {}
    for release in arguments.releases or dict.fromkeys((own, "trixie")):
        root = unpack(folder / release, own, release)
        found |= dict.fromkeys(wrapped(folder, root))
    print(f"GEMMA_TEST_REDIS_SERVERS={shlex.quote(os.pathsep.join(map(str, found)))} make test")
    return 0


if __name__ == "__main__":
    sys.exit(main())
