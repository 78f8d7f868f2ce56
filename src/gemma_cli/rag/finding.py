"""The verbs that find memories. `PythonRAGBackend` inherits them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import TypedDict, Unpack

from gemma_cli.rag import intake, why_not
from gemma_cli.rag import validation as check
from gemma_cli.rag.answers import AnswerCache
from gemma_cli.rag.candidates import Question
from gemma_cli.rag.errors import InvalidInputError, InvalidTypeError
from gemma_cli.rag.late_interaction import query_tokens
from gemma_cli.rag.memory import MemoryEntry, MemoryTier, parse_tier
from gemma_cli.rag.ranking import BY_WORDS
from gemma_cli.rag.stores.base import Filter
from gemma_cli.rag.verbs import Verbs, timed
from gemma_cli.rag.why_not import WhyNot
from gemma_cli.rag.words import without


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
    """Needs a repository, and a cache of answers over it."""

    _answers: AnswerCache

    @timed
    async def recall_memories(
        self,
        query: str,
        memory_type: MemoryTier | str | None = None,
        limit: int = 5,
        *,
        tags: Iterable[str] | None = None,
        min_importance: float = 0.0,
        since: datetime | str | float | None = None,
        until: datetime | str | float | None = None,
        min_similarity: float | None = None,
        actor: str | None = None,
        session: str | None = None,
        touch: bool = True,
        explain: bool = False,
        weights: Mapping[str, float] | None = None,
    ) -> list[MemoryEntry]:
        """The memories that answer a query best, best first: by meaning and words, by what stands beside them in their
        session, by who said them and when, where the query names somebody or a time (`ranking` has the formula).

        Every filter given must hold: the tier, all of the tags, importance at least, `since` <= when it happened (else
        when it was stored) <= `until`, cosine at least, actor, session. `touch` counts the recall as an access of each
        hit; `explain` fills `entry.explanation` with the parts that add up to `entry.score`. `weights` changes what
        single signals count for, by the names of `ranking.Weights`: `{"importance": 0.2}` lets what matters more win
        among equals, `{"words": 0}` goes by meaning alone."""
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
        found = await self._answers.answer(query, question, check.moment("clock", now) if touch else None)
        if touch and found:
            self._repository.store.touch([entry.id for entry in found], now)
        if not explain:
            for entry in found:
                entry.explanation = None
        return found

    def _question(
        self, query: str, memory_type: object, limit: object, weights: object, now: float, **filters: Unpack[Filters]
    ) -> Question:
        query = check.text("query", query)
        return intake.question(query, memory_type, limit, intake.weights(weights), now=now, **filters)

    async def _search(self, query: str, question: Question) -> list[MemoryEntry]:
        """The answer to a question that has no vector yet. The names of those who said things are left out of the text
        that is embedded: a memory is seldom about the name of who said it, and the actor is a signal of its own."""
        store, now = self._repository.store, self.now()
        vectorizer = await self._repository.fitting_vectorizer()
        if question.weights.actor and len(names := await store.names(question.terms, now)):
            query = without(query, names)
        if vectorizer.token_encoder is None or not self._late_interaction or not question.weights.tokens:
            return await store.search(replace(question, vector=await vectorizer.vector(query)), now)
        vector, found = await vectorizer.with_tokens(query)
        return await store.search(replace(question, vector=vector, tokens=query_tokens(query, found)), now)

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
        count = sum((await store.counts(now)).values())
        depth = why_not.RANKED_AT_FIRST
        while True:
            ranking = await self._search(query, replace(question, limit=depth, min_similarity=None))
            if (verdict := why_not.ranked(entry, question, ranking)) is not None:
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
        found = await self._repository.store.search(question, self.now())
        for entry in found:
            entry.explanation = None
        return found

    @timed
    async def get_memory(self, memory_id: str) -> MemoryEntry | None:
        """The memory with this id, its embedding included; None if there is none (any more)."""
        return (await self._repository.store.get([check.label("memory_id", memory_id)], self.now()))[0]

    @timed
    async def list_memories(
        self,
        memory_type: MemoryTier | str | None = None,
        limit: int = 50,
        *,
        after: str | None = None,
        tags: Iterable[str] | None = None,
        actor: str | None = None,
        session: str | None = None,
        pinned: bool | None = None,
        min_importance: float = 0.0,
    ) -> list[MemoryEntry]:
        """Newest first, without embeddings. `after` is the id of the last memory of the page before."""
        wanted = Filter(
            tier=None if memory_type is None else parse_tier(memory_type),
            tags=frozenset(check.tags(tags)),
            actor=check.optional_label("actor", actor),
            session=check.optional_label("session", session),
            pinned=None if pinned is None else check.flag("pinned", pinned),
            min_importance=check.importance(min_importance, "min_importance"),
        )
        limit = check.whole("limit", limit)
        position = None
        if after is not None:
            last = await self.get_memory(after)
            if last is None:
                raise InvalidInputError(f"after: there is no memory {after!r} (any more); begin the listing again")
            position = (last.created_at.timestamp(), last.id)
        return await self._repository.store.page(wanted, self.now(), limit=limit, after=position)
