"""`/metrics`: the figures of the store and of this process, for Prometheus.

Labels are tiers, verbs, caches and what the build is: never anything that a user has stored, asked or named."""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from gemma_cli.rag import BackendInfo, MemoryTier, MissingExtraError
from gemma_cli.rag._version import __version__
from gemma_cli.rag.memory import TIERS, TierRules
from gemma_cli.rag.monitoring import Snapshot
from gemma_cli.rag.series import BOUNDS, Histogram
from gemma_cli.rag.verbs import NEAR_DUPLICATES, TIMED, promotions
from gemma_cli.server.looks import Looks

try:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.process_collector import ProcessCollector
    from prometheus_client.registry import Collector
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route
except ImportError as error:
    raise MissingExtraError(
        'the server needs Starlette and prometheus-client; install them with: pip install "gemma-rag[server]"'
    ) from error

if TYPE_CHECKING:
    from gemma_cli.edge.opening import Opening
    from gemma_cli.rag import PythonRAGBackend

logger = logging.getLogger("gemma_cli.server.metrics")

PATIENCE: Final = 0.8
"""Seconds that a scrape waits for the store: Prometheus gives up after 10, and a dashboard wants no gap before that."""

PREFIX: Final = "gemma_rag_"
OTHER: Final = "other"
"""The label of operations that are no verb of the backend, together: an application may call them anything."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one scrape tells. info: None where the store did not answer; snapshot: None without a monitor; viewers:
    None where nothing is streamed."""

    info: BackendInfo | None = None
    rules: TierRules | None = None
    snapshot: Snapshot | None = None
    viewers: int | None = None


def families(reading: Reading) -> Iterator[Metric]:
    """All metrics of a reading, in a fixed order. Those of a source that is not there are left out."""
    yield _gauge("store_up", "Whether the store answered this scrape.", float(reading.info is not None))
    yield _build(reading.info)
    if reading.viewers is not None:
        yield _gauge("live_viewers", "Clients that follow the live stream.", reading.viewers)
    if reading.info is not None:
        yield from _store(reading.info)
    if reading.rules is not None:
        capacity = GaugeMetricFamily(f"{PREFIX}tier_capacity", "Memories that a tier holds at most.", labels=["tier"])
        for tier in TIERS:
            capacity.add_metric([tier.value], reading.rules.policies[tier].capacity)
        yield capacity
    if reading.snapshot is not None:
        yield from _operations(reading.snapshot)
        yield from _moves(reading.snapshot, reading.rules)
        yield from _sources(reading.snapshot)


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}{name}", documentation, value=value)


def _counter(name: str, documentation: str, value: float) -> Metric:
    return CounterMetricFamily(f"{PREFIX}{name}", documentation, value=value)


def _build(info: BackendInfo | None) -> Metric:
    """A model is named by the last part of its name: the rest may be a path on this machine."""
    build = GaugeMetricFamily(f"{PREFIX}build_info", "What runs here; always 1.", labels=["version", "model", "engine"])
    model = PurePath((info and info.model) or "").name
    build.add_metric([__version__, model, (info and info.engine) or ""], 1)
    return build


def _store(info: BackendInfo) -> Iterator[Metric]:
    memories = GaugeMetricFamily(f"{PREFIX}memories", "Living memories.", labels=["tier"])
    for tier in TIERS:
        memories.add_metric([tier.value], info.memories[tier.value])
    yield memories
    yield _gauge("store_size_bytes", "Size of the store on its disk or server.", info.size_bytes)
    yield _gauge("index_size_bytes", "Memory that the indexes of this process take.", info.index_bytes)


def _operations(snapshot: Snapshot) -> Iterator[Metric]:
    durations = HistogramMetricFamily(
        f"{PREFIX}operation_duration_seconds",
        "How long the backend's verbs took in this process, failed ones included.",
        labels=["operation"],
    )
    for name, histogram in sorted(_verbs(snapshot.operations).items()):
        cumulated = accumulate(histogram.buckets[:-1])
        buckets = [(str(bound), float(count)) for bound, count in zip(BOUNDS, cumulated, strict=False)]
        durations.add_metric([name], [*buckets, ("+Inf", float(histogram.count))], histogram.seconds)
    yield durations
    errors = CounterMetricFamily(f"{PREFIX}operation_errors", "Calls of a verb that failed.", labels=["operation"])
    verbs = (snapshot.operations.keys() | snapshot.errors.keys()) & TIMED
    failed = {name: snapshot.errors.get(name, 0) for name in verbs}
    failed[OTHER] = sum(snapshot.errors.values()) - sum(failed.values())
    for name, count in sorted(failed.items()):
        if name != OTHER or count:
            errors.add_metric([name], count)
    yield errors


def _verbs(operations: Mapping[str, Histogram]) -> dict[str, Histogram]:
    """The operations by names that may be shown."""
    found = {name: histogram for name, histogram in operations.items() if name in TIMED}
    if others := [histogram for name, histogram in operations.items() if name not in TIMED]:
        found[OTHER] = Histogram(
            sum(other.count for other in others),
            sum(other.seconds for other in others),
            tuple(map(sum, zip(*(other.buckets for other in others), strict=True))),
        )
    return found


def _moves(snapshot: Snapshot, rules: TierRules | None) -> Iterator[Metric]:
    moved = CounterMetricFamily(
        f"{PREFIX}promotions", "Memories that this process's runs moved up.", labels=["from_tier", "to_tier"]
    )
    usual = {(tier, policy.promotes_to) for tier, policy in rules.policies.items()} if rules else set()
    for source, target in ((source, target) for source in MemoryTier for target in MemoryTier):
        count = snapshot.metrics.get(promotions(source, target), 0)
        if count or (source, target) in usual:
            moved.add_metric([source.value, target.value], count)
    yield moved
    linked = snapshot.metrics.get(NEAR_DUPLICATES, 0)
    yield _counter("near_duplicates", "Pairs that this process found to say nearly the same.", linked)


def _sources(snapshot: Snapshot) -> Iterator[Metric]:
    answers, embedder = (_figures(snapshot, name) for name in ("answers", "embedder"))
    caches = {
        "answers": answers,
        "embeddings": {key.removeprefix("cache_"): value for key, value in embedder.items()},
    }
    kinds = (
        (CounterMetricFamily, "cache_hits", "Look-ups that a cache answered.", "hits"),
        (CounterMetricFamily, "cache_misses", "Look-ups that a cache could not answer.", "misses"),
        (GaugeMetricFamily, "cache_size", "Entries of a cache.", "size"),
        (GaugeMetricFamily, "cache_capacity", "Entries that a cache holds at most.", "capacity"),
    )
    for make, name, documentation, key in kinds:
        family = make(f"{PREFIX}{name}", documentation, labels=["cache"])
        for cache, figures in caches.items():
            if key in figures:
                family.add_metric([cache], figures[key])
        yield family
    if embedder:
        yield _counter("embedded_texts", "Texts that the model embedded.", embedder["total_embeddings"])
        yield _counter("embedding_batches", "Calls of the model.", embedder["batch_count"])
        yield _gauge("embedding_queue_length", "Texts that wait for the model.", embedder["queue_length"])
    tokens = snapshot.tokens.get("embedding")
    if tokens is not None:
        yield _counter("embedded_tokens", "Tokens that the model embedded.", tokens)


def _figures(snapshot: Snapshot, source: str) -> Mapping[str, Any]:
    """What a source tells; nothing where it is not there yet or failed."""
    found = snapshot.sources.get(source) or {}
    return {} if "error" in found else found


class _Latest(Collector):
    """Shows the reading that it was given last."""

    reading = Reading()

    def collect(self) -> Iterator[Metric]:
        return families(self.reading)


class Scrapes:
    """Reads a backend for scrapes: those that come while the store is being read wait for the same answer, so that
    impatient ones never pile up before a store that hangs."""

    def __init__(self, opening: "Opening") -> None:
        self._opening = opening
        self._backend: PythonRAGBackend | None = None
        self._looks = Looks(self._look, "gemma-rag-scrape")
        self._told = ""
        self._latest = _Latest()
        self._registry = CollectorRegistry()
        self._registry.register(self._latest)
        ProcessCollector(registry=self._registry)

    async def read(self, viewers: int | None = None) -> Reading:
        """What there is to tell within `PATIENCE` seconds. Opens the store where nobody has yet, since whether it
        answers is what a scrape asks; never loads the model."""
        looked = await self._looks.within(PATIENCE, fresh=True)
        info = None if looked is None else looked.result()
        backend = self._backend
        if backend is None:
            return Reading(viewers=viewers)
        snapshot = None if backend.monitor is None else backend.monitor.snapshot()
        return Reading(info, backend.rules, snapshot, viewers)

    async def _look(self) -> BackendInfo | None:
        try:
            self._backend = await self._opening.backend()
            info = await self._backend.get_info()
        except Exception as error:  # a scrape has to answer whatever is wrong below, and says so by `store_up`
            self._tell(f"{type(error).__name__}: {error}")
            return None
        self._told = ""
        return info

    def _tell(self, reason: str) -> None:
        """Once for each reason: scrapes come again and again."""
        if reason != self._told:
            logger.warning("store_not_scraped", extra={"reason": reason})
        self._told = reason

    async def answer(self, request: Request) -> Response:
        """One scrape over HTTP, in the format that the client asks for: text, or OpenMetrics."""
        live = getattr(request.app.state, "live", None)
        reading = await self.read(None if live is None else live.viewers)
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        self._latest.reading = reading
        # Beside the event loop: a few thousand lines are tens of milliseconds.
        body = await asyncio.to_thread(encode, self._registry)
        return Response(body, media_type=None, headers={"content-type": kind})


def metrics_endpoint(opening: "Opening") -> Route:
    """`GET /metrics` over what `opening` opens."""
    return Route("/metrics", Scrapes(opening).answer, methods=["GET"], name="metrics")
