"""How a namespace goes over to another model, or to another way of cutting words. Synchronous; each function runs in a
write transaction of its caller, except `refresh_words`, which opens its own."""

from collections.abc import Sequence
from typing import Final

import apsw
import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.errors import ModelMismatchError, StoreVersionError
from gemma_cli.rag.quantize import quantize
from gemma_cli.rag.stores import sqlite_embeddings, sqlite_tokens
from gemma_cli.rag.stores.base import REPLACED, Pending, StoredModel
from gemma_cli.rag.stores.rows import model_columns, same_model, terms_of, to_model
from gemma_cli.rag.stores.sqlite_rows import entry_at
from gemma_cli.rag.stores.sqlite_scope import Scope
from gemma_cli.rag.stores.sqlite_write import sweep
from gemma_cli.rag.words import WORDS_VERSION

CHUNK: Final = 1024


def adopt(scope: Scope, model: StoredModel) -> StoredModel:
    """See `Store.adopt`."""
    columns = scope.db.execute("SELECT model, probe FROM namespaces WHERE ns = ?", (scope.ns,)).get
    generation = scope.generation()
    kept = to_model(*columns)
    occupied = scope.db.execute("SELECT EXISTS(SELECT 1 FROM memories WHERE ns = ?)", (scope.ns,)).get
    if kept is not None and (occupied or same_model(kept, model)):
        scope.generations.add(generation)
        return kept
    sqlite_embeddings.clear(scope)
    # Who has opened the empty store for another model learns of it by the generation.
    generation += kept is not None
    scope.db.execute(
        "UPDATE namespaces SET model = ?, probe = ?, generation = ? WHERE ns = ?",
        (*model_columns(model), generation, scope.ns),
    )
    scope.generations.add(generation)
    return model


def refresh_words(db: apsw.Connection, ns: int, stored: int, where: str) -> None:
    """Cuts the words of every memory anew if an older version of this package cut them."""
    if stored > WORDS_VERSION:
        raise StoreVersionError(f"{where} was indexed by a newer version of gemma-rag; upgrade this one")
    if stored == WORDS_VERSION:
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        sequence = Scope(db, ns, 0.0, set()).sequence()
        rows = [row for (row,) in db.execute("SELECT row FROM memories WHERE ns = ?", (ns,))]
        for row in rows:
            db.execute(
                "UPDATE memories SET terms = ?, sequence = ? WHERE row = ?",
                (terms_of(entry_at(db, row)), sequence, row),
            )
        db.execute("UPDATE namespaces SET words_version = ? WHERE ns = ?", (WORDS_VERSION, ns))
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def begin(scope: Scope, model: StoredModel) -> int:
    """See `Reembedding.reembed_begin`."""
    if not _under_way(scope, model):
        scope.db.execute(
            "DELETE FROM next_vectors WHERE row IN (SELECT row FROM memories WHERE ns = ?)",
            (scope.ns,),
        )
        scope.db.execute(
            "UPDATE namespaces SET next_model = ?, next_probe = ? WHERE ns = ?", (*model_columns(model), scope.ns)
        )
    sweep(scope)
    return int(scope.db.execute(f"SELECT count(*) {_LEFT}", (scope.ns,)).get)


def _under_way(scope: Scope, model: StoredModel) -> bool:
    """Whether the vectors that are gathering are this model's."""
    columns = scope.db.execute("SELECT next_model, next_probe FROM namespaces WHERE ns = ?", (scope.ns,)).get
    towards = to_model(*columns)
    return towards is not None and same_model(towards, model)


def _expect(scope: Scope, model: StoredModel) -> None:
    if not _under_way(scope, model):
        raise ModelMismatchError(REPLACED)


_LEFT: Final = "FROM memories WHERE ns = ? AND row NOT IN (SELECT row FROM next_vectors)"


def pending(db: apsw.Connection, ns: int, limit: int) -> list[Pending]:
    """See `Reembedding.reembed_next`."""
    found = db.execute(f"SELECT row, sequence, content {_LEFT} LIMIT ?", (ns, limit))
    return [Pending(*row) for row in found]


def keep(scope: Scope, model: StoredModel, done: Sequence[Pending], vectors: NDArray[np.float32]) -> None:
    """See `Reembedding.reembed_put`. A memory that has changed or gone meanwhile is left out."""
    _expect(scope, model)
    for memory, vector in zip(done, vectors, strict=True):
        scope.db.execute(
            "INSERT OR REPLACE INTO next_vectors SELECT row, ? FROM memories WHERE row = ? AND sequence = ?",
            (vector.tobytes(), memory.row, memory.version),
        )


def finish(scope: Scope, model: StoredModel) -> bool:
    """See `Reembedding.reembed_finish`."""
    _expect(scope, model)
    sweep(scope)
    if scope.db.execute(f"SELECT EXISTS(SELECT 1 {_LEFT})", (scope.ns,)).get:
        return False
    sequence = scope.sequence()
    rows = [row for (row,) in scope.db.execute("SELECT row FROM memories WHERE ns = ?", (scope.ns,))]
    for start in range(0, len(rows), CHUNK):
        _take_over(scope, rows[start : start + CHUNK], sequence)
    sqlite_embeddings.clear(scope)
    sqlite_tokens.clear(scope)
    scope.db.execute("DELETE FROM links WHERE ns = ?", (scope.ns,))
    scope.db.execute("UPDATE memories SET compared = 0 WHERE ns = ? AND compared = 1", (scope.ns,))
    # The floor makes every reader load the index anew.
    scope.db.execute(
        "UPDATE namespaces SET model = next_model, probe = next_probe, next_model = NULL, next_probe = NULL, "
        "floor = sequence, generation = generation + 1 WHERE ns = ?",
        (scope.ns,),
    )
    scope.generations.add(scope.generation())
    return True


def _take_over(scope: Scope, rows: list[int], sequence: int) -> None:
    blobs = [scope.db.execute("SELECT vector FROM next_vectors WHERE row = ?", (row,)).get for row in rows]
    quantised = quantize(np.frombuffer(b"".join(blobs), np.float32).reshape(len(rows), -1))
    for i, row in enumerate(rows):
        scope.db.execute("UPDATE vectors SET vector = ? WHERE row = ?", (blobs[i], row))
        scope.db.execute(
            "UPDATE memories SET code = ?, scale = ?, error = ?, sequence = ? WHERE row = ?",
            (quantised.codes[i].tobytes(), float(quantised.scales[i]), float(quantised.errors[i]), sequence, row),
        )
        scope.db.execute("DELETE FROM next_vectors WHERE row = ?", (row,))
