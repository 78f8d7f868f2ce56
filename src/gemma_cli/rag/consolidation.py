"""What matters moves up, what does not fades: when, how much of it, and what it will be."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self

from gemma_cli.rag import validation as check
from gemma_cli.rag.duplicates import NEAR_DUPLICATE
from gemma_cli.rag.errors import BackendStateError
from gemma_cli.rag.memory import (
    DEFAULT_DECAY,
    DEFAULT_PROMOTION_THRESHOLD,
    MemoryEntry,
    MemoryTier,
    TierRules,
    parse_tier,
)
from gemma_cli.rag.periodic import Periodic
from gemma_cli.rag.python_backend import PythonRAGBackend
from gemma_cli.rag.settings_schema import CENTURY
from gemma_cli.rag.stores.base import Link

logger = logging.getLogger("gemma_cli.rag.consolidation")

DEFAULT_INTERVAL: Final = 300.0
"""Seconds between two runs of the background task."""

INDEXED_PER_RUN: Final = 128
"""Memories whose tokens one run encodes, which takes a few seconds of one core; what is left waits for the next."""


@dataclass(frozen=True, slots=True)
class PlannedMove:
    """A memory that a run would move now, and why: its relevance reaches the threshold, and the next tier has room."""

    memory: MemoryEntry
    from_tier: MemoryTier
    to_tier: MemoryTier
    relevance: float


@dataclass(frozen=True, slots=True)
class PlannedLoss:
    """A memory that will expire, when, and what its relevance lacks to be promoted before; 0: nothing but room in the
    next tier."""

    memory: MemoryEntry
    expires_at: datetime
    missing: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would move now, highest relevance first, and what will be forgotten within `days`, soonest first,
    if nobody uses it meanwhile. What a full tier gives up for those that come is not foreseen. `duplicates` are
    near-duplicates that earlier runs have linked."""

    moves: tuple[PlannedMove, ...]
    losses: tuple[PlannedLoss, ...]
    duplicates: tuple[Link, ...]
    days: float


class MemoryConsolidator:
    """Promotes memories along the tiers by their relevance: importance, exponential decay with age, access frequency.

    promotion_threshold: relevance in [0, 1] from which a memory moves up.
    time_decay_factor: decay of relevance per day of age.
    consolidation_interval: seconds between two runs of the background task.
    duplicate_similarity: cosine from which two memories are linked as near-duplicates; None: none are looked for.
    token_codes: whether a run encodes the tokens of memories that have not had it done, 128 at most
        (`PythonRAGBackend.index_tokens`).

    A run promotes in one transaction of the store: it moves a memory one tier at most, and two processes that
    consolidate at once promote nothing twice. Pinned memories stay where they are.
    """

    def __init__(
        self,
        backend: PythonRAGBackend,
        promotion_threshold: float = DEFAULT_PROMOTION_THRESHOLD,
        time_decay_factor: float = DEFAULT_DECAY,
        consolidation_interval: float = DEFAULT_INTERVAL,
        *,
        duplicate_similarity: float | None = NEAR_DUPLICATE,
        token_codes: bool = True,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend = backend
        self._threshold = check.number("promotion_threshold", promotion_threshold, 0.0, 1.0)
        self._decay = check.number("time_decay_factor", time_decay_factor, 0.0)
        self._interval = _interval("consolidation_interval", consolidation_interval)
        self._similarity = (
            None
            if duplicate_similarity is None
            else check.number("duplicate_similarity", duplicate_similarity, 0.0, 1.0)
        )
        self._token_codes = check.flag("token_codes", token_codes)
        self._monotonic = monotonic
        self._periodic: Periodic | None = None
        self._runs = 0
        self._seconds = 0.0
        self._moves: Counter[tuple[MemoryTier, MemoryTier]] = Counter()
        self._linked = 0
        self._last: datetime | None = None
        self._errors = 0
        self._last_error: str | None = None

    @property
    def _rules(self) -> TierRules:
        return replace(self._backend.rules, decay=self._decay, threshold=self._threshold)

    async def run_consolidation(self) -> int:
        """Removes what has expired, promotes what deserves it, links near-duplicates among what is new, encodes the
        tokens of what was imported, and says how many memories moved."""
        start = self._monotonic()
        moves = await self._backend.promote_deserving(self._rules)
        self._moves.update(moves)  # done, whatever becomes of the rest
        if self._similarity is not None:
            self._linked += await self._backend.link_near_duplicates(self._similarity)
        if self._token_codes:
            await self._backend.index_tokens(INDEXED_PER_RUN)
        self._seconds += self._monotonic() - start
        self._runs += 1
        self._last = datetime.fromtimestamp(self._backend.now(), UTC)
        return sum(moves.values())

    async def analyze_candidates(self, tier: MemoryTier | str) -> list[MemoryEntry]:
        """What a run would move out of a tier now, highest relevance first; changes nothing."""
        return await self._backend.deserving_memories(parse_tier(tier, "tier"), self._rules)

    async def promote_memory(self, memory_id: str, to_tier: MemoryTier | str) -> bool:
        """Moves one memory into a tier, whatever its relevance; False if it is not there or stands there already."""
        target = parse_tier(to_tier, "to_tier")
        before = await self._backend.get_memory(memory_id)
        moved = await self._backend.promote_memory(memory_id, target)
        if moved and before is not None:
            self._moves[before.tier, target] += 1
        return moved

    async def plan(self, days: float = 7.0) -> Plan:
        """What a run would do now, and what the next `days` will forget; changes nothing."""
        days = check.number("days", days, 0.0, 36_525.0)
        now = datetime.fromtimestamp(self._backend.now(), UTC)
        rules = self._rules
        moves = []
        for tier, policy in rules.policies.items():
            if policy.promotes_to is not None:
                for memory in await self.analyze_candidates(tier):
                    relevance = memory.calculate_relevance(self._decay, now)
                    moves.append(PlannedMove(memory, tier, policy.promotes_to, relevance))
        moving = {move.memory.id for move in moves}
        losses = []
        for memory in await self._backend.expiring_memories(86_400.0 * days):
            if memory.expires_at is not None and memory.id not in moving:
                missing = self._threshold - memory.calculate_relevance(self._decay, now)
                losses.append(PlannedLoss(memory, memory.expires_at, max(missing, 0.0)))
        moves.sort(key=lambda move: -move.relevance)
        losses.sort(key=lambda loss: loss.expires_at)
        return Plan(tuple(moves), tuple(losses), tuple(await self._backend.near_duplicates()), days)

    # In the background

    async def start_background_task(self, interval: float | None = None) -> None:
        """Runs every `interval` seconds (default: `consolidation_interval`) until stopped. A second start does nothing
        while the task is running."""
        seconds = self._interval if interval is None else _interval("interval", interval)
        if self._periodic is None or not self._periodic.running:
            self._periodic = Periodic("gemma-rag-consolidation", seconds, self._run_in_background, self._note)

    async def stop_background_task(self) -> None:
        """Ends the background task; a run in progress is waited for. Idempotent."""
        periodic, self._periodic = self._periodic, None
        if periodic is not None:
            await periodic.stop()

    async def _run_in_background(self) -> None:
        run = asyncio.ensure_future(self.run_consolidation())
        try:
            await asyncio.shield(run)
        except asyncio.CancelledError:
            await asyncio.wait([run])
            if isinstance(error := run.exception(), Exception):
                self._note(error)
            raise

    def _note(self, error: Exception) -> bool:
        """One failed run must not end all later ones, unless the backend was closed: then none can fare better."""
        self._errors += 1
        self._last_error = f"{type(error).__name__}: {error}"
        logger.error("consolidation_failed", extra={"reason": self._last_error})
        return not isinstance(error, BackendStateError)

    async def __aenter__(self) -> Self:
        await self.start_background_task()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop_background_task()

    def get_stats(self) -> dict[str, Any]:
        """What this object has done. `promotions_by_tier` counts by "from->to", `last_consolidation` is an aware UTC
        datetime or None, `errors` counts failed background runs."""
        return {
            "total_consolidations": self._runs,
            "total_promotions": self._moves.total(),
            "promotions_by_tier": {f"{source}->{target}": count for (source, target), count in self._moves.items()},
            "near_duplicates_linked": self._linked,
            "last_consolidation": self._last,
            "avg_consolidation_time_ms": 1e3 * self._seconds / self._runs if self._runs else 0.0,
            "running": self._periodic is not None and self._periodic.running,
            "promotion_threshold": self._threshold,
            "time_decay_factor": self._decay,
            "errors": self._errors,
            "last_error": self._last_error,
        }


def _interval(name: str, value: object) -> float:
    return check.number(name, value, 0.001, CENTURY)
