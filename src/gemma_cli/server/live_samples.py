"""What a dashboard is told each second, as JSON values."""

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from gemma_cli.server.live_process import CpuMeter, rss_mb

if TYPE_CHECKING:
    from gemma_cli.rag import PythonRAGBackend
    from gemma_cli.rag.activity import Activity, ActivityWatcher, MemoryEvent
    from gemma_cli.rag.monitoring import PerformanceMonitor

Json = dict[str, Any]

FACTS_AGE: Final = 10.0
"""Seconds that the sizes of the store may be old."""


def iso(seconds: float) -> str:
    """ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def event_json(event: "MemoryEvent") -> Json:
    found: Json = {"time": iso(event.time), "kind": event.kind.value, "id": event.id, "tier": event.tier.value}
    if event.from_tier is not None:
        found["from_tier"] = event.from_tier.value
    if event.text is not None:
        found["text"] = event.text
    if event.importance is not None:
        found["importance"] = event.importance
    return found


def drop_old_words(earlier: Iterable[Json], events: Iterable[Json]) -> None:
    """Takes the text out of earlier events whose memory, as later ones tell, was forgotten or says something else now.
    What faded or made room did so by itself; its words stay."""
    now = {event["id"]: event.get("text") for event in events if event["kind"] not in ("faded", "evicted")}
    for event in earlier:
        if event["id"] in now and event.get("text") != now[event["id"]]:
            event.pop("text", None)


def tiers_json(activity: "Activity") -> Json:
    return {
        tier.value: {"count": count, "arrived": activity.arrived[tier], "left": activity.left[tier]}
        for tier, count in activity.counts.items()
    }


class OperationMeter:
    """What has run since the last call, by the name of the verb. monitor: None where monitoring is switched off."""

    def __init__(self, monitor: "PerformanceMonitor | None") -> None:
        self._monitor = monitor
        self._seen: dict[str, tuple[int, int]] = {}
        self.sources: Mapping[str, Any] = {}

    def read(self) -> Json:
        """Also fills `sources`, from the same snapshot."""
        if self._monitor is None:
            return {}
        snapshot = self._monitor.snapshot()
        self.sources = snapshot.sources
        found: Json = {}
        for name, histogram in snapshot.operations.items():
            count, errors = histogram.count, snapshot.errors.get(name, 0)
            before = self._seen.get(name, (0, 0))
            if count < before[0]:  # the figures were reset
                before = (0, 0)
            self._seen[name] = count, errors
            if count > before[0]:
                found[name] = {"count": count - before[0], "errors": max(errors - before[1], 0)}
                found[name] |= self._latencies(name, before[0])
        return found

    def _latencies(self, name: str, seen: int) -> Json:
        """Percentiles as `PerformanceMonitor` reports them; none where it keeps no window."""
        from gemma_cli.rag.series import PERCENTILES, nearest_rank

        assert self._monitor is not None
        values = self._monitor.latencies_since(name, seen)
        if not len(values):
            return {}
        figures = {f"p{p}_ms": value for p, value in zip(PERCENTILES, nearest_rank(values), strict=True)}
        figures["max_ms"] = float(values.max())
        return {key: round(1000 * value, 3) for key, value in figures.items()}


def caches_json(sources: Mapping[str, Any]) -> Json:
    """Totals since the start; a cache that is not there yet is left out."""
    found: Json = {}
    answers, embedder = sources.get("answers"), sources.get("embedder")
    if answers and "error" not in answers:
        found["answers"] = {name: answers[name] for name in ("hits", "misses", "size", "capacity")}
    if embedder and "error" not in embedder:
        found["embeddings"] = {name: embedder[f"cache_{name}"] for name in ("hits", "misses", "size", "capacity")}
    return found


def embedder_json(sources: Mapping[str, Any]) -> Json | None:
    embedder = sources.get("embedder")
    if not embedder or "error" in embedder:
        return None
    return {
        "batches": embedder["batch_count"],
        "texts": embedder["total_embeddings"],
        "queue_length": embedder["queue_length"],
    }


class Sampler:
    """Samples of one backend. timer: seconds, monotonic."""

    def __init__(self, backend: "PythonRAGBackend", timer: Callable[[], float] = time.monotonic) -> None:
        self._backend = backend
        self._watcher: ActivityWatcher = backend.watch_activity()
        self._operations = OperationMeter(backend.monitor)
        self._timer = timer
        self._sizes: Json = {}
        self._sizes_at = -FACTS_AGE
        self.about: Json = {}
        """`store` and `tiers` of a hello."""

    async def look(self) -> "Activity":
        """What has happened since the last look; also refreshes `about` and the store's sizes where they are old. That
        comes first: what a look has found must not be lost to a later failure."""
        if self._timer() - self._sizes_at >= FACTS_AGE:
            info = await self._backend.get_info()
            store = {"url": info.url, "namespace": info.namespace, "model": info.model, "engine": info.engine}
            self.about = {"store": store, "tiers": tiers_of(self._backend)}
            self._sizes = {"size_bytes": info.size_bytes, "index_bytes": info.index_bytes}
            self._sizes_at = self._timer()
        return await self._watcher.look()

    def facts(self) -> Json:
        """What a sample tells of the backend beside its tiers."""
        operations = self._operations.read()
        sources = self._operations.sources
        return {
            "operations": operations,
            "caches": caches_json(sources),
            "embedder": embedder_json(sources),
            "store": self._sizes,
        }


class ProcessMeter:
    """`process` of a sample. rss_mb is left out where the system does not tell."""

    def __init__(self) -> None:
        self._cpu = CpuMeter()

    def read(self) -> Json:
        used = {"cpu_percent": round(self._cpu.percent(), 1)}
        rss = rss_mb()
        return used if rss is None else {"rss_mb": round(rss, 1), **used}


def tiers_of(backend: "PythonRAGBackend") -> list[Json]:
    """`tiers` of a hello, in the order of the tiers."""
    from gemma_cli.rag.memory import TIERS

    policies = [(tier, backend.rules.policies[tier]) for tier in TIERS]
    return [
        {
            "name": tier.value,
            "capacity": policy.capacity,
            "ttl_seconds": None if policy.ttl is None else policy.ttl.total_seconds(),
            "promotes_to": None if policy.promotes_to is None else policy.promotes_to.value,
        }
        for tier, policy in policies
    ]
