"""Every key of the documented configuration does something: one test a key, of what a user can see of it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from memory_places import WordEmbedder
from numpy.typing import NDArray
from servers import Server

from gemma_cli.rag import (
    BackgroundTasks,
    MemoryTier,
    ModelMismatchError,
    ModelNotFoundError,
    PythonRAGBackend,
    Settings,
    load_settings,
)
from gemma_cli.rag.embedders.weights import locate

if TYPE_CHECKING:
    from conftest import Clock

pytest_plugins = ["server_fixtures"]
pytestmark = pytest.mark.anyio

SOON = 0.02
"""Seconds between two runs of a background task, where a test waits for one."""


@pytest.fixture
def configured(tmp_path: Path) -> Callable[[str], Settings]:
    """The settings that a configuration file with this text gives, and nothing else."""

    def load(text: str) -> Settings:
        file = tmp_path / "config.toml"
        file.write_text(text)
        return load_settings(config=file, environ={}, cwd=tmp_path)

    return load


class CountingEmbedder(WordEmbedder):
    """Remembers how many texts each call brought."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        self.batches.append(len(texts))
        return super().encode(texts)


def in_memory(settings: Settings, **arguments: Any) -> PythonRAGBackend:
    """A backend with these settings on a store of its own; unless another is given, with an embedder without model."""
    return PythonRAGBackend(url="memory://", settings=settings, **({"embedder": WordEmbedder()} | arguments))


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Waits for what a background task will do."""
    async with asyncio.timeout(30):
        while not await true():  # noqa: ASYNC110 - the tasks have no event for tests to wait on
            await asyncio.sleep(SOON / 4)


async def count(backend: PythonRAGBackend, operation: str) -> int:
    """How often a verb has been called, by the backend's own monitor."""
    assert backend.monitor is not None
    figures = (await backend.monitor.get_report())["operations"].get(operation)
    return int(figures["count"]) if figures else 0


# [memory]


async def test_consolidation_threshold(configured: Callable[[str], Settings]) -> None:
    """A memory of relevance 0.7 is promoted where the threshold is 0.6, and not where it is the default 0.75."""
    promoted = []
    for text in ("[memory]\nconsolidation_threshold = 0.6", ""):
        async with in_memory(configured(text)) as backend:
            await backend.store_memory("x", importance=0.8)
            promoted.append(sum((await backend.promote_deserving()).values()))
    assert promoted == [1, 0]


async def test_importance_decay_rate(configured: Callable[[str], Settings], clock: "Clock") -> None:
    """After ten days an important memory still deserves promotion where nothing decays, and no more at the default."""
    promoted = []
    for text in ("[memory]\nimportance_decay_rate = 0.0", ""):
        async with in_memory(configured(text), clock=clock) as backend:
            await backend.store_memory("x", MemoryTier.LONG_TERM, importance=1.0)
            clock.tick(10 * 86_400)
            promoted.append(sum((await backend.promote_deserving()).values()))
    assert promoted == [1, 0]


async def test_cleanup_interval(configured: Callable[[str], Settings]) -> None:
    """A short interval has brought several runs before the default one has brought its first."""
    async with AsyncExitStack() as stack:
        quick, slow = [
            await stack.enter_async_context(in_memory(configured(text)))
            for text in (f"[memory]\ncleanup_interval = {SOON}", "")
        ]
        for backend in (quick, slow):
            await stack.enter_async_context(BackgroundTasks(backend))

        async def ran_thrice() -> bool:
            return await count(quick, "promote_deserving") >= 3

        await until(ran_thrice)
        assert await count(slow, "promote_deserving") == 0


async def test_enable_background_tasks(configured: Callable[[str], Settings]) -> None:
    """Where they are switched off, none runs while those of another backend run again and again."""
    async with AsyncExitStack() as stack:
        on, off = [
            await stack.enter_async_context(
                in_memory(configured(f"[memory]\ncleanup_interval = {SOON}\nenable_background_tasks = {value}"))
            )
            for value in ("true", "false")
        ]
        for backend in (on, off):
            await stack.enter_async_context(BackgroundTasks(backend))

        async def ran_thrice() -> bool:
            return await count(on, "promote_deserving") >= 3

        await until(ran_thrice)
        assert await count(off, "promote_deserving") + await count(off, "cleanup_expired") == 0


@pytest.mark.parametrize(("value", "tier"), [("true", MemoryTier.SHORT_TERM), ("false", MemoryTier.WORKING)])
async def test_auto_consolidate(
    value: str, tier: MemoryTier, configured: Callable[[str], Settings], clock: "Clock"
) -> None:
    """A background run removes what has expired; what deserves promotion moves only if auto_consolidate says so."""
    settings = configured(f"[memory]\ncleanup_interval = {SOON}\nauto_consolidate = {value}\nshort_term_ttl = 5")
    async with in_memory(settings, clock=clock) as backend:
        await backend.store_memory("short-lived", MemoryTier.SHORT_TERM)
        clock.tick(10)
        kept = await backend.store_memory("important", MemoryTier.WORKING, importance=1.0)
        verb = "promote_deserving" if value == "true" else "cleanup_expired"
        async with BackgroundTasks(backend):

            async def ran() -> bool:
                return await count(backend, verb) >= 1

            await until(ran)
        memory = await backend.get_memory(kept)
        assert memory is not None
        assert memory.tier is tier
        assert await backend.cleanup_expired() == 0  # the run has removed it already


# [embedding]


async def test_provider(configured: Callable[[str], Settings]) -> None:
    """Each provider runs its own engine."""
    engines = []
    for provider in ("local", "onnx", "hashing"):
        async with in_memory(configured(f"[embedding]\nprovider = '{provider}'"), embedder=None) as backend:
            engines.append((await backend.try_model()).engine)
    assert engines == ["openvino", "onnxruntime", "hashing"]


async def test_model(configured: Callable[[str], Settings], tmp_path: Path) -> None:
    """The model that is named is the one that is looked for: a directory's is found, an unknown one is not."""
    with pytest.raises(ModelNotFoundError, match="no-such-model"):
        await in_memory(configured("[embedding]\nmodel = 'no-such-model'"), embedder=None).open()
    (tmp_path / "mine").symlink_to(locate("all-MiniLM-L6-v2").directory, target_is_directory=True)
    async with in_memory(configured(f"[embedding]\nmodel = '{tmp_path / 'mine'}'"), embedder=None) as backend:
        await backend.store_memory("x")
        assert (await backend.get_info()).dimension == 384


async def test_dimension(configured: Callable[[str], Settings]) -> None:
    """The width of the vectors is the configured one, or the model that has another is refused."""
    settings = configured("[embedding]\nprovider = 'hashing'\ndimension = 96")
    async with in_memory(settings, embedder=None) as backend:
        memory = await backend.get_memory(await backend.store_memory("x"))
        assert memory is not None
        assert memory.embedding is not None
        assert memory.embedding.shape == (96,)
    with pytest.raises(ModelMismatchError, match="dimension: 96"):
        await in_memory(configured("[embedding]\ndimension = 96"), embedder=None).open()


async def test_batch_size(configured: Callable[[str], Settings]) -> None:
    """No call of the model has more texts than that, and one has as many where there are enough."""
    largest = []
    for text in ("[embedding]\nbatch_size = 4", ""):
        embedder = CountingEmbedder()
        async with in_memory(configured(text), embedder=embedder) as backend:
            await backend.store_memories({"content": f"text {n:02}", "memory_type": "semantic"} for n in range(64))
        largest.append(max(embedder.batches))
    assert largest[0] == 4
    assert 4 < largest[1] <= 32


async def test_cache_embeddings(configured: Callable[[str], Settings]) -> None:
    """A question asked again is embedded again only where vectors are not kept."""
    embedded = []
    for value in ("true", "false"):
        embedder = WordEmbedder()
        text = f"[memory]\nquery_cache_ttl = 0\n[embedding]\ncache_embeddings = {value}"
        async with in_memory(configured(text), embedder=embedder) as backend:
            await backend.store_memory("the answer")
            for _ in range(3):
                await backend.recall_memories("the question")
        embedded.append(embedder.texts.count("the question"))
    assert embedded == [1, 3]


# [redis]


@pytest.mark.parametrize(
    ("line", "url"),
    [
        ("host = 'memory.example'", "redis://memory.example:6380/0"),
        ("port = 7001", "redis://localhost:7001/0"),
        ("db = 3", "redis://localhost:6380/3"),
    ],
)
async def test_host_port_db(line: str, url: str, configured: Callable[[str], Settings]) -> None:
    """The server that a backend is made for is the one of [redis], where the store is "redis"."""
    settings = configured(f"[store]\nurl = 'redis'\n[redis]\n{line}")
    assert PythonRAGBackend(settings=settings).url == url


async def test_pool_size(configured: Callable[[str], Settings], own_server: Server) -> None:
    """Twenty callers at once are served over as many connections to the server as the pool may have, and no more."""
    settings = configured(f"[redis]\nhost = '127.0.0.1'\nport = {own_server.port}\npool_size = 2")
    url = settings.redis.redis_url()
    async with PythonRAGBackend(url=url, settings=settings, embedder=WordEmbedder()) as backend:
        await asyncio.gather(*(backend.store_memory(f"text {i}") for i in range(20)))
        connections = own_server.ask("CLIENT", "LIST").splitlines()
    assert len(connections) == 2 + 1  # the one that asks


async def test_connection_timeout(configured: Callable[[str], Settings]) -> None:
    """Of two backends whose server never answers, the one with the shorter time limit gives up first."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    gave_up: list[float] = []
    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]

        async def try_for(seconds: float) -> None:
            settings = configured(f"[redis]\nhost = '127.0.0.1'\nport = {port}\nconnection_timeout = {seconds}")
            backend = PythonRAGBackend(url=settings.redis.redis_url(), settings=settings, embedder=WordEmbedder())
            assert not await backend.initialize()
            gave_up.append(seconds)

        await asyncio.gather(try_for(1.0), try_for(0.1))
    assert gave_up == [0.1, 1.0]


# [monitoring]


async def measured(settings: Settings) -> dict[str, Any]:
    """The report of a backend that has stored and recalled something."""
    async with in_memory(settings) as backend:
        await backend.store_memory("some words of a text")
        await backend.recall_memories("words")
        assert backend.monitor is not None
        return await backend.monitor.get_report()


async def test_enabled(configured: Callable[[str], Settings]) -> None:
    """Switched off, a backend has no monitor; switched on, it counts its verbs."""
    assert in_memory(configured("[monitoring]\nenabled = false")).monitor is None
    report = await measured(configured("[monitoring]\nenabled = true"))
    assert report["operations"]["store_memory"]["count"] == 1


async def test_track_latency(configured: Callable[[str], Settings]) -> None:
    """Switched off, no operation is timed, and the rest of the report is there."""
    report = await measured(configured("[monitoring]\ntrack_latency = false"))
    assert report["operations"] == {}
    assert report["memory"]


async def test_track_memory(configured: Callable[[str], Settings]) -> None:
    """Switched off, the report says nothing of the process's memory; switched on, how much there is."""
    assert (await measured(configured("[monitoring]\ntrack_memory = false")))["memory"] == {}
    assert (await measured(configured("")))["memory"]["peak_rss_mb"] > 0


async def test_track_token_usage(configured: Callable[[str], Settings]) -> None:
    """Switched on, the report counts the tokens that were embedded; switched off, it counts none."""
    tokens = []
    for value in ("true", "false"):
        settings = configured(f"[monitoring]\ntrack_token_usage = {value}")
        async with in_memory(settings, embedder=None) as backend:  # the real model: only a tokenizer can count
            await backend.store_memory("some words of a text")
            assert backend.monitor is not None
            report = await backend.monitor.get_report()
            tokens.append(sum(figures["total"] for figures in report["tokens"].values()))
    assert tokens[0] >= 5
    assert tokens[1] == 0


async def test_report_interval(configured: Callable[[str], Settings], caplog: pytest.LogCaptureFixture) -> None:
    """A short interval brings reports into the log; the default one brings none meanwhile."""
    caplog.set_level(logging.INFO, "gemma_cli.rag.monitoring")
    async with AsyncExitStack() as stack:
        quick, slow = [
            await stack.enter_async_context(in_memory(configured(text)))
            for text in (f"[monitoring]\nreport_interval = {SOON}", "")
        ]
        await quick.store_memory("x")
        for backend in (quick, slow):
            await stack.enter_async_context(BackgroundTasks(backend))

        def reports() -> list[dict[str, Any]]:
            return [vars(record)["report"] for record in caplog.records if record.message == "performance_report"]

        async def three_reports() -> bool:
            return len(reports()) >= 3

        await until(three_reports)
        assert all("store_memory" in report["operations"] for report in reports())  # none is the slow one's


async def test_tracing(configured: Callable[[str], Settings]) -> None:
    """Switched on, a backend tells a tracer of its calls; switched off, as by default, or without monitoring, it has
    none."""
    assert in_memory(configured("[monitoring]\ntracing = true")).tracer is not None
    for text in ("", "[monitoring]\ntracing = false", "[monitoring]\nenabled = false\ntracing = true"):
        assert in_memory(configured(text)).tracer is None
