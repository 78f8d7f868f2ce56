"""How long a Redis server keeps a memory's hash by itself."""

import pytest
from conftest import Clock
from redis_places import backend_on
from servers import Server

from gemma_cli.rag.stores.redis_keys import Keys

pytest_plugins = ["server_fixtures"]
pytestmark = pytest.mark.anyio

DAY_MS = 86_400_000


@pytest.mark.parametrize("behind", [0.0, 3_600.0])
async def test_the_server_waits_a_day_for_those_whose_clocks_are_behind(
    redis_server: Server, clock: Clock, behind: float
) -> None:
    """A memory's hash stays a day longer than its TTL from its last write on, whatever time the writer took it for."""
    clock.tick(-behind)
    backend = backend_on(redis_server.url, clock=clock)
    assert await backend.initialize()
    memory_id = await backend.store_memory("note", "working")
    left = redis_server.ask("PTTL", Keys("default").base + b"m:" + memory_id.encode())
    assert DAY_MS < left <= DAY_MS + 15 * 60 * 1_000
    await backend.close()
