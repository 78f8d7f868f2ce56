"""The verbs that find memories. `PythonRAGBackend` inherits them."""

import asyncio
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Final, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag import intake, why_not
from gemma_cli.rag import validation as check
from gemma_cli.rag.answers import AnswerCache
from gemma_cli.rag.candidates import REFINED, ROUNDING, Question
from gemma_cli.rag.confidence import Recalled, judged
from gemma_cli.rag.echoes import Recent
from gemma_cli.rag.errors import InvalidInputError, InvalidTypeError
from gemma_cli.rag.late_interaction import query_tokens
from gemma_cli.rag.memory import MemoryEntry, MemoryTier, parse_tier
from gemma_cli.rag.offload import in_thread
from gemma_cli.rag.packing import TokenCounter, pack, token_counter
from gemma_cli.rag.ranking import BY_WORDS
from gemma_cli.rag.stores.base import Filter
from gemma_cli.rag.verbs import Verbs, timed
from gemma_cli.rag.why_not import WhyNot
from gemma_cli.rag.words import unnamed, without

DEFAULT_LIMIT: Final = 5

FEWEST_CANDIDATES: Final = 50
MOST_CANDIDATES: Final = 200
"""How many memories a budget of tokens is packed from. 50 is the depth that packing was measured with; 200 take some 70
ms of one core."""

TOKENS_PER_CANDIDATE: Final = 16
"""A memory of one short sentence has about as many, so that a large budget does not want for candidates."""


READ_TOGETHER: Final = 256
"""Memories that a store is asked for at a time: it is busy with them for some milliseconds, and others wait."""


class Filters(TypedDict, total=False):
    """What a memory must fulfil beside its tier; see `recall_memories`."""

    tags: Iterable[str] | None
    min_importance: float
    since: datetime | str | float | None
    until: datetime | str | float | None
    min_similarity: float | None
    actor: str | None
    session: str | None


class Finding(Verbs):
    """Needs a repository, a cache of answers over it, and a record of what was recalled."""

    _answers: AnswerCache
    _recent: Recent
    """What new memories may be echoes of."""

    @timed
    async def recall_memories(
        self,
        query: str,
        memory_type: MemoryTier | str | None = None,
        limit: int | None = None,
        *,
        tags: Iterable[str] | None = None,
        min_importance: float = 0.0,
        since: datetime | str | float | None = None,
        until: datetime | str | float | None = None,
        min_similarity: float | None = None,
        min_confidence: float | None = None,
        actor: str | None = None,
        session: str | None = None,
        touch: bool = True,
        explain: bool = False,
        weights: Mapping[str, float] | None = None,
        max_tokens: int | None = None,
        count_tokens: TokenCounter | None = None,
    ) -> Recalled:
        """The memories that answer a query best, best first: by meaning and words, by what stands beside them in their
        session, by who said them and when, where the query names somebody or a time (`ranking` has the formula).

        Every filter given must hold: the tier, all of the tags, importance at least, `since` <= when it happened (else
        when it was stored) <= `until`, cosine at least, actor, session. `touch` counts the recall as an access of each
        hit; `explain` fills `entry.explanation` with the parts that add up to `entry.score`. `weights` changes what
        single signals count for, by the names of `ranking.Weights`: `{"importance": 0.2}` lets what matters more win
        among equals, `{"words": 0}` goes by meaning alone. `limit` is 5 unless given.

        The answer is a list with a `confidence` (see `Recalled`): how likely it holds what was asked for. Below
        `min_confidence` nothing is given or counts as accessed, and the confidence is told all the same; that raises
        `InvalidInputError` where there are hits and their confidence is not known. 0.2 is a mild bound (figures for
        some are in `benchmarks/results/confidence.json`).

        With `max_tokens`, the best that fit: those that `pack` chooses so that `render` of them has at most so many
        tokens. They come in reading order, not best first (`score` stays filled); none but they count as accessed, and
        none fits is `[]`. `limit` is then how many candidates are considered, from 50 to 200 by the budget unless
        given. `count_tokens` (texts to numbers of tokens; called in a thread) should be the tokenizer of the model that
        reads the prompt; by default the embedding model's own counts, or an estimate where it has none."""
        budget = None if max_tokens is None else check.whole("max_tokens", max_tokens)
        limit = _default_limit(budget) if limit is None else limit
        now = self.now()
        question = self._question(
            query,
            memory_type,
            limit,
            weights,
            now,
            tags=tags,
            min_importance=min_importance,
            since=since,
            until=until,
            min_similarity=min_similarity,
            actor=actor,
            session=session,
        )
        touch, explain = check.flag("touch", touch), check.flag("explain", explain)
        touched_at = check.moment("clock", now) if touch else None
        least = None if min_confidence is None else check.number("min_confidence", min_confidence, 0.0, 1.0)

        async def choose(ranking: list[MemoryEntry]) -> Recalled:
            model = self._repository.stored_model
            found = judged(ranking, question.weights, None if model is None else model.identity.name, least)
            if budget is None:
                return found
            return Recalled(await self._packed(found, budget, count_tokens), found.confidence)

        found = await self._answers.answer(query, question, touched_at, choose)
        if touch and found:
            self._repository.store.touch([entry.id for entry in found], now)
            self._recent.note(found, now)
        if not explain:
            for entry in found:
                entry.explanation = None
        return found

    async def _packed(
        self, found: list[MemoryEntry], max_tokens: int, count_tokens: TokenCounter | None
    ) -> list[MemoryEntry]:
        """Those that fit, in reading order."""
        if count_tokens is None:
            count_tokens = token_counter((await self._repository.fitting_vectorizer()).tokenizer)
        return await in_thread(pack, found, max_tokens, count_tokens)

    def _question(
        self, query: str, memory_type: object, limit: object, weights: object, now: float, **filters: Unpack[Filters]
    ) -> Question:
        query = check.text("query", query)
        return intake.question(query, memory_type, limit, intake.weights(weights), now=now, **filters)

    async def _search(self, query: str, question: Question) -> list[MemoryEntry]:
        """The answer to a question that has no vector yet. The names of those who said things are left out of the text
        that is embedded: a memory is seldom about the name of who said it, and the actor is a signal of its own. Other
        names draw the vector to whoever is named, away from what is asked: those that many memories hold don't count in
        it, the rest for half. Words and tokens keep them."""
        store, now = self._repository.store, self.now()
        vectorizer = await self._repository.fitting_vectorizer()
        whole, meant = query, [query]
        if question.weights.actor:
            known = await store.known(question.terms, now)
            texts = (query, unnamed(query, known.frequent), unnamed(query))
            whole, *meant = (without(text, known.actors) for text in texts)
        meant = list(dict.fromkeys(meant))
        if vectorizer.token_encoder is None or not self._late_interaction or not question.weights.tokens:
            vector = _midway(await vectorizer.vectors(meant))
            return await store.search(replace(question, vector=vector), now)
        # Asked for at once, texts go through the model together.
        distinct = list(dict.fromkeys((whole, *meant)))
        read = dict(zip(distinct, await asyncio.gather(*map(vectorizer.with_tokens, distinct)), strict=True))
        vector, tokens = _midway(np.stack([read[text][0] for text in meant])), query_tokens(whole, read[whole][1])
        return await store.search(replace(question, vector=vector, tokens=tokens), now)

    @timed
    async def why_not(
        self,
        query: str,
        memory_id: str,
        memory_type: MemoryTier | str | None = None,
        limit: int = 5,
        *,
        weights: Mapping[str, float] | None = None,
        **filters: Unpack[Filters],
    ) -> WhyNot:
        """Why a memory is not among the answers that `recall_memories` gives with the same arguments: at which stage it
        was lost and by what margin. Ranks as deep as it must, so it may take a second; counts as no access."""
        memory_id = check.label("memory_id", memory_id)
        now = self.now()
        question = self._question(query, memory_type, limit, weights, now, **filters)
        store = self._repository.store
        [entry] = await store.get([memory_id], now)
        if entry is None:
            [entry] = await store.get([memory_id], -math.inf)  # expired and not swept yet, it is still known
            expired = None if entry is None or entry.expires_at is None else entry.expires_at.timestamp()
            return why_not.absent(memory_id, expired)
        if (verdict := why_not.filtered(entry, question)) is not None:
            return verdict
        # As a recall does it: so many by all else are put in order by their tokens. Deeper, it would be other ones.
        compared = max(question.limit, REFINED)
        ranking = await self._search(query, replace(question, limit=compared))
        refined = why_not.by_tokens(ranking)
        if refined and (verdict := why_not.ranked(entry, question, ranking)) is not None:
            return verdict
        untokened = replace(question, weights=replace(question.weights, tokens=0.0), min_similarity=None)
        count = sum((await store.counts(now)).values())
        depth = why_not.RANKED_AT_FIRST
        while True:
            ranking = await self._search(query, replace(untokened, limit=depth))
            if (verdict := why_not.ranked(entry, question, ranking, compared if refined else None)) is not None:
                return verdict
            if depth >= count:
                return why_not.wordless()
            depth *= 10

    @timed
    async def search_memories(
        self,
        query: str,
        memory_type: MemoryTier | str | None = None,
        min_importance: float = 0.0,
        limit: int = 20,
    ) -> list[MemoryEntry]:
        """The memories that hold words of a query, best first, without the model. Any text is a legal query; one
        without a word in it finds nothing."""
        if not isinstance(query, str):
            raise InvalidTypeError(f"query: expected text, got {type(query).__name__}")
        question = intake.question(query, memory_type, limit, BY_WORDS, min_importance=min_importance)
        now = self.now()
        found = await self._repository.store.search(question, now)
        self._recent.note(found, now)
        for entry in found:
            entry.explanation = None
        return found

    @timed
    async def get_memory(self, memory_id: str) -> MemoryEntry | None:
        """The memory with this id, its embedding included; None if there is none (any more)."""
        return (await self._repository.store.get([check.label("memory_id", memory_id)], self.now()))[0]

    @timed
    async def get_memories(self, ids: Iterable[str]) -> list[MemoryEntry | None]:
        """The memories with these ids, in their order, each as `get_memory` gives it."""
        wanted, store, now = check.ids("ids", ids), self._repository.store, self.now()
        found: list[MemoryEntry | None] = []
        for first in range(0, len(wanted), READ_TOGETHER):
            found += await store.get(wanted[first : first + READ_TOGETHER], now)
        return found

    @timed
    async def list_memories(
        self,
        memory_type: MemoryTier | str | None = None,
        limit: int = 50,
        *,
        after: str | MemoryEntry | None = None,
        tags: Iterable[str] | None = None,
        actor: str | None = None,
        session: str | None = None,
        pinned: bool | None = None,
        min_importance: float = 0.0,
    ) -> list[MemoryEntry]:
        """Newest first, without embeddings. `after` is the last memory of the page before, which may be gone by now, or
        its id, which then raises `InvalidInputError`."""
        wanted = Filter(
            tier=None if memory_type is None else parse_tier(memory_type),
            tags=frozenset(check.tags(tags)),
            actor=check.optional_label("actor", actor),
            session=check.optional_label("session", session),
            pinned=None if pinned is None else check.flag("pinned", pinned),
            min_importance=check.importance(min_importance, "min_importance"),
        )
        limit = check.whole("limit", limit)
        if after is None or isinstance(after, MemoryEntry):
            last = after
        else:
            last = await self.get_memory(check.label("after", after))
        if last is None and after is not None:
            raise InvalidInputError(f"after: there is no memory {after!r} (any more); begin the listing again")
        position = None if last is None else (last.created_at.timestamp(), last.id)
        return await self._repository.store.page(wanted, self.now(), limit=limit, after=position)


def _midway(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The direction between vectors of length 1 (the rows): one alone as it is, the first where they cancel out."""
    first: NDArray[np.float32] = vectors[0]
    total = vectors.sum(axis=0, dtype=np.float64)
    length = float(np.linalg.norm(total))
    return first if len(vectors) == 1 or length < ROUNDING else np.asarray(total / length, np.float32)


def _default_limit(max_tokens: int | None) -> int:
    """How many memories to rank where the caller does not say."""
    if max_tokens is None:
        return DEFAULT_LIMIT
    return min(MOST_CANDIDATES, max(FEWEST_CANDIDATES, max_tokens // TOKENS_PER_CANDIDATE))
