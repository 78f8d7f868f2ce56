"""Several processes on one Redis server: what each sees of the others, of itself, and of what the server drops."""

import asyncio
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise

import pytest
from conftest import Clock
from redis_places import PATIENT, backend_on, state_of
from servers import Program, Server
from test_processes import Child, child

from gemma_cli.rag import PythonRAGBackend
from gemma_cli.rag.stores.redis_keys import Keys

pytest_plugins = ["server_fixtures"]
pytestmark = pytest.mark.anyio

PROCESSES = 8


def ask_all(children: list[Child], verb: str, *args: object, **kwargs: object) -> list[object]:
    """What all answer who are asked at the same time."""
    for one in children:
        one.ask(verb, *args, **kwargs)
    return [one.read()["result"] for one in children]


@pytest.fixture(scope="module")
def eight(server_program: Program) -> Iterator[tuple[Server, list[Child]]]:
    """A server and eight processes on it."""
    with Server(server_program) as server, ExitStack() as stack:
        children = [stack.enter_context(child("serve", server.url)) for _ in range(PROCESSES)]
        assert [one.read() for one in children] == [{"result": True}] * PROCESSES
        yield server, children


async def test_eight_processes_see_each_write_at_once(eight: tuple[Server, list[Child]]) -> None:
    """The very next question after a write was acknowledged finds it, in the process that wrote it and in others."""
    server, children = eight
    for number, writer in enumerate(children):
        memory_id = writer.call("store_memory", f"word{number}", "semantic")
        for found in ask_all(children, "search_memories", f"word{number}"):
            assert [hit["id"] for hit in found] == [memory_id]
        for found in ask_all(children, "recall_memories", f"word{number}", limit=1):
            assert [hit["id"] for hit in found] == [memory_id]
        if number % 3 == 0:
            assert children[number - 1].call("delete_memory", memory_id) is True
            assert ask_all(children, "search_memories", f"word{number}") == [[]] * PROCESSES
    stats = ask_all(children, "get_memory_stats")
    assert stats == [stats[0]] * PROCESSES
    async with backend_on(server.url) as backend:
        await state_of(backend)


async def test_eight_processes_that_write_at_once_lose_nothing(eight: tuple[Server, list[Child]]) -> None:
    """Every memory is there, and no tier is above its capacity, which is 10 for `working`."""
    server, children = eight
    for i in range(30):
        for p, one in enumerate(children):
            one.ask("store_memory", f"p{p} number {i}", "long_term" if i % 5 else "working")
    ids = {one.read()["result"] for one in children for _ in range(30)}
    assert len(ids) == 30 * PROCESSES
    async with backend_on(server.url) as backend:
        state = await state_of(backend)
        stored = {content for content, tier, *_ in state.memories.values() if tier == "long_term"}
        assert stored == {f"p{p} number {i}" for p in range(PROCESSES) for i in range(30) if i % 5}
        assert state.counts["working"] == 10


async def test_a_process_that_dies_while_it_writes_leaves_whole_batches(redis_server: Server) -> None:
    """After kill -9, what it acknowledged is there, batches whole."""
    with child("forever", redis_server.url, "life") as writer:
        assert writer.read() == "ready"
        acknowledged = []
        while len(acknowledged) < 100:
            acknowledged += writer.read()
        writer.process.kill()
        for line in writer.process.stdout:
            if line.endswith("\n"):
                acknowledged += json.loads(line)
    async with backend_on(redis_server.url) as backend:
        stored = (await state_of(backend)).memories
        assert set(acknowledged) <= stored.keys()
        batches = [content.split(" batch ")[0] for content, *_ in stored.values() if " batch " in content]
        assert {batches.count(batch) for batch in batches} <= {20}


async def test_a_process_that_opens_at_the_same_moment_shares_the_namespace(redis_server: Server) -> None:
    """Of many that make a namespace at once, one does, and all use it."""
    backends = [backend_on(redis_server.url, limit=PATIENT + i) for i in range(PROCESSES)]
    assert all(await asyncio.gather(*(backend.initialize() for backend in backends)))
    ids = await asyncio.gather(*(backend.store_memory(f"n{i}", "semantic") for i, backend in enumerate(backends)))
    for backend in backends:
        assert (await state_of(backend)).memories.keys() == set(ids)
        await backend.close()


async def test_a_reader_that_fell_behind_the_stream_loads_anew(redis_server: Server) -> None:
    """With the changes that it has not read cut off, it finds what came, and not what went."""
    writer, reader = backend_on(redis_server.url), backend_on(redis_server.url)
    assert await writer.initialize()
    assert await reader.initialize()
    old = [await writer.store_memory(f"apple {i}", "semantic") for i in range(10)]
    assert len(await reader.search_memories("apple")) == 10
    for cut in (1, 0, 3):
        new = [await writer.store_memory(f"apple new {cut} {i}", "semantic") for i in range(5)]
        for memory_id in old[:2]:
            assert await writer.delete_memory(memory_id)
        old = old[2:] + new
        redis_server.ask("XTRIM", Keys("default").of("changes"), "MAXLEN", cut)
        if cut == 0:  # nothing is left to go by: the next change makes the gap plain
            old.append(await writer.store_memory("apple last", "semantic"))
        assert {hit.id for hit in await reader.search_memories("apple", limit=100)} == set(old)
        assert {hit.id for hit in await reader.recall_memories("apple", limit=100)} == set(old)
    await state_of(reader)
    await reader.close()
    await writer.close()


async def test_a_stream_that_is_trimmed_by_itself_is_followed(redis_server: Server) -> None:
    """The store cuts off changes once they name too many memories; a reader who was away meanwhile misses nothing."""
    writer, reader = backend_on(redis_server.url), backend_on(redis_server.url)
    assert await writer.initialize()
    assert await reader.initialize()
    keys = Keys("default")
    gone = await writer.store_memory("apple first", "semantic")
    assert len(await reader.search_memories("apple")) == 1
    assert await writer.delete_memory(gone)
    redis_server.ask("HINCRBY", keys.of("meta"), "named", 100_000)  # as if a few large imports had been
    for i in range(150):
        await writer.store_memory(f"apple {i}", "semantic")
    assert int(redis_server.ask("XLEN", keys.of("changes"))) < 150
    assert len(await reader.search_memories("apple", limit=1_000)) == 150
    await state_of(reader)
    await reader.close()
    await writer.close()


# What the server drops by itself


def drop(server: Server, *ids: str, namespace: str = "default") -> None:
    """Lets the server's own lifetime of memories end now."""
    keys = [Keys(namespace).base + b"m:" + memory_id.encode() for memory_id in ids]
    for key in keys:
        assert server.ask("PEXPIRE", key, 1) == 1
    end = time.monotonic() + PATIENT
    while any(server.ask("EXISTS", key) for key in keys):
        assert time.monotonic() < end
        time.sleep(0.001)


async def expired_by_the_server(server: Server, clock: Clock) -> tuple[PythonRAGBackend, list[str]]:
    backend = backend_on(server.url, clock=clock, working_capacity=4)
    assert await backend.initialize()
    ids = await backend.store_memories({"content": f"apple {i}", "memory_type": "working"} for i in range(4))
    assert len(await backend.recall_memories("apple")) == 4
    drop(server, *ids[:2])
    return backend, ids


async def test_what_the_server_has_dropped_is_not_found(redis_server: Server, clock: Clock) -> None:
    """No verb finds it, by meaning, by words, by id or in a list; a sweep puts the counts right."""
    backend, ids = await expired_by_the_server(redis_server, clock)
    for attempt in range(2):
        assert {hit.id for hit in await backend.recall_memories(f"apple {attempt}")} == set(ids[2:])
        assert {hit.id for hit in await backend.search_memories("apple")} == set(ids[2:])
        assert {entry.id for entry in await backend.list_memories()} == set(ids[2:])
        assert await backend.get_memory(ids[0]) is None
        assert await backend.delete_memory(ids[0]) is False
        assert await backend.update_memory(ids[0], importance=1.0) is None
        await backend.verify()
    clock.tick(3_600)
    assert sum((await backend.get_memory_stats()).values()) == 0
    assert await backend.cleanup_expired() == 4
    assert sum((await backend.get_memory_stats()).values()) == 0
    await backend.store_memory("pear", "working")
    await state_of(backend)
    await backend.close()


async def test_what_the_server_has_dropped_stands_in_nobodys_way(redis_server: Server, clock: Clock) -> None:
    """Before a sweep, by a clock that is behind: its tier takes new memories, moves and promotes."""
    backend, ids = await expired_by_the_server(redis_server, clock)
    for i in range(4):
        pear = await backend.store_memory(f"pear {i}", "working")
        assert pear in {hit.id for hit in await backend.search_memories("pear")}
        assert (await backend.get_memory_stats())["working"] <= 4
    await backend.promote_deserving()
    assert await backend.link_near_duplicates() >= 0
    clock.tick(3_600)
    await backend.cleanup_expired()
    await state_of(backend)
    assert not redis_server.ask("EXISTS", Keys("default").base + b"l:" + ids[0].encode())
    await backend.close()


# Namespaces


AWKWARD = (
    "a}{b",
    "{",
    "}",
    "*",
    "?[a-z]",
    "ünïcödé 記憶",
    "two\nlines",
    "a:b",
    "a%3Ab",
    "{a}:m",
    " ",
    "\x00",
    "a",
    "A",
)


async def test_namespaces_never_see_each_other_whatever_they_are_called(redis_server: Server) -> None:
    """Each holds its own memory alone, and what is forgotten in one stays in the others."""
    backends = {name: backend_on(redis_server.url, namespace=name) for name in AWKWARD if name.strip()}
    ids = {}
    for name, backend in backends.items():
        assert await backend.initialize()
        ids[name] = await backend.store_memory(f"apple of {os.fsencode(name).hex()}", "semantic")
    for name, backend in backends.items():
        assert [hit.id for hit in await backend.recall_memories("apple", limit=50)] == [ids[name]]
        assert (await state_of(backend)).memories.keys() == {ids[name]}
    for one, other in pairwise(AWKWARD):
        if one in ids and other in ids:
            assert await backends[other].delete_memory(ids[one]) is False
    first = next(iter(backends))
    assert await backends[first].delete_memory(ids[first])
    for name, backend in backends.items():
        assert len(await backend.list_memories()) == (name != first)
        await backend.close()
