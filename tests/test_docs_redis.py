"""What `docs/redis.md` says is so: its access list is enough and no more, its tables are the program's, and what it
calls lost or safe is."""

import asyncio
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from command_runs import ROOT
from memory_places import WordEmbedder, settings_with
from redis_places import PATIENT, eventually, until_it_says, until_it_works
from server_groups import Replicated
from servers import Program, Server

from gemma_cli.rag import MemoryConsolidator, PythonRAGBackend, Settings
from gemma_cli.rag.errors import StoreLostError, StoreUnavailableError
from gemma_cli.rag.settings import RedisSettings
from gemma_cli.rag.stores.redis_keys import FIXED
from gemma_cli.rag.stores.redis_url import parse_url

pytestmark = pytest.mark.anyio
pytest_plugins = ["server_fixtures"]

PAGE = (ROOT / "docs" / "redis.md").read_text("utf-8")
STORES = ROOT / "src" / "gemma_cli" / "rag" / "stores"
RIGHTS = next(line for line in PAGE.splitlines() if line.startswith("ACL SETUSER "))
FOR_ANYBODY = {"auth", "hello"}
"""Commands that need no permission."""

WITHOUT_CLUSTER = {"+wait", "+set", "+cluster|slots", "+asking"}


LONG = {"timeout": PATIENT, "connection_timeout": PATIENT}


def backend(url: str, namespace: str = "default", **redis: float) -> PythonRAGBackend:
    settings = Settings(redis=RedisSettings(**(LONG | redis)))  # type: ignore[arg-type]
    return PythonRAGBackend(url=url, namespace=namespace, embedder=WordEmbedder(), settings=settings)


# The access list


def allow(server: Server, line: str) -> str:
    """Makes the user of a line of the page; its name."""
    words = line.replace("PASSWORD", "secret").split()
    server.ask(*words)
    return words[2]


async def use_all(url: str) -> None:
    """Every verb of the store, once."""
    now = [1.8e9]
    tight = replace(settings_with(working_capacity=5), redis=RedisSettings(**LONG))
    async with PythonRAGBackend(url=url, embedder=WordEmbedder(), settings=tight, clock=lambda: now[0]) as memory:
        items = [
            {"content": f"Boat number {i} is red.", "memory_type": "working", "actor": "Mia", "session": "harbour"}
            for i in range(12)
        ]
        ids = await memory.store_memories(items)
        same, other = [await memory.store_memory("The lamp is lit.", "semantic", 0.9, tags={"light"}) for _ in range(2)]
        await memory.recall_memories("boat")
        await memory.search_memories("lamp")
        await memory.list_memories(tags=["light"])
        await MemoryConsolidator(memory).run_consolidation()
        assert await memory.near_duplicates(same)
        assert await memory.near_duplicates()
        await memory.index_tokens()
        await memory.update_memory(other, content="The lamp is out.", pinned=True, tags=[])
        await memory.promote_memory(ids[-1], "semantic")
        await memory.delete_memory(same)
        await memory.verify()
        await memory.get_info()
        assert (await memory.get_memory_stats())["semantic"] == 2
        now[0] += 3_600
        await memory.cleanup_expired()
        with tempfile.TemporaryDirectory() as folder:
            await memory.export_memories(Path(folder) / "all.jsonl")
            await memory.delete_memory(other)
            await memory.import_memories(Path(folder) / "all.jsonl")
    changed = PythonRAGBackend(url=url, embedder=WordEmbedder(salt="another"), clock=lambda: now[0])
    await changed.open(require_model=False)
    await changed.reembed()
    await changed.close()


async def test_the_rights_on_the_page_are_enough(server_program: Program) -> None:
    """A user with just these rights can use every verb, and the server denies nothing on the way."""
    with Server(server_program) as server:
        user = allow(server, RIGHTS)
        await use_all(server.url_for(user, "secret", db=3))
        assert server.ask("ACL", "LOG") == []
        server.ask("SELECT", 3)


def commands_in_the_code() -> Iterator[str]:
    """Every command that a script calls or that the store sends, as the page writes its right."""
    for script in (STORES / "lua").glob("*.lua"):
        yield from (name.lower() for name in re.findall(r"redis\.p?call\(\s*'([A-Z]+)'", script.read_text("utf-8")))
    for module in set(STORES.glob("redis*.py")) - {STORES / "redis_errors.py"}:  # its words are what servers answer
        for name, below in re.findall(r'"([A-Z]+)"(?=(?:, "([A-Z]+)")?)', module.read_text("utf-8")):
            yield f"{name}|{below}".lower() if name in ("MEMORY", "CLUSTER") else name.lower()


def test_the_rights_on_the_page_are_those_of_the_code() -> None:
    """Each command that the store uses is allowed, and no other."""
    with Server() as server:
        known = {name for name in set(commands_in_the_code()) if server.ask("COMMAND", "INFO", name.split("|")[0])[0]}
    granted = {word[1:] for word in RIGHTS.split() if word.startswith("+")}
    assert granted - {"select"} == known - FOR_ANYBODY  # SELECT is redis-py's
    assert "resetchannels" in RIGHTS.split()


async def test_a_pattern_confines_a_user_to_a_namespace(server_program: Program) -> None:
    """With the page's other pattern, one namespace can be used and another one can't."""
    [mine, all_] = re.search(r"`(~gemma-rag:\{team-a\}:\*)` in place of `(~\S+)`", PAGE).groups()  # type: ignore[union-attr]
    with Server(server_program) as server:
        user = allow(server, RIGHTS.replace(all_, mine))
        url = server.url_for(user, "secret")
        async with backend(url, "team-a") as memory:
            assert await memory.store_memory("The lamp is lit.")
        with pytest.raises(StoreUnavailableError, match="keys are missing"):
            async with backend(url, "team-b"):
                pass


async def test_what_may_be_left_out_is_not_needed() -> None:
    """Without the rights for replicas, clusters, databases and the server's facts, a memory is stored and found."""
    left_out = WITHOUT_CLUSTER | {"+select", "+info"}
    assert left_out <= set(RIGHTS.split())
    with Server() as server:
        user = allow(server, " ".join(word for word in RIGHTS.split() if word not in left_out))
        async with backend(server.url_for(user, "secret")) as memory:
            await memory.store_memory("The lamp is lit.")
            assert len(await memory.recall_memories("lamp")) == 1
        assert {dict(zip(entry[::2], entry[1::2], strict=True))[b"object"] for entry in server.ask("ACL", "LOG")} == {
            b"info"
        }


# Tables and configuration


def test_the_settings_are_the_programs() -> None:
    """Each key in the table of `[redis]` has the default that the program has."""
    told = dict(re.findall(r"^\| `(\w+)` = ([\d.]+) \|", PAGE, re.MULTILINE))
    assert len(told) >= 5
    assert {name: float(value) for name, value in told.items()} == {
        name: getattr(RedisSettings(), name) for name in told
    }


def test_the_urls_can_be_used() -> None:
    """Each URL of the table that is written out is one that the store accepts."""
    urls = re.findall(r"^\| `([a-z+]+://[^`…]+)` \|", PAGE, re.MULTILINE)
    assert len(urls) == 4
    for url in urls:
        assert parse_url(url).places


def test_every_key_is_told() -> None:
    """The table of keys names each one that a namespace can have."""
    table = PAGE.split("\n## What is kept\n")[1].split("\n\n**")[0]
    told = set(re.findall(r"`([a-z-]+)(?::<\w+>)?`", table))
    assert {name.partition(":")[0] for name in FIXED} | {"m", "l"} <= told


def test_the_limits_are_the_scripts() -> None:
    """How much of the stream is kept, and how long the server waits for a sweep, are the numbers of the scripts."""
    lua = (STORES / "lua" / "common.lua").read_text("utf-8")
    assert re.search(r"ENTRIES_KEPT, NAMED_KEPT = 20000, 50000\b", lua)
    page = " ".join(PAGE.split())
    assert "keeps 20,000 entries, or fewer that name 50,000 memories" in page
    assert re.search(r"GRACE = 86400000\b", lua)
    assert "server-side TTL of that plus one day" in page


async def test_the_configuration_on_the_page_starts_a_server(server_program: Program) -> None:
    """A server with the page's lines keeps what it acknowledged when it is killed, and is not warned of."""
    lines = next(block for block in re.findall(r"^```text\n(.*?)^```", PAGE, re.M | re.S) if "appendonly" in block)
    options = {name.replace("-", "_"): value for name, value in (line.split() for line in lines.splitlines())}
    with Server(server_program, **options) as server:
        async with backend(server.url) as memory:
            assert (await memory.get_info()).versions["policy"] == "noeviction"
            ids = await asyncio.gather(*(memory.store_memory(f"Boat number {i} is red.") for i in range(50)))
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            assert all([await memory.get_memory(memory_id) for memory_id in ids])


async def test_every_key_lies_below_the_namespace(server_program: Program) -> None:
    """All that is kept of a namespace begins as the page says."""
    with Server(server_program) as server:
        async with backend(server.url, "team a/b") as memory:
            await memory.store_memory("The lamp is lit.")
        keys = server.ask("KEYS", "*")
        assert keys
        assert all(key.startswith(b"gemma-rag:{team%20a%2Fb}:") for key in keys)


# What is lost and what is not


@pytest.mark.parametrize("replicas", [0, 1])
async def test_a_replica_that_was_cut_off_takes_over(replicas: int, server_program: Program) -> None:
    """Without WAIT an acknowledged memory is lost with the master; with it, it is not acknowledged."""
    with Replicated(server_program, sentinels=0) as group:
        master, replica = group.servers
        async with backend(master.url, replicas=1) as memory:
            kept = await memory.store_memory("The lamp is lit.")
        memory = backend(master.url, replicas=replicas, timeout=1.0 if replicas else PATIENT)
        await eventually(memory.initialize)
        replica.pause()
        master.ask("CLIENT", "KILL", "TYPE", "replica")
        acknowledged = [kept]
        if replicas:
            await until_it_says("0 of 1 replicas have confirmed", lambda: memory.store_memory("The boat is red."))
        else:
            acknowledged.append(await memory.store_memory("The boat is red."))
        hits = await until_it_works(lambda: memory.recall_memories("The boat is red", touch=False))
        assert "The boat is red." in {hit.content for hit in hits}
        await memory.close()
        master.kill()
        replica.resume()
        await asyncio.to_thread(group.promote)
        async with backend(replica.url) as memory:
            left = [memory_id for memory_id in acknowledged if await memory.get_memory(memory_id)]
        assert left == [kept]
        assert (left == acknowledged) == bool(replicas)


async def test_a_server_that_came_back_empty_is_told_once(server_program: Program) -> None:
    """The first question after the loss says so, the next one is answered from an empty store."""
    with Server(server_program) as server:
        async with backend(server.url) as memory:
            await memory.store_memory("The lamp is lit.")
            await asyncio.to_thread(server.restart)
            with pytest.raises(StoreLostError):
                await memory.recall_memories("lamp")
            assert await memory.recall_memories("lamp") == []
            await memory.store_memory("The boat is red.")
            assert len(await memory.recall_memories("boat")) == 1
