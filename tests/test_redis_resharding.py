"""A namespace whose slot is moved, and masters that die under load: what was acknowledged is there, once."""

import asyncio
import time
from collections.abc import Iterator

import pytest
from redis_places import (
    READS,
    VERBS,
    WRITES,
    Storm,
    backend_on,
    eventually,
    failures_of,
    state_of,
    until_it_says,
    until_it_works,
)
from server_groups import CALM, Cluster, Replicated
from server_lines import HOST
from servers import Program, Server

from gemma_cli.rag import PythonRAGBackend
from gemma_cli.rag.errors import StoreBusyError, StoreError, StoreUnavailableError
from gemma_cli.rag.stores.redis_keys import Keys

pytest_plugins = ["server_fixtures"]
pytestmark = pytest.mark.anyio

KEYS = Keys("default")
LIMIT = 0.4
"""Seconds for one operation where it is to fail while the slot is under way."""

FAILOVER = 8.0
"""Seconds for one operation where it is to outlast a failover (about 2.5 s), or fail."""


@pytest.fixture(scope="module")
def movable(server_program: Program) -> Iterator[Cluster]:
    """A cluster of two masters without replicas, whose slots may be moved."""
    with Cluster(server_program, masters=2, replicas=0, node_timeout=CALM) as cluster:
        yield cluster


def url_of(cluster: Cluster) -> str:
    return f"redis+cluster://{HOST}:{cluster.living[0].port}"


def other_than(cluster: Cluster, node: Server) -> Server:
    return next(other for other in cluster.nodes if other is not node)


def move_slowly(cluster: Cluster, pause: float) -> None:
    """Moves the namespace to the other master a few keys at a time."""
    slot = cluster.slot_of(KEYS.slot)
    to = other_than(cluster, cluster.master_of(slot))
    with cluster.moving(slot, to) as source:
        time.sleep(pause)
        for _ in range(8):
            cluster.move_keys(slot, source, to, 3)
            time.sleep(pause / 8)


async def every_verb(backend: PythonRAGBackend, errors: list[Exception], stopped: asyncio.Event) -> None:
    """Each verb in turn, again and again, on memories of its own."""
    while not stopped.is_set():
        for verb in VERBS.values():
            try:
                apple = await backend.store_memory("apple", "short_term", tags=["tag"])
                await verb(backend, apple)
            except StoreError as error:
                errors.append(error)


async def test_every_verb_works_while_the_slot_is_moved_to_and_fro(movable: Cluster) -> None:
    """Moves that are shorter than the limit are not noticed by eight callers and every verb."""
    movable.flush()
    backend = backend_on(url_of(movable))
    assert await backend.initialize()
    errors: list[Exception] = []
    stopped = asyncio.Event()
    verbs = asyncio.ensure_future(every_verb(backend, errors, stopped))
    async with Storm(backend, tier="long_term") as storm:
        for _ in range(4):
            await storm.until(20)
            await asyncio.to_thread(move_slowly, movable, 0.15)
        await storm.until(20)
        stopped.set()
        await verbs
    assert errors == []
    assert storm.errors == {}
    assert await storm.settled(backend) == 0
    await backend.close()


@pytest.mark.parametrize("name", ["changes", "created", "meta", "memory"])
async def test_a_namespace_half_of_which_has_moved_is_not_taken_for_lost(movable: Cluster, name: str) -> None:
    """With one key at its new place and the rest at the old one, verbs answer rightly or fail in time; nothing changes,
    and all is well once the move is over."""
    movable.flush()
    patient, backend = backend_on(url_of(movable)), backend_on(url_of(movable), limit=LIMIT)
    assert await patient.initialize()
    apple = await patient.store_memory("apple", "short_term", tags=["tag"])
    before = await state_of(patient)
    await eventually(backend.initialize)
    assert await until_it_works(lambda: backend.recall_memories("apple"))
    slot = movable.slot_of(KEYS.slot)
    target = other_than(movable, movable.master_of(slot))
    answers: dict[str, object] = {}
    changing = ("store", "delete", "promote")
    with movable.moving(slot, target) as source:
        key = KEYS.base + b"m:" + apple.encode() if name == "memory" else KEYS.of(name)
        source.ask("MIGRATE", HOST, target.port, "", 0, CALM, "KEYS", key)

        async def ask(verb: str) -> None:
            try:
                answers[verb] = await VERBS[verb](backend, apple)
            except StoreError as error:
                answers[verb] = error

        await asyncio.gather(*(ask(verb) for verb in READS))
        await asyncio.gather(*(ask(verb) for verb in changing))
    for verb in ("recall", "search", "list", "get", "all"):
        assert answers[verb], f"{verb} says that there is nothing"
    failures = {verb: type(answer) for verb, answer in answers.items() if isinstance(answer, StoreError)}
    assert set(failures.values()) <= {StoreUnavailableError, StoreBusyError}, failures
    after = await until_it_works(lambda: state_of(backend))
    surely_not = {verb for verb in changing if verb in failures and "outcome unknown" not in str(answers[verb])}
    if surely_not == set(changing):
        assert after == before
    if "store" in surely_not:
        assert "pear" not in {content for content, *_ in after.memories.values()}
    if "delete" in surely_not:
        assert apple in after.memories
    assert await until_it_works(lambda: backend.store_memory("pear", "semantic"))
    await state_of(patient)
    await backend.close()
    await patient.close()


async def test_a_slot_that_stays_under_way_is_a_typed_error(movable: Cluster) -> None:
    """Writes fail in time, change nothing, and no error speaks of a loss."""
    movable.flush()
    patient, backend = backend_on(url_of(movable)), backend_on(url_of(movable), limit=LIMIT)
    assert await patient.initialize()
    apple = await patient.store_memory("apple", "semantic")
    before = await state_of(patient)
    await eventually(backend.initialize)
    slot = movable.slot_of(KEYS.slot)
    with movable.moving(slot, other_than(movable, movable.master_of(slot))):
        errors = await failures_of(backend, apple, {name: WRITES[name] for name in ("store", "store_batch", "delete")})
    assert {type(error) for error in errors.values()} == {StoreUnavailableError}
    assert await until_it_works(lambda: state_of(backend)) == before
    await backend.close()
    await patient.close()


async def test_a_master_that_dies_loses_nothing_that_a_replica_has_confirmed(own_cluster: Cluster) -> None:
    """With `[redis] replicas = 1`, every acknowledged memory is on the replica that takes the master's place."""
    own_cluster.flush()
    backend = backend_on(url_of(own_cluster), limit=FAILOVER, replicas=1)
    await eventually(backend.initialize)
    share = 3 * own_cluster.slot_of(KEYS.slot) // 16_384
    async with Storm(backend) as storm:
        await storm.until(100)
        dead = await asyncio.to_thread(own_cluster.kill_master, share)
        await asyncio.to_thread(own_cluster.wait_ok)
        with own_cluster.calm():  # or it may take the place back before it has anything
            await asyncio.to_thread(dead.start)  # as a replica, so that there is somebody to confirm
            await asyncio.to_thread(own_cluster.wait_ok)
            await storm.until(50)
    assert storm.errors.keys() <= {"StoreUnavailableError", "StoreBusyError"}
    await until_it_works(lambda: storm.settled(backend))
    await backend.close()


async def test_a_master_that_dies_under_sentinels_loses_nothing_that_is_confirmed(replicated: Replicated) -> None:
    """The same with a master and a replica that Sentinels watch."""
    ports = ",".join(f"{HOST}:{port}" for port in replicated.sentinel_ports)
    replicated.calm()  # but for the master that is killed
    backend = backend_on(f"redis+sentinel://{ports}/{replicated.NAME}", limit=FAILOVER, replicas=1)
    await eventually(backend.initialize)
    async with Storm(backend) as storm:
        await storm.until(100)
        dead = replicated.master
        heir = await asyncio.to_thread(replicated.fail_over)
        await asyncio.to_thread(dead.start)
        dead.ask("REPLICAOF", HOST, heir.port)  # as the Sentinels do it some seconds later
        await storm.until(50)
    assert storm.errors.keys() <= {"StoreUnavailableError", "StoreBusyError"}
    await until_it_works(lambda: storm.settled(backend))
    await backend.close()


async def test_a_store_without_its_replica_confirms_nothing(server_program: Program) -> None:
    """With `replicas = 1` and no replica, a store is a typed error that says so; it works when the replica is back."""
    with Replicated(server_program, sentinels=0) as group:
        master, replica = group.servers
        patient, backend = backend_on(master.url, replicas=1), backend_on(master.url, replicas=1, limit=2 * LIMIT)
        assert await patient.initialize()
        apple = await patient.store_memory("apple", "semantic")
        await eventually(backend.initialize)
        await asyncio.to_thread(replica.kill)
        await until_it_says("not confirmed", lambda: backend.store_memory("pear", "semantic"))
        assert apple in {hit.id for hit in await until_it_works(lambda: backend.recall_memories("apple"))}
        await asyncio.to_thread(replica.start)
        replica.ask("REPLICAOF", HOST, master.port)
        await asyncio.to_thread(group.wait_synced)
        await until_it_works(lambda: backend.store_memory("fig", "semantic"))
        await state_of(patient)
        await backend.close()
        await patient.close()
