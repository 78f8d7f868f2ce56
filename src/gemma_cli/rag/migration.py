"""Moving house: a namespace of one store copied exactly into another, while the source is in use.

Both sides are read through and compared, memory by memory. What the target lacks, has otherwise or should no longer
have is put right; then both are read again, until nothing is left to do or `ROUNDS` are over. So the last reading is
the verification, and a run that was killed goes on by itself: the comparison is all the state there is.

Nothing is embedded: vectors, token codes, marks and links are taken as they are. Held in memory: a digest of each
memory of both sides, all links, and `TOGETHER` whole memories.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from gemma_cli.rag.errors import InvalidInputError, ModelMismatchError
from gemma_cli.rag.memory import TIER_POLICIES, TIERS, MemoryEntry, TierRules
from gemma_cli.rag.migration_marks import TOGETHER, Marks, Memory, Powers, fits, identical, in_order, lacks
from gemma_cli.rag.migration_report import Place, Report, Work, side_of
from gemma_cli.rag.repository import Progress
from gemma_cli.rag.stores.base import Alike, Link, Linking, TokenStore

T = TypeVar("T")

ROUNDS: Final = 8
"""Times that the target is put right. Each takes in what changed during the one before, which is less every time; what
is still left then is changing faster than it can be copied."""

NAMED: Final = 5
"""Ids named in a refusal."""

EVERY: Final = 2**31 - 1

ROOMY: Final = TierRules({tier: replace(policy, capacity=EVERY) for tier, policy in TIER_POLICIES.items()})
"""With these rules a copy evicts and promotes nothing, whatever the target's capacities are."""

Bar = Callable[[str], AbstractContextManager[Progress]]
"""Given a title, shows how far one reading or writing is."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What may become of what the target holds already. By default it may only be an earlier part of the same copy.

    merge: it may hold other memories. They stay, and so does, as the target has it, what both sides hold.
    overwrite: it becomes what the source is, whatever it held.
    """

    merge: bool = False
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class _Both:
    """Both sides as they were read, and the links that the target lacks."""

    source: Marks
    target: Marks
    links: list[Link]


@dataclass(slots=True)
class _Plan:
    """Ids by what is to be done with them. `puts` are in the order of the source's rows."""

    puts: list[str] = field(default_factory=list)
    completes: list[str] = field(default_factory=list)
    removes: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def _silent(title: str) -> AbstractContextManager[Progress]:
    return nullcontext(lambda done, total: None)


class Migration:
    """One copy from `source` to `target`, both open. A run that is cancelled or killed may be started anew.

    rules: the capacities that the target's users have configured; they decide nothing here, see `Report.crowded`.
    clock: seconds since the epoch.
    """

    def __init__(
        self,
        source: Place,
        target: Place,
        rules: TierRules,
        clock: Callable[[], float],
        *,
        terms: Terms = Terms(),
        bar: Bar = _silent,
    ) -> None:
        if terms.merge and terms.overwrite:
            raise InvalidInputError("overwrite: goes not with merge: what the target holds either stays or goes")
        here, there = (source.url, source.namespace), (target.url, target.namespace)
        if source.store is target.store or (here == there and not source.url.startswith("memory:")):
            raise InvalidInputError("target: is the source; name another store or another namespace")
        self._source = source
        self._target = target
        self._rules = rules
        self._now = clock
        self._terms = terms
        self._bar = bar
        self._powers = Powers.common(source.store, target.store)
        self._ours: set[str] = set()
        self._fixed: set[str] = set()
        self._done = Work()

    async def run(self) -> Report:
        """Copies, and verifies. Raises `ModelMismatchError` where the stores hold different models' vectors, and
        `InvalidInputError` for a target that holds what the terms don't allow; nothing is written then."""
        both = await self._admitted()
        plan = self._plan(both)
        rounds = 0
        while _left(plan, both) and rounds < ROUNDS:
            await self._adopt()
            await self._apply(plan, both)
            rounds += 1
            del both, plan  # or there would be twice as many marks in memory
            both = await self._read()
            plan = self._plan(both)
        return await self._report(plan, both, rounds)

    async def preview(self) -> Report:
        """What `run` would begin with, as the work that is left; writes nothing, and refuses what `run` refuses."""
        both = await self._admitted()
        return await self._report(self._plan(both), both, 0)

    async def verify(self) -> Report:
        """Compares alone."""
        both = await self._read()
        return await self._report(self._plan(both), both, 0)

    # Reading

    async def _read(self) -> _Both:
        await self._check_models()
        marks = []
        for name, place in (("source", self._source), ("target", self._target)):
            total = sum((await place.store.counts(self._now())).values())
            with self._bar(f"reading the {name}") as progress:
                marks.append(await self._powers.marks(place.store, self._now(), total, progress))
        links = await self._missing_links()
        now = self._now()  # what has expired since it was read is neither missing nor too much
        source, target = ({i: mark for i, mark in side.items() if mark.expires > now} for side in marks)
        both = source.keys() & target.keys()
        return _Both(source, target, [link for link in links if link.first in both and link.second in both])

    async def _missing_links(self) -> list[Link]:
        """The source's links that the target lacks, whichever of the two it takes for the newer one."""
        source, target = self._source.store, self._target.store
        if not (isinstance(source, Linking) and isinstance(target, Linking)):
            return []
        now = self._now()
        there = {frozenset((link.first, link.second)) for link in await target.links(None, now, EVERY)}
        found = await source.links(None, now, EVERY)
        return [link for link in found if frozenset((link.first, link.second)) not in there]

    # Judging

    async def _check_models(self) -> None:
        mine, theirs = await self._source.store.model(), await self._target.store.model()
        if mine is not None and theirs is not None and not fits(mine, theirs):
            raise ModelMismatchError(
                f"the source holds vectors of {mine.identity.name!r} ({mine.identity.dimension} wide) and the target "
                f"those of {theirs.identity.name!r} ({theirs.identity.dimension} wide): choose an empty target, or "
                "bring one of the two over to the other's model with `gemma-rag reembed`"
            )

    async def _adopt(self) -> None:
        model = await self._source.store.model()
        if model is not None:
            await self._target.store.adopt(model)
            await self._check_models()

    async def _admitted(self) -> _Both:
        """The first reading, of a target that the terms allow."""
        both = await self._read()
        common = both.source.keys() & both.target.keys()
        if self._terms.merge:
            self._fixed = common
            clashes = [
                mine.id async for mine, theirs in self._differing(both, common) if mine.content != theirs.content
            ]
            if clashes:
                raise InvalidInputError(f"target: has other contents under {_named(clashes)}; nothing was copied")
            return both
        self._ours = set(both.target)
        if self._terms.overwrite:
            if both.target and not both.source:
                raise InvalidInputError("source: holds no memory, and the target does; it would be emptied")
            return both
        if others := [memory_id for memory_id in both.target if memory_id not in common]:
            raise InvalidInputError(
                f"target: holds {_named(others)} that the source does not have; nothing was copied. Where an earlier "
                "run copied them and they are gone from the source since, go on with --overwrite, which removes them; "
                "to keep them, use --merge"
            )
        used = [
            mine.id
            async for mine, theirs in self._differing(both, common)
            if theirs.last_accessed > mine.last_accessed or theirs.access_count > mine.access_count
        ]
        if used:
            raise InvalidInputError(
                f"target: is in use already: {_named(used)} were used there since they were copied. To make it the "
                "source's copy again all the same, use --overwrite; to add what is new, --merge"
            )
        return both

    async def _differing(self, both: _Both, common: Iterable[str]) -> AsyncIterator[tuple[MemoryEntry, MemoryEntry]]:
        """Pairs of memories, the source's and the target's, that are not alike."""
        ids = [i for i in common if both.source[i].entry != both.target[i].entry]
        for _, part in _parts(ids):
            now = self._now()
            mine, theirs = await self._source.store.get(part, now), await self._target.store.get(part, now)
            for one, other in zip(mine, theirs, strict=True):
                if one is not None and other is not None:
                    yield one, other

    def _plan(self, both: _Both) -> _Plan:
        plan = _Plan()
        puts: set[str] = set()
        for memory_id, mine in both.source.items():
            theirs = both.target.get(memory_id)
            if theirs is not None and identical(mine, theirs):
                continue
            if theirs is not None and lacks(theirs, mine):
                plan.completes.append(memory_id)
            elif memory_id in self._fixed:
                plan.kept.append(memory_id)
            else:
                puts.add(memory_id)
        in_order(both.source, both.target, puts, self._fixed)
        plan.completes = [memory_id for memory_id in plan.completes if memory_id not in puts]
        plan.puts = sorted(puts, key=lambda memory_id: both.source[memory_id].row)
        for memory_id in both.target:
            if memory_id not in both.source:
                (plan.removes if memory_id in self._ours else plan.others).append(memory_id)
        return plan

    # Writing

    async def _apply(self, plan: _Plan, both: _Both) -> None:
        total = len(plan.puts) + len(plan.completes)
        with self._bar("copying") as progress:
            for done, ids in _parts(plan.puts):
                memories = await self._originals(ids)
                await self._put(memories, both.target)
                await self._complete(memories)
                progress(done, total)
            for done, ids in _parts(plan.completes):
                memories = await self._originals(ids)
                await self._complete(memories)
                self._done.completed += len(memories)
                progress(len(plan.puts) + done, total)
        for _, ids in _parts(plan.removes):
            still = await self._source.store.get(ids, self._now())
            gone = [memory_id for memory_id, memory in zip(ids, still, strict=True) if memory is None]
            self._done.removed += await self._target.store.delete(gone, self._now())
        target = self._target.store
        if isinstance(target, Linking):
            for _, links in _parts(await self._missing_links()):
                self._done.linked += await target.link([], await self._alike(links))

    async def _alike(self, links: Sequence[Link]) -> list[Alike]:
        """Links with the target's memories that they are of, so far as these say what the source's say."""
        ids, now = list({memory_id for link in links for memory_id in (link.first, link.second)}), self._now()
        mine, theirs = await self._source.store.get(ids, now), await self._target.store.get(ids, now)
        found = {
            other.id: other
            for one, other in zip(mine, theirs, strict=True)
            if one is not None and other is not None and one.content == other.content
        }
        return [
            Alike(found[link.first], found[link.second], link.similarity)
            for link in links
            if link.first in found and link.second in found
        ]

    async def _originals(self, ids: Sequence[str]) -> list[Memory]:
        """Those of the source's memories that are still there."""
        found = await self._powers.read(self._source.store, ids, self._now())
        return [memory for memory in found if memory is not None]

    async def _put(self, memories: Sequence[Memory], there: Marks) -> None:
        """Takes memories in, in place of what the target has under their ids."""
        if not memories:
            return
        ids = [memory.entry.id for memory in memories]
        replaced = [memory_id for memory_id in ids if memory_id in there]
        await self._target.store.put([m.entry for m in memories], ROOMY, self._now(), replaces=replaced)
        self._ours.update(ids)
        self._done.replaced += len(replaced)
        self._done.stored += len(ids) - len(replaced)

    async def _complete(self, memories: Sequence[Memory]) -> None:
        """Gives memories of the target their codes, and the mark of those that have been compared."""
        target = self._target.store
        waiting = [memory for memory in memories if memory.codes is not None]
        while waiting and isinstance(target, TokenStore):
            # The store shows a text and who said it, and no id: of those that are alike, one goes at a time.
            alike = {(memory.entry.content, memory.entry.actor): memory for memory in reversed(waiting)}
            ids = [memory.entry.id for memory in alike.values()]
            bare = await target.untokened(self._now(), len(ids), 0, ids)
            pairs = [(one, alike.get((one.passage.text, one.actors[-1]))) for one in bare]
            known = [(one, memory.codes) for one, memory in pairs if memory is not None and memory.codes is not None]
            await target.put_tokens([one for one, _ in known], [codes for _, codes in known])
            taken = set(ids)
            waiting = [memory for memory in waiting if memory.entry.id not in taken]
        compared = [memory.entry for memory in memories if memory.compared]
        if compared and isinstance(target, Linking):
            await target.link(compared, [])

    # Telling

    async def _report(self, plan: _Plan, both: _Both, rounds: int) -> Report:
        apart = {*plan.kept, *plan.others} if self._terms.merge else set[str]()
        expected = [mark.tier for mark in both.source.values()]
        expected += [both.target[memory_id].tier for memory_id in plan.others]
        over = {tier.value: expected.count(tier) - self._rules.policies[tier].capacity for tier in TIERS}
        return Report(
            source=await side_of(self._source, both.source, apart),
            target=await side_of(self._target, both.target, apart),
            rounds=rounds,
            done=self._done,
            left=_left(plan, both),
            kept=len(plan.kept),
            others=len(plan.others),
            crowded={tier: excess for tier, excess in over.items() if excess > 0},
        )


def _left(plan: _Plan, both: _Both) -> Work:
    """What there is to do."""
    fresh = sum(memory_id not in both.target for memory_id in plan.puts)
    return Work(fresh, len(plan.puts) - fresh, len(plan.completes), len(plan.removes), len(both.links))


def _parts(items: Sequence[T]) -> Iterator[tuple[int, Sequence[T]]]:
    """Slices of at most `TOGETHER`, each with the number of items up to its end."""
    for start in range(0, len(items), TOGETHER):
        part = items[start : start + TOGETHER]
        yield start + len(part), part


def _named(ids: Sequence[str]) -> str:
    """`3 memories (a, b, ...)`."""
    more = ", ..." if len(ids) > NAMED else ""
    return f"{len(ids):,} {'memory' if len(ids) == 1 else 'memories'} ({', '.join(ids[:NAMED])}{more})"
