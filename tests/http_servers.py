"""The HTTP server as the tests meet it: as an application in this process, and as a command in one of its own."""

import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import httpx2
from command_runs import TIMEOUT, environment
from starlette.applications import Starlette

from gemma_cli.commands.session import CliSession
from gemma_cli.edge.opening import Opening
from gemma_cli.server.app import create_app

HASHING: Final = {"GEMMA_RAG_EMBEDDING__PROVIDER": "hashing"}
"""Vectors that need no model, for all that is not about meaning."""
TOKEN: Final = "a-token-of-the-tests"
BEARER: Final = {"Authorization": f"Bearer {TOKEN}"}
ADDRESS: Final = "http://127.0.0.1:8765"
MEMORIES: Final = "/api/v1/memories"


def client_of(app: Starlette, address: str = ADDRESS, **options: Any) -> httpx2.AsyncClient:
    """A client of an application in this process, over no socket."""
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url=address, **options)


@asynccontextmanager
async def running(url: str, **options: Any) -> AsyncIterator[Starlette]:
    """The application between its start and its end, without MCP."""
    app = create_app(Opening(CliSession(url)), **{"host": "127.0.0.1", "mcp": False} | options)
    async with app.router.lifespan_context(app):
        yield app


@asynccontextmanager
async def in_process(url: str, **options: Any) -> AsyncIterator[httpx2.AsyncClient]:
    async with running(url, **options) as app, client_of(app) as web:
        yield web


def told(response: httpx2.Response, status: int = 200) -> Any:
    """The JSON of an answer that has this status."""
    assert response.status_code == status, response.text
    return response.json()


def refused(response: httpx2.Response, status: int) -> Any:
    """The error that an answer of this status tells."""
    error = told(response, status)["error"]
    assert set(error) == {"code", "message", "retryable"}
    assert ("retry-after" in response.headers) == error["retryable"]
    return error


@contextmanager
def server(url: str, *options: str, env: dict[str, str] | None = None) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The command on a free port: its address and its process. At the end it must obey a SIGTERM, with nothing on
    stderr beside the one line."""
    words = [sys.executable, "-m", "gemma_cli", "--url", url, "serve", "--port", "0", *options]
    with subprocess.Popen(
        words, env=environment(HASHING | (env or {})), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            found = re.fullmatch(r"listening on (http://\S+:\d+)\n", line)
            assert found, line
            yield found[1], process
        finally:
            process.terminate()
            rest = process.stderr.read()
        assert (process.wait(TIMEOUT), rest) == (0, "")
