"""The verbs about a memory as a whole: counting, cleaning, moving, promoting. `PythonRAGBackend` inherits them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from gemma_cli.rag import duplicates, reembedding, transfer
from gemma_cli.rag import validation as check
from gemma_cli.rag._version import __version__
from gemma_cli.rag.embedders.base import ModelIdentity
from gemma_cli.rag.memory import MemoryEntry, MemoryTier, TierRules, parse_tier
from gemma_cli.rag.repository import Progress
from gemma_cli.rag.stores.base import Filter, Link, Linking, Verifying
from gemma_cli.rag.token_index import index_tokens
from gemma_cli.rag.verbs import NEAR_DUPLICATES, Verbs, promotions, timed


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """Facts for people. `model`, `dimension` and `engine` tell of the model that made the store's vectors (with the
    engine in use, where that runs the same model), or of the one in use while there are none. None where no model has
    been needed yet, or it can't say who it is."""

    url: str
    namespace: str
    size_bytes: int
    index_bytes: int
    memories: Mapping[str, int]
    model: str | None
    dimension: int | None
    engine: str | None
    versions: Mapping[str, str]


class Administration(Verbs):
    """Needs nothing but a repository."""

    @timed
    async def get_memory_stats(self) -> dict[str, int]:
        """How many live memories each of the five tiers holds."""
        return await self._counts()

    async def _counts(self) -> dict[str, int]:
        return {str(tier): count for tier, count in (await self._repository.store.counts(self.now())).items()}

    async def get_info(self) -> BackendInfo:
        """Facts for people: store, sizes, model, versions."""
        info = await self._repository.store.info()
        stored, loaded = await self._repository.store.model(), self._repository.loaded
        mine = loaded.identity if loaded else None
        identity = mine if stored is None or (mine and mine.same_model(stored.identity)) else stored.identity
        return BackendInfo(
            url=info.url,
            namespace=self.namespace,
            size_bytes=info.size_bytes,
            index_bytes=info.index_bytes,
            memories=await self._counts(),
            model=identity.name if identity else None,
            dimension=identity.dimension if identity else None,
            engine=f"{identity.engine} {identity.precision}".strip() if identity else None,
            versions={"gemma-rag": __version__, **info.versions},
        )

    async def verify(self) -> None:
        """Reads the whole store through; raises `StoreDamagedError` with the first thing that is wrong. Does nothing
        where the store looks after that itself."""
        store = self._repository.store
        if isinstance(store, Verifying):
            await store.verify()

    async def try_model(self) -> ModelIdentity:
        """Runs the embedding model once and says which it is."""
        return (await (await self._repository.vectorizer()).model()).identity

    async def check_model(self) -> None:
        """Raises `ModelMismatchError` unless the model in use makes vectors that may be compared with the store's."""
        await self._repository.fitting_vectorizer()

    async def change_token(self) -> int:
        """A number that grows with every change that could alter an answer, whichever process made it."""
        return await self._repository.store.change_token()

    @timed
    async def export_memories(self, path: str | os.PathLike[str]) -> int:
        """Writes every memory to a JSON Lines file, vectors included, and says how many. A file that is there already
        is replaced at the end, so that a failure leaves it as it was."""
        return await transfer.export_memories(self._repository, path)

    @timed
    async def import_memories(self, path: str | os.PathLike[str], *, progress: Progress | None = None) -> int:
        """Stores the memories of an exported file and says how many are new: ids that are there already and memories
        that have expired are left out. Vectors are kept if the file's model is the store's, else made anew. A file
        with a bad line stores nothing."""
        return await transfer.import_memories(self._repository, self._intake, path, progress)

    @timed
    async def reembed(self, *, progress: Progress | None = None) -> int:
        """Goes over to the model in use and says how many memories were embedded; the backend has to be opened with
        `open(require_model=False)` for it. Can be interrupted and run again; until its end the old vectors serve. Of
        two runs towards different models the later one goes on, and the other raises `ModelMismatchError`."""
        return await reembedding.reembed(self._repository, progress)

    @timed
    async def promote_deserving(self, rules: TierRules | None = None) -> Mapping[tuple[MemoryTier, MemoryTier], int]:
        """Removes the expired, then moves every memory whose relevance reaches the threshold one tier up, in one step;
        how many went from where to where. `rules`: other thresholds than this backend's own."""
        moves = await self._repository.store.promote(rules or self.rules, self.now())
        for (source, target), count in moves.items():
            self._observed(promotions(source, target), count)
        return moves

    async def deserving_memories(self, tier: MemoryTier | str, rules: TierRules | None = None) -> list[MemoryEntry]:
        """What `promote_deserving` would move out of a tier, highest relevance first."""
        return await self._repository.store.deserving(parse_tier(tier), rules or self.rules, self.now())

    @timed
    async def link_near_duplicates(self, similarity: float = duplicates.NEAR_DUPLICATE) -> int:
        """Compares memories that have not been compared yet (128 at a time) with all others, links those whose cosine
        is at least `similarity`, and says how many links are new. Nothing is merged or removed."""
        bar = check.number("similarity", similarity, 0.0, 1.0)
        linked = await duplicates.link_near_duplicates(self._repository, bar)
        self._observed(NEAR_DUPLICATES, linked)
        return linked

    @timed
    async def index_tokens(self, most: int | None = None) -> int:
        """Encodes the tokens of memories that were imported, re-embedded or stored before `late_interaction` was on (at
        most `most` of them, oldest first), so that answers are ordered by these too; says how many there were. What is
        stored otherwise needs no call. 0 where nothing is left, with [memory] late_interaction off, and where the model
        or the store has no tokens. Runs the model; can be interrupted and called again."""
        most = None if most is None else check.whole("most", most)
        _ = self._repository.store  # a backend that is not open says so, whatever its settings
        return await index_tokens(self._repository, most) if self._late_interaction else 0

    async def near_duplicates(self, memory_id: str | None = None, limit: int = 100) -> list[Link]:
        """The links of one memory, or of all, most similar first."""
        store = self._repository.store
        wanted = check.optional_label("memory_id", memory_id)
        limit = check.whole("limit", limit)
        return await store.links(wanted, self.now(), limit) if isinstance(store, Linking) else []

    async def all_memories(self) -> list[MemoryEntry]:
        """Every live memory, newest first, without embeddings."""
        return await self._repository.all(Filter())

    async def expiring_memories(self, within: float) -> list[MemoryEntry]:
        """What expires within so many seconds, newest first, without embeddings."""
        seconds = check.number("within", within, 0.0)
        return await self._repository.all(Filter(expires_until=self.now() + seconds))

    @timed
    async def cleanup_expired(self) -> int:
        """Removes from the disk what has expired, and says how many; no verb has shown it since it did."""
        return await self._repository.store.sweep(self.now())
