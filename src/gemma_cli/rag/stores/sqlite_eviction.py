"""Which memories of a tier matter least, and which deserve to move up, without looking at all of them."""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from heapq import nsmallest
from itertools import islice
from typing import Final

import apsw

from gemma_cli.rag.memory import RECENCY_WEIGHT, SECONDS_PER_DAY, MemoryTier, TierRules
from gemma_cli.rag.stores.rows import TIER_CODE

STRIDE: Final = 8
"""Index entries read from each end before the bound is looked at again."""


ROUNDING: Final = 1e-9
"""More than a sum of three such numbers can be off."""


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """A row and how much it matters."""

    relevance: float
    row: int


def least_relevant(
    db: apsw.Connection, ns: int, tier: MemoryTier, wanted: int, decay: float, now: float, *, spared: Collection[int]
) -> list[int]:
    """Rows of the `wanted` unpinned memories of lowest relevance, lowest first; fewer where there are no more.

    Relevance = standing + recency, and there is an index for each part. Reading both from the low end, nothing unseen
    can lie below (standing read last + recency of the creation time read last): the threshold algorithm of Fagin, Lotem
    and Naor ("Optimal aggregation algorithms for middleware", 2003), so that a full tier costs a few dozen entries."""
    where = (ns, TIER_CODE[tier])
    by_standing = db.execute(
        "SELECT row, standing, created FROM memories INDEXED BY by_standing "
        "WHERE ns = ? AND tier = ? AND pinned = 0 ORDER BY standing, created",
        where,
    )
    by_age = db.execute(
        "SELECT row, standing, created FROM memories INDEXED BY by_age "
        "WHERE ns = ? AND tier = ? AND pinned = 0 ORDER BY created, standing",
        where,
    )
    seen: dict[int, float] = {}
    stride = max(STRIDE, wanted)
    while True:
        low = list(islice(by_standing, stride))
        old = list(islice(by_age, stride))
        for row, standing, created in (*low, *old):
            if row not in spared:
                seen[row] = standing + _recency(created, decay, now)
        best = nsmallest(wanted, ((relevance, row) for row, relevance in seen.items()))
        exhausted = len(low) < stride
        if exhausted or (len(best) == wanted and best[-1][0] <= low[-1][1] + _recency(old[-1][2], decay, now)):
            return [row for _, row in best]
        stride *= 2


def deserving(db: apsw.Connection, ns: int, tier: MemoryTier, rules: TierRules, now: float) -> list[Candidate]:
    """The unpinned, unexpired memories of a tier whose relevance reaches the threshold, highest first."""
    return sorted(_deserving(db, ns, tier, rules, now), reverse=True)


def _deserving(db: apsw.Connection, ns: int, tier: MemoryTier, rules: TierRules, now: float) -> Iterator[Candidate]:
    # Recency is at most RECENCY_WEIGHT, so whoever stands lower than the rest of the threshold can't reach it.
    least = rules.threshold - RECENCY_WEIGHT - ROUNDING
    rows = db.execute(
        "SELECT row, standing + ?1 * exp(-?2 * max(?3 - created, 0.0) / ?4) FROM memories INDEXED BY by_standing "
        "WHERE ns = ?5 AND tier = ?6 AND pinned = 0 AND standing >= ?8 "
        "AND standing + ?1 * exp(-?2 * max(?3 - created, 0.0) / ?4) >= ?7 AND (expires IS NULL OR expires > ?3)",
        (RECENCY_WEIGHT, rules.decay, now, SECONDS_PER_DAY, ns, TIER_CODE[tier], rules.threshold, least),
    )
    for row, relevance in rows:
        yield Candidate(relevance, row)


def _recency(created: float, decay: float, now: float) -> float:
    return RECENCY_WEIGHT * math.exp(-decay * max(now - created, 0.0) / SECONDS_PER_DAY)
