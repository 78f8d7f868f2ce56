"""One namespace within one write transaction of the SQLite store."""

import apsw

from gemma_cli.rag.errors import ModelMismatchError
from gemma_cli.rag.memory import MemoryTier
from gemma_cli.rag.stores.rows import TIER_CODE


class Scope:
    """One namespace within one transaction.

    generations: those of the vectors that this process knows; what brings a new one about adds it."""

    def __init__(self, db: apsw.Connection, ns: int, now: float, generations: set[int]) -> None:
        self.db = db
        self.ns = ns
        self.now = now
        self.generations = generations
        self._sequence: int | None = None

    def generation(self) -> int:
        """Counts the models that the vectors have gone over to."""
        return int(self.db.execute("SELECT generation FROM namespaces WHERE ns = ?", (self.ns,)).get)

    def expect_generation(self) -> None:
        """Raises `ModelMismatchError` when another process has gone over to another model since the store was
        opened."""
        if self.generation() not in self.generations:
            raise ModelMismatchError("the store was re-embedded with another model meanwhile; open it again")

    def sequence(self) -> int:
        """The number of the change that this scope is: one for all that it does, counted on when first asked for."""
        if self._sequence is None:
            self._sequence = int(
                self.db.execute(
                    "UPDATE namespaces SET sequence = sequence + 1 WHERE ns = ? RETURNING sequence", (self.ns,)
                ).get
            )
        return self._sequence

    def count(self, tier: MemoryTier) -> int:
        """Rows of a tier, the expired that have not been swept included."""
        return int(
            self.db.execute("SELECT count FROM tiers WHERE ns = ? AND tier = ?", (self.ns, TIER_CODE[tier])).get or 0
        )

    def add_to_count(self, tier_code: int, difference: int) -> None:
        self.db.execute(
            "INSERT INTO tiers VALUES(?1, ?2, ?3) ON CONFLICT DO UPDATE SET count = count + ?3",
            (self.ns, tier_code, difference),
        )
