"""`gemma-rag doctor`: is everything here that a memory needs, and is it sound?"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import typer

from gemma_cli.commands.session import CliSession
from gemma_cli.rag import GemmaRagError, StoreError


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `detail` says what is there, or what is wrong and what to do about it."""

    name: str
    ok: bool
    detail: str


def examine(session: CliSession) -> list[Finding]:
    """Looks at one thing after the other; what fails does not keep the rest from being looked at."""
    return [
        _find("configuration", lambda: _configuration(session)),
        _find("store", lambda: asyncio.run(_store(session))),
        _find("model", lambda: asyncio.run(_model(session))),
    ]


def print_findings(findings: list[Finding]) -> None:
    for finding in findings:
        typer.echo(f"{'ok   ' if finding.ok else 'WRONG'}  {finding.name}: {finding.detail}")


def _find(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, look())
    except GemmaRagError as error:
        return Finding(name, False, str(error))


def _configuration(session: CliSession) -> str:
    origins = session.settings().origins
    files = sorted({origin for origin in origins.values() if origin != "default"})
    return ", ".join(files) or "the defaults"


async def _store(session: CliSession) -> str:
    async with session.backend(require_model=False) as backend:
        await backend.verify()
        info = await backend.get_info()
        memories = sum(info.memories.values())
        return f"{info.url}, {memories:,} memories, {info.size_bytes / 1e6:.1f} MB, sound"


async def _model(session: CliSession) -> str:
    try:
        return await _tried_model(session)
    except StoreError:  # is the store's finding; the model may be sound all the same
        return await _tried_model(replace(session, url="memory://"))


async def _tried_model(session: CliSession) -> str:
    async with session.backend() as backend:
        start = time.perf_counter()
        identity = await backend.try_model()
        seconds = time.perf_counter() - start
    facts: dict[str, Any] = {"engine": identity.engine, "precision": identity.precision, "wide": identity.dimension}
    shown = ", ".join(f"{name} {value}" for name, value in facts.items() if value)
    return f"{identity.name} ({shown}), loaded and tried in {seconds:.1f} s"
