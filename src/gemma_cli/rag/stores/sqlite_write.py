"""What the SQLite store does inside a write transaction. Synchronous; each function is one part of a transaction that
its caller opens and ends."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

import apsw

from gemma_cli.rag.errors import CapacityError, InvalidInputError
from gemma_cli.rag.memory import (
    FREQUENCY_HALF,
    FREQUENCY_WEIGHT,
    IMPORTANCE_WEIGHT,
    TIERS,
    MemoryEntry,
    MemoryTier,
    TierRules,
)
from gemma_cli.rag.stores import sqlite_embeddings, sqlite_tokens
from gemma_cli.rag.stores import sqlite_eviction as eviction
from gemma_cli.rag.stores.base import KEEP, Update
from gemma_cli.rag.stores.changes import PROMOTION_ORDER, changed
from gemma_cli.rag.stores.rows import TIER_CODE
from gemma_cli.rag.stores.sqlite_rows import INSERT, UPDATE, Row, encode, entry_at
from gemma_cli.rag.stores.sqlite_scope import Scope

REMOVALS_KEPT: Final = 20_000
"""Removals a slow reader may lag behind before it has to load the index anew."""

TRIMMED_EVERY: Final = 256
"""Changes between two looks at how many removals there are."""


def put(
    scope: Scope,
    encoded: Sequence[tuple[MemoryTier, Row, bytes]],
    entries: Sequence[MemoryEntry],
    rules: TierRules,
    replaces: Sequence[str],
    keeps: Collection[str],
) -> None:
    """See `Store.put`."""
    delete(scope, replaces)
    fresh = set(rows_of(scope, keeps))
    added: Counter[MemoryTier] = Counter()
    for (tier, row, vector), entry in zip(encoded, entries, strict=True):
        expires = None if entry.expires_at is None else entry.expires_at.timestamp()
        number = _insert(scope, (scope.ns, scope.sequence(), expires, *row), row[0])
        scope.db.execute("INSERT INTO vectors VALUES(?, ?)", (number, vector))
        fresh.add(number)
        added[tier] += 1
    for tier, count in added.items():
        scope.add_to_count(TIER_CODE[tier], count)
    for tier in added:
        make_room(scope, tier, rules, fresh)


def _insert(scope: Scope, values: Row, memory_id: str) -> int:
    """The number of the new row. The id of a memory that has expired is free, swept or not."""
    try:
        scope.db.execute(INSERT, values)
    except apsw.ConstraintError as error:
        expired = scope.db.execute(
            "SELECT row FROM memories WHERE ns = ? AND id = ? AND expires <= ?", (scope.ns, memory_id, scope.now)
        ).get
        if expired is None:
            raise InvalidInputError(f"id: {memory_id!r} is already in the store") from error
        remove_rows(scope, [expired])
        scope.db.execute(INSERT, values)
    return scope.db.last_insert_rowid()


def make_room(scope: Scope, tier: MemoryTier, rules: TierRules, fresh: set[int]) -> None:
    """Brings a tier within its capacity; the rows in `fresh` stay where they are while anything else can leave."""
    capacity = rules.policies[tier].capacity
    if scope.count(tier) <= capacity:
        return
    sweep(scope, (tier,))
    target = rules.policies[tier].promotes_to
    if target is not None and scope.count(tier) > capacity:
        _promote(scope, tier, target, rules, fresh)
    excess = scope.count(tier) - capacity
    if excess <= 0:
        return
    leaving = eviction.least_relevant(scope.db, scope.ns, tier, excess, rules.decay, scope.now, spared=fresh)
    if len(leaving) < excess:
        # Only what came with this very write is left: the best of it stays, and the last of it in any case.
        last = max(_in_tier(scope, fresh, tier), default=None)
        spared = set(leaving) if last is None else {*leaving, last}
        leaving += eviction.least_relevant(
            scope.db, scope.ns, tier, excess - len(leaving), rules.decay, scope.now, spared=spared
        )
    if len(leaving) < excess:
        raise CapacityError(
            f"the tier {tier.value} holds {capacity:,} memories and too many of them are pinned: take a pin off, "
            "or use another tier"
        )
    remove_rows(scope, leaving)


def _promote(scope: Scope, tier: MemoryTier, target: MemoryTier, rules: TierRules, fresh: set[int]) -> list[int]:
    """Moves what deserves it from a tier to the next, and returns the rows; those in `fresh` stay where they are."""
    staying = _in_tier(scope, fresh, target)
    ready = eviction.ready(scope.db, scope.ns, tier, rules, scope.now, staying=staying, spared=fresh)
    rows = [candidate.row for candidate in ready]
    if rows:
        move_rows(scope, rows, target, rules)
        make_room(scope, target, rules, {*fresh, *rows})
    return rows


def _in_tier(scope: Scope, rows: Iterable[int], tier: MemoryTier) -> list[int]:
    """Those of the rows that stand in a tier."""
    code = TIER_CODE[tier]
    return [row for row in rows if scope.db.execute("SELECT tier FROM memories WHERE row = ?", (row,)).get == code]


def remove_rows(scope: Scope, rows: Sequence[int]) -> None:
    """Removes rows for good and leaves word for the indexes."""
    if not rows:
        return
    sequence = scope.sequence()
    latest = scope.db.execute("SELECT max(sequence) FROM removals WHERE ns = ?", (scope.ns,)).get
    removed: Counter[int] = Counter()
    texts: list[str] = []
    for row in rows:
        tier, content = scope.db.execute("DELETE FROM memories WHERE row = ? RETURNING tier, content", (row,)).get
        removed[tier] += 1
        texts.append(content)
        scope.db.execute("DELETE FROM vectors WHERE row = ?", (row,))
        scope.db.execute("DELETE FROM next_vectors WHERE row = ?", (row,))
        scope.db.execute("DELETE FROM tokens WHERE row = ?", (row,))
        unlink(scope, row)
        # A row that was removed, given again and removed again, all in one step, is there already.
        scope.db.execute("INSERT OR IGNORE INTO removals VALUES(?, ?, ?)", (scope.ns, sequence, row))
    for tier, count in removed.items():
        scope.add_to_count(tier, -count)
    sqlite_embeddings.forget(scope, texts)
    if latest is not None and latest // TRIMMED_EVERY != sequence // TRIMMED_EVERY:
        _forget_old_removals(scope)


def unlink(scope: Scope, row: int) -> None:
    """A row that goes, or becomes another text, is nobody's near-duplicate any more."""
    scope.db.execute("DELETE FROM links WHERE row = ?", (row,))
    scope.db.execute("DELETE FROM links WHERE other = ?", (row,))


def _forget_old_removals(scope: Scope) -> None:
    floor = scope.db.execute(
        "SELECT sequence FROM removals WHERE ns = ? ORDER BY sequence DESC LIMIT 1 OFFSET ?", (scope.ns, REMOVALS_KEPT)
    ).get
    if floor is not None:
        scope.db.execute("DELETE FROM removals WHERE ns = ? AND sequence <= ?", (scope.ns, floor))
        scope.db.execute("UPDATE namespaces SET floor = ? WHERE ns = ?", (floor, scope.ns))


def move_rows(scope: Scope, rows: Iterable[int], to: MemoryTier, rules: TierRules) -> None:
    """Moves rows into a tier and starts its TTL; who calls it makes room there."""
    sequence = scope.sequence()
    expires = rules.policies[to].expiry(scope.now)
    moved: Counter[int] = Counter()
    for row in rows:
        moved[scope.db.execute("SELECT tier FROM memories WHERE row = ?", (row,)).get] += 1
        scope.db.execute(
            "UPDATE memories SET tier = ?, expires = CASE pinned WHEN 0 THEN ? END, sequence = ? WHERE row = ?",
            (TIER_CODE[to], expires, sequence, row),
        )
    for tier, count in moved.items():
        scope.add_to_count(tier, -count)
    scope.add_to_count(TIER_CODE[to], moved.total())


def sweep(scope: Scope, tiers: Sequence[MemoryTier] = TIERS) -> int:
    """Removes the expired of some tiers and says how many."""
    rows = [
        row
        for tier in tiers
        for (row,) in scope.db.execute(
            "SELECT row FROM memories WHERE ns = ? AND tier = ? AND expires <= ?",
            (scope.ns, TIER_CODE[tier], scope.now),
        )
    ]
    remove_rows(scope, rows)
    return len(rows)


def rows_of(scope: Scope, ids: Iterable[str]) -> list[int]:
    """Rows of the ids that are there, each once."""
    found = []
    for memory_id in dict.fromkeys(ids):
        row = scope.db.execute(
            "SELECT row FROM memories WHERE ns = ? AND id = ? AND (expires IS NULL OR expires > ?)",
            (scope.ns, memory_id, scope.now),
        ).get
        if row is not None:
            found.append(row)
    return found


def delete(scope: Scope, ids: Sequence[str]) -> int:
    """See `Store.delete`."""
    rows = rows_of(scope, ids)
    remove_rows(scope, rows)
    return len(rows)


def move(scope: Scope, ids: Sequence[str], to: MemoryTier, rules: TierRules) -> int:
    """See `Store.move`; what is in the tier already does not count."""
    rows = [
        row
        for row in rows_of(scope, ids)
        if scope.db.execute("SELECT tier FROM memories WHERE row = ?", (row,)).get != TIER_CODE[to]
    ]
    if rows:
        move_rows(scope, rows, to, rules)
        make_room(scope, to, rules, set(rows))
    return len(rows)


def promote(scope: Scope, rules: TierRules) -> Mapping[tuple[MemoryTier, MemoryTier], int]:
    """See `Store.promote`."""
    sweep(scope)
    moves: dict[tuple[MemoryTier, MemoryTier], int] = {}
    moved: set[int] = set()  # room made in a tier for later ones must not send earlier ones a second tier up
    for tier in PROMOTION_ORDER:
        target = rules.policies[tier].promotes_to
        if target is not None and (rows := _promote(scope, tier, target, rules, moved)):
            moves[tier, target] = len(rows)
            moved.update(rows)
    return moves


def touch(scope: Scope, ids: Iterable[str]) -> None:
    """See `Store.touch`. The standing is computed as `memory.standing` does."""
    for memory_id, times in Counter(ids).items():
        scope.db.execute(
            "UPDATE memories SET access_count = access_count + ?1, accessed = max(accessed, ?2), "
            "standing = ?7 * importance + ?5 * (access_count + ?1) / (access_count + ?1 + ?6) "
            "WHERE ns = ?3 AND id = ?4",
            (times, scope.now, scope.ns, memory_id, FREQUENCY_WEIGHT, FREQUENCY_HALF, IMPORTANCE_WEIGHT),
        )


def update(scope: Scope, memory_id: str, change: Update, rules: TierRules) -> MemoryEntry | None:
    """See `Store.update`."""
    rows = rows_of(scope, [memory_id])
    if not rows:
        return None
    stored = rows[0]
    old = entry_at(scope.db, stored)
    new = changed(old, change, rules, scope.now)
    ((_, row, blob),) = encode([new])
    expires = None if new.expires_at is None else new.expires_at.timestamp()
    scope.db.execute(UPDATE, (scope.ns, scope.sequence(), expires, *row, stored))
    if new.tier != old.tier:
        scope.add_to_count(TIER_CODE[old.tier], -1)
        scope.add_to_count(TIER_CODE[new.tier], 1)
        make_room(scope, new.tier, rules, {stored})
    if change.content is not KEEP:
        scope.db.execute("UPDATE vectors SET vector = ? WHERE row = ?", (blob, stored))
        scope.db.execute("DELETE FROM next_vectors WHERE row = ?", (stored,))
        scope.db.execute("UPDATE memories SET compared = 0 WHERE row = ?", (stored,))
        unlink(scope, stored)
        sqlite_embeddings.forget(scope, [old.content])
    if (new.content, new.actor) != (old.content, old.actor):
        sqlite_tokens.forget(scope, stored)
    return new
