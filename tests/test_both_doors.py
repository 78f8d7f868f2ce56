"""What the HTTP API and the MCP server answer alike, over one backend."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from command_runs import call
from http_servers import in_process, told
from mcp import Client

from gemma_cli.commands.session import CliSession
from gemma_cli.edge.opening import Opening
from gemma_cli.edge.results import TOO_DEEP
from gemma_cli.mcp_server.server import MemoryServer
from gemma_cli.rag import MemoryEntry, PythonRAGBackend

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("hashing")]

Ask = Callable[..., Awaitable[Any]]
"""Name of a tool and its arguments -> the answer. The doors' names for what both do are the same."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory that may be ingested from."""
    found = tmp_path.resolve() / "notes"
    found.mkdir()
    return found


@pytest.fixture(params=["http", "mcp"])
async def ask(request: pytest.FixtureRequest, url: str, root: Path) -> AsyncIterator[Ask]:
    """A door: the answer's data, or that of its error."""
    async with AsyncExitStack() as stack:
        if request.param == "http":
            web = await stack.enter_async_context(in_process(url, roots=[root]))

            async def over_http(name: str, **arguments: Any) -> Any:
                if name == "list_memories":
                    return told(await web.get("/api/v1/memories", params=arguments))
                if name == "get_memory":
                    return told(await web.get(f"/api/v1/memories/{arguments['memory_id']}"))
                return (await web.post(f"/api/v1/{name.removesuffix('_document')}", json=arguments)).json()

            yield over_http
        else:
            opening = await stack.enter_async_context(Opening(CliSession(url)))
            client = await stack.enter_async_context(Client(MemoryServer(opening, [root])))

            async def over_mcp(name: str, **arguments: Any) -> Any:
                return (await client.call_tool(name, arguments)).structured_content

            yield over_mcp


async def stored(url: str, *entries: MemoryEntry) -> None:
    """Puts memories where no check of today's meets them, as an older version may have."""
    async with PythonRAGBackend(url=url) as backend:
        await backend._repository.put(list(entries))


@pytest.mark.parametrize("levels", [64, 300, 900])
async def test_metadata_of_any_depth_can_be_shown(ask: Ask, url: str, levels: int) -> None:
    """One memory that was stored with deeply nested metadata spoils no answer; of its metadata, what lies too deep is
    left out and told of, and the rest is there."""
    value: Any = 1
    for _ in range(levels - 1):
        value = [value]
    deep = MemoryEntry("A deep note.", "semantic", metadata={"note": "kept", "v": value})
    await stored(url, deep, MemoryEntry("A good note.", "semantic"))
    listed = (await ask("list_memories"))["memories"]
    assert {memory["content"] for memory in listed} == {"A deep note.", "A good note."}
    for name in ("recall", "search"):
        assert len((await ask(name, query="note"))["memories"]) == 2
    metadata = (await ask("get_memory", memory_id=deep.id))["metadata"]
    assert metadata["note"] == "kept"
    assert (metadata["v"] == value) is (levels == 64)
    assert (TOO_DEEP in str(metadata)) is (levels > 64)
    assert len((await ask("forget", tier="semantic"))["examples"]) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
async def test_a_pipe_below_a_root_is_refused_without_waiting(ask: Ask, root: Path) -> None:
    """A named pipe that nobody writes to holds up no call, and so not the end of the server either."""
    os.mkfifo(root / "pipe.txt")
    error = (await ask("ingest_document", path="pipe.txt"))["error"]
    assert error["code"] == "bad_document"
    assert "is not a regular file" in error["message"]


async def test_a_limit_means_the_same_everywhere(ask: Ask, url: str) -> None:
    """With a budget of tokens `limit` is how many memories the text is chosen from, in each door and in the command;
    without a limit the budget decides."""
    facts = ("The harbour opens at nine.", "Ada repairs red lamps.", "Coffee needs no sugar.", "A train goes to Porto.")
    await stored(url, *(MemoryEntry(f"{fact} It is noted.", "semantic") for fact in facts))
    asked: dict[str, Any] = {"query": "What is noted?", "max_tokens": 500}
    assert len((await ask("recall", **asked))["ids"]) == 4
    for limit in (1, 2):
        answer = await ask("recall", **asked, limit=limit)
        assert len(answer["ids"]) == limit
        options = "--max-tokens", "500", "--limit", str(limit)
        by_command = await asyncio.to_thread(call, "--url", url, "recall", asked["query"], *options)
        assert by_command.stdout.strip() == answer["text"].strip()
    assert len((await ask("recall", query="What is noted?", limit=3))["memories"]) == 3
    assert len((await ask("recall", query="What is noted?"))["memories"]) == 4
