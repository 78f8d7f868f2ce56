"""The store contract: what a place for memories must do. Policy (validation, embedding, ranking weights, what a tier
holds) comes in as arguments; a store reads, writes, moves and finds.

For every verb:
- Times are seconds since the epoch; the caller's `now` is the only clock. A memory whose `expires_at` is `<= now` is
  not there, for any verb, whether or not it has been swept.
- A missing id is None, 0 or left out, never an error. Failures raise `StoreError`s.
- A verb is one atomic step: all of it or nothing, also against a second process and against the death of this one.
  When it returns, its effect outlives this process.
- A store serves one namespace; nothing of another is seen, counted or evicted.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.actors import KnownTerms
from gemma_cli.rag.candidates import Question
from gemma_cli.rag.embedders.base import ModelIdentity, Passage
from gemma_cli.rag.memory import MemoryEntry, MemoryTier, TierRules


@dataclass(frozen=True, slots=True, eq=False)
class StoredModel:
    """Which model made the vectors of a store. `probe` is its vector (float32 [dimension]) of a fixed sentence, by
    which two models that can't say who they are can be told apart."""

    identity: ModelIdentity
    probe: NDArray[np.float32] | None = None


BACK_IN_TIME: Final = 1.0
"""Seconds by which a clock must have been put back to count as such."""


def went_back(now: float, latest: float) -> bool:
    """Whether the clock was put back: what had expired by it is there again, so whatever has dropped that is void."""
    return now < latest - BACK_IN_TIME


class Keep(Enum):
    """Stands for "leave this field as it is" in an `Update`."""

    KEEP = "keep"


KEEP: Final = Keep.KEEP


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """New values for some fields of one memory; `content` and `embedding` go together. `expires_at` holds over what
    `tier` and `pinned` make of the lifetime."""

    content: str | Keep = KEEP
    embedding: NDArray[np.float32] | Keep = KEEP
    tier: MemoryTier | Keep = KEEP
    importance: float | Keep = KEEP
    tags: frozenset[str] | Keep = KEEP
    metadata: Mapping[str, Any] | Keep = KEEP
    pinned: bool | Keep = KEEP
    actor: str | Keep | None = KEEP
    session: str | Keep | None = KEEP
    occurred_at: float | Keep | None = KEEP
    expires_at: float | Keep | None = KEEP


@dataclass(frozen=True, slots=True)
class Filter:
    """Which memories a listing holds: those for which every condition given is true."""

    tier: MemoryTier | None = None
    tags: frozenset[str] = frozenset()
    actor: str | None = None
    session: str | None = None
    pinned: bool | None = None
    min_importance: float = 0.0
    expires_until: float | None = None


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """Facts for people: where the store is, how large (bytes), and the versions behind it."""

    url: str
    size_bytes: int
    index_bytes: int
    versions: Mapping[str, str] = field(default_factory=dict)


class Store(Protocol):
    """See the module's docstring for what holds for every verb."""

    async def open(self) -> StoredModel | None:
        """Connects, creates what is missing, and returns the model whose vectors the store holds (None: none yet).
        Raises `StoreUnavailableError`, `StoreDamagedError`, `StoreVersionError`."""

    async def close(self) -> None:
        """Finishes what was begun and lets go of everything; a second call does nothing."""

    async def model(self) -> StoredModel | None:
        """The model whose vectors the store holds now; None: it holds no memory."""

    async def adopt(self, model: StoredModel) -> StoredModel:
        """Writes down the model of a store that holds no memory yet, and returns the one that holds from now on:
        another one where another process was quicker. What is put from then on counts as that one's."""

    async def put(
        self,
        entries: Sequence[MemoryEntry],
        rules: TierRules,
        now: float,
        *,
        replaces: Sequence[str] = (),
        keeps: Collection[str] = (),
    ) -> None:
        """Removes memories, then adds those that replace them, with embeddings (float32, length 1); these may have the
        same ids. A tier above its capacity makes room: the expired go, the deserving move up (see `promote`), then
        those of the lowest relevance leave; a pinned one never, one just put only where nothing else is left. Those
        in `keeps` count as just put; an id there that is not in the store is passed over. `CapacityError` when nothing
        can leave, `InvalidInputError` for an id that is taken."""

    async def get(self, ids: Sequence[str], now: float) -> list[MemoryEntry | None]:
        """The memories with these ids, in their order, embeddings included."""

    async def page(
        self, wanted: Filter, now: float, *, limit: int, after: tuple[float, str] | None = None
    ) -> list[MemoryEntry]:
        """Newest first (by creation, then by id), without embeddings; `after` is the creation time and the id of the
        last one of the page before, which need not be there any more."""

    async def search(self, question: Question, now: float) -> list[MemoryEntry]:
        """The best memories for a question, best first, embeddings, scores and explanation filled in."""

    async def known(self, terms: NDArray[np.uint64], now: float) -> KnownTerms:
        """What the memories tell of a question's terms (`words.query_terms`)."""

    async def update(self, memory_id: str, change: Update, rules: TierRules, now: float) -> MemoryEntry | None:
        """Changes one memory and returns it as it is then. Taking a pin off starts the tier's TTL anew; another tier
        starts that one's, and makes room there as `move` does. `InvalidInputError` where `changed` refuses."""

    async def delete(self, ids: Sequence[str], now: float) -> int:
        """Removes memories and says how many there were."""

    async def move(self, ids: Sequence[str], to: MemoryTier, rules: TierRules, now: float) -> int:
        """Moves memories into a tier, starts its TTL, makes room there as `put` does; says how many moved."""

    async def promote(self, rules: TierRules, now: float) -> Mapping[tuple[MemoryTier, MemoryTier], int]:
        """Sweeps, then moves every unpinned memory whose relevance reaches the threshold one tier up, and says how
        many went from where to where. The highest relevance goes first, and what the next tier can't hold beside its
        pinned ones and those that came with this run waits where it is; from the top tier down."""

    async def deserving(self, tier: MemoryTier, rules: TierRules, now: float) -> list[MemoryEntry]:
        """What `promote` would move out of a tier, highest relevance first: no more than the next tier has room for,
        beside its pinned ones and what would come from tiers above this one; changes nothing."""

    def touch(self, ids: Sequence[str], now: float) -> None:
        """Counts one access for each id; an id named twice counts twice. Written behind: nobody waits for it, `get`,
        `page`, `deserving`, `promote` and `put` see it (unless another process holds the store's lock for long), and
        `close` makes sure of it. A failure is logged."""

    async def sweep(self, now: float) -> int:
        """Removes what has expired for good and says how many."""

    async def counts(self, now: float) -> Mapping[MemoryTier, int]:
        """How many memories each of the five tiers holds."""

    async def info(self) -> StoreInfo:
        """Facts about the store itself."""

    async def change_token(self) -> int:
        """A number that grows with every change that could alter an answer, whichever process made it."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A memory without a new vector: the store's number for it, the version of it that was read, and its text."""

    row: int
    version: int
    content: str


REPLACED: Final = "a re-embedding with another model has begun meanwhile; this one was given up"
"""What the run of `Reembedding` is told that another one has put an end to."""


@runtime_checkable
class Reembedding(Protocol):
    """A store that can go over to another model while it is in use: new vectors gather beside the old ones, and all
    change places in one step at the end. What was gathered survives an interruption."""

    async def reembed_begin(self, model: StoredModel, now: float) -> int:
        """Starts towards `model`, or goes on where an earlier run towards the same one stopped; how many are left. What
        was gathered towards another one is void."""

    async def reembed_next(self, limit: int) -> list[Pending]:
        """Memories that have no new vector yet."""

    async def reembed_put(self, model: StoredModel, done: Sequence[Pending], vectors: NDArray[np.float32]) -> None:
        """Keeps new vectors (float32 [n, dimension], length 1) of `model`, except of memories that have changed
        meanwhile. `ModelMismatchError` where a re-embedding towards another model has begun since."""

    async def reembed_finish(self, model: StoredModel, now: float) -> bool:
        """Lets the new vectors, those of `model`, take over; False when memories without one have come meanwhile. Other
        processes that still use the old model get `ModelMismatchError` from then on where they ask or write; what needs
        no model (`get`, `page`, `counts`, ...) they can read still. This call raises it where a re-embedding towards
        another model has begun since."""


@dataclass(frozen=True, slots=True)
class Link:
    """Two memories (their ids) that say nearly the same: `similarity` is the cosine of their vectors."""

    first: str
    second: str
    similarity: float


@dataclass(frozen=True, slots=True, eq=False)
class Alike:
    """Two memories, as they were compared, that are to be linked."""

    one: MemoryEntry
    other: MemoryEntry
    similarity: float


@runtime_checkable
class Linking(Protocol):
    """A store that remembers which memories are near-duplicates of each other, and which have been compared."""

    async def uncompared(self, now: float, limit: int) -> list[MemoryEntry]:
        """Memories that have not been compared since they got their content, oldest first, embeddings included."""

    async def link(self, compared: Sequence[MemoryEntry], alike: Sequence[Alike]) -> int:
        """Keeps which memories have been compared, and links those that are alike; says how many links are new. Each
        memory as it was read, embedding included: one that is gone, or has another vector meanwhile, is left out."""

    async def links(self, memory_id: str | None, now: float, limit: int) -> list[Link]:
        """The links of one memory, or of all, most similar first, the newer memory first in each."""


@dataclass(frozen=True, slots=True)
class Particulars:
    """What a store knows of a memory beside its fields: its number there (one that was put later has a larger one, and
    memories of the same session and time stand in this order), and whether it has been compared (see `Linking`)."""

    row: int
    compared: bool


@runtime_checkable
class Particular(Protocol):
    """A store that tells what another one must know for an exact copy."""

    async def particulars(self, ids: Sequence[str], now: float) -> list[Particulars | None]:
        """Of the memories with these ids, in their order; None for a missing one."""


@runtime_checkable
class EmbeddingCache(Protocol):
    """A store that keeps vectors of texts for its model, so that a text need not be embedded again after a restart."""

    async def cached_vectors(self, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The vectors (length 1) of those texts that are kept."""

    def cache_vectors(self, vectors: Mapping[str, NDArray[np.float32]], capacity: int) -> None:
        """Keeps vectors, about `capacity` of them in all. Written behind, as `touch` is. Deleting or rewriting a memory
        removes the vector of its text."""


@runtime_checkable
class Verifying(Protocol):
    """A store that can look itself through."""

    async def verify(self) -> None:
        """Reads everything; raises `StoreDamagedError` with the first thing that is wrong."""


@dataclass(frozen=True, slots=True)
class Point:
    """A moment in the life of a namespace: the number of the last change, and bytes by which to know that change again
    where its number can be given twice."""

    sequence: int
    nonce: bytes = b""


GLANCE: Final = 80
"""Characters of a memory that an onlooker is shown."""


@dataclass(frozen=True, slots=True)
class Glimpse:
    """A memory as an onlooker sees it: `text` is the first GLANCE characters, `expires` is infinite for never, and
    `source` is the document that it is a chunk of."""

    row: int
    id: str
    tier: MemoryTier
    importance: float
    expires: float
    text: str | None
    source: str | None


@dataclass(frozen=True, slots=True)
class Change:
    """One atomic step of some process. `put`: what it stored, changed or moved, as it is now; what has been changed
    again since is in the later change. `removed`: rows that went, before anything was put (a row's number may be given
    again)."""

    put: Sequence[Glimpse]
    removed: Sequence[int]


@runtime_checkable
class Observable(Protocol):
    """A store that tells what has changed, whichever process did it. An access is no change. Both verbs show expired
    memories too, until they are swept."""

    async def changes_since(self, point: Point) -> tuple[Point, Sequence[Change]] | None:
        """The point that is now, and the changes since another one, in their order. None where that is too long ago, or
        where everything known has to be read anew. As cheap as `change_token` where nothing has changed."""

    async def survey(self, take: Callable[[Sequence[Glimpse]], None]) -> Point:
        """Hands over every memory, some at a time (`text` only of what expires), and returns a point from before the
        first of them: a memory that comes, changes or goes meanwhile is in the changes since then."""


@dataclass(frozen=True, slots=True)
class Untokened:
    """A memory without token codes: the store's number for it, the version of it that was read, what to encode, and who
    said each of its texts (context first, the memory's own last; None: not known)."""

    row: int
    version: int
    passage: Passage
    actors: tuple[str | None, ...]


@runtime_checkable
class TokenStore(Protocol):
    """A store that keeps codes of each memory's token vectors (`late_interaction`), by which its answers are ordered
    more finely. Codes come after their memory; a memory without them is found all the same."""

    async def untokened(
        self, now: float, limit: int, context: int, ids: Sequence[str] | None = None
    ) -> list[Untokened]:
        """Memories (of these ids; None: any) without codes, or whose content or actor has changed since, oldest first.
        Each with the contents of up to `context` memories right before it in its session (by when they happened, else
        were stored; then by row)."""

    async def put_tokens(self, done: Sequence[Untokened], codes: Sequence[bytes]) -> None:
        """Keeps codes, except of memories that are gone, or have another content, actor or model meanwhile; each of
        these also ends codes that were kept. `b""` says that there is nothing to encode in a memory."""

    async def token_codes(self, ids: Sequence[str], now: float) -> list[bytes | None]:
        """The codes of the memories with these ids, in their order; None where there are none."""
