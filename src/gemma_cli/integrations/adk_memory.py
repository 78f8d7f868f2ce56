"""The memory of Google's Agent Development Kit (ADK): a `MemoryService` over the five tiers.

runner = Runner(agent=agent, app_name="app", session_service=..., memory_service=GemmaRagMemoryService())
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

from gemma_cli.integrations.episodes import add_new, episode_id, known, parts, storable
from gemma_cli.integrations.user_backends import OwnLoop, UserBackends, user_namespace
from gemma_cli.rag import (
    BatchEmbedder,
    Embedder,
    InvalidInputError,
    InvalidTypeError,
    MemoryTier,
    MissingExtraError,
    PythonRAGBackend,
    Settings,
    load_settings,
)
from gemma_cli.rag import MemoryEntry as Memory
from gemma_cli.rag import validation as check
from gemma_cli.rag.lru_cache import LruCache
from gemma_cli.rag.memory import parse_tier

try:
    from google.adk.events.event import Event
    from google.adk.memory.base_memory_service import BaseMemoryService, SearchMemoryResponse
    from google.adk.memory.memory_entry import MemoryEntry
    from google.adk.sessions.session import Session
    from google.genai import types
except ImportError as error:
    raise MissingExtraError(
        'the memory service for ADK needs google-adk; install it with: pip install "gemma-rag[adk]"'
    ) from error

PREFIX: Final = "adk"
"""What the namespaces of users begin with."""

ADDED_KEPT: Final = 100_000
"""Ids of events that this process knows to be stored, so that a session that is added after every turn costs no
questions for the turns before."""

EVENT_KEY: Final = "event"
"""The key of the metadata that is ours: the id of the event."""

FORGOTTEN: Final = "forgotten"
"""Part of the name of a namespace beside a user's, which holds the ids of events that were deleted, and the content of
each memory there. ADK adds a whole session after every turn, and what was deleted would come back. In the user's own
namespace these memories would be found, and fill answers."""

OPTIONS: Final = ("tier", "importance", "tags", "pinned")
"""Keys of `custom_metadata` that say how to store; all others become metadata of the memory."""


class GemmaRagMemoryService(BaseMemoryService):
    """What was said in ADK's sessions, found again by meaning and by words, on this machine.

    Each user of each application has a namespace of their own (`user_namespace`), so that nothing of one user is seen,
    counted, ranked with or evicted through another. The author of an event becomes the actor, its session the session,
    its timestamp the time; events without text, thoughts, and parts of a stream are left out.

    url, embedder, settings, clock: as `PythonRAGBackend` takes them.
    tier: where memories go. In `semantic`, the default, they stay for good: 50,000 a user, then the least relevant
        leave.
    limit: how many memories a search gives at most.
    max_tokens: pack the best that fit into so many tokens instead; they come in reading order.
    min_confidence: give nothing where it is less likely that what is asked for is there; see `recall_memories`.
    open_users: namespaces that stay open while they are not in use, each with four threads and its index. A user whose
        events are added has two.

    It may be used from any event loop and any thread: the work is done on a loop of its own, in a thread that the first
    call starts and `close` ends."""

    def __init__(
        self,
        url: str | None = None,
        *,
        tier: MemoryTier | str = MemoryTier.SEMANTIC,
        limit: int = 10,
        max_tokens: int | None = None,
        min_confidence: float | None = None,
        open_users: int = 32,
        prefix: str = PREFIX,
        embedder: Embedder | BatchEmbedder | None = None,
        settings: Settings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._tier = parse_tier(tier, "tier")
        self._recall: dict[str, Any] = {
            "limit": check.whole("limit", limit) if max_tokens is None else None,
            "max_tokens": None if max_tokens is None else check.whole("max_tokens", max_tokens),
            "min_confidence": None if min_confidence is None else check.number("min_confidence", min_confidence, 0, 1),
        }
        self._prefix = check.label("prefix", prefix)
        settings = load_settings() if settings is None else settings
        url = settings.store_url() if url is None else url

        def make(namespace: str) -> PythonRAGBackend:
            return PythonRAGBackend(url=url, namespace=namespace, embedder=embedder, settings=settings, clock=clock)

        most = check.whole("open_users", open_users)
        self._users = UserBackends(make, None if url.startswith("memory:") else most)
        self._loop = OwnLoop("gemma-rag-adk")
        self._added = LruCache[bool](ADDED_KEPT)

    def namespace(self, app_name: str, user_id: str) -> str:
        """Where the memories of a user are, e.g. for `gemma-rag --namespace`."""
        return user_namespace(app_name, user_id, self._prefix)

    def _forgotten(self, app_name: str, user_id: str) -> AbstractAsyncContextManager[PythonRAGBackend]:
        """Where the ids are of what the user has deleted."""
        return self._users.use(user_namespace(app_name, user_id, f"{self._prefix}:{FORGOTTEN}"))

    async def close(self) -> None:
        """Finishes what was begun and lets go of the stores. Idempotent."""
        await self._loop.close(self._users.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # Adding

    async def add_session_to_memory(self, session: Session) -> None:
        """Stores the events of a session that are not stored yet, by their ids; so does any process, at any time."""
        await self.add_events_to_memory(
            app_name=session.app_name, user_id=session.user_id, events=session.events, session_id=session.id
        )

    async def add_events_to_memory(
        self,
        *,
        app_name: str,
        user_id: str,
        events: Sequence[Event],
        session_id: str | None = None,
        custom_metadata: Mapping[str, object] | None = None,
    ) -> None:
        """Stores those events that are not stored yet. An event is the same one where it has the same id in the same
        session. `custom_metadata` becomes metadata, except `tier`, `importance`, `tags` and `pinned`, which say how to
        store."""
        namespace = self.namespace(app_name, user_id)
        spoken = [event for event in events if not event.partial and event_text(event)]
        ids = {_event_id(namespace, session_id, event): event for event in spoken}
        new = {id_: event for id_, event in ids.items() if id_ not in self._added.peek([id_])}
        if not new:
            return
        options, metadata = _split(custom_metadata)

        async def add(backend: PythonRAGBackend) -> None:
            episodes = []
            for event in new.values():
                described = {**metadata, EVENT_KEY: event.id}
                for number, text in enumerate(parts(event_text(event), backend.settings.memory.max_content_chars)):
                    episode = self._memory(
                        text, options, described, event.author, session_id, event.timestamp, backend.now()
                    )
                    episode.id = episode_id(session_id or "", _named(event), str(number))
                    episodes.append(episode)
            there = await known(backend, [episode.id for episode in episodes])
            missing = [episode for episode in episodes if episode.id not in there]
            if missing:  # whoever deletes one meanwhile has put its id among the forgotten first
                async with self._forgotten(app_name, user_id) as forgotten:
                    gone = await known(forgotten, [episode.id for episode in missing])
                await add_new(backend, [episode for episode in missing if episode.id not in gone])
            self._added.put_many(dict.fromkeys(new, True))

        await self._with(namespace, add)

    async def add_memory(
        self,
        *,
        app_name: str,
        user_id: str,
        memories: Sequence[MemoryEntry],
        custom_metadata: Mapping[str, object] | None = None,
    ) -> None:
        """Stores memories as they are given, all or none. One whose id is there already takes the place of that one; of
        two with one id the last is stored. Raises `InvalidInputError` for one without text, or with a timestamp that is
        not ISO 8601 (one without a zone is UTC)."""
        options, metadata = _split(custom_metadata)

        async def add(backend: PythonRAGBackend) -> None:
            new: dict[str, Memory] = {}
            for position, given in enumerate(memories):
                text = _text(given.content)
                if not text:
                    raise InvalidInputError(f"memories[{position}]: has no text")
                described = {**metadata, **_own(given.custom_metadata)}
                time = given.timestamp
                entry = self._memory(text, options, described, given.author, None, time, backend.now())
                if given.id is not None:
                    entry.id = check.label(f"memories[{position}].id", given.id)
                new[entry.id] = entry
            for before in await backend.get_memories(list(new)):
                if before is not None and EVENT_KEY in before.metadata:
                    new[before.id].metadata[EVENT_KEY] = before.metadata[EVENT_KEY]
            await backend.store_memories(new.values(), replaces=list(new))

        await self._with(self.namespace(app_name, user_id), add)

    def _memory(
        self,
        text: str,
        options: Mapping[str, Any],
        metadata: Mapping[str, Any],
        author: str | None,
        session: str | None,
        occurred_at: object,
        now: float,
    ) -> Memory:
        return Memory(
            content=text,
            memory_type=options.get("tier", self._tier),
            importance=options.get("importance", 0.5),
            tags=options.get("tags", set()),
            pinned=options.get("pinned", False),
            metadata=dict(metadata),
            created_at=datetime.fromtimestamp(now, UTC),
            actor=author or None,
            session=session or None,
            occurred_at=check.optional_moment("timestamp", occurred_at),
        )

    # Finding and forgetting

    async def search_memory(self, *, app_name: str, user_id: str, query: str) -> SearchMemoryResponse:
        """What the user's memory holds of a query, best first, or with `max_tokens` in reading order. A query without
        a word in it finds nothing."""
        namespace = self.namespace(app_name, user_id)
        if not isinstance(query, str):
            raise InvalidTypeError(f"query: expected text, got {type(query).__name__}")
        if not query.strip():
            return SearchMemoryResponse()

        async def search(backend: PythonRAGBackend) -> list[Memory]:
            return await backend.recall_memories(query, **self._recall)

        return SearchMemoryResponse(memories=[_entry(memory) for memory in await self._with(namespace, search)])

    async def delete_memory(self, *, app_name: str, user_id: str, memory_id: str | None = None) -> None:
        """Forgets a memory; no id, or one that is not there, does nothing. Adding its session again does not bring it
        back: of a memory that was an event, the id is kept."""
        if not memory_id:
            return

        async def forget(backend: PythonRAGBackend) -> None:
            memory = await backend.get_memory(memory_id)
            if memory is None:
                return
            if EVENT_KEY in memory.metadata:
                async with self._forgotten(app_name, user_id) as forgotten:
                    await add_new(forgotten, [Memory(FORGOTTEN, MemoryTier.SEMANTIC, id=memory_id)])
            await backend.delete_memory(memory_id)

        await self._with(self.namespace(app_name, user_id), forget)

    async def _with(self, namespace: str, work: Callable[[PythonRAGBackend], Any]) -> Any:
        async def done() -> Any:
            async with self._users.use(namespace) as backend:
                return await work(backend)

        return await self._loop.run(done)


def event_text(event: Event) -> str:
    """What was said in an event, without thoughts, calls of tools and files; "" where nothing was."""
    return "" if event.content is None else _text(event.content)


def _text(content: types.Content) -> str:
    said = [part.text for part in content.parts or () if part.text and not part.thought]
    return storable("\n".join(said))


def _named(event: Event) -> str:
    """The id of an event; of one that has none, what it says, of whom and when."""
    return event.id or repr((event.author, event.timestamp, event_text(event)))


def _event_id(namespace: str, session_id: str | None, event: Event) -> str:
    return episode_id(namespace, session_id or "", _named(event))


_CHECKS: Final[Mapping[str, Callable[[object], object]]] = MappingProxyType(
    {
        "tier": lambda value: parse_tier(value, "custom_metadata.tier"),
        "importance": lambda value: check.importance(value, "custom_metadata.importance"),
        "tags": lambda value: check.tags(value, "custom_metadata.tags"),  # type: ignore[arg-type]  # it checks the type
        "pinned": lambda value: check.flag("custom_metadata.pinned", value),
    }
)


def _split(custom_metadata: Mapping[str, object] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """How to store, and what to store with it."""
    given = custom_metadata or {}
    options = {name: _CHECKS[name](given[name]) for name in OPTIONS if name in given}
    return options, _own({name: value for name, value in given.items() if name not in OPTIONS})


def _own(custom_metadata: Mapping[str, object]) -> dict[str, Any]:
    """A caller's metadata; what is ours can't be given."""
    return {name: value for name, value in check.metadata(custom_metadata).items() if name != EVENT_KEY}


def _entry(memory: Memory) -> MemoryEntry:
    metadata = {name: value for name, value in memory.metadata.items() if name != EVENT_KEY}
    if memory.session is not None:
        metadata["session_id"] = memory.session
    role = "user" if memory.actor == "user" else "model"
    return MemoryEntry(
        id=memory.id,
        content=types.Content(role=role, parts=[types.Part(text=memory.content)]),
        author=memory.actor,
        timestamp=(memory.occurred_at or memory.created_at).isoformat(),
        custom_metadata=metadata,
    )
