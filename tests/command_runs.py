"""How the tests run the command `gemma-rag`: in this process where only its answer matters, in one of its own where the
process does."""

import asyncio
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import gemma_cli
from gemma_cli.cli import main
from gemma_cli.rag import PythonRAGBackend

ROOT: Final = Path(__file__).parent.parent
PACKAGE_PARENT: Final = Path(gemma_cli.__file__).parent.parent
TIMEOUT: Final = 120
"""Seconds after which a process that hangs is killed; nothing here takes a tenth of it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        """The one JSON document that stdout is."""
        return json.loads(self.stdout)

    @property
    def message(self) -> str:
        """What was said on stderr, without the lines and frames that the terminal's width brings into it."""
        return " ".join(self.stderr.translate(dict.fromkeys(map(ord, "│╭╮╰╯─"))).split())


def call(*arguments: str | Path, stdin: bytes = b"") -> Outcome:
    """The command in this process: its one entry point, with its own translation of errors. The package's logger, which
    the command sets up for itself, is left as it was."""
    out, err = io.StringIO(), io.StringIO()
    logger = logging.getLogger("gemma_cli")
    before = logger.handlers[:], logger.level, logger.propagate
    try:
        with (
            redirect_stdout(out),
            redirect_stderr(err),
            patch.object(sys, "argv", ["gemma-rag", *map(str, arguments)]),
            patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8")),
        ):
            main()
    except SystemExit as end:
        code = end.code
    else:
        code = 0
    finally:
        logger.handlers[:], logger.level, logger.propagate = before
    assert isinstance(code, int), code
    return Outcome(code, out.getvalue(), err.getvalue())


def make_store(url: str) -> None:
    """An empty store: a command that only reads makes none where one is named."""

    async def opened() -> None:
        backend = PythonRAGBackend(url=url)
        await backend.open(require_model=False)
        await backend.close()

    asyncio.run(opened())


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables of a process that shall find the package that is under test, whatever its directory."""
    return os.environ | {"PYTHONPATH": str(PACKAGE_PARENT), "PYTHONIOENCODING": "utf-8"} | dict(changes or {})


def run_python(
    *arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None, stdin: str | None = None
) -> Outcome:
    """This Python in a process of its own."""
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment(env),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT,
        check=False,
    )
    return Outcome(ended.returncode, ended.stdout, ended.stderr)


def run_command(
    *arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None, stdin: str | None = None
) -> Outcome:
    """The command in a process of its own."""
    return run_python("-m", "gemma_cli", *arguments, cwd=cwd, env=env, stdin=stdin)
