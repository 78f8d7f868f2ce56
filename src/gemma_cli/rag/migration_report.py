"""What a migration says of its two sides and of its work."""

from collections.abc import Mapping
from dataclasses import dataclass

from gemma_cli.rag.memory import TIERS, MemoryTier
from gemma_cli.rag.migration_marks import Marks, checksum
from gemma_cli.rag.stores.base import Store


@dataclass(frozen=True, slots=True)
class Place:
    """An open store, and its names for people: `url` without secrets."""

    store: Store
    url: str
    namespace: str


@dataclass(slots=True)
class Work:
    """Memories (and links) that a run dealt with, or that are left: not in the target (`stored`), otherwise there
    (`replaced`), there without their token codes or mark (`completed`), in the target alone (`removed`)."""

    stored: int = 0
    replaced: int = 0
    completed: int = 0
    removed: int = 0
    linked: int = 0

    def __bool__(self) -> bool:
        return bool(self.stored or self.replaced or self.completed or self.removed or self.linked)


@dataclass(frozen=True, slots=True)
class Side:
    """One store as the last reading found it. `checksum` is over the memories that both sides should have; see
    `migration_marks.checksum`."""

    url: str
    namespace: str
    memories: int
    tiers: Mapping[str, int]
    checksum: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did, and what its last reading found.

    left: what still keeps the sides from being equal.
    kept: with `Terms.merge`, memories that both have and that stay as the target has them, otherwise than the source.
    others: memories that the target alone has, and that did not come from the source in this run. Without
        `Terms.merge` the sides are not equal then.
    crowded: by how many memories a tier of the target is above the capacity that the settings give it.
    """

    source: Side
    target: Side
    rounds: int
    done: Work
    left: Work
    kept: int
    others: int
    crowded: Mapping[str, int]

    @property
    def equal(self) -> bool:
        """Whether every memory of the source is in the target to the bit, in the same order, with its links."""
        return not self.left and self.source.checksum == self.target.checksum


async def side_of(place: Place, marks: Marks, apart: set[str]) -> Side:
    tiers: dict[MemoryTier, int] = dict.fromkeys(TIERS, 0)
    for mark in marks.values():
        tiers[mark.tier] += 1
    compared = (mark for memory_id, mark in marks.items() if memory_id not in apart)
    return Side(
        url=place.url,
        namespace=place.namespace,
        memories=len(marks),
        tiers={tier.value: count for tier, count in tiers.items()},
        checksum=checksum(compared),
        size_bytes=(await place.store.info()).size_bytes,
    )
