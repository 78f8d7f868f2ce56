"""Moving house: an exact copy, of a store in use, that can be interrupted, refuses to do harm, and is verified."""

import itertools
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_runs import Outcome, call, run_command, run_python
from conftest import Clock
from memory_places import DIMENSION, STORE_KINDS, Place, WordEmbedder, settings_with

from gemma_cli.commands.session import ExitCode
from gemma_cli.rag import InvalidInputError, MemoryEntry, ModelMismatchError, PythonRAGBackend, Settings
from gemma_cli.rag import migration as module
from gemma_cli.rag import migration_marks as marks_module
from gemma_cli.rag.memory import TIER_POLICIES, TierRules
from gemma_cli.rag.migration import ROUNDS, Migration, Terms
from gemma_cli.rag.migration_marks import Memory, checksum, entry_digest, mark
from gemma_cli.rag.migration_report import Place as End
from gemma_cli.rag.migration_report import Report
from gemma_cli.rag.settings import RedisSettings
from gemma_cli.rag.stores.base import Link, Linking, Particular, Store, TokenStore
from gemma_cli.rag.stores.sqlite import SqliteStore

pytestmark = pytest.mark.anyio

EVERY = 10_000
LONG = 30.0
"""Seconds that an operation on Redis may take: more than the default, for the machine may be busy."""

PATIENT = Settings(redis=RedisSettings(timeout=LONG, connection_timeout=LONG))
MICROSECOND = timedelta(microseconds=1)


class Pair:
    """Two places with a backend on each, in namespaces of different names: two kinds may share a server."""

    def __init__(self, source: Place, target: Place, clock: Clock) -> None:
        self._places = source, target
        self._clock = clock
        self.embedders = WordEmbedder(), WordEmbedder()
        self.old: PythonRAGBackend
        self.new: PythonRAGBackend

    async def open(self) -> None:
        names = "old house", "new {house}"
        self.old, self.new = [
            await place.open(namespace=name, clock=self._clock, embedder=embedder, settings=PATIENT)
            for place, name, embedder in zip(self._places, names, self.embedders, strict=True)
        ]

    @property
    def source(self) -> Store:
        return self.old._repository.store

    @property
    def target(self) -> Store:
        return self.new._repository.store

    def migration(self, rules: TierRules | None = None, **options: Any) -> Migration:
        ends = End(self.source, self._places[0].url, "old house"), End(self.target, self._places[1].url, "new {house}")
        return Migration(*ends, rules or TierRules(), self._clock, **options)

    async def move(self, **terms: bool) -> Report:
        return await self.migration(terms=Terms(**terms)).run()

    async def close(self) -> None:
        for place in self._places:
            await place.close()


@contextmanager
def places(kinds: Sequence[str], directory: Path) -> Iterator[list[Place]]:
    with ExitStack() as stack:
        made = []
        for number, kind in enumerate(kinds):
            (directory / str(number)).mkdir()
            url = stack.enter_context(STORE_KINDS[kind].place(directory / str(number)))
            made.append(Place(url, STORE_KINDS[kind].lasting))
        yield made


async def pair_of(kinds: Sequence[str], directory: Path, clock: Clock) -> AsyncIterator[Pair]:
    with places(kinds, directory) as (source, target):
        pair = Pair(source, target, clock)
        await pair.open()
        yield pair
        await pair.close()


@pytest.fixture(params=itertools.product(STORE_KINDS, STORE_KINDS), ids="-to-".join)
async def any_pair(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock, anyio_backend: str) -> Any:
    """From every kind of store to every kind."""
    async for pair in pair_of(request.param, tmp_path, clock):
        yield pair


@pytest.fixture(params=STORE_KINDS)
async def pair(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock, anyio_backend: str) -> Any:
    """From every kind of store to another of the same kind."""
    async for pair in pair_of((request.param, request.param), tmp_path, clock):
        yield pair


@pytest.fixture(params=[name for name, kind in STORE_KINDS.items() if kind.lasting])
async def lasting_pair(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock, anyio_backend: str) -> Any:
    """As `pair`, of the kinds that several backends share."""
    async for pair in pair_of((request.param, request.param), tmp_path, clock):
        yield pair


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> int:
    """Few memories at a time, so that a small store takes many steps."""
    for where in (module, marks_module):
        monkeypatch.setattr(where, "TOGETHER", 4)
    return 4


def note(number: int, tier: str = "semantic", **fields: Any) -> dict[str, Any]:
    return {"content": f"note number{number} of the keeper", "memory_type": tier, **fields}


def turned(degrees: float) -> np.ndarray:
    """A vector of length 1: cosines between two are those of their angles."""
    vector = np.zeros(DIMENSION, np.float32)
    vector[:2] = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return vector


async def furnish(pair: Pair, clock: Clock) -> list[str]:
    """Fills the source with memories of every sort: some 40, with codes, links and accesses on part of them."""
    moment = datetime.fromtimestamp(clock(), UTC)
    old = pair.old
    ids = await old.store_memories(
        [
            *(note(i, tier, session="talk", actor=f"Mia {i % 2}") for i, tier in enumerate(TIER_POLICIES)),
            *(note(7, "episodic", actor="Mia") for _ in range(4)),  # the same text by the same person
            note(8, tags=["a b", "'; --", "ö"], metadata={"k": [1, 2.5, None, {"z": "\u2028", "a": True}]}),
            note(9, importance=0.1 + 0.2, occurred_at="1066-10-14T09:00:00.000001+00:00", pinned=True),
            note(10, session="talk"),
            *(MemoryEntry(f"like {i}", "long_term", embedding=turned(i), importance=1 / 3) for i in (0.0, 1.5, 40.0)),
            MemoryEntry("twice", "semantic", 0.5, "id with {braces}", access_count=2**40),
            MemoryEntry("soon", "working", expires_at=moment + timedelta(seconds=60, microseconds=1)),
        ]
    )
    await old.link_near_duplicates()
    clock.tick(1.234567)
    ids += await old.store_memories([note(i, session="talk") for i in range(20, 40)])
    await old.recall_memories("note number8 of the keeper", limit=6)
    source = pair.source
    if isinstance(source, TokenStore):
        bare = (await source.untokened(clock(), EVERY, 0))[::2]
        await source.put_tokens(bare, [bytes([i, 0, 255]) * (i % 3) for i in range(len(bare))])
    return ids


def links_of(found: Sequence[Link]) -> set[tuple[frozenset[str], float]]:
    return {(frozenset((link.first, link.second)), link.similarity) for link in found}


async def assert_same(pair: Pair, ids: Sequence[str], now: float) -> None:
    """Whatever the store's verbs tell of these memories, they tell on both sides."""
    source, target = pair.source, pair.target
    there, copied = await source.get(ids, now), await target.get(ids, now)
    assert copied == there
    assert [None if e is None else e.embedding.tobytes() for e in copied] == [
        None if e is None else e.embedding.tobytes() for e in there
    ]
    assert await target.counts(now) == await source.counts(now)
    mine, theirs = await source.model(), await target.model()
    assert (mine is None) == (theirs is None)
    if mine is not None and theirs is not None:
        assert mine.identity == theirs.identity
        np.testing.assert_array_equal(mine.probe, theirs.probe)
    if isinstance(source, TokenStore) and isinstance(target, TokenStore):
        assert await target.token_codes(ids, now) == await source.token_codes(ids, now)
    if isinstance(source, Linking) and isinstance(target, Linking):
        assert links_of(await target.links(None, now, EVERY)) == links_of(await source.links(None, now, EVERY))
    if isinstance(source, Particular) and isinstance(target, Particular):
        assert isinstance(source, Linking)
        assert isinstance(target, Linking)
        uncompared = {entry.id for entry in await source.uncompared(now, EVERY)}
        assert {entry.id for entry in await target.uncompared(now, EVERY)} == uncompared


# The copy


async def test_every_memory_arrives_to_the_bit(any_pair: Pair, clock: Clock) -> None:
    """From every kind of store to every kind: fields, vectors, codes, links, marks, counts, the model; nothing is
    embedded, and a question is answered alike."""
    ids = await furnish(any_pair, clock)
    embedded = [list(embedder.texts) for embedder in any_pair.embedders]
    report = await any_pair.move()
    assert [embedder.texts for embedder in any_pair.embedders] == embedded
    assert report.equal
    assert (report.done.stored, report.done.replaced, report.rounds) == (len(ids), 0, 1)
    assert report.source.memories == report.target.memories == len(ids)
    assert report.source.tiers == report.target.tiers == await any_pair.old.get_memory_stats()
    assert report.source.checksum == report.target.checksum
    await assert_same(any_pair, ids, clock())
    for query in ("note number7 of the keeper", "what did Mia say", "like 0.0"):
        answers = [
            [(e.id, e.score) for e in await backend.recall_memories(query, limit=50, touch=False)]
            for backend in (any_pair.old, any_pair.new)
        ]
        assert answers[1] == [(memory_id, pytest.approx(score, abs=1e-6)) for memory_id, score in answers[0]]


async def test_a_session_keeps_its_order(pair: Pair, clock: Clock, small_steps: int) -> None:
    """Memories of one session and time stand in the order in which they were stored, whatever their ids are, also
    after one of them was changed between two runs."""
    if not isinstance(pair.source, Particular):
        pytest.skip("this store does not tell the order")
    ids = list("zyxwvutsrqponm")
    moment = datetime.fromtimestamp(clock(), UTC)
    entries = [MemoryEntry(f"say {i}", "semantic", id=i, created_at=moment, session="s") for i in ids]
    await pair.old.store_memories(entries)

    async def order() -> list[str]:
        assert isinstance(pair.target, Particular)
        found = await pair.target.particulars(ids, clock())
        return sorted(ids, key=lambda i: found[ids.index(i)].row)

    await pair.move()
    assert await order() == ids
    await pair.old.update_memory("w", importance=0.9)
    if isinstance(pair.source, TokenStore):
        last = await pair.source.untokened(clock(), 1, 0, [ids[-1]])
        await pair.source.put_tokens(last, [b"codes"])
    report = await pair.move()
    assert report.equal
    assert (report.done.replaced, report.done.completed) == (len(ids) - 3, 0)  # what stands before it stays
    assert await order() == ids


async def test_expiry_is_kept_to_the_microsecond(pair: Pair, clock: Clock) -> None:
    """A copy expires when the original does: there a microsecond before, and gone at the time."""
    at = datetime.fromtimestamp(clock(), UTC) + timedelta(hours=1, microseconds=3)
    [soon] = await pair.old.store_memories([MemoryEntry("soon", "episodic", expires_at=at)])
    await pair.move()
    before = (at - MICROSECOND).timestamp()
    [copy] = await pair.target.get([soon], before)
    assert copy is not None
    assert copy.expires_at == at
    assert await pair.target.get([soon], at.timestamp()) == [None]


async def test_what_expires_while_it_is_compared_is_no_difference(pair: Pair, clock: Clock) -> None:
    """A memory whose time comes between the reading of the one side and of the other is in neither."""
    await pair.old.store_memories([note(1), note(2, "working")])
    await pair.move()

    @contextmanager
    def slow(title: str) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: None
        clock.tick(500)  # of the 900 seconds of the working tier

    report = await pair.migration(bar=slow).verify()
    assert report.equal
    assert report.source.memories == report.target.memories == 1


async def test_no_tier_of_the_target_makes_room(pair: Pair, clock: Clock) -> None:
    """More memories than a tier's capacity all arrive, and the report says by how many they exceed it."""
    ids = await pair.old.store_memories([note(i, "working") for i in range(15)])
    policies = {tier: replace(policy, capacity=4) for tier, policy in TIER_POLICIES.items()}
    report = await pair.migration(TierRules(policies)).run()
    assert report.equal
    assert report.crowded == {"working": 11}
    await assert_same(pair, ids, clock())


async def test_only_the_namespace_that_was_named_is_read_and_written(lasting_pair: Pair, clock: Clock) -> None:
    """Neighbouring namespaces of both stores stay as they are and are not copied."""
    pair = lasting_pair
    neighbours = [await place.open(namespace="beside", clock=clock) for place in pair._places]
    for number, neighbour in enumerate(neighbours):
        await neighbour.store_memory(f"beside {number}", "semantic")
    await pair.old.store_memory("moves", "semantic")
    report = await pair.move()
    assert report.target.memories == 1
    for neighbour in neighbours:
        await neighbour.store_memory("goes on", "semantic")
        assert "moves" not in {entry.content for entry in await neighbour.all_memories()}


# Once more


async def test_a_second_run_finds_nothing_to_do(pair: Pair, clock: Clock) -> None:
    """What is there and the same is left alone."""
    ids = await furnish(pair, clock)
    await pair.move()
    before = await pair.target.change_token()
    report = await pair.move()
    assert report.equal
    assert (report.rounds, bool(report.done)) == (0, False)
    assert await pair.target.change_token() == before
    await assert_same(pair, ids, clock())


async def test_a_second_run_takes_in_what_has_changed(pair: Pair, clock: Clock) -> None:
    """New, changed, moved, used, pinned and newly coded memories are brought up to date, and only they."""
    ids = await furnish(pair, clock)
    await pair.move()
    clock.tick(10)
    old = pair.old
    ids.append(await old.store_memory("newcomer", "episodic"))
    await old.update_memory(ids[20], content="another text", tags=["new"])
    await old.update_memory(ids[21], pinned=True, importance=0.9)
    await old.promote_memory(ids[2], "semantic")
    await old.recall_memories("note number30 of the keeper", limit=1)
    if isinstance(pair.source, TokenStore):
        bare = await pair.source.untokened(clock(), 5, 0)
        await pair.source.put_tokens(bare, [b"new"] * len(bare))
    await old.link_near_duplicates()
    report = await pair.move()
    assert report.equal
    assert report.done.stored == 1
    assert report.done.replaced < len(ids)
    await assert_same(pair, ids, clock())


async def test_what_went_between_two_runs_goes_when_it_is_allowed(pair: Pair, clock: Clock) -> None:
    """A memory that only the target has may be somebody's: it is named and refused, and removed with `overwrite`."""
    ids = await furnish(pair, clock)
    await pair.move()
    await pair.old.delete_memory(ids[3])
    with pytest.raises(InvalidInputError, match=rf"target: holds 1 memory \({ids[3]}\)"):
        await pair.move()
    assert (await pair.target.get([ids[3]], clock()))[0] is not None
    report = await pair.move(overwrite=True)
    assert report.equal
    assert report.done.removed == 1
    await assert_same(pair, ids, clock())


class Interrupted(Exception):
    """Raised where a test breaks a run off."""


def breaking(after: int) -> Callable[[str], Any]:
    """A bar that raises at the report after so many."""
    left = itertools.count(after, -1)

    @contextmanager
    def bar(title: str) -> Iterator[Callable[[int, int], None]]:
        def report(done: int, total: int) -> None:
            if next(left) == 0:
                raise Interrupted

        yield report

    return bar


async def test_an_interrupted_run_goes_on(pair: Pair, clock: Clock, small_steps: int) -> None:
    """Broken off after each of its steps in turn, a copy is completed by the next run, which puts nothing twice."""
    ids = await furnish(pair, clock)
    stored = 0
    for after in itertools.count():
        migration = pair.migration(bar=breaking(after))
        try:
            report = await migration.run()
        except Interrupted:
            stored += migration._done.stored
            assert migration._done.replaced == 0
        else:
            break
    assert after > len(ids) // small_steps
    assert report.equal
    assert stored + report.done.stored == len(ids)
    await assert_same(pair, ids, clock())


KILLED = """
import asyncio, os, signal, sys, time
from contextlib import contextmanager
from gemma_cli.rag import Settings, migration, migration_marks
from gemma_cli.rag.memory import TierRules
from gemma_cli.rag.migration_report import Place
from gemma_cli.rag.stores import create_store

migration.TOGETHER = 4

@contextmanager
def bar(title):
    def report(done, total):
        if title == "copying" and done >= 12:
            os.kill(os.getpid(), signal.SIGKILL)
    yield report

async def main():
    ends = [Place(create_store(url, "default", Settings()), url, "default") for url in sys.argv[1:]]
    for end in ends:
        await end.store.open()
    await migration.Migration(*ends, TierRules(), time.time, bar=bar).run()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
async def test_a_killed_process_is_gone_on_from(tmp_path: Path) -> None:
    """A process that dies in the midst of copying leaves a sound part of it, which the next run completes."""
    urls = [f"sqlite:///{tmp_path / name}" for name in ("old.db", "new.db")]
    async with PythonRAGBackend(url=urls[0], embedder=WordEmbedder(), settings=settings_with()) as old:
        ids = await old.store_memories([note(i) for i in range(30)])
    assert run_python("-c", KILLED, *urls, cwd=tmp_path).code == -signal.SIGKILL
    async with PythonRAGBackend(url=urls[1], embedder=WordEmbedder(), settings=settings_with()) as new:
        assert len(await new.all_memories()) == 12
    outcome = run_command("migrate", *urls, "--json", cwd=tmp_path)
    assert outcome.code == 0, outcome.stderr
    assert (outcome.json()["done"]["stored"], outcome.json()["target"]["memories"]) == (18, len(ids))


# A source in use


class Watched(SqliteStore):
    """A target that lets something happen after each time that memories were put."""

    then: Callable[[], Awaitable[None]]

    async def put(self, *arguments: Any, **options: Any) -> None:
        await super().put(*arguments, **options)
        await self.then()


@asynccontextmanager
async def watching(pair: Pair, directory: Path, clock: Clock) -> AsyncIterator[tuple[Migration, Watched]]:
    """A migration from the pair's source to a store that is watched."""
    store = Watched(directory / "watched.db", "default")
    await store.open()
    ends = End(pair.source, "source", "old house"), End(store, "watched", "default")
    try:
        yield Migration(*ends, TierRules(), clock), store
    finally:
        await store.close()


@pytest.fixture
async def watched(pair: Pair, tmp_path: Path, clock: Clock) -> AsyncIterator[tuple[Migration, Watched]]:
    async with watching(pair, tmp_path, clock) as made:
        yield made


async def test_what_happens_meanwhile_is_taken_in(
    pair: Pair, watched: tuple[Migration, Watched], clock: Clock, small_steps: int
) -> None:
    """Memories that come, change, move, are used, go and expire while others are copied end in the target as they are
    in the source at the end."""
    ids = await furnish(pair, clock)
    migration, store = watched
    old = pair.old
    happenings = [
        lambda: old.store_memory("came meanwhile", "semantic"),
        lambda: old.delete_memory(ids[0]),  # has been copied by then
        lambda: old.delete_memory(ids[-1]),  # has not
        lambda: old.update_memory(ids[1], content="changed meanwhile"),
        lambda: old.recall_memories("note number2 of the keeper", limit=3),
        lambda: old.promote_memory(ids[5], "semantic"),
    ]

    async def happen() -> None:
        clock.tick(8)  # the memory that lives for a minute expires
        if happenings:
            await happenings.pop(0)()

    store.then = happen
    report = await migration.run()
    assert not happenings
    assert report.equal
    assert report.rounds > 1
    assert report.done.removed >= 1
    left = await old.all_memories()
    assert {e.content for e in left} >= {"came meanwhile", "changed meanwhile"}
    assert await store.get([e.id for e in left], clock()) == await pair.source.get([e.id for e in left], clock())
    assert await store.counts(clock()) == await pair.source.counts(clock())


async def test_a_source_that_never_rests_ends_a_run_all_the_same(
    pair: Pair, watched: tuple[Migration, Watched], clock: Clock
) -> None:
    """After so many rounds the report says that the sides are not equal, and by how much."""
    await pair.old.store_memories([note(i) for i in range(5)])
    migration, store = watched
    numbers = itertools.count(10)

    async def happen() -> None:
        await pair.old.store_memory(f"one more {next(numbers)}", "semantic")

    store.then = happen
    report = await migration.run()
    assert not report.equal
    assert (report.rounds, report.left.stored) == (ROUNDS, 1)
    assert report.source.checksum != report.target.checksum
    assert report.target.memories == report.source.memories - 1


async def test_a_source_that_goes_over_to_another_model_is_refused(
    lasting_pair: Pair, tmp_path: Path, clock: Clock
) -> None:
    """Vectors of two models never end up side by side unnoticed."""
    pair = lasting_pair
    await pair.old.store_memories([note(i) for i in range(5)])

    async def reembed() -> None:
        backend = PythonRAGBackend(
            url=pair._places[0].url,
            namespace="old house",
            embedder=WordEmbedder(salt="x"),
            clock=clock,
            settings=settings_with(),
        )
        await backend.open(require_model=False)
        await backend.reembed()
        await backend.close()

    async with watching(pair, tmp_path, clock) as (migration, store):
        store.then = reembed
        with pytest.raises(ModelMismatchError, match="the source holds vectors of"):
            await migration.run()


# A target that is not empty


async def test_a_target_with_other_memories_is_refused(pair: Pair, clock: Clock) -> None:
    """Without `merge` nothing is written beside somebody else's memories; with it both are there."""
    ids = await pair.old.store_memories([note(i) for i in range(3)])
    other = await pair.new.store_memory("somebody else's", "semantic")
    before = await pair.target.change_token()
    with pytest.raises(InvalidInputError, match=f"target: holds 1 memory .*{other}.*--merge"):
        await pair.move()
    assert await pair.target.change_token() == before
    report = await pair.move(merge=True)
    assert report.equal
    assert (report.done.stored, report.others, report.target.memories) == (3, 1, 4)
    assert report.source.checksum == report.target.checksum
    assert (await pair.new.get_memory(other)).content == "somebody else's"
    assert await pair.target.get(ids, clock()) == await pair.source.get(ids, clock())


async def test_a_clash_is_named_and_nothing_is_overwritten(pair: Pair, clock: Clock) -> None:
    """With `merge`, another content under the same id is an error; the target stays as it was."""
    for backend, content in ((pair.old, "one"), (pair.new, "other")):
        await backend.store_memories([MemoryEntry(content, "semantic", id="same"), note(1)])
    before = await pair.target.change_token()
    with pytest.raises(InvalidInputError, match=r"other contents under 1 memory \(same\); nothing was copied"):
        await pair.move(merge=True)
    assert await pair.target.change_token() == before


async def test_a_merge_leaves_what_both_hold_as_the_target_has_it(pair: Pair, clock: Clock) -> None:
    """A memory that was copied before and is used on the new side keeps its count there, and is reported."""
    ids = await pair.old.store_memories([note(i) for i in range(3)])
    await pair.move()
    clock.tick(5)
    await pair.new.recall_memories("note number0 of the keeper", limit=1)
    used = await pair.target.get(ids, clock())
    ids.append(await pair.old.store_memory("late", "semantic"))
    report = await pair.move(merge=True)
    assert report.equal
    assert (report.kept, report.done.stored, report.done.replaced) == (1, 1, 0)
    assert (await pair.target.get(ids, clock()))[:3] == used


async def test_a_target_that_is_in_use_is_not_set_back(pair: Pair, clock: Clock) -> None:
    """Where copies were used since, another run is refused; `overwrite` makes them the source's again."""
    ids = await pair.old.store_memories([note(i) for i in range(3)])
    await pair.move()
    clock.tick(5)
    await pair.new.recall_memories("note number0 of the keeper", limit=1)
    with pytest.raises(InvalidInputError, match="target: is in use already: 1 memory"):
        await pair.move()
    report = await pair.move(overwrite=True)
    assert report.equal
    assert report.done.replaced == 1
    await assert_same(pair, ids, clock())


async def test_an_empty_source_empties_no_target(pair: Pair, clock: Clock) -> None:
    """A mistyped source, which is a new and empty store, takes nothing from the target."""
    await pair.new.store_memory("precious", "semantic")
    for terms in ({"overwrite": True}, {}):
        with pytest.raises(InvalidInputError):
            await pair.move(**terms)
    assert [entry.content for entry in await pair.new.all_memories()] == ["precious"]


@pytest.mark.parametrize("terms", [{}, {"merge": True}, {"overwrite": True}], ids=str)
async def test_another_model_s_target_is_refused(
    tmp_path: Path, clock: Clock, terms: dict[str, bool], anyio_backend: str
) -> None:
    """Vectors of another model, of the same width and name even, are never mixed with these."""
    async for pair in pair_of(("sqlite", "memory"), tmp_path, clock):
        pair.embedders[1].salt = "another"
        await pair.old.store_memory("one", "semantic")
        await pair.new.store_memory("other", "semantic")
        with pytest.raises(ModelMismatchError, match="choose an empty target"):
            await pair.move(**terms)
        assert [entry.content for entry in await pair.new.all_memories()] == ["other"]


# Verification


async def test_the_verification_sees_every_difference(pair: Pair, clock: Clock) -> None:
    """A changed field, other codes, a missing and a surplus memory each make the sides unequal."""
    ids = await furnish(pair, clock)
    await pair.move()
    clock.tick(1)
    assert (await pair.migration().verify()).equal
    target = pair.target
    [entry] = await target.get([ids[20]], clock())
    assert entry is not None
    changes = [replace(entry, access_count=entry.access_count + 1), replace(entry, embedding=-entry.embedding)]
    for change in changes:
        await target.put([change], TierRules(), clock(), replaces=[entry.id])
        report = await pair.migration().verify()
        assert not report.equal
        assert report.left.replaced >= 1
        assert report.source.checksum != report.target.checksum
    await target.delete([ids[20]], clock())
    report = await pair.migration().verify()
    assert (report.equal, report.left.stored, report.target.memories) == (False, 1, len(ids) - 1)
    assert (await pair.move()).equal
    surplus = await pair.new.store_memory("surplus", "semantic")
    report = await pair.migration().verify()
    assert (report.equal, report.others) == (False, 1)
    assert (await target.get([surplus], clock()))[0] is not None


async def test_codes_that_were_lost_are_given_again(pair: Pair, clock: Clock) -> None:
    """A copy without its codes, as a killed run may leave it, is not equal and gets them without being put anew."""
    ids = await furnish(pair, clock)
    if not isinstance(pair.source, TokenStore):
        pytest.skip("this store keeps no token codes")
    await pair.target.adopt(await pair.source.model())
    everything = [entry for entry in await pair.source.get(ids, clock()) if entry is not None]
    await pair.target.put(everything, TierRules(), clock())
    report = await pair.migration().verify()
    assert (report.equal, report.left.stored, report.left.replaced) == (False, 0, 0)
    report = await pair.move()
    assert report.equal
    assert (report.done.stored, report.done.replaced) == (0, 0)
    assert report.done.completed > 0
    await assert_same(pair, ids, clock())


async def test_other_codes_are_replaced(pair: Pair, clock: Clock) -> None:
    """A copy with codes of its own is not equal, and gets those of the source."""
    [memory_id] = await pair.old.store_memories([note(1)])
    if not isinstance(pair.source, TokenStore) or not isinstance(pair.target, TokenStore):
        pytest.skip("this store keeps no token codes")
    await pair.move()
    for store, codes in ((pair.source, b"right"), (pair.target, b"wrong")):
        await store.put_tokens(await store.untokened(clock(), 1, 0), [codes])
    report = await pair.move()
    assert report.equal
    assert report.done.replaced == 1
    assert await pair.target.token_codes([memory_id], clock()) == [b"right"]


def sample() -> Memory:
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    entry = MemoryEntry("text", "semantic", id="id", created_at=moment, embedding=turned(0), session="s", actor="Mia")
    entry.tags, entry.metadata = {"b", "a"}, {"k": 1, "j": [2]}
    return Memory(entry, b"codes", 1, compared=False)


CHANGED: dict[str, Any] = {
    "id": "another",
    "content": "text ",
    "memory_type": "long_term",
    "importance": np.nextafter(0.5, 1),
    "created_at": datetime(2026, 1, 2, tzinfo=UTC) + MICROSECOND,
    "last_accessed": datetime(2026, 1, 2, tzinfo=UTC) + MICROSECOND,
    "access_count": 1,
    "tags": {"a"},
    "metadata": {"k": 1.0, "j": [2]},
    "embedding": turned(1e-4),
    "expires_at": datetime(2027, 1, 1, tzinfo=UTC),
    "pinned": True,
    "actor": None,
    "session": None,
    "occurred_at": datetime(2025, 1, 1, tzinfo=UTC),
}


def test_every_stored_field_has_a_change_below() -> None:
    """No field of a memory is left out of the digest unnoticed; what a recall fills in is none of the store's."""
    answers = {"similarity_score", "score", "explanation"}
    assert set(sample().entry.to_dict()) - answers == set(CHANGED)


@pytest.mark.parametrize("name", CHANGED)
def test_the_digest_tells_each_field(name: str) -> None:
    """The smallest change of any field makes another digest."""
    entry = sample().entry
    assert entry_digest(replace(entry, **{name: CHANGED[name]})) != entry_digest(entry)


def test_the_checksum_tells_codes_and_marks_and_no_order() -> None:
    """Codes, none and empty ones, and whether it was compared count; order and numbers do not."""
    memory = sample()
    variants = [memory._replace(codes=codes) for codes in (b"codes", b"other", b"", None)]
    variants.append(memory._replace(compared=True))
    sums = [checksum([mark(variant, 1)]) for variant in variants]
    assert len(set(sums)) == len(sums)
    other = memory._replace(entry=replace(memory.entry, id="other"))
    assert checksum([mark(memory, 1), mark(other, 2)]) == checksum([mark(other, 7), mark(memory, 9)])
    assert all(len(each) == 32 for each in [*sums, checksum([])])


# The command


@pytest.fixture
def urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """The URLs of a store with three memories and of one that is not there yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMMA_RAG_EMBEDDING__PROVIDER", "hashing")
    old, new = f"sqlite:///{tmp_path / 'old.db'}", f"sqlite:///{tmp_path / 'new.db'}"
    for number in range(3):
        assert call("--url", old, "remember", f"note {number}", "--tier", "semantic").code == 0
    return old, new


def moved(*arguments: str, code: int = ExitCode.OK) -> Outcome:
    outcome = call("migrate", *arguments)
    assert outcome.code == code, outcome
    assert "Traceback" not in outcome.stderr
    return outcome


def contents(url: str, *options: str) -> set[str]:
    return {memory["content"] for memory in call("--url", url, *options, "list", "--json").json()}


def test_the_command_copies_and_says_so(urls: tuple[str, str]) -> None:
    """The counts and the checksum are on stdout, what to do next on stderr, and the memories in the new store."""
    outcome = moved(*urls)
    assert contents(urls[1]) == {"note 0", "note 1", "note 2"}
    assert {"memories 3", "stored 3"} <= {" ".join(line.split()) for line in outcome.stdout.splitlines()}
    assert "GEMMA_RAG_URL" in outcome.stderr
    facts = moved(*urls, "--json").json()
    assert facts["equal"]
    assert facts["source"]["checksum"] in outcome.stdout


def test_the_command_needs_no_model(urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where no weights can be found, memories move all the same."""
    monkeypatch.setenv("GEMMA_RAG_EMBEDDING__PROVIDER", "local")
    monkeypatch.setenv("GEMMA_RAG_EMBEDDING__MODEL_DIR", str(tmp_path / "nothing"))
    moved(*urls)


def test_dry_run_and_verify_only_write_nothing(urls: tuple[str, str]) -> None:
    """A dry run tells what would be copied; a comparison exits with 1 as long as it has not been."""
    facts = moved(*urls, "--dry-run", "--json").json()
    assert (facts["left"]["stored"], facts["done"]["stored"], facts["target"]["memories"]) == (3, 0, 0)
    assert facts["source"]["size_bytes"] > 0
    outcome = moved(*urls, "--verify-only", code=ExitCode.FAILED)
    assert "not equal" in outcome.stderr
    moved(*urls)
    moved(*urls, "--verify-only")


def test_namespaces_can_be_named(urls: tuple[str, str]) -> None:
    """--namespace is what is copied, and --to-namespace what it becomes, in the same file even."""
    call("--url", urls[0], "--namespace", "work", "remember", "at work", "--tier", "semantic")
    moved(urls[0], urls[0], "--namespace", "work", "--to-namespace", "play")
    moved(urls[0], urls[1], "--namespace", "work")
    assert contents(urls[0], "--namespace", "play") == contents(urls[1], "--namespace", "work") == {"at work"}
    assert contents(urls[0]) == {"note 0", "note 1", "note 2"}


def test_other_memories_are_refused_merged_or_overwritten(urls: tuple[str, str]) -> None:
    """Exit code 2 names them; --merge keeps and --overwrite removes them."""
    call("--url", urls[1], "remember", "other", "--tier", "semantic")
    assert "--merge" in moved(*urls, code=ExitCode.USAGE).stderr
    assert contents(urls[1]) == {"other"}
    assert "in the new store alone" in moved(*urls, "--merge").stderr
    assert contents(urls[1]) == {"other", "note 0", "note 1", "note 2"}
    moved(*urls, "--overwrite")
    assert contents(urls[1]) == {"note 0", "note 1", "note 2"}


def test_a_tier_that_is_too_small_is_told(urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is evicted, and what is to be configured is named."""
    monkeypatch.setenv("GEMMA_RAG_MEMORY__SEMANTIC_CAPACITY", "2")
    outcome = moved(*urls)
    assert "semantic is 1 above [memory] semantic_capacity" in outcome.stderr
    assert len(contents(urls[1])) == 3


def test_an_empty_source_is_nothing_found(urls: tuple[str, str]) -> None:
    """A store without memories in the namespace exits with 3 and is named."""
    outcome = moved(*urls, "--namespace", "typo", code=ExitCode.NOTHING_FOUND)
    assert "old.db holds no memory" in outcome.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["OLD", "OLD"], "is the source"),
        (["memory://", "OLD"], "as long as its process"),
        (["OLD", "memory://"], "as long as its process"),
        (["OLD", "NEW", "--merge", "--overwrite"], "--overwrite"),
        (["OLD", "NEW", "--dry-run", "--verify-only"], "--dry-run"),
        (["OLD", "nosuch://user:secret@host/1?password=secret"], "***"),
        (["OLD", "redis://user:secret@127.0.0.1:1/0"], ""),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_told_without_secrets(urls: tuple[str, str], arguments: list[str], word: str) -> None:
    """Each mistake ends with an exit code of its own and names what is wrong, never a password."""
    outcome = call("migrate", *({"OLD": urls[0], "NEW": urls[1]}.get(argument, argument) for argument in arguments))
    assert outcome.code in (ExitCode.USAGE, ExitCode.STORE_UNREACHABLE)
    assert word in outcome.message
    assert "secret" not in outcome.stdout + outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_redis_is_the_configured_server(urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`redis` in place of a URL is the server in [redis]: one that is not there, named without its secret."""
    monkeypatch.setenv("GEMMA_RAG_REDIS__HOST", "127.0.0.1")
    monkeypatch.setenv("GEMMA_RAG_REDIS__PORT", "1")
    monkeypatch.setenv("GEMMA_RAG_REDIS__PASSWORD", "secret")
    outcome = moved(urls[0], "redis", code=ExitCode.STORE_UNREACHABLE)
    assert "127.0.0.1:1" in outcome.message
    assert "secret" not in outcome.stdout + outcome.stderr


def test_a_store_before_the_command_is_refused(urls: tuple[str, str]) -> None:
    """`--url` before the command would be ignored in silence."""
    outcome = call("--url", urls[0], "migrate", *urls)
    assert outcome.code == ExitCode.USAGE
    assert "no --url before it" in outcome.stderr


def test_a_mistyped_source_is_not_made(tmp_path: Path) -> None:
    """A file that is not there is named, with exit code 4, and neither it nor the other one is there afterwards."""
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    outcome = call("migrate", f"sqlite:///{old}", f"sqlite:///{new}", "--dry-run")
    assert outcome.code == ExitCode.STORE_UNREACHABLE
    assert str(old) in outcome.message
    assert list(tmp_path.iterdir()) == []
