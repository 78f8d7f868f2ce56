"""Whatever callers hand in: any text is data and comes back as it was; bad values are refused by name."""

import math

import pytest
from memory_places import DIMENSION, Place, WordEmbedder, settings_with

from gemma_cli.rag import GemmaRagError, InvalidInputError, InvalidTypeError, MemoryEntry, PythonRAGBackend, Settings

pytestmark = pytest.mark.anyio

HOSTILE = {
    "quotes": 'it\'s "quoted" `ticks` \'\' ""',
    "sql": "x'); DROP TABLE memories; --",
    "percent": "100% _like_ %s %d ?1 :name @p $v",
    "fts": 'NEAR(a b) AND OR NOT "open col:umn* ^x -y +z (',
    "braces": "{} {0} {name} {{}} {tag}:*",
    "lines": "first\nsecond\r\nthird\ttab\vvt",
    "nul": "before\0after",
    "controls": "\x01\x1b[31m\x7f\u0085\u2028\ufeff",
    "emoji": "👩‍👩‍👧‍👦 🏴‍☠️ ünïcödé",
    "cjk": "東京タワーの夜景",
    "rtl": "שלום \u202eevil",
    "redis": "key * \r\n$3\r\nDEL\r\n:[a-z]?\\",
    "lua": "]]..redis.call('FLUSHALL')--[[",
    "json": '{"$ref": "\\u0000", "a": [1]}',
    "spaces": "  kept as they are  ",
    "dots": "../../etc/passwd:default",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
async def test_any_text_is_data_wherever_it_stands(place, text):
    """Content, tags, actor, session and metadata come back character by character and are found by filters."""
    backend = await place.open()
    memory_id = await backend.store_memory(text, tags=[text, "t"], metadata={text: text}, actor=text, session=text)
    await backend.store_memory("bystander", tags=["t"], actor="a", session="s")
    entry = await backend.get_memory(memory_id)
    assert (entry.content, entry.actor, entry.session) == (text, text, text)
    assert (entry.tags, entry.metadata) == ({text, "t"}, {text: text})
    for filters in ({"tags": [text]}, {"tags": ["t", text]}, {"actor": text}, {"session": text}):
        assert [hit.id for hit in await backend.recall_memories("anything", **filters)] == [memory_id]
        assert [hit.id for hit in await backend.list_memories(**filters)] == [memory_id]
    assert memory_id in {hit.id for hit in await backend.recall_memories(text)}
    assert {hit.id for hit in await backend.search_memories(text)} <= {memory_id}
    await backend.update_memory(memory_id, tags=[text + "2"], content=text + text)
    assert (await backend.get_memory(memory_id)).content == text + text
    assert await backend.list_memories(tags=[text]) == []
    assert await backend.delete_memory(memory_id)
    assert [hit.content for hit in await backend.list_memories()] == ["bystander"]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
async def test_any_text_is_an_id_that_is_not_there(place, text):
    """An id of any characters is looked up and nothing else."""
    backend = await place.open()
    await backend.store_memory("bystander")
    assert await backend.get_memory(text) is None
    assert await backend.delete_memory(text) is False
    assert await backend.promote_memory(text, "semantic") is False
    [memory_id] = await backend.store_memories([MemoryEntry("note", "semantic", id=text)])
    assert (await backend.get_memory(text)).content == "note"
    assert memory_id == text
    assert await backend.delete_memory(text)
    assert len(await backend.all_memories()) == 1


async def test_any_text_is_a_namespace(lasting_place):
    """Namespaces of any characters stand beside each other and see their own memories only."""
    backends = {text: await lasting_place.open(namespace=text) for text in HOSTILE.values()}
    for text, backend in backends.items():
        await backend.store_memory(f"note of {text}")
    for text, backend in backends.items():
        assert [entry.content for entry in await backend.all_memories()] == [f"note of {text}"]
        assert [hit.content for hit in await backend.recall_memories("note")] == [f"note of {text}"]


async def test_tags_that_share_a_beginning_up_to_a_nul_are_two(place):
    """Nothing ends at a NUL: neither filters nor listings mix up such tags."""
    backend = await place.open()
    await backend.store_memory("first", tags=["a\0b"])
    await backend.store_memory("second", tags=["a\0c"])
    for verb in (backend.list_memories, lambda tags: backend.recall_memories("x", tags=tags)):
        assert [hit.content for hit in await verb(tags=["a\0b"])] == ["first"]
        assert await verb(tags=["a"]) == []


@pytest.mark.parametrize(
    ("content", "queries"),
    [
        ("東京タワーの夜景はとても綺麗でした", ["東京", "夜景", "綺麗"]),
        ("我们明天去北京看长城", ["北京", "长城"]),
        ("Das Straßenfest in München", ["strassenfest", "munchen", "MÜNCHEN"]),
        ("Ελληνικά και русский язык", ["ελληνικα", "язык"]),
        ("부산에서 기차를 탔다", ["기차를"]),
    ],
)
async def test_other_scripts_are_found_by_their_words(place, content, queries):
    """Words of scripts with and without spaces are found, whatever their case and accents."""
    backend = await place.open()
    memory_id = await backend.store_memory(content)
    await backend.store_memory("something else altogether")
    for query in queries:
        assert [hit.id for hit in await backend.search_memories(query)] == [memory_id], query


@pytest.mark.parametrize("query", ["", "   ", "!!!", "\0", '"', "AND", "\ud800", "*" * 10_000, "the"])
async def test_any_text_is_a_legal_search(place, query):
    """search_memories takes every text; one without a word in it finds nothing."""
    backend = await place.open()
    await backend.store_memory("the harbour")
    assert await backend.search_memories(query) == []


async def test_a_long_query_and_a_long_content_are_whole(place):
    """The longest content allowed is stored whole, and its last word is found."""
    backend = await place.open()
    content = "filler " * 14_000 + "needle"
    memory_id = await backend.store_memory(content)
    assert (await backend.get_memory(memory_id)).content == content
    assert [hit.id for hit in await backend.search_memories("needle")] == [memory_id]
    assert await backend.recall_memories("filler " * 20_000)


async def test_many_tags_are_all_kept_and_all_filtered_by(place):
    """Thousands of tags on a memory, and in a filter, are no special case."""
    backend = await place.open()
    tags = {f"tag {i}" for i in range(2_000)}
    memory_id = await backend.store_memory("note", tags=tags)
    await backend.store_memory("other", tags=tags - {"tag 7"})
    assert (await backend.get_memory(memory_id)).tags == tags
    assert [hit.id for hit in await backend.list_memories(tags=tags)] == [memory_id]
    assert [hit.id for hit in await backend.recall_memories("x", tags=tags)] == [memory_id]


@pytest.mark.parametrize(
    "moment", ["0001-01-01T00:00:00Z", "1969-12-31T23:59:59.5Z", "9999-12-31T23:59:59Z", "2024-02-29T12:00:00.123456Z"]
)
async def test_any_moment_that_is_accepted_comes_back(place, moment):
    """occurred_at reads back to the microsecond near the present, and at all at the ends of the calendar."""
    backend = await place.open()
    memory_id = await backend.store_memory("note", occurred_at=moment)
    entry = await backend.get_memory(memory_id)
    assert entry.occurred_at.isoformat()[:19] == moment[:19]
    assert [hit.id for hit in await backend.recall_memories("note", since=moment, until=moment)] == [memory_id]


# Bad values


def nested(levels):
    """Mappings within each other, so many in all."""
    metadata = {}
    for _ in range(levels - 1):
        metadata = {"a": metadata}
    return metadata


BAD_MEMORIES = {
    "empty content": ({"content": ""}, "content"),
    "blank content": ({"content": " \n\t"}, "content"),
    "content not text": ({"content": 7}, "content"),
    "content bytes": ({"content": b"x"}, "content"),
    "content None": ({"content": None}, "content"),
    "content too long": ({"content": "x" * 100_001}, "content"),
    "half a surrogate": ({"content": "a\ud800"}, "content"),
    "unknown tier": ({"memory_type": "forever"}, "memory_type"),
    "tier in capitals": ({"memory_type": "WORKING"}, "memory_type"),
    "tier not text": ({"memory_type": 1}, "memory_type"),
    "tier None": ({"memory_type": None}, "memory_type"),
    "importance above": ({"importance": 1.0001}, "importance"),
    "importance below": ({"importance": -0.1}, "importance"),
    "importance NaN": ({"importance": math.nan}, "importance"),
    "importance infinite": ({"importance": math.inf}, "importance"),
    "importance huge": ({"importance": 10**400}, "importance"),
    "importance text": ({"importance": "0.5"}, "importance"),
    "importance bool": ({"importance": True}, "importance"),
    "importance None": ({"importance": None}, "importance"),
    "tags a text": ({"tags": "abc"}, "tags"),
    "tags a mapping": ({"tags": {"a": 1}}, "tags"),
    "tags a number": ({"tags": 7}, "tags"),
    "tag not text": ({"tags": ["a", 7]}, "tags"),
    "tag empty": ({"tags": [""]}, "tags"),
    "tag too long": ({"tags": ["x" * 513]}, "tags"),
    "metadata a list": ({"metadata": [1]}, "metadata"),
    "metadata a set": ({"metadata": {"a": {1}}}, "metadata"),
    "metadata an object": ({"metadata": {"a": object()}}, "metadata"),
    "metadata bytes": ({"metadata": {"a": b"x"}}, "metadata"),
    "metadata NaN": ({"metadata": {"a": math.nan}}, "metadata"),
    "metadata key": ({"metadata": {1: 2}}, "metadata"),
    "metadata inner key": ({"metadata": {"a": [{None: 2}]}}, "metadata"),
    "metadata too long": ({"metadata": {"a": "x" * 100_001}}, "metadata"),
    "metadata too deep": ({"metadata": nested(5_000)}, "metadata"),
    "metadata a little too deep": ({"metadata": nested(65)}, "metadata"),
    "metadata half a surrogate": ({"metadata": {"a": "\udfff"}}, "metadata"),
    "actor empty": ({"actor": ""}, "actor"),
    "actor not text": ({"actor": 7}, "actor"),
    "actor too long": ({"actor": "x" * 513}, "actor"),
    "session empty": ({"session": "  "}, "session"),
    "session in metadata": ({"metadata": {"session": ["x"]}}, "metadata.session"),
    "time no time": ({"occurred_at": "yesterday"}, "occurred_at"),
    "time NaN": ({"occurred_at": math.nan}, "occurred_at"),
    "time a list": ({"occurred_at": [2024]}, "occurred_at"),
    "time in metadata": ({"metadata": {"occurred_at": "soon"}}, "metadata.occurred_at"),
    "time beyond the calendar": ({"occurred_at": "9999-12-31T23:59:59.999999Z"}, "occurred_at"),
    "time beyond UTC": ({"occurred_at": "9999-12-31T23:59:59-12:00"}, "occurred_at"),
    "pinned a number": ({"pinned": 1}, "pinned"),
    "pinned None": ({"pinned": None}, "pinned"),
}


async def test_the_deepest_metadata_that_is_taken_comes_back(place):
    """64 levels are stored and come back through every verb that reads."""
    backend = await place.open()
    memory_id = await backend.store_memory("note", metadata=nested(64))
    assert (await backend.get_memory(memory_id)).metadata == nested(64)
    assert [hit.metadata for hit in await backend.recall_memories("note")] == [nested(64)]


async def test_metadata_that_was_stored_deeper_can_be_read(place, tmp_path):
    """A memory stored before there was a limit harms no recall, listing or export, and can be forgotten."""
    backend = await place.open()
    await backend.store_memory("a good note")
    deep = MemoryEntry("a deep note", "semantic", metadata=nested(600))
    await backend._repository.put([deep])
    found = await backend.recall_memories("note")
    assert {hit.content for hit in found} == {"a good note", "a deep note"}
    assert next(hit for hit in found if hit.id == deep.id).metadata == nested(600)
    assert len(await backend.all_memories()) == 2
    assert await backend.export_memories(tmp_path / "all.jsonl") == 2
    assert await backend.delete_memory(deep.id)


@pytest.mark.parametrize(("given", "name"), BAD_MEMORIES.values(), ids=BAD_MEMORIES)
async def test_a_bad_value_is_refused_by_name_and_stores_nothing(place, given, name):
    """store_memory, store_memories and (where it takes the argument) update_memory name the argument first."""
    backend = await place.open()
    given = {"content": "fine"} | given
    memory_id = await backend.store_memory("as it was")
    token = await backend.change_token()
    with pytest.raises(InvalidInputError, match=rf"^{name}"):
        await backend.store_memory(**given)
    with pytest.raises(InvalidInputError, match=rf"^items\[1\]: {name}"):
        await backend.store_memories([{"content": "fine"}, given])
    if "." not in name:
        argument = given[name]
        if not (name in ("actor", "session") and argument is None):
            with pytest.raises(InvalidInputError, match=rf"^{name}"):
                await backend.update_memory(memory_id, **{name: argument})
    assert [entry.content for entry in await backend.all_memories()] == ["as it was"]
    assert await backend.change_token() == token


def entry_with(**fields):
    entry = MemoryEntry("fine", "semantic")
    for name, value in fields.items():
        setattr(entry, name, value)
    return entry


BAD_ENTRIES = {
    "embedding NaN": ({"embedding": [math.nan] * DIMENSION}, "embedding"),
    "embedding infinite": ({"embedding": [math.inf] * DIMENSION}, "embedding"),
    "embedding zeros": ({"embedding": [0.0] * DIMENSION}, "embedding"),
    "embedding two rows": ({"embedding": [[1.0] * DIMENSION]}, "embedding"),
    "embedding empty": ({"embedding": []}, "embedding"),
    "embedding text": ({"embedding": "vector"}, "embedding"),
    "embedding narrow": ({"embedding": [1.0] * (DIMENSION - 1)}, "embedding"),
    "embedding wide": ({"embedding": [1.0] * (DIMENSION + 1)}, "embedding"),
    "id empty": ({"id": ""}, "id"),
    "id not text": ({"id": 7}, "id"),
    "id too long": ({"id": "x" * 513}, "id"),
    "access_count negative": ({"access_count": -1}, "access_count"),
    "access_count a fraction": ({"access_count": 1.5}, "access_count"),
    "access_count huge": ({"access_count": 10**30}, "access_count"),
    "created_at no time": ({"created_at": "soon"}, "created_at"),
    "last_accessed None": ({"last_accessed": None}, "last_accessed"),
    "expires_at past": ({"expires_at": "2000-01-01T00:00:00Z"}, "expires_at"),
    "content emptied": ({"content": ""}, "content"),
    "tier changed": ({"memory_type": "nowhere"}, "memory_type"),
    "importance changed": ({"importance": 7}, "importance"),
    "tags changed": ({"tags": "ab"}, "tags"),
    "metadata changed": ({"metadata": {"a": {1}}}, "metadata"),
    "pinned changed": ({"pinned": "yes"}, "pinned"),
}


@pytest.mark.parametrize(("fields", "name"), BAD_ENTRIES.values(), ids=BAD_ENTRIES)
async def test_a_bad_entry_is_refused_by_name_and_stores_nothing(place, fields, name):
    """An entry is checked anew, for it may have been changed since it was made."""
    backend = await place.open()
    with pytest.raises(InvalidInputError, match=rf"^(items\[1\]: )?{name}"):
        await backend.store_memories([{"content": "fine"}, entry_with(**fields)])
    assert await backend.all_memories() == []


@pytest.mark.parametrize("scale", [1e38, 1e-42])
async def test_an_embedding_of_any_length_is_scaled_to_one(place, scale):
    """Numbers near the ends of float32 make a vector of length 1 too."""
    backend = await place.open()
    [memory_id] = await backend.store_memories([entry_with(embedding=[scale] * DIMENSION)])
    stored = (await backend.get_memory(memory_id)).embedding
    assert float(stored @ stored) == pytest.approx(1, abs=1e-5)


async def open_and(place: Place, call):
    backend = await place.open()
    await backend.store_memory("note")
    await call(backend)


BAD_CALLS = {
    "query empty": (lambda b: b.recall_memories(""), "query"),
    "query not text": (lambda b: b.recall_memories(7), "query"),
    "query half a surrogate": (lambda b: b.recall_memories("\ud800"), "query"),
    "query tier": (lambda b: b.recall_memories("x", "nowhere"), "memory_type"),
    "limit zero": (lambda b: b.recall_memories("x", limit=0), "limit"),
    "limit negative": (lambda b: b.recall_memories("x", limit=-1), "limit"),
    "limit a fraction": (lambda b: b.recall_memories("x", limit=1.5), "limit"),
    "limit bool": (lambda b: b.recall_memories("x", limit=True), "limit"),
    "limit huge": (lambda b: b.list_memories(limit=10**30), "limit"),
    "filter tags": (lambda b: b.recall_memories("x", tags="abc"), "tags"),
    "filter importance": (lambda b: b.recall_memories("x", min_importance=2), "min_importance"),
    "filter since": (lambda b: b.recall_memories("x", since="soon"), "since"),
    "filter until": (lambda b: b.recall_memories("x", until=math.nan), "until"),
    "filter similarity": (lambda b: b.recall_memories("x", min_similarity=1.5), "min_similarity"),
    "filter actor": (lambda b: b.recall_memories("x", actor=""), "actor"),
    "filter session": (lambda b: b.recall_memories("x", session=7), "session"),
    "search not text": (lambda b: b.search_memories(None), "query"),
    "search limit": (lambda b: b.search_memories("x", limit=0), "limit"),
    "search importance": (lambda b: b.search_memories("x", min_importance=-1), "min_importance"),
    "list tier": (lambda b: b.list_memories("nowhere"), "memory_type"),
    "list limit": (lambda b: b.list_memories(limit=0), "limit"),
    "list pinned": (lambda b: b.list_memories(pinned="no"), "pinned"),
    "list after": (lambda b: b.list_memories(after="nobody"), "after"),
    "list after not text": (lambda b: b.list_memories(after=5), "after"),
    "id empty": (lambda b: b.get_memory(""), "memory_id"),
    "id not text": (lambda b: b.delete_memory(7), "memory_id"),
    "id of an update": (lambda b: b.update_memory(None, importance=0.1), "memory_id"),
    "update end": (lambda b: b.update_memory("x", expires_at="soon"), "expires_at"),
    "update end in the past": (lambda b: b.update_memory("x", expires_at=1.0), "expires_at"),
    "update end no moment": (lambda b: b.update_memory("x", expires_at=True), "expires_at"),
    "ids a text": (lambda b: b.get_memories("abc"), "ids"),
    "ids no list": (lambda b: b.get_memories(7), "ids"),
    "ids not text": (lambda b: b.get_memories(["a", 7]), r"ids\[1\]"),
    "replaces a text": (lambda b: b.store_memories([], replaces="abc"), "replaces"),
    "replaces None": (lambda b: b.store_memories([], replaces=None), "replaces"),
    "replaces an empty id": (lambda b: b.store_memories([{"content": "x"}], replaces=["a", ""]), r"replaces\[1\]"),
    "update content": (lambda b: b.update_memory("x", content=None), "content"),
    "promote to nowhere": (lambda b: b.promote_memory("x", "nowhere"), "to_tier"),
    "items None": (lambda b: b.store_memories(None), "items"),
    "items a mapping": (lambda b: b.store_memories({"content": "x"}), "items"),
    "items a text": (lambda b: b.store_memories("text"), "items"),
    "deserving": (lambda b: b.deserving_memories("nowhere"), "memory_type"),
    "chunk size": (lambda b: b.ingest_document(__file__, chunk_size=0), "chunk_size"),
    "chunk overlap": (lambda b: b.ingest_document(__file__, chunk_overlap=-1), "chunk_overlap"),
    "document tier": (lambda b: b.ingest_document(__file__, "nowhere"), "memory_type"),
    "document path": (lambda b: b.ingest_document(7), "path"),
}


@pytest.mark.parametrize(("call", "name"), BAD_CALLS.values(), ids=BAD_CALLS)
async def test_a_bad_argument_is_refused_by_name(place, call, name):
    """Each verb's error is the project's own and begins with the argument's name."""
    with pytest.raises(InvalidInputError, match=rf"^{name}"):
        await open_and(place, call)


def test_a_bad_constructor_argument_is_refused_by_name():
    """A namespace, URL or embedder that can't be is refused before anything is opened."""
    with pytest.raises(InvalidInputError, match=r"^namespace"):
        PythonRAGBackend(url="memory://", namespace="", settings=Settings())
    with pytest.raises(InvalidInputError, match=r"^url"):
        PythonRAGBackend("localhost", url="memory://", settings=Settings())
    with pytest.raises(InvalidTypeError, match=r"^url"):
        PythonRAGBackend(url=7, settings=Settings())


@pytest.mark.parametrize("url", ["memory://x", "sqlite://", "sqlite:///", "ftp://x", "memory", "sqlite:///a\0b"])
async def test_a_url_that_names_no_store_is_refused(url):
    """Opening raises for a URL that no store answers to; another store is never used instead."""
    backend = PythonRAGBackend(url=url, embedder=WordEmbedder(), settings=Settings())
    with pytest.raises(InvalidInputError, match=r"^url"):
        await backend.initialize()


async def test_an_object_that_is_no_embedder_is_refused(place):
    """What has no encode() is refused when the backend is opened."""
    with pytest.raises(InvalidTypeError, match=r"^embedder"):
        await place.open(embedder=object())


@pytest.mark.parametrize(
    "vectors",
    [
        lambda n: [[math.nan] * DIMENSION] * n,
        lambda n: [[0.0] * DIMENSION] * n,
        lambda n: [[1.0] * DIMENSION] * (n + 1),
        lambda n: "nonsense",
    ],
    ids=["NaN", "zeros", "too many", "no numbers"],
)
async def test_a_model_that_makes_nonsense_stores_nothing(place, vectors):
    """Vectors with NaN, without direction or not of the texts raise the project's error."""

    class Nonsense:
        def encode(self, texts):
            return vectors(len(texts))

    backend = await place.open(embedder=Nonsense())
    with pytest.raises(GemmaRagError):
        await backend.store_memory("note")
    assert await backend.all_memories() == []


async def test_the_size_of_a_memory_is_configured(place):
    """`max_content_chars` bounds content, in stores and in updates."""
    backend = await place.open(settings=settings_with(max_content_chars=10))
    memory_id = await backend.store_memory("x" * 10)
    with pytest.raises(InvalidInputError, match=r"^content"):
        await backend.store_memory("x" * 11)
    with pytest.raises(InvalidInputError, match=r"^content"):
        await backend.update_memory(memory_id, content="x" * 11)
