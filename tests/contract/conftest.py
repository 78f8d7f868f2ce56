"""One suite, every store: a store is one entry of `STORE_KINDS`."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from memory_places import STORE_KINDS, Place

from gemma_cli.rag import create_embedder


@pytest.fixture(params=STORE_KINDS)
async def place(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str) -> AsyncIterator[Place]:
    """A new and empty place of each kind; what a test opened on it is closed after the test."""
    kind = STORE_KINDS[request.param]
    with kind.place(tmp_path) as url:
        place = Place(url, kind.lasting)
        yield place
        await place.close()


@pytest.fixture(params=[name for name, kind in STORE_KINDS.items() if kind.lasting])
async def lasting_place(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str) -> AsyncIterator[Place]:
    """As `place`, of the kinds that several backends share and that survive `close`."""
    with STORE_KINDS[request.param].place(tmp_path) as url:
        place = Place(url, lasting=True)
        yield place
        await place.close()


@pytest.fixture(scope="session")
def model():
    """The real model, one engine for the whole run."""
    embedder = create_embedder()
    yield embedder
    embedder.close()
