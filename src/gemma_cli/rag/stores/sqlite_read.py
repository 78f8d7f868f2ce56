"""What the SQLite store does inside a read transaction, and the index that it keeps. Synchronous; one thread."""

import json
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from typing import Any, Final

import apsw
import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.actors import KnownTerms
from gemma_cli.rag.blocks import Rows
from gemma_cli.rag.candidates import Candidates, Hit, Question, Ranked, finish, refine
from gemma_cli.rag.errors import ModelMismatchError, StoreDamagedError
from gemma_cli.rag.index import Changes, MemoryIndex
from gemma_cli.rag.late_interaction import max_sims, token_weights
from gemma_cli.rag.memory import TIERS, MemoryEntry, MemoryTier
from gemma_cli.rag.sessions import session_numbers
from gemma_cli.rag.stores import sqlite_tokens
from gemma_cli.rag.stores.base import Filter, StoredModel, went_back
from gemma_cli.rag.stores.rows import TIER_CODE, to_model
from gemma_cli.rag.stores.sqlite_rows import ENTRY_COLUMNS, decode, entry_at

CHUNK: Final = 8192
"""Rows taken into the index at a time: bounds what the load needs beside the index itself."""

SINCE: Final = (
    "SELECT row, importance, coalesce(occurred, created), coalesce(expires, 9e999), scale, error, tier, code, terms, "
    "actor, session FROM memories WHERE ns = ? AND sequence > ?"
)
EVERYTHING: Final = SINCE.replace("AND sequence", "AND +sequence")
"""A few changes come by their index; a whole namespace is read in the order of the table."""

CONSISTENT: Final = {
    "memories without a vector": "SELECT count(*) FROM memories WHERE row NOT IN (SELECT row FROM vectors)",
    "vectors without a memory": "SELECT count(*) FROM vectors WHERE row NOT IN (SELECT row FROM memories)",
    "token codes without a memory": "SELECT count(*) FROM tokens WHERE row NOT IN (SELECT row FROM memories)",
    "memories with a wrong mark for their token codes": "SELECT count(*) FROM memories AS m WHERE tokened != "
    "EXISTS(SELECT 1 FROM tokens WHERE row = m.row)",
    "memories with a wrong rank in their tier": "SELECT count(*) FROM ranked AS r FULL JOIN ranks AS k USING(row) "
    "WHERE NOT coalesce(abs(r.rank - k.rank) < 1e-12 AND (r.ns, r.tier, r.cohort, r.created, r.standing) "
    "= (k.ns, k.tier, k.cohort, k.created, k.standing), 0)",
    "tiers with a wrong count": "SELECT count(*) FROM tiers AS t WHERE count != "
    "(SELECT count(*) FROM memories WHERE ns = t.ns AND tier = t.tier)",
}
"""What SQLite can't know: each must count 0."""

LIVE: Final = "ns = ?1 AND (expires IS NULL OR expires > ?2)"


class Reader:
    """One connection, one namespace and its index, which fills with the first search.

    generations: see `Scope`; other threads add to it."""

    def __init__(self, db: apsw.Connection, ns: int, generations: Set[int]) -> None:
        self.db = db
        self.ns = ns
        self._generations = generations
        self._indexed = -1
        """The generation of the vectors in the index."""
        self._index: MemoryIndex | None = None
        self._latest = 0.0

    @property
    def index_bytes(self) -> int:
        """Memory that the index holds."""
        return 0 if self._index is None else self._index.nbytes

    def model(self) -> StoredModel | None:
        """See `Store.model`."""
        columns = self.db.execute(
            "SELECT model, probe FROM namespaces WHERE ns = ?1 AND EXISTS(SELECT 1 FROM memories WHERE ns = ?1)",
            (self.ns,),
        ).fetchone()
        return None if columns is None else to_model(*columns)

    def sequence(self) -> int:
        """The number of the last change."""
        return int(self.db.execute("SELECT sequence FROM namespaces WHERE ns = ?", (self.ns,)).get)

    def verify(self, where: str) -> None:
        """See `Verifying.verify`."""
        verdict = self.db.pragma("integrity_check")
        if verdict != "ok":
            raise StoreDamagedError(f"{where} is damaged ({verdict}); export what can be read, or restore a backup")
        for what, sql in CONSISTENT.items():
            if wrong := self.db.execute(sql).get:
                raise StoreDamagedError(f"{where} is damaged: {wrong:,} {what}; export it and import it into a new one")

    def search(self, questions: Sequence[Question], now: float) -> list[list[MemoryEntry]]:
        """The answers to several questions, from one state of the store and one pass over the vectors."""
        with self._current(now) as index:
            if index is None:
                return [[] for _ in questions]
            if any(question.vector is not None and len(question.vector) != index.dimension for question in questions):
                raise ModelMismatchError(
                    f"the store was begun with another model meanwhile ({index.dimension} wide); open it again"
                )
            found = index.candidates(questions, now)
            return [self._answer(index, candidates, now) for candidates in found]

    def known(self, terms: NDArray[np.uint64], now: float) -> KnownTerms:
        """See `Store.known`."""
        with self._current(now) as index:
            return KnownTerms() if index is None else index.known(terms, now)

    def _answer(self, index: MemoryIndex, candidates: Candidates, now: float) -> list[MemoryEntry]:
        blobs = self._blobs(candidates)
        vectors = None
        if blobs is not None:
            ordered = b"".join(blobs[row] for row in candidates.rows.tolist())
            vectors = np.frombuffer(ordered, np.float32).reshape(len(candidates.rows), index.dimension)
        ranked = self._refined(index, finish(candidates, vectors), now)
        return [self._entry(hit, None if blobs is None else blobs[hit.row]) for hit in ranked.hits()]

    def _refined(self, index: MemoryIndex, ranked: Ranked, now: float) -> Ranked:
        """The best, ordered by their tokens too where the question has some."""
        query = ranked.question.tokens
        if query is None:
            return ranked
        weights = token_weights(query.terms, index.rarity(query.terms.tolist(), now))
        rows = ranked.rows.tolist()
        codes = sqlite_tokens.codes(self.db, rows)
        return refine(ranked, max_sims(query, weights, [codes.get(row, b"") for row in rows]))

    def _blobs(self, candidates: Candidates) -> dict[int, bytes] | None:
        """The vectors of the candidates, by row; None where they do not count."""
        if not candidates.question.by_meaning:
            return None
        # One statement for all of them takes a third of the time that one each does.
        rows = json.dumps(candidates.rows.tolist())
        sql = "SELECT row, vector FROM vectors WHERE row IN (SELECT value FROM json_each(?))"
        return dict(self.db.execute(sql, (rows,)))

    def _entry(self, hit: Hit, vector: bytes | None) -> MemoryEntry:
        entry = entry_at(self.db, hit.row, vector)
        entry.similarity_score = hit.cosine
        entry.score = hit.score
        entry.explanation = dict(hit.parts)
        return entry

    @contextmanager
    def _current(self, now: float) -> Iterator[MemoryIndex | None]:
        """The index for one piece of work. A failure may have left it half way, so the next who asks gets a new one."""
        try:
            yield self._caught_up(now)
        except BaseException:
            self._index = None
            raise

    def _caught_up(self, now: float) -> MemoryIndex | None:
        """The index at the state that this transaction sees, whoever wrote it; None while there is no model."""
        if went_back(now, self._latest):
            self._index = None
        self._latest = now
        sequence, floor, generation = self.db.execute(
            "SELECT sequence, floor, generation FROM namespaces WHERE ns = ?", (self.ns,)
        ).get
        if generation not in self._generations:
            raise ModelMismatchError("the store was re-embedded with another model meanwhile; open it again")
        if generation != self._indexed:
            self._index, self._indexed = None, generation
        if self._index is None:
            model = to_model(*self.db.execute("SELECT model, probe FROM namespaces WHERE ns = ?", (self.ns,)).get)
            if model is None:
                return None
            self._index = MemoryIndex(model.identity.dimension)
        known = self._index.sequence
        if sequence == known:
            return self._index
        reset = known < floor
        removed: list[int] = []
        if not reset:
            removed = [
                row
                for (row,) in self.db.execute(
                    "SELECT row FROM removals WHERE ns = ? AND sequence > ?", (self.ns, known)
                )
            ]
        for changes in self._changes(sequence, -1 if reset else known, removed, reset):
            self._index.apply(changes)
        return self._index

    def _changes(self, sequence: int, known: int, removed: list[int], reset: bool) -> Iterator[Changes]:
        """The changes since `known`, a chunk at a time; the first chunk carries the removals."""
        assert self._index is not None
        index = self._index
        cursor = self.db.execute(EVERYTHING if known < 0 else SINCE, (self.ns, known))
        first = True
        while True:
            rows = [row for _, row in zip(range(CHUNK), cursor, strict=False)]
            if first or rows:
                yield _to_changes(rows, sequence, removed if first else [], reset and first, index)
            if len(rows) < CHUNK:
                return
            first = False

    def get(self, ids: Sequence[str], now: float) -> list[MemoryEntry | None]:
        """See `Store.get`."""
        rows = [
            self.db.execute(f"SELECT row FROM memories WHERE {LIVE} AND id = ?3", (self.ns, now, memory_id)).get  # noqa: S608 constant
            for memory_id in ids
        ]
        return [None if row is None else entry_at(self.db, row) for row in rows]

    def page(self, wanted: Filter, now: float, limit: int, after: tuple[float, str] | None) -> list[MemoryEntry]:
        """See `Store.page`."""
        conditions = [LIVE, "importance >= ?3"]
        values: list[Any] = [self.ns, now, wanted.min_importance]

        def condition(text: str, *new: object) -> None:
            first = len(values) + 1
            conditions.append(text.format(*(f"?{first + i}" for i in range(len(new)))))
            values.extend(new)

        if wanted.tier is not None:
            condition("tier = {}", TIER_CODE[wanted.tier])
        if wanted.tags:
            condition(
                "(SELECT count(*) FROM json_each(tags) WHERE value IN (SELECT value FROM json_each({}))) = {}",
                json.dumps(sorted(wanted.tags), ensure_ascii=False),
                len(wanted.tags),
            )
        if wanted.actor is not None:
            condition("actor = {}", wanted.actor)
        if wanted.session is not None:
            condition("session = {}", wanted.session)
        if wanted.pinned is not None:
            condition("pinned = {}", int(wanted.pinned))
        if wanted.expires_until is not None:
            condition("expires <= {}", wanted.expires_until)
        if after is not None:
            condition("(created, id) < ({}, {})", *after)
        condition("1 ORDER BY created DESC, id DESC LIMIT {}", limit)
        where = " AND ".join(conditions)
        return [decode(row) for row in self.db.execute(f"SELECT {ENTRY_COLUMNS} FROM memories WHERE {where}", values)]  # noqa: S608 constants; every value is bound

    def counts(self, now: float) -> dict[MemoryTier, int]:
        """See `Store.counts`: all rows less those that have expired and wait for a sweep."""
        counts = dict.fromkeys(TIERS, 0)
        for code, count in self.db.execute("SELECT tier, count FROM tiers WHERE ns = ?", (self.ns,)):
            gone = self.db.execute(
                "SELECT count(*) FROM memories WHERE ns = ? AND tier = ? AND expires <= ?", (self.ns, code, now)
            ).get
            counts[TIERS[code]] = count - gone
        return counts


def _to_changes(
    rows: list[tuple[Any, ...]], sequence: int, removed: list[int], reset: bool, index: MemoryIndex
) -> Changes:
    numbers, importance, times, expires, scales, errors, tiers, codes, terms, actors, sessions = (
        zip(*rows, strict=True) if rows else ((),) * 11
    )
    return Changes(
        sequence=sequence,
        reset=reset,
        removed=removed,
        added=Rows(
            rows=np.array(numbers, np.int64),
            importance=np.array(importance, np.float64),
            times=np.array(times, np.float64),
            expires=np.array(expires, np.float64),
            codes=np.frombuffer(b"".join(codes), np.int8).reshape(len(rows), index.dimension),
            scales=np.array(scales, np.float32),
            errors=np.array(errors, np.float32),
            terms=list(terms),
            actors=index.actors.numbers(actors),
            sessions=session_numbers(sessions),
        ),
        tiers=np.array(tiers, np.uint8),
    )
