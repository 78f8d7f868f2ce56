"""The memory service for ADK: whose memories are seen, what is stored once, what a Runner gets to read."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from command_runs import ROOT, run_python
from hypothesis import given
from hypothesis import strategies as st
from memory_places import WordEmbedder, settings_with

from gemma_cli.rag import BackendStateError, InvalidInputError, PythonRAGBackend

pytest.importorskip("google.adk", reason="google-adk is not installed")

from google.adk.agents import LlmAgent
from google.adk.events.event import Event
from google.adk.memory.memory_entry import MemoryEntry
from google.adk.models.base_llm import BaseLlm
from google.adk.models.llm_request import LlmRequest
from google.adk.models.llm_response import LlmResponse
from google.adk.runners import Runner
from google.adk.sessions.in_memory_session_service import InMemorySessionService
from google.adk.sessions.session import Session
from google.adk.tools import load_memory
from google.adk.tools.preload_memory_tool import preload_memory_tool
from google.genai import types

from gemma_cli.integrations.adk_memory import GemmaRagMemoryService, event_text
from gemma_cli.integrations.user_backends import UserBackends, user_namespace

pytestmark = pytest.mark.anyio

USER = {"app_name": "app", "user_id": "ann"}
START = 1_767_225_600.0


def service_at(url: str, **options: Any) -> GemmaRagMemoryService:
    return GemmaRagMemoryService(url, embedder=WordEmbedder(), settings=settings_with(), **options)


@pytest.fixture
async def service(url, anyio_backend):
    async with service_at(url) as service:
        yield service


def said(text: str, id_: str, author: str = "user", **fields: Any) -> Event:
    role = "user" if author == "user" else "model"
    content = types.Content(role=role, parts=[types.Part(text=text)])
    return Event(id=id_, author=author, timestamp=START, content=content, **fields)


def session_of(*events: Event, id_: str = "s1", app_name: str = "app", user_id: str = "ann") -> Session:
    return Session(id=id_, app_name=app_name, user_id=user_id, events=list(events))


async def texts(service: GemmaRagMemoryService, query: str, **user: str) -> list[str]:
    found = await service.search_memory(**{**USER, **user}, query=query)
    return [memory.content.parts[0].text for memory in found.memories]


async def stored(url: str, namespace: str = "adk:app/ann") -> list[Any]:
    """All memories of a user, oldest first, as another backend sees them."""
    backend = PythonRAGBackend(url=url, namespace=namespace, embedder=WordEmbedder(), settings=settings_with())
    async with backend:
        return (await backend.all_memories())[::-1]


async def test_an_event_becomes_a_memory(service, url):
    """Author, session and timestamp of an event are the memory's actor, session and time; it stays for good."""
    await service.add_session_to_memory(session_of(said("My dog is called Rex.", "e1")))
    [memory] = await stored(url)
    assert (memory.content, memory.actor, memory.session) == ("My dog is called Rex.", "user", "s1")
    assert memory.occurred_at.timestamp() == START
    assert (memory.tier, memory.expires_at) == ("semantic", None)


async def test_a_search_answers_in_adk_s_form(service):
    """The best comes first, with its author, an ISO timestamp in UTC, the role, and its session in the metadata."""
    await service.add_session_to_memory(
        session_of(said("My dog is called Rex.", "e1"), said("The harbour opens at nine.", "e2", author="guide"))
    )
    found = (await service.search_memory(**USER, query="when does the harbour open")).memories
    assert found[0].content.parts[0].text == "The harbour opens at nine."
    assert (found[0].author, found[0].content.role) == ("guide", "model")
    assert found[0].timestamp == "2026-01-01T00:00:00+00:00"
    assert found[0].custom_metadata == {"session_id": "s1"}
    assert found[1].content.role == "user"


async def test_a_session_that_grows_is_stored_once(service, url):
    """Added after every turn, in this process and by a new service, a session leaves each of its events once."""
    events = [said(f"turn {number}", f"e{number}") for number in range(4)]
    for count in range(5):
        await service.add_session_to_memory(session_of(*events[:count]))
    async with service_at(url) as later:
        await later.add_session_to_memory(session_of(*events, said("turn 4", "e4")))
    assert [memory.content for memory in await stored(url)] == [f"turn {number}" for number in range(5)]


async def test_two_services_at_once_store_an_event_once(url):
    """Services that add the same session at the same moment, as processes do, leave each event once."""
    events = [said(f"turn {number}", f"e{number}") for number in range(30)]
    services = [service_at(url) for _ in range(4)]
    await asyncio.gather(*(service.add_session_to_memory(session_of(*events)) for service in services))
    for service in services:
        await service.close()
    assert sorted(memory.content for memory in await stored(url)) == sorted(f"turn {n}" for n in range(30))


async def test_equal_ids_in_two_sessions_are_two_events(service, url):
    """An event id counts within its session; without a session it counts among those without one."""
    await service.add_session_to_memory(session_of(said("first", "e1")))
    await service.add_session_to_memory(session_of(said("second", "e1"), id_="s2"))
    for _ in range(2):
        await service.add_events_to_memory(**USER, events=[said("third", "e1")])
    assert [memory.content for memory in await stored(url)] == ["first", "second", "third"]


async def test_what_is_no_speech_is_left_out(service, url):
    """Events without text, thoughts, calls of tools and parts of a stream are not stored."""
    call = types.Part(function_call=types.FunctionCall(name="load_memory", args={"query": "x"}))
    thought = types.Part(text="I should look it up", thought=True)
    answer = types.Content(role="model", parts=[thought, types.Part(text="Rex, you said."), call])
    await service.add_session_to_memory(
        session_of(
            Event(id="a", author="agent"),
            Event(id="b", author="agent", content=types.Content(role="model", parts=[call])),
            Event(id="c", author="agent", content=types.Content(role="model", parts=[thought])),
            said("   ", "d"),
            said("Rex, y", "e", author="agent", partial=True),
            Event(id="f", author="agent", content=answer),
        )
    )
    assert [memory.content for memory in await stored(url)] == ["Rex, you said."]


async def test_a_broken_character_does_not_keep_a_session_out(service, url):
    """Half of a surrogate pair, which no store takes, is replaced."""
    await service.add_session_to_memory(session_of(said("smile \ud83d", "e1"), said("next", "e2")))
    assert [memory.content for memory in await stored(url)] == ["smile \N{REPLACEMENT CHARACTER}", "next"]


async def test_a_long_event_is_stored_in_parts(url):
    """An event longer than a memory may be is stored whole, in parts, once."""
    service = GemmaRagMemoryService(url, embedder=WordEmbedder(), settings=settings_with(max_content_chars=100))
    event = said("many words " * 30, "e1")
    async with service:
        await service.add_session_to_memory(session_of(event))
    async with GemmaRagMemoryService(
        url, embedder=WordEmbedder(), settings=settings_with(max_content_chars=100)
    ) as again:
        await again.add_session_to_memory(session_of(event))
    memories = await stored(url)
    assert "".join(memory.content for memory in memories) == event_text(event)
    assert len(memories) == 4


async def test_one_user_never_sees_another(service, url):
    """Same application and other user, other application and same user: nothing is found."""
    await service.add_session_to_memory(session_of(said("The secret is blue.", "e1")))
    assert await texts(service, "what is the secret") == ["The secret is blue."]
    assert await texts(service, "what is the secret", user_id="bob") == []
    assert await texts(service, "what is the secret", app_name="other") == []
    assert await stored(url, "default") == []


async def test_names_that_look_alike_are_different_users(service):
    """Characters that mean something in a namespace, a path or a pattern can't join two users."""
    names = [("a/b", "c"), ("a", "b/c"), ("a%2Fb", "c"), ("A", "b/c"), ("a", "b/c "), ("a", "é"), ("a", "e\u0301")]
    names += [("x" * 600, "u"), ("x" * 600, "v"), ("adk:a", "%"), ("*", "_"), ("a:b", "'; DROP TABLE memories; --")]
    for number, (app, user) in enumerate(names):
        await service.add_session_to_memory(session_of(said(f"secret {number}", "e1"), app_name=app, user_id=user))
    for number, (app, user) in enumerate(names):
        assert await texts(service, "secret", app_name=app, user_id=user) == [f"secret {number}"]


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300).filter(str.strip)


@given(NAMES, NAMES, NAMES, NAMES)
def test_namespaces_are_injective(app, user, other_app, other_user):
    """Two pairs of names share a namespace only if they are equal, however long."""
    same = user_namespace(app, user, "adk") == user_namespace(other_app, other_user, "adk")
    assert same == ((app, user) == (other_app, other_user))


async def test_an_empty_name_is_refused(service):
    """Nobody's memories are no user's: an empty application or user raises, and names the argument."""
    with pytest.raises(InvalidInputError, match="user_id"):
        await service.search_memory(app_name="app", user_id="", query="x")
    with pytest.raises(InvalidInputError, match="app_name"):
        await service.add_session_to_memory(session_of(said("x", "e1"), app_name=" "))


async def test_few_of_many_users_stay_open(url):
    """With more users than `open_users`, idle ones are closed and opened again with what they had."""
    async with service_at(url, open_users=2) as service:
        for number in range(7):
            events = [said(f"secret {number}", "e1")]
            await service.add_events_to_memory(app_name="app", user_id=f"u{number}", events=events)
        assert len(service._users._seats) == 2
        for number in range(7):
            assert await texts(service, "secret", user_id=f"u{number}") == [f"secret {number}"]


async def test_a_backend_in_use_is_not_closed(url):
    """Beyond the limit a backend stays open for as long as somebody works with it."""
    made: list[PythonRAGBackend] = []

    def make(namespace: str) -> PythonRAGBackend:
        made.append(PythonRAGBackend(url=url, namespace=namespace, embedder=WordEmbedder(), settings=settings_with()))
        return made[-1]

    users = UserBackends(make, 1)
    async with users.use("a") as first:
        async with users.use("b"):
            pass
        assert await first.get_memory_stats()
    async with users.use("c"):
        pass
    for backend in made[:2]:
        with pytest.raises(BackendStateError):
            await backend.get_memory_stats()
    await users.close()


async def test_a_store_in_memory_keeps_all_users():
    """What is in memory alone is never closed before the service is."""
    async with service_at("memory://", open_users=1) as service:
        for number in range(3):
            events = [said(f"secret {number}", "e1")]
            await service.add_events_to_memory(app_name="app", user_id=f"u{number}", events=events)
        assert await texts(service, "secret", user_id="u0") == ["secret 0"]


def test_any_event_loop_may_call(url):
    """Calls from loops that come and go, several at a time, find one and the same memory."""
    service = service_at(url)

    async def turn(number: int) -> list[str]:
        events = [said(f"turn {number} {part}", f"{number}-{part}") for part in range(5)]
        await asyncio.gather(*(service.add_events_to_memory(**USER, events=[event]) for event in events))
        return await texts(service, "turn")

    counts = [len(asyncio.run(turn(number))) for number in range(2)]
    asyncio.run(service.close())
    assert counts == [5, 10]
    assert "gemma-rag-adk" not in [thread.name for thread in threading.enumerate()]


async def test_a_closed_service_says_so(service):
    """After `close`, which may be called twice, a call raises instead of opening the store again."""
    await service.close()
    await service.close()
    with pytest.raises(BackendStateError, match="closed"):
        await service.search_memory(**USER, query="x")


async def test_an_empty_query_finds_nothing(service):
    """ADK may search for what a user who sent only a picture wrote."""
    assert (await service.search_memory(**USER, query=" ")).memories == []


async def test_a_budget_of_tokens_packs_in_reading_order(url):
    """With `max_tokens` the answer is what fits, in the order in which it was said."""
    events = [said(f"the boat sailed on day {number} of the voyage", f"e{number}") for number in range(40)]
    for number, event in enumerate(events):
        event.timestamp = START + number
    async with service_at(url, max_tokens=120) as service:
        await service.add_session_to_memory(session_of(*events))
        found = (await service.search_memory(**USER, query="boat voyage day")).memories
    assert 1 < len(found) < 40
    assert [memory.timestamp for memory in found] == sorted(memory.timestamp for memory in found)


# Memories that are given as such


async def test_a_given_memory_is_stored_with_what_it_says(service, url):
    """Text, author and timestamp of a memory are kept, and `custom_metadata` says where and how it is stored."""
    entry = MemoryEntry(
        content=types.Content(parts=[types.Part(text="Ann prefers tea.")]),
        author="notes",
        timestamp="2025-03-01T10:00:00",
        custom_metadata={"topic": "drinks"},
    )
    await service.add_memory(
        **USER,
        memories=[entry],
        custom_metadata={"tier": "long_term", "importance": 0.9, "tags": ["taste"], "by": "me"},
    )
    [memory] = await stored(url)
    assert (memory.content, memory.actor, memory.tier) == ("Ann prefers tea.", "notes", "long_term")
    assert (memory.importance, memory.tags) == (0.9, {"taste"})
    assert memory.metadata == {"topic": "drinks", "by": "me"}
    assert memory.occurred_at.isoformat() == "2025-03-01T10:00:00+00:00"


def given_memory(text: str, **fields: Any) -> MemoryEntry:
    return MemoryEntry(content=types.Content(parts=[types.Part(text=text)]), **fields)


async def test_a_memory_with_an_id_replaces_the_one_with_that_id(service, url):
    """Given twice under one id, in two calls or in one, a memory is there once, with all that the last one says."""
    first = given_memory("Ann prefers tea.", id="taste", author="user", timestamp="2025-03-01T10:00:00")
    await service.add_memory(**USER, memories=[first], custom_metadata={"tags": ["old"], "topic": "drinks"})
    later = [
        given_memory("Ann prefers milk.", id="taste"),
        given_memory("Ann prefers coffee.", id="taste", author="notes", timestamp="2026-03-01T10:00:00"),
    ]
    how = {"tier": "long_term", "importance": 0.9, "tags": ["new"], "pinned": True, "by": "me"}
    await service.add_memory(**USER, memories=later, custom_metadata=how)
    [memory] = await stored(url)
    assert (memory.id, memory.content, memory.actor) == ("taste", "Ann prefers coffee.", "notes")
    assert (memory.tier, memory.importance, memory.tags, memory.pinned) == ("long_term", 0.9, {"new"}, True)
    assert memory.occurred_at.isoformat() == "2026-03-01T10:00:00+00:00"
    assert memory.metadata == {"by": "me"}
    assert await texts(service, "what does Ann prefer") == ["Ann prefers coffee."]


async def test_an_event_that_is_replaced_and_deleted_does_not_come_back(service, url):
    """A given memory may take the place of an event's; deleted then, its session does not bring it back."""
    session = session_of(said("My pin is 4711.", "e1"))
    await service.add_session_to_memory(session)
    [event] = await stored(url)
    await service.add_memory(**USER, memories=[given_memory("The pin is kept elsewhere.", id=event.id)])
    await service.delete_memory(**USER, memory_id=event.id)
    async with service_at(url) as later:
        await later.add_session_to_memory(session)
    assert await stored(url) == []


async def test_given_memories_are_stored_all_or_none(service, url):
    """One that can't be stored keeps those beside it out, and what they would have replaced stays."""
    await service.add_memory(**USER, memories=[given_memory("Ann prefers tea.", id="taste")])
    bad = [given_memory("Ann prefers coffee.", id="taste"), given_memory("Ann is late."), given_memory(" ")]
    with pytest.raises(InvalidInputError, match=r"memories\[2\]"):
        await service.add_memory(**USER, memories=bad)
    with pytest.raises(InvalidInputError, match="content"):
        await service.add_memory(**USER, memories=[*bad[:2], given_memory("x" * 200_000)])
    assert [memory.content for memory in await stored(url)] == ["Ann prefers tea."]


@pytest.mark.parametrize(
    ("entry", "metadata", "word"),
    [
        ({"text": " "}, None, r"memories\[0\]"),
        ({"text": "x", "timestamp": "yesterday"}, None, "timestamp"),
        ({"text": "x"}, {"tier": "attic"}, "custom_metadata.tier"),
        ({"text": "x"}, {"importance": 2}, "custom_metadata.importance"),
        ({"text": "x"}, {"made": object()}, "metadata"),
    ],
)
async def test_a_memory_that_can_t_be_is_refused(service, url, entry, metadata, word):
    """A memory without text, with a time that is none, or with an unknown tier raises, and nothing is stored."""
    text = entry.pop("text")
    memory = MemoryEntry(content=types.Content(parts=[types.Part(text=text)]), **entry)
    with pytest.raises(InvalidInputError, match=word):
        await service.add_memory(**USER, memories=[memory], custom_metadata=metadata)
    assert await stored(url) == []


async def test_what_is_deleted_does_not_come_back(service, url):
    """A deleted event is not found, its text is gone, and adding its session again, here or elsewhere, changes that
    not."""
    session = session_of(said("My pin is 4711.", "e1"), said("The weather is fine.", "e2"))
    await service.add_session_to_memory(session)
    [hit] = [
        m for m in (await service.search_memory(**USER, query="pin")).memories if "4711" in m.content.parts[0].text
    ]
    await service.delete_memory(**USER, memory_id=hit.id)
    await service.delete_memory(**USER, memory_id=None)
    await service.delete_memory(**USER, memory_id="no such id")
    await service.add_session_to_memory(session)
    async with service_at(url) as later:
        await later.add_session_to_memory(session)
        assert await texts(later, "pin forgotten 4711") == ["The weather is fine."]
    assert [memory.content for memory in await stored(url)] == ["The weather is fine."]
    assert [memory.id for memory in await stored(url, "adk:forgotten:app/ann")] == [hit.id]


@pytest.mark.parametrize("options", [{"limit": 3}, {"max_tokens": 40}])
async def test_what_is_deleted_hides_nothing(url, options):
    """However much is deleted, and whatever the query's words, a search gives as much of what is left."""
    events = [said(f"forgotten thing {number}", f"e{number}") for number in range(12)]
    async with service_at(url, **options) as service:
        await service.add_session_to_memory(session_of(*events, said("I have forgotten my umbrella.", "e12")))
        for memory in await stored(url):
            if "thing" in memory.content:
                await service.delete_memory(**USER, memory_id=memory.id)
        assert await texts(service, "forgotten") == ["I have forgotten my umbrella."]


async def test_a_part_of_a_long_event_stays_deleted(url):
    """Of an event in parts one can be deleted; the others stay when its session is added again."""
    event = said("many words " * 30, "e1")
    for _ in range(2):
        async with GemmaRagMemoryService(
            url, embedder=WordEmbedder(), settings=settings_with(max_content_chars=100)
        ) as service:
            await service.add_session_to_memory(session_of(event))
            parts = await stored(url)
            if len(parts) == 4:
                await service.delete_memory(**USER, memory_id=parts[0].id)
    assert len(await stored(url)) == 3


async def test_a_deleted_memory_of_no_event_is_gone(service, url):
    """A memory that was given as such leaves nothing behind."""
    await service.add_memory(
        **USER, memories=[MemoryEntry(id="m", content=types.Content(parts=[types.Part(text="x")]))]
    )
    await service.delete_memory(**USER, memory_id="m")
    assert await stored(url) == []


# In a Runner


class Scripted(BaseLlm):
    """ADK's own extension point for models: asks the memory once, then repeats what it was given to read."""

    model: str = "scripted"

    async def generate_content_async(
        self, llm_request: LlmRequest, stream: bool = False
    ) -> AsyncGenerator[LlmResponse, None]:
        last = llm_request.contents[-1].parts[-1]
        if last.function_response is not None:
            found = last.function_response.response["result"].memories
            part = types.Part(text="I remember: " + "; ".join(memory.content.parts[0].text for memory in found))
        elif "load_memory" in llm_request.tools_dict:
            part = types.Part(function_call=types.FunctionCall(name="load_memory", args={"query": last.text}))
        else:
            read = [part.text for content in llm_request.contents for part in content.parts if part.text]
            part = types.Part(text="I read: " + " | ".join(read))
        yield LlmResponse(content=types.Content(role="model", parts=[part]))


def runner_with(service: GemmaRagMemoryService, tools: list[Any]) -> Runner:
    async def remember(callback_context: Any) -> None:
        await callback_context.add_session_to_memory()

    agent = LlmAgent(name="agent", model=Scripted(), tools=tools, after_agent_callback=remember)
    return Runner(agent=agent, app_name="app", session_service=InMemorySessionService(), memory_service=service)


async def turn(runner: Runner, user: str, session: str, text: str) -> str:
    """One turn of a conversation: the last thing that the agent says."""
    service = runner.session_service
    if await service.get_session(app_name="app", user_id=user, session_id=session) is None:
        await service.create_session(app_name="app", user_id=user, session_id=session)
    message = types.Content(role="user", parts=[types.Part(text=text)])
    answers = [event async for event in runner.run_async(user_id=user, session_id=session, new_message=message)]
    return event_text(answers[-1])


async def test_a_runner_s_agent_loads_what_was_said_before(service, url):
    """Through ADK's Runner, an agent whose model calls `load_memory` finds what its user said in another session, and
    nobody else's; after every turn the session is added, and each event is stored once."""
    runner = runner_with(service, [load_memory])
    await turn(runner, "ann", "monday", "My dog is called Rex.")
    await turn(runner, "ann", "monday", "He is ill.")
    assert "My dog is called Rex." in await turn(runner, "ann", "tuesday", "What is my dog called?")
    assert "Rex" not in await turn(runner, "bob", "tuesday", "What is my dog called?")
    contents = [memory.content for memory in await stored(url) if memory.session == "monday"]
    assert contents.count("My dog is called Rex.") == contents.count("He is ill.") == 1
    assert {memory.actor for memory in await stored(url)} == {"user", "agent"}
    await runner.close()


async def test_a_runner_s_agent_is_given_memories_beforehand(service):
    """ADK's `preload_memory` puts what is found, with time and author, before the model."""
    runner = runner_with(service, [preload_memory_tool])
    await turn(runner, "ann", "monday", "My dog is called Rex.")
    answer = await turn(runner, "ann", "tuesday", "What is my dog called?")
    assert "user: My dog is called Rex." in answer
    assert "<PAST_CONVERSATIONS>" in answer
    await runner.close()


def test_without_adk_the_extra_is_named(tmp_path):
    """Where google-adk is missing, importing the module says what to install."""
    code = (
        "import sys; sys.modules['google.adk'] = None\n"
        "from gemma_cli.rag import MissingExtraError\n"
        "try:\n    import gemma_cli.integrations.adk_memory\n"
        "except MissingExtraError as error:\n    print(error)\n"
    )
    assert 'pip install "gemma-rag[adk]"' in run_python("-c", code, cwd=tmp_path).stdout


def test_the_example_in_the_documentation_runs(tmp_path):
    """The lines under "Google ADK" make a Runner with the service, as they stand."""
    section = (ROOT / "docs" / "adapters.md").read_text("utf-8").split("## Google ADK")[1]
    code = section.split("```python\n")[1].split("```")[0]
    outcome = run_python("-c", code + "print(runner.memory_service is memory)", cwd=tmp_path)
    assert outcome.stdout == "True\n", outcome.stderr
