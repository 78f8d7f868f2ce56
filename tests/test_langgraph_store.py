"""The memory as LangGraph's store: `BaseStore`'s behaviour, exactly, over every kind of store that lasts."""

import asyncio
import math
from collections import UserDict
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import pytest
from command_runs import ROOT, run_python
from conftest import Clock
from langgraph.store.base import (
    GetOp,
    InvalidNamespaceError,
    Item,
    ListNamespacesOp,
    MatchCondition,
    PutOp,
    SearchOp,
)
from memory_places import STORE_KINDS, Place, WordEmbedder, settings_with
from servers import programs
from test_docs import blocks

from gemma_cli.integrations import langgraph_items as items
from gemma_cli.integrations.langchain import LangChainEmbedder
from gemma_cli.integrations.langgraph_store import GemmaRagStore
from gemma_cli.rag import (
    BackendStateError,
    CapacityError,
    InvalidInputError,
    InvalidTypeError,
    MemoryTier,
    PythonRAGBackend,
    Settings,
)

pytestmark = pytest.mark.anyio

KINDS = ["sqlite", *(["redis"] if programs() else [])]
LEA = ("users", "lea", "memories")
TOM = ("users", "tom", "memories")


@pytest.fixture(params=KINDS)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    """A new and empty place; what a test opened on it is closed after the test."""
    kind = STORE_KINDS[request.param]
    with kind.place(tmp_path) as url:
        place = Place(url, kind.lasting)
        yield place
        await place.close()


@pytest.fixture
async def backend(place: Place, clock: Clock) -> PythonRAGBackend:
    return await place.open(clock=clock)


@pytest.fixture
async def store(backend: PythonRAGBackend) -> AsyncIterator[GemmaRagStore]:
    """A store on a new place, with a clock that is ticked by hand."""
    made = GemmaRagStore(backend)
    yield made
    await made.aclose()


def keys(found: list[Any]) -> list[str]:
    return [item.key for item in found]


async def rows(backend: PythonRAGBackend) -> int:
    return sum((await backend.get_memory_stats()).values())


# Putting, getting, deleting


async def test_an_item_comes_back_as_it_was_put(store: GemmaRagStore, clock: Clock) -> None:
    """Get gives namespace, key, value and both times, and None where there is nothing."""
    value = {"text": "Lea plays the violin.", "n": 3, "deep": {"list": [1, None, True]}}
    await store.aput(LEA, "a", value)
    item = await store.aget(LEA, "a")
    assert type(item) is Item
    assert (item.namespace, item.key, item.value) == (LEA, "a", value)
    assert item.created_at.timestamp() == item.updated_at.timestamp() == clock()
    assert await store.aget(LEA, "b") is None
    assert await store.aget(TOM, "a") is None
    assert await store.aget(LEA[:2], "a") is None


async def test_a_put_replaces_what_has_its_key(store: GemmaRagStore, backend: PythonRAGBackend, clock: Clock) -> None:
    """The value is another, the creation stays, the change is dated, and nothing of the old one is left or found."""
    await store.aput(LEA, "a", {"one": "violin", "two": "harbour"}, index=["one", "two"])
    assert await rows(backend) == 2
    began = clock()
    clock.tick(60)
    await store.aput(LEA, "a", {"one": "piano"}, index=["one"])
    assert await rows(backend) == 1
    item = await store.aget(LEA, "a")
    assert item is not None
    assert item.value == {"one": "piano"}
    assert (item.created_at.timestamp(), item.updated_at.timestamp()) == (began, began + 60)
    assert [entry.content for entry in await backend.search_memories("violin harbour piano")] == ["piano"]


async def test_a_deleted_item_is_gone(store: GemmaRagStore, backend: PythonRAGBackend) -> None:
    """Delete removes every memory of an item and no other; deleting what is not there is no error."""
    await store.aput(LEA, "a", {"one": "violin", "two": "harbour"}, index=["one", "two"])
    await store.aput(LEA, "b", {"one": "violin"})
    await store.adelete(LEA, "a")
    await store.adelete(LEA, "never")
    assert await store.aget(LEA, "a") is None
    assert keys(await store.asearch(())) == ["b"]
    assert await rows(backend) == 1


async def test_labels_and_keys_are_data(store: GemmaRagStore) -> None:
    """Whatever a label or a key holds, long or strange, it names one item and no other."""
    strange = [("a_%", "b"), ("a", "b"), ("a*", "'; DROP"), ("é", "名"), ("x" * 3000,), ("x" * 3001,), (" ",)]
    for number, namespace in enumerate(strange):
        for key in ("k", "", "k.k", "\n", "🎻"):
            await store.aput(namespace, key, {"n": number, "key": key})
    for number, namespace in enumerate(strange):
        for key in ("k", "", "k.k", "\n", "🎻"):
            item = await store.aget(namespace, key)
            assert item is not None
            assert item.value == {"n": number, "key": key}
        assert len(await store.asearch(namespace, limit=100)) == 5
    assert set(await store.alist_namespaces()) == set(strange)


@pytest.mark.parametrize(
    "value", [{}, {"a": None}, {"a": " "}, {"n": 1.5}, {"flag": False}, {"a": []}, UserDict(a="b")]
)
async def test_any_json_value_can_be_stored(store: GemmaRagStore, value: Any) -> None:
    """A value without a text in it is kept as it is; where it has nothing to embed, no query scores it."""
    await store.aput(LEA, "a", value)
    item = await store.aget(LEA, "a")
    assert item is not None
    assert item.value == dict(value)
    [found] = await store.asearch((), query="flag")
    assert (found.score is None) == (not items.whole_text(value))


async def test_a_foreign_memory_is_no_item(store: GemmaRagStore, backend: PythonRAGBackend) -> None:
    """Memories that other doors stored are neither listed nor ranked nor counted as items, whatever tags they have."""
    await store.aput(LEA, "a", {"text": "violin"})
    tags = [items.ITEM, items.INDEXED, items.tag_of(LEA)]
    await backend.store_memory("A violin.", "semantic", tags=tags)
    await backend.store_memory("A violin.", "semantic", tags=tags, metadata={items.MARK: "mine"})
    [item] = [entry for entry in await backend.all_memories() if items.ITEM in entry.tags and entry.pinned]
    await backend.store_memory("A violin.", "semantic", tags=tags, metadata=item.metadata)
    assert keys(await store.asearch(LEA)) == ["a"]
    assert keys(await store.asearch(LEA, query="violin")) == ["a"]
    assert await store.alist_namespaces() == [LEA]


async def test_bad_input_is_refused_by_name(store: GemmaRagStore) -> None:
    """Each wrong argument raises an error that begins with its name, and nothing is stored."""
    refused: list[tuple[str, Any]] = [
        ("value", lambda: store.aput(LEA, "a", {"x": math.nan})),
        ("value", lambda: store.aput(LEA, "a", {"x": {1, 2}})),
        ("value", lambda: store.aput(LEA, "a", ["x"])),  # type: ignore[arg-type]
        ("value", lambda: store.aput(LEA, "a", {1: "x"})),  # type: ignore[dict-item]
        ("index", lambda: store.aput(LEA, "a", {"x": "y"}, index=[1])),  # type: ignore[list-item]
        ("index", lambda: store.aput(LEA, "a", {"x": "y"}, index="x")),  # type: ignore[arg-type]
        ("ttl", lambda: store.aput(LEA, "a", {"x": "y"}, ttl=0)),
        ("ttl", lambda: store.aput(LEA, "a", {"x": "y"}, ttl=-1)),
        ("ttl", lambda: store.aput(LEA, "a", {"x": "y"}, ttl=math.inf)),
        ("filter", lambda: store.asearch(LEA, filter={"x": {"$near": 1}})),
        ("filter", lambda: store.asearch(LEA, filter=["x"])),  # type: ignore[arg-type]
        ("query", lambda: store.asearch(LEA, query=3)),  # type: ignore[arg-type]
        ("limit", lambda: store.asearch(LEA, limit=-1)),
        ("offset", lambda: store.asearch(LEA, offset=-1)),
        ("offset", lambda: store.alist_namespaces(offset=-1)),
    ]
    for name, attempt in refused:
        with pytest.raises(InvalidInputError, match=f"^{name}"):
            await attempt()
    assert await store.asearch(()) == []


@pytest.mark.parametrize("namespace", [("a.b",), ("a", ""), ("a\x00",), (7,)])
async def test_a_bad_namespace_is_refused(store: GemmaRagStore, namespace: Any) -> None:
    """LangGraph's own error is raised for a bad label, also past the methods, where an operation is given as it is."""
    operations = [
        GetOp(namespace, "k"),
        PutOp(namespace, "k", {"a": 1}),
        SearchOp(namespace),
        ListNamespacesOp((MatchCondition("prefix", namespace),)),
    ]
    for operation in operations:
        with pytest.raises(InvalidNamespaceError):
            await store.abatch([operation])
    for root in ((), ("langgraph", "a")):
        with pytest.raises(InvalidNamespaceError):
            await store.aput(root, "k", {"a": 1})


# Batches


async def test_reads_of_a_batch_see_what_was_there_before(store: GemmaRagStore) -> None:
    """Results stand in the order of the operations, puts come after the reads, and the last put of a key holds."""
    await store.aput(LEA, "a", {"n": 1})
    results = await store.abatch(
        [
            PutOp(LEA, "a", {"n": 2}),
            GetOp(LEA, "a"),
            SearchOp(LEA),
            PutOp(LEA, "b", {"n": 1}),
            PutOp(LEA, "a", {"n": 3}),
            PutOp(LEA, "b", None),
            ListNamespacesOp(),
            GetOp(LEA, "b"),
        ]
    )
    assert [results[place] for place in (0, 3, 4, 5, 7)] == [None] * 5
    assert isinstance(results[1], Item)
    assert results[1].value == {"n": 1}
    assert isinstance(results[2], list)
    assert keys(results[2]) == ["a"]
    assert results[6] == [LEA]
    assert [item.value for item in await store.asearch(LEA)] == [{"n": 3}]


async def test_a_batch_is_stored_as_a_whole_or_not_at_all(store: GemmaRagStore, backend: PythonRAGBackend) -> None:
    """One value that can't be stored keeps the others of its batch out, and takes nothing away."""
    await store.aput(LEA, "a", {"n": 1})
    with pytest.raises(InvalidInputError):
        await store.abatch([PutOp(LEA, "a", None), PutOp(LEA, "b", {"n": 2}), PutOp(LEA, "c", {"n": math.inf})])
    assert keys(await store.asearch(LEA)) == ["a"]


async def test_calls_at_once_share_a_batch_and_not_each_others_errors(store: GemmaRagStore) -> None:
    """Many puts at once all arrive; a bad one among them fails alone."""
    outcomes = await asyncio.gather(
        *(store.aput(LEA, f"k{n}", {"n": n if n != 7 else math.nan}) for n in range(20)),
        store.aget(("a.b",), "k"),
        return_exceptions=True,
    )
    assert [place for place, outcome in enumerate(outcomes) if outcome is not None] == [7, 20]
    assert len(await store.asearch(LEA, limit=100)) == 19


BAD_CALLS = {
    "limit": lambda s: s.alist_namespaces(limit=-1),
    "offset": lambda s: s.alist_namespaces(offset="x"),
    "max_depth": lambda s: s.alist_namespaces(max_depth="x"),
    "ttl": lambda s: s.aput(LEA, "b", {"n": 1}, ttl=0),
    "search": lambda s: s.asearch(LEA, limit=-1),
    "value": lambda s: s.aput(LEA, "b", {"n": math.inf}),
}


@pytest.mark.parametrize("bad", BAD_CALLS.values(), ids=BAD_CALLS)
async def test_a_bad_call_fails_none_beside_it(store: GemmaRagStore, bad: Any) -> None:
    """What can't be carried out raises in its own caller; the calls of the same moment get their answers."""
    await store.aput(LEA, "a", {"n": 1})
    good, outcome, listed = await asyncio.gather(
        store.aget(LEA, "a"), bad(store), store.alist_namespaces(), return_exceptions=True
    )
    assert isinstance(outcome, InvalidInputError)
    assert isinstance(good, Item)
    assert listed == [LEA]


async def test_a_namespace_that_is_a_list_harms_no_other_call(store: GemmaRagStore) -> None:
    """Beside other calls it is the same namespace as the tuple, as it is alone."""
    lea: Any = list(LEA)
    assert await asyncio.gather(store.aput(lea, "a", {"n": 1}), store.adelete(lea, "b"), store.aget(TOM, "a")) == [
        None,
        None,
        None,
    ]
    assert keys(await store.asearch(LEA)) == ["a"]


async def test_a_search_that_fails_fails_no_other_call(tmp_path: Path) -> None:
    """Where the model fails, what needs no model is answered all the same."""

    class Failing(WordEmbedder):
        def encode(self, texts: list[str], /) -> Any:
            if "boom" in texts:
                raise RuntimeError("boom")
            return super().encode(texts)

    async with GemmaRagStore.from_url(f"sqlite:///{tmp_path}/memory.db", embedder=Failing()) as store:
        await store.aput(LEA, "a", {"n": 1})
        calls = store.aget(LEA, "a"), store.asearch(LEA, query="boom"), store.aput(LEA, "b", {"n": 2})
        got, searched, stored = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(got, Item)
        assert isinstance(searched, Exception)
        assert stored is None
        assert sorted(keys(await store.asearch(LEA))) == ["a", "b"]
        with pytest.raises(type(searched)):
            await store.abatch([SearchOp(LEA, query="boom"), PutOp(LEA, "c", {"n": 3})])
        assert await store.aget(LEA, "c") is None


async def test_a_put_without_room_fails_alone(place: Place) -> None:
    """Reads of the same moment get what they ask for, and puts that find room are done; a batch is all or nothing."""
    store = GemmaRagStore(await place.open(settings=settings_with(semantic_capacity=2)))
    await store.aput(LEA, "a", {"n": 1})
    await store.aput(LEA, "b", {"n": 1})
    got, found, spaces, changed, full, gone = await asyncio.gather(
        store.aget(LEA, "a"),
        store.asearch(LEA),
        store.alist_namespaces(),
        store.aput(LEA, "a", {"n": 2}),
        store.aput(LEA, "c", {"n": 1}),
        store.adelete(LEA, "nobody"),
        return_exceptions=True,
    )
    assert isinstance(got, Item)
    assert isinstance(found, list)
    assert (got.value, sorted(keys(found)), spaces) == ({"n": 1}, ["a", "b"], [LEA])
    assert (changed, gone) == (None, None)
    assert isinstance(full, CapacityError)
    with pytest.raises(CapacityError):
        await store.abatch([PutOp(LEA, "a", {"n": 3}), PutOp(LEA, "c", {"n": 1})])
    assert {item.key: item.value for item in await store.asearch(LEA)} == {"a": {"n": 2}, "b": {"n": 1}}
    await store.aclose()


async def test_two_processes_that_put_one_key_leave_one_item(place: Place, tmp_path: Path) -> None:
    """Writers on one place at once, one of them a process of its own, leave each key once, with all of its texts."""
    script = tmp_path / "writer.py"
    script.write_text(
        "import asyncio, sys\n"
        f"sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from memory_places import WordEmbedder\n"
        "from gemma_cli.integrations.langgraph_store import GemmaRagStore\n"
        "async def main():\n"
        "    async with GemmaRagStore.from_url(sys.argv[1], embedder=WordEmbedder(), namespace='default') as store:\n"
        "        for n in range(60):\n"
        "            texts = [f'{sys.argv[2]} {n} {i}' for i in range(1 + n % 3)]\n"
        "            await store.aput(('race',), f'k{n % 4}', {'texts': texts}, index=['texts[*]'])\n"
        "asyncio.run(main())\n"
    )
    backend = await place.open()
    writers = (asyncio.to_thread(run_python, script, place.url, name, cwd=tmp_path) for name in ("one", "two"))
    for outcome in await asyncio.gather(*writers):
        assert (outcome.code, outcome.stderr) == (0, "")
    store = GemmaRagStore(backend)
    found = await store.asearch(("race",), limit=100)
    assert sorted(keys(found)) == ["k0", "k1", "k2", "k3"]
    assert await rows(backend) == sum(len(item.value["texts"]) for item in found)
    await store.aclose()


# Searching without a query


async def test_a_prefix_is_whole_labels(store: GemmaRagStore) -> None:
    """A search finds what stands in the namespace and below it, not what only begins with the same letters."""
    for namespace in (("foo",), ("foo", "child"), ("foobar",), ("a", "foo")):
        await store.aput(namespace, "k", {"v": 1})
    assert {item.namespace for item in await store.asearch(("foo",))} == {("foo",), ("foo", "child")}
    assert len(await store.asearch(())) == 4
    assert await store.asearch(("fo",)) == []


async def test_pages_fit_together(store: GemmaRagStore, clock: Clock) -> None:
    """The item put last comes first, and pages by offset and limit add up to the whole, with a filter too."""
    for number in range(12):
        await store.aput(LEA if number % 3 else TOM, f"k{number:02}", {"n": number, "even": number % 2 == 0})
        clock.tick(1)
    assert keys(await store.asearch(("users",), limit=20)) == [f"k{n:02}" for n in reversed(range(12))]
    pages = [await store.asearch(("users",), limit=5, offset=offset) for offset in (0, 5, 10, 15)]
    assert [len(page) for page in pages] == [5, 5, 2, 0]
    assert [key for page in pages for key in keys(page)] == [f"k{n:02}" for n in reversed(range(12))]
    assert keys(await store.asearch((), filter={"even": True}, limit=2, offset=1)) == ["k08", "k06"]
    assert await store.asearch((), limit=0) == []


RECORDS: dict[str, dict[str, Any]] = {
    "a": {"n": 1, "s": "2024-01", "flag": True, "tags": ["x"], "deep": {"p": 1, "q": 2}},
    "b": {"n": 2.5, "s": "2024-06", "flag": False, "tags": ["x", "y"], "deep": {"p": 2}},
    "c": {"n": "2", "s": None},
}


@pytest.mark.parametrize(
    ("conditions", "passing"),
    [
        ({}, "abc"),
        ({"n": 1}, "a"),
        ({"n": {"$eq": 2.5}}, "b"),
        ({"n": {"$ne": 1}}, "bc"),
        ({"n": {"$gt": 1}}, "b"),
        ({"n": {"$gte": 1}}, "ab"),
        ({"n": {"$lt": 2.5}}, "a"),
        ({"n": {"$lte": 2.5, "$gt": 1}}, "b"),
        ({"s": {"$gt": "2024-03"}}, "b"),
        ({"s": None}, "c"),
        ({"missing": None}, "abc"),
        ({"missing": {"$gt": 0}}, ""),
        ({"flag": True}, "a"),
        ({"flag": 1}, ""),
        ({"flag": {"$gt": -1}}, ""),
        ({"tags": ["x"]}, "a"),
        ({"tags": ["y", "x"]}, ""),
        ({"deep": {"p": 2}}, "b"),
        ({"deep": {"p": {"$gte": 1}}}, "ab"),
        ({"deep": {"p": 1}, "n": 1}, "a"),
        ({"deep": {"p": 1}, "n": 2.5}, ""),
    ],
)
def test_a_filter_lets_through_what_fulfils_it(conditions: dict[str, Any], passing: str) -> None:
    """Equality, operators and nested conditions, by the rules of JSON: true is no number, a missing key is null."""
    items.check_filter(conditions)
    assert "".join(key for key, value in RECORDS.items() if items.passes(value, conditions)) == passing


# Searching with a query


async def test_a_query_ranks_items_as_recall_does(store: GemmaRagStore, backend: PythonRAGBackend) -> None:
    """The best comes first, with recall's own score, and the search counts as no access."""
    await store.aput(LEA, "violin", {"text": "Lea plays the violin."})
    await store.aput(LEA, "tea", {"text": "Lea drinks tea."})
    await store.aput(TOM, "violin", {"text": "Tom plays the violin."})
    found = await store.asearch(("users", "lea"), query="violin")
    assert keys(found) == ["violin", "tea"]
    [best] = await backend.recall_memories("violin", limit=1, tags=[items.tag_of(LEA)], touch=False)
    assert found[0].score == best.score
    assert found[0].score is not None
    assert found[1].score is not None
    assert found[0].score > found[1].score
    assert {entry.access_count for entry in await backend.all_memories()} == {0}
    assert keys(await store.asearch((), query="  ")) == keys(await store.asearch(()))


async def test_each_indexed_text_is_found_by_itself(store: GemmaRagStore) -> None:
    """An item comes once, at the place of the best of its texts, however many of them match."""
    rows = [{"say": "violin lesson"}, {"say": "ferry ticket"}, {"say": "violin strings"}]
    await store.aput(LEA, "many", {"talk": rows, "other": "garden"}, index=["talk[*].say"])
    await store.aput(LEA, "one", {"say": "ferry ticket"}, index=["say"])
    found = await store.asearch(LEA, query="ferry ticket")
    assert sorted(keys(found)) == ["many", "one"]
    assert found[0].score == pytest.approx(found[1].score, abs=1e-6)
    assert keys(await store.asearch(LEA, query="violin")) == ["many", "one"]
    [first, _] = await store.asearch(LEA, query="garden")
    assert first.score is not None
    assert first.score < 1  # not indexed, so no word of it is known


async def test_more_texts_than_memories_are_all_found(store: GemmaRagStore, backend: PythonRAGBackend) -> None:
    """Of an item with more texts than are kept apart, the last text is found as well, and a put takes them all away."""
    await store.aput(LEA, "many", {"list": [f"word{n}" for n in range(40)]}, index=["list[*]"])
    await store.aput(LEA, "none", {"text": "nothing"})
    assert await rows(backend) == items.MOST_TEXTS + 1
    assert keys(await store.asearch(LEA, query="word39"))[0] == "many"
    await store.aput(LEA, "many", {"list": []})
    assert await rows(backend) == 2


async def test_what_is_not_indexed_stands_last_and_without_a_score(store: GemmaRagStore) -> None:
    """`index=False` keeps an item out of every ranking: it only fills up a page that what is indexed leaves open."""
    await store.aput(LEA, "hidden", {"text": "violin violin"}, index=False)
    for number in range(3):
        await store.aput(LEA, f"k{number}", {"text": f"tea {number}"})
    found = await store.asearch(LEA, query="violin")
    assert [item.score is None for item in found] == [False, False, False, True]
    assert found[-1].key == "hidden"
    assert "hidden" not in keys(await store.asearch(LEA, query="violin", limit=3))
    assert keys(await store.asearch(LEA, query="violin", limit=2, offset=3)) == ["hidden"]


async def test_fields_of_the_store_and_of_a_put(place: Place) -> None:
    """The store's fields are embedded unless a put names others; a field that a value lacks is left out."""
    store = GemmaRagStore(await place.open(), index={"fields": ["title", "body.text"]})
    await store.aput(LEA, "a", {"title": "violin", "note": "garden"})
    await store.aput(LEA, "b", {"body": {"text": "ferry"}, "note": "garden"})
    await store.aput(LEA, "c", {"title": "violin", "note": "garden"}, index=["note"])
    await store.aput(LEA, "d", {"note": "garden"})
    assert keys(await store.asearch(LEA, query="garden"))[0] == "c"
    assert keys(await store.asearch(LEA, query="ferry"))[0] == "b"
    assert keys(await store.asearch(LEA, query="violin"))[0] == "a"
    assert (await store.asearch(LEA, query="violin"))[-1].key == "d"
    await store.aclose()


async def test_a_rare_item_behind_a_filter_is_found(store: GemmaRagStore) -> None:
    """However many better ones fail the filter, a query finds those that pass it, and all of them."""
    await asyncio.gather(*(store.aput(LEA, f"k{n}", {"text": "violin", "n": n}) for n in range(150)))
    await store.aput(LEA, "rare", {"text": "garden gate", "n": -1})
    assert keys(await store.asearch(LEA, query="violin", filter={"n": -1})) == ["rare"]
    assert len(await store.asearch(LEA, query="violin", filter={"n": {"$gte": 0}}, limit=200)) == 150


async def test_ranked_pages_fit_together(store: GemmaRagStore) -> None:
    """Pages of one ranking hold every item once."""
    await asyncio.gather(*(store.aput(LEA, f"k{n}", {"text": f"violin number {n}"}) for n in range(30)))
    pages = [await store.asearch(LEA, query="violin", limit=8, offset=offset) for offset in (0, 8, 16, 24)]
    whole = await store.asearch(LEA, query="violin", limit=100)
    assert [key for page in pages for key in keys(page)] == keys(whole)
    assert len(set(keys(whole))) == 30


def test_the_whole_value_is_embedded_as_text() -> None:
    """A lone text stands by itself; otherwise each leaf has its path before it, and no brace or quote is content."""
    assert items.whole_text({"memory": {"content": "Lea plays."}}) == "Lea plays."
    value = {"a": "x", "b": {"c": [1, "y", {"d": True}], "e": None}}
    assert items.whole_text(value) == "a: x\nb.c: 1\nb.c: y\nb.c.d: true"
    assert items.whole_text({"likes": True}) == "likes: true"
    deep: dict[str, Any] = {"x": "bottom"}
    for _ in range(5_000):
        deep = {"x": deep}
    assert items.whole_text(deep) == "bottom"


async def test_meaning_decides_with_the_real_model(tmp_path: Path) -> None:
    """With the configured model, an item is found that shares no word with the query."""
    async with GemmaRagStore.from_url(f"sqlite:///{tmp_path}/memory.db") as store:
        await store.aput(LEA, "cat", {"text": "The cat sleeps on the sofa."})
        await store.aput(LEA, "key", {"text": "Our flat's spare key lies under the flowerpot."})
        await store.aput(LEA, "hidden", {"text": "How do I get in when I am locked out?"}, index=False)
        found = await store.asearch(LEA, query="How do I get in when I am locked out?")
        assert keys(found) == ["key", "cat", "hidden"]


# Namespaces


async def test_namespaces_are_listed_by_their_beginnings_and_ends(store: GemmaRagStore) -> None:
    """Prefix, suffix, wildcards, depth, limit and offset, in order, each once."""
    known = [("a", "b", "c"), ("a", "b", "d", "e"), ("a", "b", "d", "i"), ("a", "c", "f"), ("b", "a", "f"), ("a",)]
    for namespace in known:
        await store.aput(namespace, "k1", {"v": 1})
        await store.aput(namespace, "k2", {"v": 1})
    below_ab = [("a", "b", "c"), ("a", "b", "d", "e"), ("a", "b", "d", "i")]
    listings: list[tuple[dict[str, Any], list[tuple[str, ...]]]] = [
        ({"prefix": ("a", "b")}, below_ab),
        ({"prefix": ("a", "b"), "max_depth": 3}, [("a", "b", "c"), ("a", "b", "d")]),
        ({"suffix": ("f",)}, [("a", "c", "f"), ("b", "a", "f")]),
        ({"prefix": ("a",), "suffix": ("f",)}, [("a", "c", "f")]),
        ({"prefix": ("*", "a")}, [("b", "a", "f")]),
        ({"suffix": ("d", "*")}, below_ab[1:]),
        ({"prefix": ("a", "*", "f")}, [("a", "c", "f")]),
        ({"limit": 2, "offset": 1}, sorted(known)[1:3]),
        ({"limit": 0}, []),
        ({"prefix": ("nobody",)}, []),
        ({}, sorted(known)),
    ]
    for options, expected in listings:
        store._shelf._namespaces = None  # nothing is known of them
        assert await store.alist_namespaces(**options) == expected
    for options, expected in listings:
        assert await store.alist_namespaces(**options) == expected


async def test_a_namespace_goes_with_its_last_item(store: GemmaRagStore, place: Place, clock: Clock) -> None:
    """A listing that was made before does not hide a deletion, an expiry, or what another backend put."""
    await store.aput(LEA, "a", {"v": 1})
    await store.aput(TOM, "a", {"v": 1}, ttl=1)
    assert await store.alist_namespaces() == [LEA, TOM]
    clock.tick(61)
    assert await store.alist_namespaces() == [LEA]
    await store.adelete(LEA, "a")
    assert await store.alist_namespaces() == []
    other = GemmaRagStore(await place.open(clock=clock))
    await other.aput(("new",), "a", {"v": 1})
    assert await store.alist_namespaces() == [("new",)]
    await other.aclose()


# Lifetimes


async def test_an_item_with_a_ttl_expires(store: GemmaRagStore, backend: PythonRAGBackend, clock: Clock) -> None:
    """After its minutes no verb shows it, swept or not, and the sweep removes all of its memories."""
    await store.aput(LEA, "a", {"one": "violin", "two": "tea"}, index=["one", "two"], ttl=2)
    await store.aput(LEA, "b", {"one": "violin"})
    clock.tick(119)
    assert await store.aget(LEA, "a", refresh_ttl=False) is not None
    assert len(await store.asearch(LEA, query="violin", refresh_ttl=False)) == 2
    clock.tick(1)
    assert await store.aget(LEA, "a") is None
    assert keys(await store.asearch(LEA)) == ["b"]
    assert keys(await store.asearch(LEA, query="violin")) == ["b"]
    assert await store.sweep_ttl() == 2
    clock.tick(10 * 365 * 86_400)
    assert await store.aget(LEA, "b") is not None


@pytest.mark.parametrize("read", ["get", "list", "query"])
async def test_reading_starts_the_lifetime_anew(store: GemmaRagStore, clock: Clock, read: str) -> None:
    """Get and search give what they return its whole lifetime again, unless they are told not to."""

    async def look(refresh: bool | None) -> None:
        if read == "get":
            await store.aget(LEA, "a", refresh_ttl=refresh)
        else:
            await store.asearch(LEA, query="violin" if read == "query" else None, limit=1, refresh_ttl=refresh)

    await store.aput(LEA, "a", {"one": "violin", "two": "violin two"}, index=["one", "two"], ttl=2)
    for _ in range(3):
        clock.tick(119)
        await look(None)
    clock.tick(119)
    assert len(await store.asearch(LEA, query="violin", refresh_ttl=False)) == 1
    await look(False)
    clock.tick(2)
    assert await store.aget(LEA, "a") is None


async def test_the_stores_own_lifetimes(place: Place, clock: Clock) -> None:
    """`default_ttl` holds for puts that name none, None means for ever, and `refresh_on_read` can be switched off."""
    store = GemmaRagStore(await place.open(clock=clock), ttl={"default_ttl": 1, "refresh_on_read": False})
    await store.aput(LEA, "short", {"v": 1})
    await store.aput(LEA, "long", {"v": 1}, ttl=5)
    await store.aput(LEA, "ever", {"v": 1}, ttl=None)
    clock.tick(59)
    assert len(await store.asearch(LEA)) == 3
    clock.tick(2)
    assert sorted(keys(await store.asearch(LEA))) == ["ever", "long"]
    await store.aclose()


async def test_a_put_ends_the_lifetime_that_was(store: GemmaRagStore, backend: PythonRAGBackend, clock: Clock) -> None:
    """An item put anew without a TTL stays, and one put anew with one goes; there is never more than one of a key."""
    await store.aput(LEA, "a", {"v": 1}, ttl=1)
    await store.aput(LEA, "b", {"v": 1})
    await store.aput(LEA, "a", {"v": 2})
    await store.aput(LEA, "b", {"v": 2}, ttl=1)
    assert await rows(backend) == 2
    clock.tick(61)
    assert [item.value for item in await store.asearch(LEA)] == [{"v": 2}]
    assert await store.aget(LEA, "b") is None


async def test_prolonging_touches_nothing_that_came_meanwhile(
    store: GemmaRagStore, backend: PythonRAGBackend, clock: Clock
) -> None:
    """A reader that prolongs what it read changes neither what was put in its place nor what was deleted."""
    await store.aput(LEA, "a", {"v": 1}, ttl=1)
    await store.aput(LEA, "b", {"v": 1}, ttl=1)
    read = await store._shelf.held([(LEA, "a"), (LEA, "b")])
    await store.aput(LEA, "a", {"v": 2})
    await store.adelete(LEA, "b")
    for item in read.values():
        await store._shelf.prolong(item.mark)
    clock.tick(10_000)
    assert [item.value for item in await store.asearch(LEA)] == [{"v": 2}]
    assert await rows(backend) == 1


async def test_what_somebody_pins_stays(store: GemmaRagStore, backend: PythonRAGBackend, clock: Clock) -> None:
    """An item or a text of it that is pinned through another door outlives its TTL, and reading takes no pin off."""
    await store.aput(LEA, "a", {"one": "violin", "two": "tea"}, index=["one", "two"], ttl=1)
    first, second, *_ = items.ids_of(LEA, "a", True)
    await backend.update_memory(second, pinned=True)
    clock.tick(59)
    assert await store.aget(LEA, "a") is not None
    clock.tick(59)
    await backend.update_memory(first, pinned=True)
    assert keys(await store.asearch(LEA, query="violin")) == ["a"]
    clock.tick(1_000)
    assert await store.aget(LEA, "a") is not None
    assert await store.sweep_ttl() == 0
    found = await backend.get_memories([first, second])
    assert [(entry.pinned, entry.expires_at) for entry in found if entry] == [(True, None)] * 2


async def test_prolonging_is_one_change_of_each_memory(store: GemmaRagStore, backend: PythonRAGBackend) -> None:
    """A process that dies while it prolongs an item leaves each of its memories prolonged or as it was."""

    async def changes() -> int:
        token = await backend.change_token()
        return token if token.bit_length() < 64 else token >> 64  # on Redis the change's nonce stands behind its number

    await store.aput(LEA, "a", {"one": "violin", "two": "tea"}, index=["one", "two"], ttl=1)
    before = await changes()
    await store.aget(LEA, "a")
    assert await changes() == before + 2


async def test_a_listing_goes_on_where_items_go(store: GemmaRagStore, backend: PythonRAGBackend) -> None:
    """Items that are deleted while a namespace is read, page by page, are no error and take no other with them."""
    for number in range(6):
        await store.aput(LEA, f"k{number}", {"n": number})
    found = []
    async for item in store._shelf.below(LEA, 2):
        found.append(item.mark.key)
        await store.adelete(LEA, item.mark.key)
    assert sorted(found) == [f"k{number}" for number in range(6)]


async def test_a_tier_that_promotes_has_no_ttl(place: Place) -> None:
    """Where promotion would end a lifetime, a TTL is refused, as LangGraph has it for stores without that support."""
    store = GemmaRagStore(await place.open(), tier="long_term")
    assert not store.supports_ttl
    with pytest.raises(NotImplementedError, match=r"^ttl"):
        await store.aput(LEA, "a", {"v": 1}, ttl=1)
    with pytest.raises(NotImplementedError, match=r"^ttl: default_ttl"):
        GemmaRagStore(store._shelf.backend, tier="long_term", ttl={"default_ttl": 5})
    await store.aput(LEA, "a", {"v": 1})
    assert [entry.tier for entry in await store._shelf.backend.all_memories()] == [MemoryTier.LONG_TERM]
    await store.aclose()


# Capacity


async def test_items_are_never_dropped_for_room(place: Place) -> None:
    """Items outlast other memories of a full tier; when only items are left, a put raises and changes nothing."""
    backend = await place.open(settings=settings_with(semantic_capacity=5))
    store = GemmaRagStore(backend)
    for number in range(3):
        await backend.store_memory(f"Memory {number}.", "semantic", importance=1.0)
    for number in range(5):
        await store.aput(LEA, f"k{number}", {"n": number})
    assert (await backend.get_memory_stats())["semantic"] == 5
    with pytest.raises(CapacityError):
        await store.aput(LEA, "k5", {"n": 5})
    await store.aput(LEA, "k4", {"n": "replaced"})
    assert sorted(keys(await store.asearch(LEA))) == [f"k{n}" for n in range(5)]
    assert all(entry.pinned for entry in await backend.all_memories())
    await store.aclose()


# Opening, closing, threads


async def test_from_url_opens_and_closes_a_backend_of_its_own(tmp_path: Path) -> None:
    """What one store kept the next one finds; after the end, calls raise and name the reason."""
    url = f"sqlite:///{tmp_path}/memory.db"
    async with GemmaRagStore.from_url(url, embedder=WordEmbedder()) as store:
        await store.aput(LEA, "a", {"text": "violin"})
    with pytest.raises(BackendStateError, match="closed"):
        await store.aget(LEA, "a")
    with pytest.raises(BackendStateError):
        await store._shelf.backend.get_memory_stats()
    async with GemmaRagStore.from_url(url, embedder=WordEmbedder()) as store:
        assert keys(await store.asearch((), query="violin")) == ["a"]


async def test_closing_finishes_what_was_asked_and_leaves_the_backend_open(backend: PythonRAGBackend) -> None:
    """Calls that wait when the store is closed get their answers; no task stays behind; a second close is harmless."""
    store = GemmaRagStore(backend)
    puts = [asyncio.ensure_future(store.aput(LEA, f"k{n}", {"n": n})) for n in range(10)]
    await asyncio.sleep(0)
    await store.aclose()
    assert [put.result() for put in puts] == [None] * 10
    await store.aclose()
    assert await rows(backend) == 10
    assert store._task is not None
    assert store._task.done()


async def test_synchronous_calls_work_from_other_threads_only(store: GemmaRagStore) -> None:
    """On the event loop's own thread they raise and name the asynchronous form; elsewhere they are served."""
    with pytest.raises(asyncio.InvalidStateError, match=r"store.aput"):
        store.put(LEA, "a", {"v": 1})
    await asyncio.to_thread(store.put, LEA, "a", {"v": 1})
    item = await asyncio.to_thread(store.get, LEA, "a")
    assert item is not None
    assert item.value == {"v": 1}
    assert keys(await asyncio.to_thread(store.search, LEA)) == ["a"]
    assert await asyncio.to_thread(store.list_namespaces) == [LEA]
    await asyncio.to_thread(store.delete, LEA, "a")
    assert await store.aget(LEA, "a") is None


def test_a_program_without_an_event_loop_has_a_store(tmp_path: Path) -> None:
    """`sync_from_url` serves every synchronous method, and an error at its opening is raised where it was called."""
    with GemmaRagStore.sync_from_url(f"sqlite:///{tmp_path}/memory.db", embedder=WordEmbedder()) as store:
        store.put(LEA, "a", {"text": "violin"}, ttl=5)
        assert keys(store.search((), query="violin")) == ["a"]
        assert store.list_namespaces() == [LEA]
    with pytest.raises(InvalidInputError, match=r"^tier"), GemmaRagStore.sync_from_url("memory://", tier="none"):
        pass


def test_another_event_loop_is_served_too(tmp_path: Path) -> None:
    """A store whose loop runs in another thread answers this one's asynchronous calls; once closed, it says so."""

    async def used(store: GemmaRagStore) -> None:
        await asyncio.gather(*(store.aput(LEA, name, {"text": f"violin {name}"}) for name in "abc"))
        assert keys(await store.asearch(LEA, query="violin b", limit=1)) == ["b"]
        assert await store.alist_namespaces() == [LEA]
        await store.adelete(LEA, "b")
        assert await store.abatch([GetOp(LEA, "b")]) == [await store.aget(LEA, "b")] == [None]
        with pytest.raises(InvalidInputError, match=r"^limit"):
            await store.asearch(LEA, limit=-1)

    with GemmaRagStore.sync_from_url(f"sqlite:///{tmp_path}/memory.db", embedder=WordEmbedder()) as store:
        asyncio.run(used(store))
    with pytest.raises(BackendStateError, match="closed"):
        asyncio.run(used(store))


def test_another_event_loop_can_close_it(tmp_path: Path) -> None:
    """From another loop `aclose` finishes what was asked and ends; so it does a second time, and after the store's own
    loop has ended."""

    async def closed(store: GemmaRagStore) -> None:
        await asyncio.wait_for(store.aclose(), 60)

    with GemmaRagStore.sync_from_url(f"sqlite:///{tmp_path}/memory.db", embedder=WordEmbedder()) as store:
        for _ in range(2):
            asyncio.run(closed(store))
        with pytest.raises(BackendStateError, match="closed"):
            store.get(LEA, "a")
    asyncio.run(closed(store))


# In a compiled graph


def graph(asynchronous: bool) -> Any:
    """A graph of two nodes without a model: one stores what the state says, one finds what answers a question."""
    state_graph = pytest.importorskip("langgraph.graph").StateGraph
    from langgraph.config import get_store

    def keep(state: dict[str, Any]) -> dict[str, Any]:
        get_store().put(("users", state["user"]), "key", {"text": state["say"]})
        return {}

    def look(state: dict[str, Any]) -> dict[str, Any]:
        found = get_store().search(("users", state["user"]), query=state["ask"], limit=1)
        return {"found": [item.value["text"] for item in found]}

    async def akeep(state: dict[str, Any]) -> dict[str, Any]:
        await get_store().aput(("users", state["user"]), "key", {"text": state["say"]})
        return {}

    async def alook(state: dict[str, Any]) -> dict[str, Any]:
        found = await get_store().asearch(("users", state["user"]), query=state["ask"], limit=1)
        return {"found": [item.value["text"] for item in found]}

    builder = state_graph(TypedDict("State", {"user": str, "say": str, "ask": str, "found": list[str]}))
    builder.add_node("keep", akeep if asynchronous else keep)
    builder.add_node("look", alook if asynchronous else look)
    builder.add_edge("__start__", "keep")
    builder.add_edge("keep", "look")
    return builder


def asked(user: str) -> dict[str, str]:
    return {"user": user, "say": f"the violin of {user}", "ask": "violin"}


@pytest.mark.parametrize("asynchronous", [True, False], ids=["asynchronous", "synchronous"])
async def test_the_nodes_of_a_graph_share_the_store(store: GemmaRagStore, asynchronous: bool) -> None:
    """What one node stores the next one finds, for each of several users at once, with nodes of either kind."""
    compiled = graph(asynchronous).compile(store=store)
    ended = await asyncio.gather(*(compiled.ainvoke(asked(user)) for user in ("lea", "tom")))
    assert [state["found"] for state in ended] == [["the violin of lea"], ["the violin of tom"]]


def test_a_graph_without_an_event_loop_has_the_store(tmp_path: Path) -> None:
    """A compiled graph that is invoked synchronously uses `sync_from_url`'s store, and awaited it does so too."""
    with GemmaRagStore.sync_from_url(f"sqlite:///{tmp_path}/memory.db", embedder=WordEmbedder()) as store:
        assert graph(False).compile(store=store).invoke(asked("lea"))["found"] == ["the violin of lea"]
        ended = asyncio.run(graph(True).compile(store=store).ainvoke(asked("tom")))
        assert ended["found"] == ["the violin of tom"]


async def test_what_a_store_is_made_from_is_checked(place: Place) -> None:
    """Wrong arguments of the store itself raise by name."""
    backend = await place.open()
    with pytest.raises(InvalidTypeError, match=r"^backend"):
        GemmaRagStore("memory://")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=r"^tier"):
        GemmaRagStore(backend, tier="eternal")
    for minutes in (0, -1, math.nan, "5"):
        with pytest.raises(InvalidInputError, match=r"^ttl: default_ttl"):
            GemmaRagStore(backend, ttl={"default_ttl": minutes})  # type: ignore[typeddict-item]
    with pytest.raises(InvalidTypeError, match=r"^index"):
        GemmaRagStore(backend, index={"fields": "title"})  # type: ignore[typeddict-item]
    with pytest.raises(InvalidInputError, match=r"^index"):
        GemmaRagStore(backend, index={"embed": lambda texts: [[1.0]] * len(texts)})


async def test_an_embedding_function_of_langgraphs_index_is_used(tmp_path: Path) -> None:
    """`index["embed"]` embeds where it knows its name or is given one; beside an embedder it is refused."""
    from langgraph.store.base import ensure_embeddings

    async def embed(texts: list[str]) -> list[list[float]]:
        return WordEmbedder().encode(list(texts)).tolist()

    with pytest.raises(InvalidInputError, match=r"^name"):
        async with GemmaRagStore.from_url("memory://", index={"embed": embed}):
            pass
    with pytest.raises(InvalidInputError, match=r"^index"):
        async with GemmaRagStore.from_url("memory://", index={"embed": embed}, embedder=WordEmbedder()):
            pass
    named = ensure_embeddings(embed)
    named.model = "words"  # type: ignore[attr-defined]
    config: Any = {"embed": named, "dims": 64, "fields": ["text"]}
    async with GemmaRagStore.from_url("memory://", index=config) as store:
        assert store.index_config == config
        await store.aput(LEA, "a", {"text": "violin"})
        await store.aput(LEA, "b", {"text": "tea"})
        assert keys(await store.asearch(LEA, query="violin"))[0] == "a"
    embedder = LangChainEmbedder(ensure_embeddings(embed), name="words")
    assert embedder.identity.dimension == 64


def test_a_store_made_without_an_event_loop_says_what_to_do() -> None:
    """Outside an event loop the error names the way for synchronous programs."""
    with pytest.raises(BackendStateError, match="sync_from_url"):
        GemmaRagStore(PythonRAGBackend(url="memory://", embedder=WordEmbedder()))


def test_without_the_extra_the_import_names_it(tmp_path: Path) -> None:
    """Where langgraph-checkpoint is missing, the import fails with the command that installs it."""
    code = (
        "import sys; sys.modules['langgraph'] = None\n"
        "from gemma_cli.rag import MissingExtraError\n"
        "try:\n    import gemma_cli.integrations.langgraph_store\n"
        "except MissingExtraError as error:\n    print(error)\n"
    )
    outcome = run_python("-c", code, cwd=tmp_path)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert 'pip install "gemma-rag[langgraph]"' in outcome.stdout


@pytest.mark.parametrize("place_of_use", [0, 1])
def test_the_documents_examples_run(tmp_path: Path, place_of_use: int) -> None:
    """Copied into an empty directory, the examples under "LangGraph" print what stands below them."""
    text = (ROOT / "docs/adapters.md").read_text("utf-8").split("\n## LangGraph\n")[1].split("\n## ")[0]
    (tmp_path / "example.py").write_text(blocks(text, "python")[place_of_use])
    outcome = run_python("example.py", cwd=tmp_path)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert outcome.stdout == blocks(text, "text")[place_of_use]


def test_settings_reach_the_backend() -> None:
    """The backend of `from_url` is made with the settings, the namespace and the embedder that are given."""

    async def look() -> tuple[str, Settings]:
        settings = replace(Settings(), memory=replace(Settings().memory, semantic_capacity=7))
        async with GemmaRagStore.from_url(
            "memory://", namespace="agents", embedder=WordEmbedder(), settings=settings
        ) as store:
            backend = store._shelf.backend
            return backend.namespace, backend.settings

    namespace, settings = asyncio.run(look())
    assert namespace == "agents"
    assert settings.memory.semantic_capacity == 7
