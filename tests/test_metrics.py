"""`/metrics`: asked over HTTP, read with Prometheus' own parser."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from command_runs import ROOT, TIMEOUT
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain_text
from starlette.applications import Starlette

from gemma_cli.commands.session import CliSession
from gemma_cli.edge.listening import bound
from gemma_cli.edge.opening import Opening
from gemma_cli.rag import MemoryTier, __version__
from gemma_cli.rag.series import BOUNDS
from gemma_cli.rag.verbs import TIMED
from gemma_cli.server import metrics
from gemma_cli.server.live import Live
from gemma_cli.server.metrics import OTHER, metrics_endpoint

pytestmark = pytest.mark.anyio

SECRETS = ("the harbour master keeps a parrot", "private-tag", "namespace-of-mine", "parrot-owner")
DASHBOARD = ROOT / "config" / "grafana.json"

Labels = dict[str, str]


class Scrape:
    """The metrics of one answer."""

    def __init__(self, found: Iterable[Metric], text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in found}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def __getitem__(self, name: str) -> float:
        return self.value(name)

    def value(self, name: str, **labels: str) -> float:
        """The one sample with exactly these labels, `gemma_rag_` in front of its name."""
        [value] = [s.value for s in self.samples if s.name == f"gemma_rag_{name}" and s.labels == labels]
        return value

    def labels(self, name: str) -> list[Labels]:
        return [s.labels for s in self.samples if s.name == f"gemma_rag_{name}"]

    @property
    def names(self) -> set[str]:
        return {sample.name for sample in self.samples}


class Scraped:
    """A server whose one page is `/metrics`, and the way to read it."""

    def __init__(self, opening: Opening, app: Starlette, url: str, web: httpx2.AsyncClient) -> None:
        self.opening = opening
        self.app = app
        self.url = url
        self._web = web

    async def answer(self, accept: str = "") -> httpx2.Response:
        return await self._web.get(self.url, headers={"accept": accept})

    async def __call__(self) -> Scrape:
        answer = await self.answer()
        assert answer.status_code == 200
        return Scrape(plain_text(answer.text), answer.text)


@asynccontextmanager
async def served(session: CliSession, *, live: bool = False) -> AsyncIterator[Scraped]:
    async with AsyncExitStack() as owned:
        opening = await owned.enter_async_context(Opening(session))
        web = await owned.enter_async_context(httpx2.AsyncClient(trust_env=False, timeout=TIMEOUT))
        app = Starlette(routes=[metrics_endpoint(opening)])
        if live:
            app.state.live = await owned.enter_async_context(Live(opening, interval=0.05))
        with bound("127.0.0.1", 0) as (listening, url):
            server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
            serving = asyncio.create_task(server.serve(sockets=[listening]))
            try:
                yield Scraped(opening, app, f"{url}/metrics", web)
            finally:
                server.should_exit = True
                await serving


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scrape waits until the store has answered, however slow the machine."""
    monkeypatch.setattr(metrics, "PATIENCE", TIMEOUT)


@pytest.fixture
def session(tmp_path: Path) -> Callable[..., CliSession]:
    """The options of a server over a store of its own, with an embedder that needs no model."""

    def make(url: str = f"sqlite:///{tmp_path / 'memory.db'}", more: str = "") -> CliSession:
        config = tmp_path / "config.toml"
        config.write_text(f"[embedding]\nprovider = 'hashing'\n{more}")
        return CliSession(url, SECRETS[2], config)

    return make


@pytest.fixture
async def scraped(session: Callable[..., CliSession]) -> AsyncIterator[Scraped]:
    async with served(session()) as scraped:
        yield scraped


async def test_counters_grow_by_what_was_done(scraped: Scraped) -> None:
    """Two stores, three recalls (one of them new to the cache each time a store came between), one failure and a
    consolidation are counted as such between two scrapes, and the tiers hold what was stored."""
    backend = await scraped.opening.backend()
    await backend.store_memory("the first")
    before = await scraped()
    await backend.store_memory("a lighthouse", "working", importance=1.0)
    await backend.store_memory("a pier", MemoryTier.SEMANTIC)
    for _ in range(3):
        await backend.recall_memories("what stands by the sea?")
    with pytest.raises(ValueError, match="limit"):
        await backend.recall_memories("what?", limit=0)
    await backend.promote_deserving()
    after = await scraped()

    def grew(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    assert grew("operation_duration_seconds_count", operation="store_memory") == 2
    assert after.value("operation_duration_seconds_count", operation="recall_memories") == 4
    assert after.value("operation_errors_total", operation="recall_memories") == 1
    assert grew("operation_errors_total", operation="store_memory") == 0
    assert grew("embedded_texts_total") == 3  # two memories and a question
    assert 1 <= grew("embedding_batches_total") <= 3
    assert grew("cache_misses_total", cache="embeddings") == 3
    assert grew("promotions_total", from_tier="working", to_tier="short_term") == 1
    assert grew("promotions_total", from_tier="long_term", to_tier="semantic") == 0
    assert {tier: after.value("memories", tier=tier) for tier in MemoryTier} == {
        "working": 0,
        "short_term": 2,
        "episodic": 0,
        "long_term": 0,
        "semantic": 1,
    }
    assert after.value("tier_capacity", tier="working") == 15
    assert after["store_up"] == 1
    assert after["store_size_bytes"] > 0
    assert after["index_size_bytes"] > 0
    assert after["embedding_queue_length"] == 0
    assert grew("cache_size", cache="embeddings") == 3


async def test_answers_of_the_cache_are_hits(scraped: Scraped) -> None:
    """Of three equal questions the first is a miss and the others are hits."""
    backend = await scraped.opening.backend()
    for _ in range(3):
        await backend.recall_memories("what stands by the sea?")
    scrape = await scraped()
    assert scrape.value("cache_hits_total", cache="answers") == 2
    assert scrape.value("cache_misses_total", cache="answers") == 1
    assert scrape.value("cache_size", cache="answers") == 1
    assert scrape.value("cache_capacity", cache="answers") == 1_000


async def test_near_duplicates_are_counted(scraped: Scraped) -> None:
    """Two memories of the same words are one pair, counted once however often it is looked for."""
    backend = await scraped.opening.backend()
    assert (await scraped())["near_duplicates_total"] == 0
    await backend.store_memories([{"content": "a pier"}, {"content": "a pier"}])
    for _ in range(2):
        await backend.link_near_duplicates()
    assert (await scraped())["near_duplicates_total"] == 1


async def test_durations_are_a_histogram_in_seconds(scraped: Scraped) -> None:
    """Buckets cumulate up to the count at +Inf, a duration on a bound belongs to that bound's bucket, and the sum is in
    seconds."""
    backend = await scraped.opening.backend()
    assert backend.monitor is not None
    backend.monitor.reset_stats()
    for seconds in (0.00001, BOUNDS[5], 0.3, 0.3, 100.0):
        backend.monitor.record("recall_memories", seconds)
    scrape = await scraped()
    found = {
        float(s.labels["le"]): s.value
        for s in scrape.samples
        if s.name == "gemma_rag_operation_duration_seconds_bucket" and s.labels["operation"] == "recall_memories"
    }
    assert tuple(found) == (*BOUNDS, float("inf"))
    assert list(found.values()) == [1] * 5 + [2] * 6 + [4] * 6 + [5]
    assert scrape.value("operation_duration_seconds_sum", operation="recall_memories") == pytest.approx(100.60501)


async def test_looking_is_not_counted(scraped: Scraped) -> None:
    """A scrape leaves no trace in what the next one says of the backend's verbs."""
    await (await scraped.opening.backend()).get_memory_stats()
    for _ in range(3):
        scrape = await scraped()
    assert scrape.value("operation_duration_seconds_count", operation="get_memory_stats") == 1


async def test_a_reset_starts_counters_anew(scraped: Scraped) -> None:
    """After `reset_stats` a counter is that of a new process, which Prometheus takes for a restart."""
    backend = await scraped.opening.backend()
    for _ in range(3):
        await backend.get_memory("no such memory")
    assert (await scraped()).value("operation_duration_seconds_count", operation="get_memory") == 3
    assert backend.monitor is not None
    backend.monitor.reset_stats()
    await backend.get_memory("no such memory")
    assert (await scraped()).value("operation_duration_seconds_count", operation="get_memory") == 1


async def test_label_sets_stay_bounded_and_hold_nothing_of_the_user(scraped: Scraped) -> None:
    """Whatever is stored, asked or recorded under a made-up name, labels are verbs, tiers, caches and the build; what
    is no verb is counted as one."""
    backend = await scraped.opening.backend()
    assert backend.monitor is not None
    await backend.store_memory(SECRETS[0], tags=[SECRETS[1]], actor=SECRETS[3], metadata={"place": "quay"})
    await backend.recall_memories(SECRETS[0], tags=[SECRETS[1]])
    for hostile in (*SECRETS, 'x"} 1\ny{z="', "promotions a->b", "\N{SNOWMAN}" * 500):
        backend.monitor.record(hostile, 0.1)
        backend.monitor.record_metric(hostile, 1)
        backend.monitor.record_error(hostile)
        backend.monitor.add_source(hostile, lambda: 1 / 0)
    for number in range(1_000):
        backend.monitor.record(f"op {number}", 0.1)
    scrape = await scraped()
    operations = {labels["operation"] for labels in scrape.labels("operation_duration_seconds_count")}
    assert operations <= TIMED | {OTHER}
    assert scrape.value("operation_duration_seconds_count", operation=OTHER) == 1_007
    assert scrape.value("operation_errors_total", operation=OTHER) == 14  # seven recorded, seven sources that failed
    allowed: dict[str, set[Any]] = {
        "operation": TIMED | {OTHER},
        "tier": set(MemoryTier),
        "from_tier": set(MemoryTier),
        "to_tier": set(MemoryTier),
        "cache": {"answers", "embeddings"},
        "version": {__version__},
        "model": {"hashing"},
        "engine": {"hashing f32"},
    }
    for sample in scrape.samples:
        for name, value in sample.labels.items():
            if name != "le":
                assert value in allowed[name], sample
    for secret in SECRETS:
        assert secret not in scrape.text


async def test_each_format_is_what_its_type_says(scraped: Scraped) -> None:
    """Who asks for OpenMetrics gets it, all others get Prometheus' text; both parse to the same names."""
    await (await scraped.opening.backend()).store_memory("x")
    accepts = {
        "": "text/plain; version=0.0.4",
        "*/*": "text/plain; version=0.0.4",
        "application/openmetrics-text; version=1.0.0; q=0.9, text/plain; q=0.5": "application/openmetrics-text; vers",
    }
    for accept, kind in accepts.items():
        answer = await scraped.answer(accept)
        assert answer.headers["content-type"].startswith(kind)
        parse = open_metrics if "openmetrics" in kind else plain_text
        scrape = Scrape(parse(answer.text), answer.text)
        assert scrape.value("operation_duration_seconds_count", operation="store_memory") == 1
        assert "process_resident_memory_bytes" in scrape.names
        assert "process_cpu_seconds_total" in scrape.names


async def test_names_keep_to_the_conventions(scraped: Scraped) -> None:
    """Every metric of ours has the prefix, an explanation, a known type, `_total` where it is a counter and base units
    only."""
    await (await scraped.opening.backend()).store_memory("x")
    scrape = await scraped()
    for name, family in scrape.families.items():
        assert name.startswith(("gemma_rag_", "process_")), name
        assert family.documentation
        assert family.type in ("counter", "gauge", "histogram")
        assert not re.search(r"_(ms|milliseconds|mb|percent|ratio)$", name)
        if family.type == "counter" and name.startswith("gemma_rag_"):
            assert all(sample.name.endswith("_total") for sample in family.samples)


async def test_a_scrape_opens_the_store_and_loads_no_model(scraped: Scraped) -> None:
    """The first scrape of a server that nobody has used says whether the store answers, and leaves the model alone."""
    scrape = await scraped()
    assert scrape["store_up"] == 1
    assert scrape.value("build_info", version=__version__, model="", engine="") == 1
    assert "gemma_rag_embedded_texts_total" not in scrape.names


async def test_a_store_that_does_not_answer_is_down_and_the_scrape_answers(
    session: Callable[..., CliSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a store hangs, scrapes say `store_up 0` and what they know of the process, and no second one knocks at the
    store meanwhile."""
    monkeypatch.setattr(metrics, "PATIENCE", 0.3)
    waiting, knocked, let_go = 0, asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal waiting
        waiting += 1
        knocked.set()
        await let_go.wait()
        waiting -= 1
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        longer = f"[redis]\nconnection_timeout = {TIMEOUT}\ntimeout = {TIMEOUT}"
        async with served(session(url, longer)) as scraped:
            scrapes = [await scraped()]
            await asyncio.wait_for(knocked.wait(), TIMEOUT)
            scrapes += await asyncio.gather(*(scraped() for _ in range(3)))
            assert waiting == 1  # the store has not been given up
            [looking] = [task for task in asyncio.all_tasks() if task.get_name() == "gemma-rag-scrape"]
            looking.cancel()  # or the end would wait until the store is given up
            let_go.set()
    for scrape in scrapes:
        assert scrape["store_up"] == 0
        assert "gemma_rag_memories" not in scrape.names
        assert "process_start_time_seconds" in scrape.names


async def test_a_store_that_was_lost_leaves_the_counters(scraped: Scraped) -> None:
    """When the backend has ended, the store is down, and what was counted stays."""
    await (await scraped.opening.backend()).store_memory("x")
    assert (await scraped())["store_up"] == 1
    await scraped.opening.close()
    scrape = await scraped()
    assert scrape["store_up"] == 0
    assert scrape.value("operation_duration_seconds_count", operation="store_memory") == 1


async def test_viewers_of_the_stream_are_counted(session: Callable[..., CliSession]) -> None:
    """Two who watch are two until they leave; where nothing is streamed there is no such metric."""
    async with served(session(), live=True) as scraped:
        live: Live = scraped.app.state.live
        async with live.watch(), live.watch():
            assert (await scraped())["live_viewers"] == 2
        assert (await scraped())["live_viewers"] == 0
    async with served(session()) as scraped:
        assert "gemma_rag_live_viewers" not in (await scraped()).names


async def test_without_a_monitor_the_store_is_still_told(session: Callable[..., CliSession]) -> None:
    """With `[monitoring] enabled = false` there are no operations, and sizes and tiers are there."""
    async with served(session(more="[monitoring]\nenabled = false")) as scraped:
        await (await scraped.opening.backend()).store_memory("x")
        scrape = await scraped()
    assert scrape.value("memories", tier="short_term") == 1
    assert not any("operation" in name for name in scrape.names)


# The dashboard


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


async def test_the_dashboard_asks_for_metrics_that_exist(
    session: Callable[..., CliSession], dashboard: dict[str, Any]
) -> None:
    """Each metric that a panel of the Grafana dashboard names, and each label it groups by, is in a scrape of a server
    that has been used."""
    async with served(session(), live=True) as scraped:
        backend = await scraped.opening.backend()
        await backend.store_memory("x")
        await backend.recall_memories("x")
        scrape = await scraped()
    labels = {label for sample in scrape.samples for label in sample.labels} | {"job", "instance"}
    asked = 0
    for panel in panels(dashboard):
        for target in panel["targets"]:
            expression = target["expr"]
            named = set(re.findall(r"\b(?:gemma_rag|process)_\w+", expression))
            assert named, panel["title"]
            assert named <= scrape.names, panel["title"]
            for group in re.findall(r"\bby\s*\(([^)]*)\)", expression):
                assert {name.strip() for name in group.split(",")} <= labels
            assert set(re.findall(r"\{\{\s*(\w+)\s*\}\}", target.get("legendFormat", ""))) <= labels
            asked += 1
    assert asked >= 10


def test_the_dashboard_is_one_that_grafana_can_import(dashboard: dict[str, Any]) -> None:
    """It has no id of a server's, a datasource variable that every panel uses, a place on the grid for each panel
    where no other is, and a unit that Grafana knows."""
    assert dashboard["id"] is None
    assert dashboard["uid"]
    assert dashboard["title"]
    assert dashboard["schemaVersion"] >= 39
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert variables["instance"]["datasource"] == source
    taken: set[tuple[int, int]] = set()
    identities = [panel["id"] for panel in dashboard["panels"]]
    assert len(identities) == len(set(identities))
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells
    for panel in panels(dashboard):
        assert panel["datasource"] == source
        assert panel["fieldConfig"]["defaults"]["unit"] in {"short", "s", "ops", "percentunit", "bytes", "none"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references))
        for target in panel["targets"]:
            assert target["datasource"] == source
            expression = target["expr"]
            assert all(expression.count(a) == expression.count(b) for a, b in ("()", "{}", "[]"))
            assert '{instance=~"$instance"' in expression
            if "_total" in expression or "_bucket" in expression:
                assert "rate(" in expression or "increase(" in expression


async def test_the_table_in_the_docs_names_every_metric_and_no_other(session: Callable[..., CliSession]) -> None:
    """`docs/monitoring.md` lists what a used server with a real tokenizer tells, by the names in a query."""
    table = (ROOT / "docs" / "monitoring.md").read_text().split("## Grafana")[0]
    documented = set(re.findall(r"`(gemma_rag_\w+)`", table))
    async with served(session(), live=True) as scraped:
        backend = await scraped.opening.backend()
        assert backend.monitor is not None
        backend.monitor.record_tokens("embedding", 5)  # as a model with a tokenizer does
        await backend.store_memory("x")
        names = (await scraped()).names
    told = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names if name.startswith("gemma_rag_")}
    assert documented == told
