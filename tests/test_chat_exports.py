"""Chats of Claude and ChatGPT: what is read of an export, what is stored of it, and how it comes out again."""

import asyncio
import io
import json
import re
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
from command_runs import ROOT, Outcome, call, run_command, run_python
from hypothesis import example, given
from hypothesis import strategies as st
from memory_places import WordEmbedder, settings_with

from gemma_cli.commands.session import ExitCode
from gemma_cli.integrations import chat_exports, export_files
from gemma_cli.integrations.chat_exports import (
    as_json_lines,
    as_markdown,
    as_openai,
    import_chats,
    list_chats,
    read_chat,
    read_conversations,
)
from gemma_cli.integrations.chat_formats import parse_conversation
from gemma_cli.integrations.episodes import add_new, episode_id, parts
from gemma_cli.integrations.export_files import elements
from gemma_cli.rag import (
    CapacityError,
    DocumentError,
    DocumentNotFoundError,
    InvalidInputError,
    MemoryEntry,
    PythonRAGBackend,
)

pytestmark = pytest.mark.anyio

DATA = Path(__file__).parent / "data" / "chats"
CLAUDE, CHATGPT = DATA / "claude.json", DATA / "chatgpt.json"
BREAD, TIDES = (f"6f0d3a52-1111-4000-8000-00000000000{number}" for number in (1, 2))
DINGHY = "67a1b2c3-2222-8000-9000-000000000001"
DAY = 86_400.0


@pytest.fixture
async def backend(clock, anyio_backend):
    async with backend_with(clock) as backend:
        yield backend


def backend_with(clock, url="memory://", **memory):
    return PythonRAGBackend(url=url, embedder=WordEmbedder(), settings=settings_with(**memory), clock=clock)


def zipped(path: Path, members: dict[str, Any]) -> Path:
    """A zip of files; what is no bytes is written as JSON."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in members.items():
            archive.writestr(name, value if isinstance(value, bytes) else json.dumps(value))
    return path


def chat(count: int, name: str = "c", start: int = 0, text: str = "message") -> dict[str, Any]:
    """A conversation in Claude's form, a message a minute."""
    return {
        "uuid": name,
        "name": f"Chat {name}",
        "chat_messages": [
            {
                "uuid": f"{name}-{number}",
                "sender": ("human", "assistant")[number % 2],
                "text": f"{text} {number}",
                "created_at": f"2025-05-{1 + (start + number) // 1440:02d}T"
                f"{(start + number) // 60 % 24:02d}:{(start + number) % 60:02d}:00Z",
            }
            for number in range(count)
        ],
    }


def written(path: Path, *conversations: Any) -> Path:
    path.write_text(json.dumps(list(conversations)))
    return path


async def contents(backend: PythonRAGBackend, **filters: Any) -> list[str]:
    """Oldest first."""
    return [memory.content for memory in await backend.list_memories(limit=100_000, **filters)][::-1]


# What is read


def test_a_claude_export_is_read():
    """Of Claude's form: the path to the newest message, text blocks without thoughts and tools, pasted text, names of
    files; what is left out is counted."""
    bread, tides, empty = read_conversations(CLAUDE)
    assert (bread.source, bread.id, bread.title) == ("claude", BREAD, "Bread for the harbour feast")
    assert [(message.actor, message.text) for message in bread.messages] == [
        ("user", "My sourdough starter is called Hugo and it smells of vinegar. Is it still good?"),
        ("assistant", "A vinegar smell means that Hugo is hungry: feed it every twelve hours."),
        ("user", "My recipe: 500 g rye, 400 g water, 10 g salt, no sugar."),
        ("assistant", "With that much water the dough will be soft. Bake it in a tin."),
        ("user", "Here is a picture."),
    ]
    assert bread.messages[-1].attachments == ("loaf.jpg",)
    assert bread.messages[0].occurred_at.isoformat() == "2025-11-03T08:00:05+00:00"
    assert bread.left_out == {"on another branch": 1, "without text": 1}
    assert [message.actor for message in tides.messages] == ["user", "assistant"]
    assert (tides.title, empty.messages) == ("", ())


def test_a_chatgpt_export_is_read():
    """Of ChatGPT's form: the path to `current_node` alone, without system, hidden, tool and reasoning messages;
    pictures fall away, speech stays, markers become words, and a missing time is that of the message before."""
    dinghy, count = read_conversations(CHATGPT)
    assert (dinghy.source, dinghy.id, dinghy.title) == ("chatgpt", DINGHY, "Paint for the dinghy")
    assert [(message.actor, message.text) for message in dinghy.messages] == [
        ("user", "Which paint should I put on my wooden dinghy, the Terna?"),
        ("assistant", "Use an oil paint from Hansen, two thin coats."),
        ("user", "This is the tin I have at home."),
    ]
    assert [message.occurred_at.timestamp() for message in dinghy.messages] == [1762800010, 1762800010, 1762800060]
    assert dinghy.messages[2].attachments == ("tin.png",)
    assert dinghy.left_out == {
        "on another branch": 3,
        "of the system or a tool": 3,
        "hidden": 1,
        "without text": 1,
    }
    assert (count.title, [message.id for message in count.messages]) == ("", ["msg-b", "msg-c"])


def test_a_claude_branch_follows_the_named_leaf_or_keeps_everything():
    """A leaf that the export names ends the path; where a parent is missing, no message is left out."""
    data = json.loads(CLAUDE.read_text())[0]
    data["current_leaf_message_uuid"] = data["chat_messages"][1]["uuid"]
    assert [m.text for m in parse_conversation(data).messages][-1].startswith("Vinegar is normal.")
    del data["chat_messages"][0]
    assert len(parse_conversation(data).messages) == 5


@pytest.mark.parametrize("form", ["zip", "zip with a folder", "shards", "folder", "file", "one conversation"])
def test_every_form_of_an_export_is_read(tmp_path, form):
    """A zip with one file or with several numbered ones, in a folder of it or not, the unpacked folder, the JSON file
    itself, and a single conversation give the same."""
    data = json.loads(CHATGPT.read_text())
    folder = tmp_path / "unpacked"
    folder.mkdir()
    (folder / "conversations-000.json").write_text(json.dumps(data[:1]))
    (folder / "conversations-001.json").write_text("\ufeff" + json.dumps(data[1:]))
    (folder / "shared_conversations.json").write_text("no JSON")
    path = {
        "zip": lambda: zipped(tmp_path / "a.zip", {"user.json": {}, "conversations.json": data}),
        "zip with a folder": lambda: zipped(
            tmp_path / "a.zip", {"x/conversations.json": data, "__MACOSX/x/._conversations.json": b"\0"}
        ),
        "shards": lambda: zipped(
            tmp_path / "a", {"conversations-001.json": data[1:], "conversations-000.json": data[:1]}
        ),
        "folder": lambda: folder,
        "file": lambda: CHATGPT,
        "one conversation": lambda: folder / "single.json",
    }[form]()
    (folder / "single.json").write_text(json.dumps(data[0], indent=3))
    expected = list(read_conversations(CHATGPT))[: 1 if form == "one conversation" else 2]
    assert list(read_conversations(path)) == expected


DAMAGED = {
    "empty": (b"", "empty"),
    "no json": (b"hello", "no JSON array"),
    "cut off": (json.dumps([chat(3)]).encode()[:-40], "cut off"),
    "no end": (json.dumps([chat(3)]).encode()[:-1], "ends too early"),
    "no comma": (b"[" + json.dumps(chat(1)).encode() * 2 + b"]", "comma"),
    "a comma too many": (b"[" + json.dumps(chat(1)).encode() + b",]", "last comma"),
    "more after it": (json.dumps([chat(1)]).encode() + b"[]", "follows after"),
    "numbers": (b"[1, 2]", "no object"),
    "not utf-8": (b'[{"uuid": "\xff"}]', "UTF-8"),
    "other json": (b'[{"messages": []}]', "neither chat_messages nor mapping"),
    "second bad": (json.dumps([chat(1), {"uuid": "x", "chat_messages": {}}]).encode(), "conversation 2: chat_messages"),
    "no uuid": (json.dumps([{"chat_messages": []}]).encode(), "uuid"),
    "bad time": (json.dumps([{**chat(0), "created_at": "soon"}]).encode(), "created_at"),
    "not a number": (b'[{"id": "a", "create_time": NaN, "mapping": {}}]', "create_time"),
    "deep": (b'[{"a":' + b"[" * 100_000, "JSON"),
    "no such node": (b'[{"id": "a", "mapping": {"n": {"parent": null}}, "current_node": "m"}]', "'m'"),
    "in circles": (
        b'[{"id": "a", "mapping": {"n": {"parent": "m"}, "m": {"parent": "n"}}, "current_node": "m"}]',
        "before itself",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
async def test_a_damaged_file_stores_nothing(backend, tmp_path, name):
    """A file that is cut off, no JSON or no export raises, says what is wrong and in which file, and stores nothing."""
    data, word = DAMAGED[name]
    path = tmp_path / "conversations.json"
    path.write_bytes(data)
    with pytest.raises(DocumentError, match=re.escape(word)) as caught:
        await import_chats(backend, path)
    assert str(path) in str(caught.value)
    assert "nothing was imported" in str(caught.value)
    assert await contents(backend) == []


async def test_a_bad_zip_stores_nothing(backend, tmp_path):
    """A zip without conversations, with damaged or encrypted ones, and a file that is not there are told apart."""
    with pytest.raises(DocumentError, match=r"no conversations\.json but photos\.json"):
        await import_chats(backend, zipped(tmp_path / "a.zip", {"photos.json": {}}))
    with pytest.raises(DocumentNotFoundError):
        await import_chats(backend, tmp_path / "missing.zip")
    path = zipped(tmp_path / "b.zip", {"conversations.json": [chat(300)]})
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + bytes(40) + whole[240:])
    with pytest.raises(DocumentError, match="damaged"):
        await import_chats(backend, path)
    flags = whole.index(b"PK\1\2") + 8
    path.write_bytes(whole[:flags] + struct.pack("<H", 1) + whole[flags + 2 :])
    with pytest.raises(DocumentError, match="encrypted"):
        await import_chats(backend, path)
    assert await contents(backend) == []


def test_a_zip_bomb_is_refused_unread(tmp_path, monkeypatch):
    """A zip that says its conversations are too large is not read, and one that says less than it holds is damaged."""
    path = zipped(tmp_path / "a.zip", {"conversations.json": b" " * 1_000_000})
    monkeypatch.setattr(export_files, "LARGEST_EXPORT", 999_999)
    with pytest.raises(DocumentError, match="1,000,000 bytes"):
        list(read_conversations(path))
    data = path.read_bytes()
    for at in (data.index(b"PK\3\4") + 22, data.index(b"PK\1\2") + 24):
        data = data[:at] + struct.pack("<I", 1000) + data[at + 4 :]
    path.write_bytes(data)
    with pytest.raises(DocumentError, match="damaged"):
        list(read_conversations(path))


def test_a_path_in_a_zip_leads_nowhere(tmp_path):
    """A member is read in memory, whatever path it names; nothing is written anywhere."""
    path = zipped(tmp_path / "a.zip", {"../../conversations.json": [chat(1)]})
    before = sorted(tmp_path.parent.rglob("*"))
    assert [conversation.id for conversation in read_conversations(path)] == ["c"]
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_a_conversation_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    """What one conversation may take in memory is bounded, and the message says so."""
    monkeypatch.setattr(export_files, "LONGEST_CONVERSATION", 1000)
    monkeypatch.setattr(export_files, "READ_AT_ONCE", 100)
    with pytest.raises(DocumentError, match="more than 1,000 characters"):
        list(read_conversations(written(tmp_path / "a.json", chat(200))))


def test_memory_is_bounded_by_one_conversation(tmp_path, monkeypatch):
    """Reading an export takes a fraction of its size in memory."""
    monkeypatch.setattr(export_files, "READ_AT_ONCE", 10_000)
    path = written(tmp_path / "a.json", *(chat(20, str(number), text="many words " * 30) for number in range(300)))
    tracemalloc.start()
    try:
        assert sum(len(conversation.messages) for conversation in read_conversations(path)) == 6_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < path.stat().st_size / 8


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
OBJECTS = st.dictionaries(st.text(), JSON, max_size=5)


@given(st.lists(OBJECTS, max_size=6), st.integers(1, 60), st.none() | st.integers(0, 3))
def test_elements_are_what_json_says(values, size, indent):
    """Read piece by piece, whatever its size, an array has the elements that `json.loads` gives."""
    text = json.dumps(values, indent=indent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_files, "READ_AT_ONCE", size)
        assert list(elements(io.StringIO(text))) == json.loads(text)


NODES = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        "message parent uuid sender text content created_at attachments files parent_message_uuid".split(), JSON
    ),
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "uuid": st.text(),
            "id": JSON,
            "title": JSON,
            "create_time": JSON,
            "current_node": JSON,
            "chat_messages": st.lists(NODES, max_size=4) | JSON,
            "mapping": st.dictionaries(st.text(), NODES | JSON, max_size=4) | JSON,
        },
    )
)
@example({"chat_messages": [{"uuid": {}, "parent_message_uuid": {}}]})
def test_whatever_stands_there_is_read_or_refused(value):
    """No JSON object makes the reader fail other than with a `DocumentError`."""
    try:
        conversation = parse_conversation(value)
    except DocumentError:
        return
    assert all(message.text.strip() for message in conversation.messages)


@given(st.text(st.sampled_from(" \nab\t."), max_size=400), st.integers(1, 60))
def test_parts_hold_all_of_a_text(text, size):
    """The parts of a long text are within the limit, not blank, and together say all that it says."""
    found = parts(text, size)
    assert all(len(part) <= size and part.strip() for part in found)
    assert "".join("".join(found).split()) == "".join(text.split())


def test_ids_tell_keys_apart():
    """Keys that join to the same text have different ids, and an id never changes."""
    assert episode_id("a", "bc") != episode_id("ab", "c")
    assert episode_id("claude", "m1", "0") == "1e86e282-901b-5ebb-bf6e-9c5bbde5750b"


# What is stored


async def test_who_is_second_stores_the_rest(tmp_path, clock, monkeypatch):
    """Where another process stores some of the same messages between the look and the write, the others are stored."""
    url = f"sqlite:///{tmp_path / 'memory.db'}"
    episodes = [
        MemoryEntry(id=f"m{number}", content=f"message {number}", memory_type="semantic") for number in range(6)
    ]
    async with backend_with(clock, url) as first, backend_with(clock, url) as second:
        original = second.store_memories
        late = [episodes[:2], episodes[2:4]]

        async def after_the_first(items: Any) -> list[str]:
            if late:
                await first.store_memories(late.pop())
            return await original(items)

        monkeypatch.setattr(second, "store_memories", after_the_first)
        assert await add_new(second, episodes) == ["m4", "m5"]
        assert sorted(await contents(first)) == [f"message {number}" for number in range(6)]


async def test_a_fault_of_its_own_is_told(backend):
    """A memory that can't be stored raises, also beside ones that are there."""
    there, bad = (MemoryEntry(id=id_, content="x", memory_type="semantic") for id_ in ("there", "bad"))
    bad.metadata = {"made": object()}
    await backend.store_memories([there])
    with pytest.raises(InvalidInputError, match="metadata"):
        await add_new(backend, [there, bad])


async def test_messages_become_episodes(backend, clock):
    """A message is a memory with actor, conversation, time, source and title; its lifetime begins with the import."""
    done = await import_chats(backend, CLAUDE, tags=["old"], importance=0.7)
    assert (done.conversations, done.messages, done.new, done.there) == (2, 7, 7, 0)
    assert done.left_out == {"on another branch": 1, "without text": 1}
    assert done.expires_at.timestamp() == clock.now + 7 * DAY
    memories = (await backend.list_memories(session=BREAD))[::-1]
    first = memories[0]
    assert (first.actor, first.tier, first.tags, first.importance) == ("user", "episodic", {"claude", "old"}, 0.7)
    assert first.occurred_at.isoformat() == "2025-11-03T08:00:05+00:00"
    assert first.metadata == {
        "chat": "claude",
        "message": "0198c000-0000-7000-8000-000000000001",
        "title": "Bread for the harbour feast",
    }
    assert memories[-1].metadata["attachments"] == ["loaf.jpg"]
    assert [memory.occurred_at for memory in memories] == sorted(memory.occurred_at for memory in memories)
    clock.tick(7 * DAY - 1)
    assert len(await contents(backend)) == 7
    clock.tick(2)
    assert await contents(backend) == []


async def test_importing_again_adds_nothing(backend, clock, tmp_path):
    """The same export again adds nothing, in whatever form; a newer one adds its new messages."""
    data = json.loads(CLAUDE.read_text())
    await import_chats(backend, CLAUDE)
    again = await import_chats(backend, zipped(tmp_path / "a.zip", {"conversations.json": data}))
    assert (again.new, again.there, again.moved) == (0, 7, 0)
    data[1]["chat_messages"].append({"uuid": "new", "sender": "human", "text": "And at neap tide?"})
    newer = await import_chats(backend, written(tmp_path / "b.json", *data))
    assert (newer.new, newer.there) == (1, 7)
    assert (await contents(backend, session=TIDES))[-1] == "And at neap tide?"


async def test_imports_at_once_store_a_message_once(tmp_path, clock):
    """Several backends on one store that import the same file at once leave each message once."""
    url = f"sqlite:///{tmp_path / 'memory.db'}"
    path = written(tmp_path / "a.json", chat(300))
    backends = [backend_with(clock, url) for _ in range(3)]
    for backend in backends:
        await backend.open()
    done = await asyncio.gather(*(import_chats(backend, path) for backend in backends))
    assert len(await contents(backends[0])) == 300 == sum(one.new for one in done)
    for backend in backends:
        await backend.close()


async def test_a_higher_tier_takes_up_what_was_imported(backend, clock):
    """Importing again into a higher tier moves what stands below it up, so that it stays; a lower one moves nothing."""
    await import_chats(backend, CLAUDE)
    done = await import_chats(backend, CLAUDE, "semantic")
    assert (done.new, done.moved, done.expires_at) == (0, 7, None)
    assert (await import_chats(backend, CLAUDE, "working")).moved == 0
    clock.tick(1000 * DAY)
    assert len(await contents(backend, memory_type="semantic")) == 7


async def test_nothing_is_evicted_for_an_import(clock, tmp_path):
    """What a tier has no room for is refused before anything is stored, and the message says how much room there is;
    `latest` stores the newest that fit, and what was there stays."""
    path = written(tmp_path / "a.json", chat(8, "new", start=100), chat(8, "old"))
    async with backend_with(clock, episodic_capacity=10) as backend:
        await backend.store_memory("mine", "episodic", importance=0.0)
        with pytest.raises(CapacityError, match=r"room for 9 more of its 10 memories, and 16 would come"):
            await import_chats(backend, path)
        assert await contents(backend) == ["mine"]
        assert (await import_chats(backend, path, dry_run=True)).too_many == 7
        done = await import_chats(backend, path, latest=True)
        assert (done.new, done.too_many, done.held, done.capacity) == (9, 7, 10, 10)
        assert "mine" in await contents(backend)
        assert len(await contents(backend, session="new")) == 8
        assert await contents(backend, session="old") == ["message 7"]
        again = await import_chats(backend, path, latest=True)
        assert (again.new, again.there, again.too_many) == (0, 9, 7)


async def test_room_that_vanishes_meanwhile_is_noticed(clock, tmp_path, monkeypatch):
    """Where others fill the tier during an import, it stops and says how far it came, and evicts nothing."""
    monkeypatch.setattr(chat_exports, "STORED_TOGETHER", 5)
    path = written(tmp_path / "a.json", chat(10))
    url = f"sqlite:///{tmp_path / 'memory.db'}"
    async with backend_with(clock, url, episodic_capacity=10) as backend, backend_with(clock, url) as other:

        def progress(done: int, total: int) -> None:
            filling.append(asyncio.get_running_loop().create_task(other.store_memory("mine", "episodic", importance=0)))

        filling: list[asyncio.Task[str]] = []
        original = backend.get_memory_stats

        async def after_others() -> dict[str, int]:
            await asyncio.gather(*filling)
            return await original()

        monkeypatch.setattr(backend, "get_memory_stats", after_others)
        with pytest.raises(CapacityError, match="5 memories were imported and 5 were not"):
            await import_chats(backend, path, progress=progress)
        assert sorted(await contents(backend)) == [
            "message 0",
            "message 1",
            "message 2",
            "message 3",
            "message 4",
            "mine",
        ]


async def test_an_interrupted_import_goes_on(backend, tmp_path, monkeypatch):
    """What was stored before an interruption is not stored again; the rest comes."""
    monkeypatch.setattr(chat_exports, "STORED_TOGETHER", 10)
    path = written(tmp_path / "a.json", chat(35))

    def interrupt(done: int, total: int) -> None:
        assert total == 35
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await import_chats(backend, path, progress=interrupt)
    done = await import_chats(backend, path)
    assert (done.there, done.new) == (20, 15)
    assert await contents(backend) == [f"message {number}" for number in range(35)]


async def test_since_leaves_out_what_is_older(backend):
    """With `since`, older messages are left out and counted; a time that is none is refused."""
    done = await import_chats(backend, CLAUDE, since="2025-11-05")
    assert (done.new, done.earlier, done.conversations) == (2, 5, 1)
    with pytest.raises(InvalidInputError, match="since"):
        await import_chats(backend, CLAUDE, since="lately")


async def test_a_dry_run_changes_nothing(backend):
    """A dry run tells what would come and stores nothing."""
    done = await import_chats(backend, CHATGPT, dry_run=True)
    assert (done.new, done.held, done.dry_run) == (5, 5, True)
    assert await contents(backend) == []


async def test_a_file_that_changes_meanwhile_is_refused(backend, tmp_path, monkeypatch):
    """What is stored was checked: a file that changed since is not read a second time."""
    path = written(tmp_path / "a.json", chat(3))
    original = backend.get_memory_stats

    async def meanwhile() -> dict[str, int]:
        written(path, chat(4))
        return await original()

    monkeypatch.setattr(backend, "get_memory_stats", meanwhile)
    with pytest.raises(DocumentError, match="changed"):
        await import_chats(backend, path)
    assert await contents(backend) == []


async def test_a_long_message_is_stored_in_parts_and_comes_out_whole(clock, tmp_path):
    """A message longer than a memory may be is several memories, none of its text lost; broken characters are
    replaced."""
    long = chat(2, text="a sentence of some words. " * 20 + "\ud83d")
    path = written(tmp_path / "a.json", long)
    async with backend_with(clock, max_content_chars=200) as backend:
        done = await import_chats(backend, path)
        assert done.new > 4
        assert (await import_chats(backend, path)).new == 0
        found = await read_chat(backend, "c")
        assert [message.id for message in found.messages] == ["c-0", "c-1"]
        expected = [m["text"].replace("\ud83d", "\N{REPLACEMENT CHARACTER}") for m in long["chat_messages"]]
        assert [message.text for message in found.messages] == expected
        assert [chat.messages for chat in await list_chats(backend)] == [2]


async def test_i_is_the_user_of_an_imported_chat(anyio_backend, tmp_path):
    """With the real model, "what did I say about ...?" finds what the user said in an imported chat, first."""
    async with PythonRAGBackend(url=f"sqlite:///{tmp_path / 'memory.db'}", settings=settings_with()) as backend:
        for path in (CLAUDE, CHATGPT):
            await import_chats(backend, path)
        bread = (await backend.recall_memories("What did I say about my sourdough starter?", limit=1))[0]
        assert (bread.actor, bread.session) == ("user", BREAD)
        assert "called Hugo" in bread.content
        boat = (await backend.recall_memories("What did I say about my dinghy?", limit=1))[0]
        assert "Terna" in boat.content


# What comes out


async def test_conversations_are_listed(backend, tmp_path):
    """Every conversation with its title, messages and tiers, the one last spoken in first; also one that was stored by
    other means, but no document."""
    await import_chats(backend, CLAUDE)
    await import_chats(backend, CHATGPT, "semantic")
    await backend.store_memory("by hand", session="mine", occurred_at="2020-01-01")
    document = tmp_path / "notes.md"
    document.write_text("# Notes\n\nA document is no conversation.\n")
    await backend.ingest_document(document)
    chats = await list_chats(backend)
    assert [(chat.title, chat.source, chat.messages, chat.tiers) for chat in chats] == [
        ("", "chatgpt", 2, {"semantic": 2}),
        ("", "claude", 2, {"episodic": 2}),
        ("Paint for the dinghy", "chatgpt", 3, {"semantic": 3}),
        ("Bread for the harbour feast", "claude", 5, {"episodic": 5}),
        ("", None, 1, {"short_term": 1}),
    ]


async def test_a_conversation_comes_out_as_messages(backend):
    """A conversation comes out in its order, in the form that chat APIs take, as lines, and as a page."""
    await import_chats(backend, CHATGPT)
    found = await read_chat(backend, DINGHY)
    question, answer, tin = as_openai(found)
    assert question == {"role": "user", "content": "Which paint should I put on my wooden dinghy, the Terna?"}
    assert answer == {"role": "assistant", "content": "Use an oil paint from Hansen, two thin coats."}
    lines = [json.loads(line) for line in as_json_lines(found).splitlines()]
    assert lines[2] == {"id": "n9", **tin, "created_at": "2025-11-10T18:41:00+00:00"}
    page = as_markdown(found).splitlines()
    assert page[:4] == ["# Paint for the dinghy", "", "## user, 2025-11-10 18:40", ""]
    assert await read_chat(backend, "no such") is None


async def test_other_actors_keep_their_name(backend):
    """Who is neither user nor assistant becomes an assistant with a name that an API takes."""
    await backend.store_memory("hello", session="s", actor="Ann Lee")
    assert as_openai(await read_chat(backend, "s")) == [{"role": "assistant", "name": "Ann_Lee", "content": "hello"}]


# The command


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMMA_RAG_URL", f"sqlite:///{tmp_path / 'memory.db'}")
    monkeypatch.setenv("GEMMA_RAG_EMBEDDING__PROVIDER", "hashing")
    return tmp_path


def test_the_command_says_what_is_kept(store):
    """`chats import` says how many came, what was left out, until when they are kept, and how to keep them."""
    outcome = call("chats", "import", CHATGPT)
    assert (outcome.code, outcome.stdout) == (0, ""), outcome.stderr
    assert "5 messages imported into episodic (of 5 in 2 conversations)" in outcome.message
    assert "left out: 3 on another branch" in outcome.message
    assert "episodic holds 5 of 5000" in outcome.message
    assert re.search(r"forgotten on \d{4}-\d\d-\d\d \d\d:\d\d .* --tier semantic", outcome.message)
    outcome = call("chats", "import", CHATGPT, "--tier", "semantic")
    assert "0 messages imported" in outcome.message
    assert "5 were there already; 5 of them moved up into semantic" in outcome.message
    assert "kept for good" in outcome.message


def test_the_command_lists_and_exports(store):
    """What was imported in one process is listed and written out by others, in three formats."""
    assert run_command("chats", "import", CLAUDE, "--json", cwd=store).json()["new"] == 7
    shown = run_command("chats", "list", cwd=store, env={"COLUMNS": "160"})
    assert "Bread for the harbour feast" in shown.stdout
    assert BREAD in run_command("chats", "list", cwd=store, env={"COLUMNS": "80"}).stdout  # whole, to be copied
    assert [chat["session"] for chat in call("chats", "list", "--json").json()] == [TIDES, BREAD]
    assert call("chats", "export", BREAD, "--format", "openai").json()[0]["role"] == "user"
    assert len(call("chats", "export", BREAD, "-f", "jsonl").stdout.splitlines()) == 5
    assert call("chats", "export", BREAD).stdout.startswith("# Bread for the harbour feast\n")


def refused(outcome: Outcome, code: ExitCode, *words: str) -> None:
    assert (outcome.code, outcome.stdout) == (code, ""), outcome
    assert [word for word in words if word not in outcome.message] == [], outcome.message
    assert "Traceback" not in outcome.stderr


def test_the_command_refuses_in_words(store):
    """A file that is missing or no export, an unknown conversation and an unknown tier end with a message and code."""
    refused(call("chats", "import", "missing.zip"), ExitCode.FAILED, "missing.zip is not there")
    refused(call("chats", "import", __file__), ExitCode.FAILED, "no JSON array", "nothing was imported")
    refused(call("chats", "import", CLAUDE, "--tier", "attic"), ExitCode.USAGE, "attic")
    refused(call("chats", "import", CLAUDE, "--since", "lately"), ExitCode.USAGE, "since")
    refused(call("chats", "export", "none"), ExitCode.NOTHING_FOUND, "no conversation none")
    refused(call("chats", "list"), ExitCode.NOTHING_FOUND, "no conversations")


def test_the_command_imports_into_a_namespace(store):
    """`--namespace` after the command means what it means before it; a dry run needs no model and stores nothing, not
    even an empty store."""
    assert call("chats", "import", CLAUDE, "--dry-run", "--namespace", "old").code == 0
    assert list(store.iterdir()) == []
    call("chats", "import", CLAUDE, "--namespace", "old")
    assert call("chats", "import", CLAUDE, "--dry-run", "--namespace", "new").code == 0
    refused(call("chats", "list", "--namespace", "new"), ExitCode.NOTHING_FOUND)
    assert len(call("--namespace", "old", "chats", "list", "--json").json()) == 2
    refused(call("chats", "list"), ExitCode.NOTHING_FOUND)


def test_a_title_can_t_reach_the_terminal(store):
    """Escape sequences in a title are shown as characters that do nothing."""
    written(store / "a.json", {**chat(1), "name": "\x1b[2Jtitle"})
    call("chats", "import", "a.json")
    assert "\x1b" not in call("chats", "list").stdout


def test_the_example_in_the_documentation_runs(store):
    """The lines in docs/chats.md import an export and show its conversations."""
    zipped(store / "export.zip", {"conversations.json": CLAUDE.read_bytes()})
    code = (ROOT / "docs" / "chats.md").read_text("utf-8").split("```python\n")[1].split("```")[0]
    outcome = run_python("-c", code, cwd=store)
    assert outcome.stdout.splitlines()[0] == "7 {'on another branch': 1, 'without text': 1}", outcome.stderr
    assert len(outcome.stdout.splitlines()) == 3
