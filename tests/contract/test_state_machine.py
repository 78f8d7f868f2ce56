"""Random histories: every store against a plain model of the memory, after every step."""

import asyncio
import copy
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from memory_places import STORE_KINDS, WordEmbedder, settings_with

from gemma_cli.rag import CapacityError, InvalidInputError, MemoryEntry, MemoryTier, PythonRAGBackend
from gemma_cli.rag.memory import relevance

START = 1_767_225_600.0
KEEP = "keep"
CAPACITIES = {"working": 3, "short_term": 4, "episodic": 3, "long_term": 4, "semantic": 5}
SETTINGS = settings_with(**{f"{tier}_capacity": capacity for tier, capacity in CAPACITIES.items()})
RULES = SETTINGS.memory.tier_rules()
FROM_THE_TOP = (MemoryTier.LONG_TERM, MemoryTier.EPISODIC, MemoryTier.SHORT_TERM, MemoryTier.WORKING)
WORDS = ("harbour", "lamp", "storm", "ferry", "gull")


@dataclass
class Record:
    """A memory as the model knows it; `number` is the order of storing."""

    number: int
    content: str
    tier: MemoryTier
    importance: float
    created: float
    expires: float | None
    pinned: bool
    accesses: int = 0

    def relevance(self, now: float) -> float:
        return relevance(self.importance, self.accesses, (now - self.created) / 86_400, RULES.decay)


@dataclass
class Model:
    """The published rules about tiers, in the plainest form."""

    records: dict[str, Record] = field(default_factory=dict)
    stored: int = 0

    def live(self, now):
        return {i: r for i, r in self.records.items() if r.expires is None or r.expires > now}

    def put(self, entries, now, replaces=(), keeps=()):
        for i in set(replaces) & self.live(now).keys():
            del self.records[i]
        fresh = set(keeps) & self.live(now).keys()
        for entry in entries:
            if entry.id in self.live(now):
                raise InvalidInputError("id")
            self.stored += 1
            expires = None if entry.pinned else RULES.policies[entry.tier].expiry(now)
            self.records[entry.id] = Record(
                self.stored, entry.content, entry.tier, entry.importance, now, expires, entry.pinned
            )
            fresh.add(entry.id)
        for tier in dict.fromkeys(entry.tier for entry in entries):
            self.make_room(tier, fresh, now)

    def make_room(self, tier, fresh, now):
        policy = RULES.policies[tier]
        standing = [i for i, r in self.records.items() if r.tier is tier]
        if len(standing) <= policy.capacity:
            return
        for i in standing:
            if self.records[i].expires is not None and self.records[i].expires <= now:
                del self.records[i]
        if sum(r.tier is tier for r in self.records.values()) > policy.capacity and policy.promotes_to:
            self.promote_from(tier, fresh, now)
        standing = [i for i, r in self.records.items() if r.tier is tier]
        excess = len(standing) - policy.capacity
        if excess <= 0:
            return
        leaving = sorted(
            (i for i in standing if not self.records[i].pinned), key=lambda i: (self.records[i].relevance(now), i)
        )
        last = max((i for i in standing if i in fresh), key=lambda i: self.records[i].number, default=None)
        leaving.sort(key=lambda i: i in fresh)  # stable: by relevance within each half
        leaving = [i for i in leaving if i != last][:excess]
        if len(leaving) < excess:
            raise CapacityError(tier)
        for i in leaving:
            del self.records[i]

    def deserving(self, tier, now):
        found = [
            i
            for i, r in self.live(now).items()
            if r.tier is tier and not r.pinned and r.relevance(now) >= RULES.threshold
        ]
        return sorted(found, key=lambda i: -self.records[i].relevance(now))

    def promote_from(self, tier, fresh, now):
        target = RULES.policies[tier].promotes_to
        staying = sum(r.tier is target and (r.pinned or i in fresh) for i, r in self.records.items())
        room = max(RULES.policies[target].capacity - staying, 0)
        moving = [i for i in self.deserving(tier, now) if i not in fresh][:room]
        for i in moving:
            self.enter(i, target, now)
        if moving:
            self.make_room(target, {*fresh, *moving}, now)
        return moving

    def enter(self, i, tier, now):
        record = self.records[i]
        record.tier = tier
        record.expires = None if record.pinned else RULES.policies[tier].expiry(now)

    def promote(self, now):
        self.records = self.live(now)
        moves, moved = {}, set()
        for tier in FROM_THE_TOP:
            if moving := self.promote_from(tier, moved, now):
                moves[tier, RULES.policies[tier].promotes_to] = len(moving)
                moved.update(moving)
        return moves

    def update(self, i, now, importance, pinned, tier, end):
        """Whether it is there; `end` is in seconds from now, None for never, KEEP for what the rest makes of it."""
        record = self.live(now).get(i)
        if record is None:
            return False
        tier = record.tier if tier is None else tier
        if (end not in (KEEP, None) and pinned) or (end is None and not pinned and RULES.policies[tier].ttl):
            raise InvalidInputError("expires_at")
        starts = tier is not record.tier or record.pinned
        moves, record.tier = tier is not record.tier, tier
        record.importance, record.pinned = importance, pinned
        if end != KEEP:
            record.expires = None if end is None else now + end
        elif pinned or starts:
            record.expires = None if pinned else RULES.policies[tier].expiry(now)
        if moves:
            self.make_room(tier, {i}, now)
        return True

    def move(self, i, tier, now):
        if i not in self.live(now) or self.records[i].tier is tier:
            return False
        self.enter(i, tier, now)
        self.make_room(tier, {i}, now)
        return True


class Memories(RuleBasedStateMachine):
    """One model and one backend of every kind of store, fed with the same history."""

    def __init__(self):
        super().__init__()
        self.now = START
        self.model = Model()
        self.runner = asyncio.Runner()
        self.exits = ExitStack()
        self.embedder = WordEmbedder(16)
        self.count = 0
        self.ids = []

    @initialize()
    def open(self):
        self.backends = {}
        for name, kind in STORE_KINDS.items():
            directory = self.exits.enter_context(tempfile.TemporaryDirectory())
            url = self.exits.enter_context(kind.place(Path(directory)))
            self.backends[name] = PythonRAGBackend(
                url=url, embedder=self.embedder, settings=SETTINGS, clock=lambda: self.now
            )
            assert self.runner.run(self.backends[name].initialize())

    def teardown(self):
        for backend in self.backends.values():
            self.runner.run(backend.close())
        self.runner.close()
        self.exits.close()

    def each(self, call):
        """What `call` gives for every store; all give the same."""
        answers = {name: self.runner.run(self.outcome(call(backend))) for name, backend in self.backends.items()}
        first = next(iter(answers.values()))
        assert answers == dict.fromkeys(answers, first)
        return first

    async def outcome(self, verb):
        try:
            return await verb
        except (CapacityError, InvalidInputError) as error:
            return type(error)

    def expected(self, change):
        """What `change` gives on the model; an error leaves the model as it was."""
        before = copy.deepcopy(self.model.records)
        try:
            return change()
        except (CapacityError, InvalidInputError) as error:
            self.model.records = before
            return type(error)

    def make(self, tier, importance, words, pinned, **more):
        self.count += 1
        # No two memories matter the same, so that the order of leaving is never a matter of chance.
        return MemoryEntry(
            f"{' '.join(words)} number{self.count}",
            tier,
            min(importance + 1e-6 * self.count, 1.0),
            pinned=pinned,
            created_at=datetime.fromtimestamp(self.now, UTC),
            **more,
        )

    entries = st.tuples(
        st.sampled_from(MemoryTier),
        st.one_of(st.floats(0, 0.99), st.floats(0.85, 0.99)),
        st.lists(st.sampled_from(WORDS), min_size=1, max_size=3),
        st.integers(0, 9).map(lambda n: n == 0),
    )
    places = st.integers(0, 30)

    def pick(self, place):
        return self.ids[-1 - place % len(self.ids)] if self.ids else "nobody"

    @rule(given=st.lists(entries, min_size=1, max_size=1) | st.lists(entries, min_size=1, max_size=6))
    def store(self, given):
        batch = [self.make(*parts) for parts in given]
        ids = [entry.id for entry in batch]
        expected = self.expected(lambda: self.model.put(batch, self.now))
        assert self.each(lambda b: b.store_memories(batch)) == (expected or ids)
        self.ids += ids

    @rule(
        given=st.lists(entries, max_size=3),
        own=st.lists(st.none() | places, min_size=3, max_size=3),
        others=st.lists(places, max_size=3),
        leave=st.integers(0, 9).map(lambda n: n > 0),
    )
    def replace(self, given, own, others, leave):
        """Some items have ids that are there, and most times these leave; others leave too."""
        taken = [None if place is None or not self.ids else self.pick(place) for place in own]
        batch = [
            self.make(*parts, **({} if memory_id is None else {"id": memory_id}))
            for parts, memory_id in zip(given, taken, strict=False)
        ]
        replaces = [self.pick(place) for place in others] + [memory_id for memory_id in taken if memory_id and leave]
        ids = [entry.id for entry in batch]
        expected = self.expected(lambda: self.model.put(batch, self.now, replaces))
        assert self.each(lambda b: b.store_memories(batch, replaces=replaces)) == (expected or ids)
        self.ids += [memory_id for memory_id in ids if memory_id not in self.ids]

    @rule(given=st.lists(entries, min_size=1, max_size=3), kept=st.lists(places, max_size=3))
    def store_beside(self, given, kept):
        """Some memories count as just put."""
        batch, keeps = [self.make(*parts) for parts in given], [self.pick(place) for place in kept]
        ids = [entry.id for entry in batch]
        new = [replace(entry, expires_at=self.end_of(entry)) for entry in batch]
        expected = self.expected(lambda: self.model.put(batch, self.now, keeps=keeps))
        assert self.each(lambda b: b._repository.put(new, keeps=keeps)) == (expected or ids)
        self.ids += ids

    def end_of(self, entry):
        end = None if entry.pinned else RULES.policies[entry.tier].expiry(self.now)
        return None if end is None else datetime.fromtimestamp(end, UTC)

    @rule(place=places)
    def delete(self, place):
        memory_id = self.pick(place)
        there = memory_id in self.model.live(self.now)
        assert self.each(lambda b: b.delete_memory(memory_id)) is there
        if there:
            del self.model.records[memory_id]

    @rule(place=places, tier=st.sampled_from(MemoryTier))
    def move(self, place, tier):
        memory_id = self.pick(place)
        expected = self.expected(lambda: self.model.move(memory_id, tier, self.now))
        assert self.each(lambda b: b.promote_memory(memory_id, tier)) is expected

    @rule(
        place=places,
        importance=st.floats(0, 0.99),
        pinned=st.booleans(),
        tier=st.none() | st.sampled_from(MemoryTier),
        end=st.sampled_from([KEEP, KEEP, KEEP, None, 300.0, 172_800.0]),
    )
    def update(self, place, importance, pinned, tier, end):
        memory_id = self.pick(place)
        self.count += 1
        changes = {"importance": min(importance + 1e-6 * self.count, 1.0), "pinned": pinned}
        expected = self.expected(lambda: self.model.update(memory_id, self.now, **changes, tier=tier, end=end))
        if tier is not None:
            changes["memory_type"] = tier
        if end != KEEP:
            changes["expires_at"] = None if end is None else self.now + end
        assert self.each(lambda b: self.updated(b, memory_id, changes)) == expected

    async def updated(self, backend, memory_id, changes):
        """Whether it was there; what the update tells of it is what is there then."""
        entry = await backend.update_memory(memory_id, **changes)
        assert entry == await backend.get_memory(memory_id)
        return entry is not None

    @rule(places=st.lists(places, max_size=5))
    def read(self, places):
        ids = [self.pick(place) for place in places]
        found = self.each(lambda b: b.get_memories(ids))
        live = self.model.live(self.now)
        contents = [live[i].content if i in live else None for i in ids]
        assert [entry and entry.content for entry in found] == contents

    @rule(
        words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=2),
        limit=st.integers(1, 4),
        tier=st.none() | st.sampled_from(MemoryTier),
    )
    def recall(self, words, limit, tier):
        query = " ".join(words)
        hits = self.each(lambda b: self.recalled(b, query, tier, limit))
        live = self.model.live(self.now)
        candidates = [r for r in live.values() if tier is None or r.tier is tier]
        assert len(hits) == min(limit, len(candidates))
        assert {memory_id for memory_id, _ in hits} <= live.keys()
        for memory_id, _ in hits:
            self.model.records[memory_id].accesses += 1

    async def recalled(self, backend, query, tier, limit):
        hits = await backend.recall_memories(query, tier, limit)
        return [(hit.id, pytest.approx(hit.score, abs=1e-5)) for hit in hits]

    @rule(word=st.sampled_from(WORDS))
    def search(self, word):
        found = self.each(lambda b: self.searched(b, word))
        assert found == {i for i, r in self.model.live(self.now).items() if word in r.content.split()}

    async def searched(self, backend, word):
        return {hit.id for hit in await backend.search_memories(word, limit=100)}

    @rule()
    def consolidate(self):
        """What moves is what each store foresees."""
        foreseen = self.each(self.foreseen)
        before = {i: r.tier for i, r in self.model.live(self.now).items()}
        expected = self.model.promote(self.now)
        assert foreseen == {i for i, r in self.model.records.items() if r.tier is not before[i]}
        assert self.each(lambda b: b.promote_deserving()) == expected

    async def foreseen(self, backend):
        return {entry.id for tier in MemoryTier for entry in await backend.deserving_memories(tier)}

    @rule()
    def clean_up(self):
        live = self.model.live(self.now)
        expired = len(self.model.records) - len(live)
        for name, backend in self.backends.items():
            removed = self.runner.run(backend.cleanup_expired())
            # Where a tier makes room, Redis removes the expired of the others too.
            assert removed <= expired if name in ("redis", "cluster") else removed == expired
        self.model.records = live

    @rule(seconds=st.sampled_from([1.0, 600.0, 3_000.0, 86_400.0, 5 * 86_400.0]))
    def tick(self, seconds):
        self.now += seconds

    @rule()
    def reopen(self):
        for name, backend in self.backends.items():
            if STORE_KINDS[name].lasting:
                self.runner.run(backend.close())
                assert self.runner.run(backend.initialize())

    @invariant()
    def all_agree(self):
        listed = self.each(lambda b: b.list_memories(limit=1_000))
        live = self.model.live(self.now)
        assert {entry.id: state_of(entry) for entry in listed} == {
            i: (r.content, r.tier, r.importance, r.pinned, r.accesses, r.expires) for i, r in live.items()
        }
        counts = self.each(lambda b: b.get_memory_stats())
        assert counts == {tier: sum(r.tier == tier for r in live.values()) for tier in MemoryTier}
        assert all(counts[tier] <= capacity for tier, capacity in CAPACITIES.items())


def state_of(entry):
    expires = None if entry.expires_at is None else entry.expires_at.timestamp()
    return (entry.content, entry.tier, entry.importance, entry.pinned, entry.access_count, expires)


def test_every_store_keeps_the_rules_through_any_history():
    """Whatever is stored, changed, moved, recalled, forgotten and reopened, all stores show what the rules say."""
    run_state_machine_as_test(
        Memories,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            database=None,
        ),
    )
