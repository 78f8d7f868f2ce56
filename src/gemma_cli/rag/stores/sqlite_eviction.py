"""Which memories of a tier matter least, and which deserve to move up, without looking at all of them."""

import math
from bisect import insort
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from heapq import merge
from typing import Any, Final

import apsw

from gemma_cli.rag.memory import RECENCY_WEIGHT, SECONDS_PER_DAY, MemoryTier, TierRules
from gemma_cli.rag.stores.changes import PROMOTION_ORDER
from gemma_cli.rag.stores.rows import TIER_CODE

ROUNDING: Final = 1e-9
"""More than a sum of three such numbers can be off."""

RANK_ROUNDING: Final = 1e-12
"""More than rank and relevance, computed apart, can be off. So small because memories of equal importance that were
stored some milliseconds apart differ by little more."""

REACH: Final = 0.25
"""How far from its reference, as decay x days, an order serves. The view `ranked` has it too."""

COHORTS: Final = 16
COHORT_LEAST: Final = 128
"""Memories of similar age into which an order is divided: so many parts, each of so many memories at least."""

FAR: Final = 8
"""Entries looked at in vain by one search, above which they count for a new reference."""


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """A row and how much it matters."""

    relevance: float
    row: int


def least_relevant(
    db: apsw.Connection, ns: int, tier: MemoryTier, wanted: int, decay: float, now: float, *, spared: Collection[int]
) -> list[int]:
    """Rows of the `wanted` unpinned memories of lowest relevance, lowest first, equal ones by row; fewer where there
    are no more. Writes: a tier gets its order (table `ranks`) when it makes room for the first time, and anew when that
    one is worn out.

    A memory's rank is its relevance at a reference time t0, but recency is not cut off at 0.3 there. So recency at any
    time t, later or earlier, is min(q * recency at t0, 0.3) with q = exp(-decay * (t - t0)), and relevance is at least
    rank - slack: the slack of the newest memory of a cohort holds for all of it, and is next to nothing as long as q is
    near 1. Each cohort is read from its lowest rank up, the lowest bound first, until what is unseen can't be lower
    than the best seen. Figures: docs/adr/0011-eviction.md."""
    code = TIER_CODE[tier]
    at = _reference(db, ns, code, decay, now)
    newest = db.execute(
        "SELECT max(created) FROM memories INDEXED BY by_age WHERE ns = ? AND tier = ? AND pinned = 0", (ns, code)
    ).get
    cohorts: list[tuple[Any, ...]] = db.execute(
        "SELECT newest, (SELECT min(rank) FROM ranks AS r WHERE r.ns = c.ns AND r.tier = c.tier "
        "AND r.cohort = c.newest) AS lowest FROM cohorts AS c WHERE ns = ? AND tier = ? AND lowest IS NOT NULL",
        (ns, code),
    ).fetchall()
    ascending = [
        _ascending(db, (ns, code, cohort), lowest, _slack(min(cohort, newest), at, decay, now), wanted, spared)
        for cohort, lowest in cohorts
    ]
    best: list[Candidate] = []
    looked = 0
    for bound, memory in merge(*ascending):
        if len(best) == wanted and bound > best[-1].relevance:
            break
        if memory:
            row, standing, created = memory
            insort(best, Candidate(standing + _recency(created, decay, now), row))
            del best[wanted:]
            looked += 1
    if looked - wanted > FAR:
        in_vain = looked - wanted
        db.execute("UPDATE orders SET in_vain = in_vain + ? WHERE ns = ? AND tier = ?", (in_vain, ns, code))
    return [candidate.row for candidate in best]


def _ascending(
    db: apsw.Connection,
    where: tuple[int, int, float],
    lowest: float,
    slack: float,
    wanted: int,
    spared: Collection[int],
) -> Iterator[tuple[float, tuple[()] | tuple[int, float, float]]]:
    """(least relevance that it can have, (row, standing, creation)) of a cohort's memories, but for the spared, lowest
    first. Of memories that are equal in all of it, by row, no more than `wanted`: thousands may have come at once."""
    # The first word is for none of them: most cohorts are never read further.
    yield lowest - slack - RANK_ROUNDING, ()
    last, run = (-math.inf, -math.inf, -math.inf), 0
    left = True
    while left:
        left = False
        for row, *key in db.execute(
            "SELECT row, rank, created, standing FROM ranks WHERE ns = ? AND tier = ? AND cohort = ? "
            "AND (rank, created, standing) > (?, ?, ?) ORDER BY rank, created, standing, row",
            (*where, *last),
        ):
            if row in spared:
                continue
            rank, created, standing = key
            run = run + 1 if (rank, created, standing) == last else 1
            last = (rank, created, standing)
            if left := run > wanted:
                break
            yield rank - slack - RANK_ROUNDING, (row, standing, created)


def _slack(newest: float, at: float, decay: float, now: float) -> float:
    """How far relevance can lie below rank, for memories up to a time of creation."""
    then = RECENCY_WEIGHT * math.exp(min(decay * (newest - at) / SECONDS_PER_DAY, REACH))
    return max(then - min(then * math.exp(-decay * (now - at) / SECONDS_PER_DAY), RECENCY_WEIGHT), 0.0)


def _reference(db: apsw.Connection, ns: int, code: int, decay: float, now: float) -> float:
    """The time that the ranks of a tier are for; makes them where there are none that serve. What was looked at in vain
    pays for that: no more than one memory made anew for each that was."""
    found = db.execute(
        "SELECT at, decay, in_vain, count FROM orders JOIN tiers USING(ns, tier) WHERE ns = ? AND tier = ?", (ns, code)
    ).fetchone()
    if found is not None:
        at, made_with, in_vain, count = found
        if made_with == decay and decay * abs(now - at) <= REACH * SECONDS_PER_DAY and in_vain <= count:
            return float(at)
    for table in ("ranks", "cohorts", "orders"):
        db.execute(f"DELETE FROM {table} WHERE ns = ? AND tier = ?", (ns, code))  # noqa: S608 constants
    db.execute("INSERT INTO orders VALUES(?, ?, ?, ?, 0)", (ns, code, now, decay))
    for newest in {*_oldest_to_newest(db, ns, code, now), math.inf}:
        db.execute("INSERT INTO cohorts VALUES(?, ?, ?)", (ns, code, newest))
    db.execute("INSERT INTO ranks SELECT * FROM ranked WHERE ns = ? AND tier = ?", (ns, code))
    return now


def _oldest_to_newest(db: apsw.Connection, ns: int, code: int, now: float) -> Iterator[float]:
    """Creation of the newest of each cohort, which all hold as many; who is of the future stays outside of them."""
    past = "FROM memories INDEXED BY by_age WHERE ns = ? AND tier = ? AND pinned = 0 AND created <= ?"
    total = db.execute(f"SELECT count(*) {past}", (ns, code, now)).get
    cohorts = min(max(total // COHORT_LEAST, 1), COHORTS) if total else 0
    for number in range(1, cohorts + 1):
        place = total * number // cohorts - 1
        yield db.execute(f"SELECT created {past} ORDER BY created LIMIT 1 OFFSET ?", (ns, code, now, place)).get


def moving(db: apsw.Connection, ns: int, tier: MemoryTier, rules: TierRules, now: float) -> list[Candidate]:
    """What a run of promotions would move out of a tier, highest relevance first."""
    entering: defaultdict[MemoryTier, list[int]] = defaultdict(list)
    for source in PROMOTION_ORDER:
        target = rules.policies[source].promotes_to
        if target is not None:
            found = ready(db, ns, source, rules, now, staying=entering[target])
            if source is tier:
                return found
            entering[target] += [candidate.row for candidate in found]
    return []


def ready(
    db: apsw.Connection,
    ns: int,
    tier: MemoryTier,
    rules: TierRules,
    now: float,
    *,
    staying: Collection[int],
    spared: Collection[int] = (),
) -> list[Candidate]:
    """What of a tier deserves to move to the next and has room there, highest relevance first: where that can't hold
    all of it beside its pinned ones and those `staying`, the rest waits where it is."""
    target = rules.policies[tier].promotes_to
    found = [] if target is None else [one for one in _deserving(db, ns, tier, rules, now) if one.row not in spared]
    if target is None or not found:
        return []
    pinned = db.execute("SELECT row FROM memories WHERE ns = ? AND tier = ? AND pinned = 1", (ns, TIER_CODE[target]))
    held = len({row for (row,) in pinned}.union(staying))
    return sorted(found, reverse=True)[: max(rules.policies[target].capacity - held, 0)]


def _deserving(db: apsw.Connection, ns: int, tier: MemoryTier, rules: TierRules, now: float) -> Iterator[Candidate]:
    """The unpinned, unexpired memories of a tier whose relevance reaches the threshold."""
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
