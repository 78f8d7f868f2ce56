"""One model for all backends of a process that are configured alike."""

import threading
from pathlib import Path

import pytest

from gemma_cli.rag import ModelNotFoundError, PythonRAGBackend, Settings, load_settings
from gemma_cli.rag.shared_model import SharedModel, _models

pytestmark = pytest.mark.anyio


def settings(**environment: str) -> Settings:
    return load_settings(environ={f"GEMMA_RAG_{name}": value for name, value in environment.items()}, cwd=Path("/none"))


async def test_backends_configured_alike_share_a_model() -> None:
    """Two backends hold one queue and one copy of the weights; the last to close lets go of them."""
    before = set(threading.enumerate())
    async with PythonRAGBackend(url="memory://", settings=settings()) as one:
        async with PythonRAGBackend(url="memory://", settings=settings()) as two:
            await one.store_memory("the cat sat on the mat")
            await two.store_memory("the dog lay on the rug")
            [shared] = _models.values()
            assert shared.users == 2
            assert shared.batches.get_stats()["batch_count"] > 0
        assert shared.users == 1
        assert (await one.recall_memories("pet"))[0].content == "the cat sat on the mat"
    assert not _models
    assert set(threading.enumerate()) <= before


async def test_backends_configured_differently_do_not() -> None:
    """Another width of batches is another queue."""
    async with (
        PythonRAGBackend(url="memory://", settings=settings()),
        PythonRAGBackend(url="memory://", settings=settings(EMBEDDING__BATCH_SIZE="8")),
    ):
        assert len(_models) == 2
    assert not _models


async def test_every_monitor_hears_of_the_tokens() -> None:
    """A backend's report counts what runs through the model, until the backend is closed."""
    heard: list[int] = []
    embedding = settings().embedding
    mine, other = SharedModel(embedding, heard.append), SharedModel(embedding)
    await other.batches.embed_text("one two three")
    assert sum(heard) >= 3
    await mine.close()
    await mine.close()
    await other.batches.embed_text("four five six")
    assert len(heard) == 1
    await other.close()
    assert not _models


async def test_a_model_that_can_not_be_made_leaves_nothing(tmp_path: Path) -> None:
    """A wrong directory is an error each time, not a broken share."""
    wrong = settings(EMBEDDING__MODEL_DIR=str(tmp_path / "nothing")).embedding
    for _ in range(2):
        with pytest.raises(ModelNotFoundError):
            SharedModel(wrong)
    assert not _models
