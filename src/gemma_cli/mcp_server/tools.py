"""The tools, as methods whose signatures are their schemas and whose docstrings are what a model reads about them."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

from mcp.server.mcpserver import Context
from pydantic import Field

from gemma_cli.edge import results
from gemma_cli.edge.bounds import RECALL_LIMIT, After, Budget, Content, Id, Label, Labels, Query, Share, When
from gemma_cli.edge.failures import INVALID_INPUT, Refusal
from gemma_cli.edge.opening import Opening
from gemma_cli.edge.operations import Selection, consolidate, forget, no_such, page, recall, stats, store
from gemma_cli.edge.results import Tier
from gemma_cli.edge.roots import allowed

Call = Context[Any, Any]

SOURCES: Final = 10
"""Results of a connector's search, which names no number."""


class Tools:
    """`roots`: resolved directories that documents may be ingested from."""

    def __init__(self, opening: Opening, roots: Sequence[Path] = ()) -> None:
        self._opening = opening
        self._roots = roots

    async def remember(
        self,
        content: Annotated[Content, Field(description="One fact or event that can be understood alone.")],
        tier: Tier = "long_term",
        importance: Share = 0.5,
        tags: Labels | None = None,
        actor: Annotated[Label | None, Field(description="Who said or did it.")] = None,
        session: Annotated[Label | None, Field(description="Which conversation it belongs to.")] = None,
        occurred_at: Annotated[When | None, Field(description="When it happened, ISO 8601.")] = None,
        metadata: dict[str, Any] | None = None,
        pinned: Annotated[bool, Field(description="Never expires, never makes room for others.")] = False,
    ) -> results.Remembered:
        """Store one memory. Call it when the user states a fact, preference, decision or event worth knowing in a later
        conversation, or asks you to remember something. Tiers: semantic keeps for good, long_term for weeks, episodic
        for days, short_term for an hour, working for minutes. Answers with the id; `known` is true where the text only
        repeats a memory that was just recalled: that one is kept, as it stands, and nothing new is stored."""
        return await store(
            await self._opening.backend(),
            tier,
            content=content,
            importance=importance,
            tags=tags,
            metadata=metadata,
            actor=actor,
            session=session,
            occurred_at=occurred_at,
            pinned=pinned,
            echo_guard=True,
        )

    async def recall(
        self,
        query: Annotated[Query, Field(description="A question or a topic, in words.")],
        limit: Annotated[int | None, Field(ge=1, le=50, description=RECALL_LIMIT)] = None,
        tier: Tier | None = None,
        tags: Annotated[Labels | None, Field(description="All of them.")] = None,
        actor: Label | None = None,
        session: Label | None = None,
        since: When | None = None,
        until: When | None = None,
        min_importance: Share = 0.0,
        min_confidence: Annotated[
            Share | None, Field(description="Rather nothing than less sure; 0.2 is mild.")
        ] = None,
        max_tokens: Budget | None = None,
        explain: bool = False,
    ) -> results.Recollection:
        """Find memories by meaning and words, best first. Call it before you answer anything that may depend on what
        was said or learned earlier: people, preferences, plans, dates, documents. Names and times in the question
        ("last May") count. A low confidence (below 0.2) means that the answer is probably not there."""
        return await recall(
            await self._opening.backend(),
            query,
            tier,
            max_tokens,
            limit=limit,
            tags=tags,
            min_importance=min_importance,
            since=since,
            until=until,
            min_confidence=min_confidence,
            actor=actor,
            session=session,
            explain=explain,
        )

    async def search(
        self,
        query: Query,
        limit: Annotated[int, Field(ge=1, le=100)] = 20,
        tier: Tier | None = None,
        min_importance: Share = 0.0,
    ) -> results.Found:
        """Find memories that contain given words: a name, a number, an error message, an exact term. For questions and
        topics use recall. Answers with memories, best first."""
        backend = await self._opening.backend()
        return results.Found(
            memories=results.memories(await backend.search_memories(query, tier, min_importance, limit))
        )

    async def forget(
        self,
        memory_ids: Annotated[list[Id] | None, Field(max_length=100, description="Removed at once.")] = None,
        tier: Tier | None = None,
        tags: Annotated[Labels | None, Field(description="All of them.")] = None,
        actor: Label | None = None,
        session: Label | None = None,
        before: Annotated[When | None, Field(description="Stored before this time, ISO 8601.")] = None,
        confirm: Annotated[bool, Field(description="Carry out a removal by filter.")] = False,
    ) -> results.Forgotten:
        """Remove memories for good. Call it when the user asks to forget something, or when a memory is wrong and
        nothing replaces it. Either give memory_ids, which are removed at once, or filters, of which all must hold: that
        only counts and shows examples until you call again with confirm=true. Pinned memories go by id alone."""
        selection = Selection(tier, tags, actor, session, before)
        return await forget(self._opening, memory_ids, selection, confirm=confirm)

    async def get_memory(self, memory_id: Id) -> results.Memory:
        """Read one memory in full by its id, as recall, search and list_memories give it. Counts as no use of it."""
        entry = await (await self._opening.backend()).get_memory(memory_id)
        if entry is None:
            raise no_such(memory_id)
        return results.memory(entry)

    async def list_memories(
        self,
        limit: Annotated[int, Field(ge=1, le=100)] = 20,
        after: After | None = None,
        tier: Tier | None = None,
        tags: Labels | None = None,
        actor: Label | None = None,
        session: Label | None = None,
        pinned: bool | None = None,
        min_importance: Share = 0.0,
    ) -> results.Page:
        """Browse memories, newest first, page by page. Call it to show what is known in a tier, under a tag, from a
        person or in a session; to answer a question use recall."""
        return await page(
            await self._opening.backend(),
            tier,
            limit,
            after=after,
            tags=tags,
            actor=actor,
            session=session,
            pinned=pinned,
            min_importance=min_importance,
        )

    async def update_memory(
        self,
        memory_id: Id,
        content: Annotated[Content | None, Field(description="The new text.")] = None,
        tier: Tier | None = None,
        importance: Share | None = None,
        tags: Annotated[Labels | None, Field(description="Replace those there are.")] = None,
        actor: Label | None = None,
        session: Label | None = None,
        occurred_at: When | None = None,
        metadata: Annotated[dict[str, Any] | None, Field(description="Replaces what there is.")] = None,
        pinned: bool | None = None,
        expires_at: Annotated[When | None, Field(description="When it ends, ISO 8601.")] = None,
    ) -> results.Memory:
        """Correct or re-rate one memory: give its id and only what changes. Call it when a remembered fact has changed,
        instead of storing a second one. A new tier starts that tier's lifetime. Answers with the memory as it is."""
        backend = await self._opening.backend()
        given = {
            "content": content,
            "memory_type": tier,
            "importance": importance,
            "tags": tags,
            "actor": actor,
            "session": session,
            "occurred_at": occurred_at,
            "metadata": metadata,
            "pinned": pinned,
            "expires_at": expires_at,
        }
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if not changes:
            raise Refusal(INVALID_INPUT, "memory_id: say what to change")
        updated = await backend.update_memory(memory_id, **changes)
        if updated is None:
            raise no_such(memory_id)
        return results.memory(updated)

    async def ingest_document(
        self,
        path: Annotated[str, Field(min_length=1, max_length=4_096, description="A file below the server's roots.")],
        ctx: Call,
        tier: Tier = "long_term",
        importance: Share = 0.5,
        tags: Labels | None = None,
    ) -> results.Ingested:
        """Read a file (text, Markdown, code, HTML, PDF, Word) into memory, so that recall finds its passages. Only
        files below directories that the user opened with --root can be read. The same file again adds nothing, a
        changed one is brought up to date. Reports progress; answers with the number of new chunks."""
        file = await asyncio.to_thread(allowed, path, self._roots)
        backend = await self._opening.backend()
        steps: asyncio.Queue[tuple[int, int]] = asyncio.Queue()

        async def report() -> None:
            while True:
                done, total = await steps.get()
                await ctx.report_progress(done, total, f"{done} of {total} chunks embedded")
                steps.task_done()

        reporting = asyncio.create_task(report())
        try:
            new = await backend.ingest_document(
                file,
                tier,
                importance=importance,
                tags=tags,
                progress=lambda done, total: steps.put_nowait((done, total)),
            )
            finished = asyncio.create_task(steps.join())
            await asyncio.wait((finished, reporting), return_when=asyncio.FIRST_COMPLETED)
            finished.cancel()  # still waits only where the client has gone and no report can be sent
        finally:
            reporting.cancel()
        return results.Ingested(path=str(file), new_chunks=new)

    async def consolidate(
        self,
        dry_run: Annotated[bool, Field(description="Only tell what would happen.")] = False,
        days: Annotated[float, Field(ge=0, le=365, description="How far a dry run looks ahead.")] = 7.0,
    ) -> results.Consolidated:
        """Tidy up: remove what has expired, move what matters one tier up, link near-duplicates. The server does it by
        itself from time to time; call it when the user asks, or with dry_run to see what will be forgotten soon."""
        return await consolidate(await self._opening.backend(), days, dry_run=dry_run)

    async def memory_stats(self) -> results.Stats:
        """How many memories each tier holds, where they are kept and with which embedding model. Call it when the user
        asks about the memory itself."""
        return await stats(await self._opening.backend())

    # For ChatGPT's connectors

    async def connector_search(self, query: Query) -> results.Sources:
        """Search the user's memories and documents by meaning and words. Answers with ids, best first; fetch reads
        them."""
        found = await (await self._opening.backend()).recall_memories(query, limit=SOURCES)
        sources = [results.Source(id=entry.id, title=results.title(entry), url=uri(entry.id)) for entry in found]
        return results.Sources(results=sources)

    async def fetch(self, id: Id) -> results.Fetched:  # noqa: A002 - the name that connectors call it by
        """Read one search result in full by its id."""
        entry = await (await self._opening.backend()).get_memory(id)
        if entry is None:
            raise no_such(id)
        facts = results.filled(results.memory(entry).model_dump(exclude={"id", "content"}))
        return results.Fetched(
            id=entry.id, title=results.title(entry), text=entry.content, url=uri(entry.id), metadata=facts
        )


def uri(memory_id: str) -> str:
    return f"memory://{memory_id}"
