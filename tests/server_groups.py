"""Several servers that belong together: a master with replica and Sentinels, a cluster."""

import atexit
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Final, Self

from server_lines import HOST, ServerError, line_to, wait_until
from servers import Option, Program, Sentinel, Server, programs

SLOTS: Final = 16_384
CALM: Final = 30_000
"""ms without an answer that no server reaches, however busy the machine is: none is taken for lost."""


class Group:
    """Servers that start and end together."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def _start(self, servers: Sequence[Server]) -> None:
        for server in servers:
            self._stack.push(server)  # first, so that none is left if one does not start
        with ThreadPoolExecutor(len(servers)) as pool:
            list(pool.map(Server.start, servers))

    def close(self) -> None:
        self._stack.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def wait_each(what: str, servers: Sequence[Server], holds: Callable[[Server], object]) -> None:
    """Returns once `holds(server)` has been true of each, one after the other."""
    for server in servers:
        wait_until(f"{what} (port {server.port})", partial(holds, server))


def counted(replica: Server, master: Server) -> bool:
    """Their link is up in the eyes of both: the master counts the replica among those that may confirm a write."""
    told = [value for name, value in master.info().items() if re.fullmatch(r"slave\d+", name)]
    return replica.info().get("master_link_status") == "up" and any(
        f"port={replica.port},state=online," in value for value in told
    )


def role(server: Server) -> str:
    """ "master", "slave", or "down" where nothing answers, which takes its time where the server is paused."""
    try:
        return str(server.ask("ROLE", seconds=10)[0].decode())
    except (OSError, ServerError):
        return "down"


class Replicated(Group):
    """A master, its replica, and Sentinels that promote the replica when the master is gone.

    sentinels: 0 for none; then `promote` is by hand. down_after: ms without an answer after which a Sentinel takes the
    master for lost. options: of both servers.
    """

    NAME: Final = "mymaster"

    def __init__(
        self, program: Program | None = None, *, sentinels: int = 3, down_after: int = 500, **options: Option
    ) -> None:
        super().__init__()
        self.program = program
        self.servers = (Server(program, **options), Server(program, **options))
        self.sentinels: tuple[Sentinel, ...] = ()
        self._wanted = sentinels
        self._down_after = down_after
        self._watched_for = CALM

    def __enter__(self) -> Self:
        first, second = self.servers
        try:
            self._start([first, second])
            second.ask("REPLICAOF", HOST, first.port)
            self.wait_synced()
            if self._wanted:
                self._start_sentinels(first.port)
        except BaseException:
            self.close()
            raise
        return self

    def _start_sentinels(self, port: int) -> None:
        watch = [
            f"monitor {self.NAME} {HOST} {port} {self._wanted // 2 + 1}",
            f"down-after-milliseconds {self.NAME} {CALM}",
            f"failover-timeout {self.NAME} {self._down_after * 6}",
        ]
        self.sentinels = tuple(Sentinel(self.program, sentinel=watch) for _ in range(self._wanted))
        self._start(self.sentinels)
        wait_each("it knows the replica and the other Sentinels", self.sentinels, self._complete)
        self._watch(self._down_after)

    def _watch(self, down_after: int) -> None:
        for sentinel in self.sentinels:
            sentinel.ask("SENTINEL", "SET", self.NAME, "down-after-milliseconds", down_after)
        self._watched_for = down_after

    def calm(self) -> None:
        """From now on, only the master that `fail_over` kills is taken for lost."""
        self._watch(CALM)

    def _complete(self, sentinel: Server) -> bool:
        flat = sentinel.ask("SENTINEL", "MASTER", self.NAME)
        known = dict(zip(flat[::2], flat[1::2], strict=True))
        return int(known[b"num-slaves"]) == 1 and int(known[b"num-other-sentinels"]) == self._wanted - 1

    @property
    def sentinel_ports(self) -> tuple[int, ...]:
        return tuple(sentinel.port for sentinel in self.sentinels)

    @property
    def master(self) -> Server:
        """The one that is master now. Raises ServerError if none or both are."""
        masters = [server for server in self.servers if role(server) == "master"]
        if len(masters) != 1:
            raise ServerError(f"{len(masters)} masters")
        return masters[0]

    @property
    def replica(self) -> Server:
        return next(server for server in self.servers if server is not self.master)

    def wait_synced(self) -> None:
        """Returns once the replica has what the master has, and the master counts it."""
        wait_until("the replica is in sync", lambda: counted(self.replica, self.master))

    def promote(self) -> Server:
        """Makes the replica a master by hand, of which no Sentinel knows; returns it."""
        chosen = next(server for server in self.servers if role(server) == "slave")
        chosen.ask("REPLICAOF", "NO", "ONE")
        return chosen

    def fail_over(self) -> Server:
        """Kills the master and waits until the Sentinels name the other, which is then master; returns it."""
        lost, heir = self.master, self.replica
        watched_for = self._watched_for
        self._watch(self._down_after)
        lost.kill()
        wait_until("the replica is promoted", lambda: role(heir) == "master")
        wait_each("the Sentinel names the new master", self.sentinels, lambda one: self._named_by(one) == heir.port)
        self._watch(watched_for)
        return heir

    def _named_by(self, sentinel: Server) -> int:
        return int(sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.NAME)[1])


class Cluster(Group):
    """Redis Cluster: `masters` masters that share the slots evenly, each with `replicas` replicas.

    node_timeout: ms without an answer after which a node counts as failed. options: of all nodes.
    `nodes`: the masters in the order of their slots, then their first replicas in that order, and so on; a failover
    does not change this tuple. A killed node can be started again with `start()`.
    """

    def __init__(
        self,
        program: Program | None = None,
        *,
        masters: int = 3,
        replicas: int = 1,
        node_timeout: int = 1000,
        **options: Option,
    ) -> None:
        super().__init__()
        settings: dict[str, Option] = {
            "cluster_enabled": True,
            "cluster_node_timeout": node_timeout,
            "cluster_replica_validity_factor": 0,  # a replica always stands for election
            "cluster_announce_ip": HOST,
        }
        self.masters = masters
        self._node_timeout = node_timeout
        self.nodes = tuple(Server(program, **settings | options) for _ in range(masters * (1 + replicas)))
        self._ids: dict[str, Server] = {}

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(node.url for node in self.nodes)

    @property
    def url(self) -> str:
        """All nodes as one URL."""
        return "redis+cluster://" + ",".join(f"{HOST}:{node.port}" for node in self.nodes)

    def __enter__(self) -> Self:
        try:
            self._start(self.nodes)
            with self.calm():  # a handshake is given up after this time too
                self._join()
        except BaseException:
            self.close()
            raise
        return self

    @contextmanager
    def calm(self) -> Iterator[None]:
        """Within the block no node is taken for lost, and no replica takes a master's place."""
        self._watch(CALM)
        try:
            yield
        finally:
            self._watch(self._node_timeout)

    def _watch(self, node_timeout: int) -> None:
        for node in self.living:
            node.ask("CONFIG", "SET", "cluster-node-timeout", node_timeout)

    def _join(self) -> None:
        self._ids = {node.ask("CLUSTER", "MYID").decode(): node for node in self.nodes}
        bounds = [SLOTS * i // self.masters for i in range(self.masters + 1)]
        for i, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", i + 1)  # or they would first have to settle who is older
            if i < self.masters:
                node.ask("CLUSTER", "ADDSLOTS", *range(bounds[i], bounds[i + 1]))
            for other in self.nodes[:i]:  # everybody to everybody: gossip alone takes seconds
                node.ask("CLUSTER", "MEET", HOST, other.port)
        wait_each("the node knows all others", self.nodes, self._knows_all)
        for i, node in enumerate(self.nodes[self.masters :]):
            node.ask("CLUSTER", "REPLICATE", self.id_of(self.nodes[i % self.masters]))
        self.wait_ok()

    def _knows_all(self, node: Server) -> bool:
        text = node.ask("CLUSTER", "NODES").decode()
        return all(name in text for name in self._ids) and "handshake" not in text

    def id_of(self, node: Server) -> str:
        return next(name for name, other in self._ids.items() if other is node)

    @property
    def living(self) -> list[Server]:
        return [node for node in self.nodes if node.running]

    def wait_ok(self) -> None:
        """Returns once every running node says `cluster_state:ok` and names the same owners, all of them running, and
        every running replica is in sync, and counted by its master."""
        wait_each("the cluster is ok", self.living, lambda node: b"cluster_state:ok" in node.ask("CLUSTER", "INFO"))
        wait_until("the nodes agree on the owners of the slots", self._agreed)
        wait_each("the replica is in sync", self.living, self._synced)

    def _synced(self, node: Server) -> bool:
        told = node.info()
        if told["role"] == "master":
            return True
        return any(counted(node, other) for other in self.nodes if other.port == int(told["master_port"]))

    def _agreed(self) -> bool:
        views = [owners(node) for node in self.living]
        ports = {node.port for node in self.living}
        return all(view == views[0] for view in views) and {port for _, _, port in views[0]} <= ports

    def master_of(self, slot: int) -> Server:
        """The node that owns a slot, in the eyes of the first one that runs and answers."""
        for node in self.living:
            try:
                view = owners(node)
            except OSError:
                continue
            port = next((port for first, last, port in view if first <= slot <= last), 0)
            return next(other for other in self.nodes if other.port == port)
        raise ServerError("no node of the cluster runs")

    def slot_of(self, key: str | bytes) -> int:
        return int(self.living[0].ask("CLUSTER", "KEYSLOT", key))

    def kill_master(self, i: int) -> Server:
        """Kills the present master of the i-th share of the slots; returns it. The cluster is not waited for."""
        master = self.master_of(SLOTS * i // self.masters)
        master.kill()
        return master

    def fail_over(self, i: int) -> Server:
        """Kills the i-th master and waits until a replica has taken its place everywhere; returns the new master."""
        self.kill_master(i)
        self.wait_ok()
        return self.master_of(SLOTS * i // self.masters)

    @contextmanager
    def moving(self, slot: int, to: Server) -> Iterator[Server]:
        """Within the block the slot is on its way: keys that exist are still with the old owner (which is yielded), for
        others it answers ASK. At the end the keys are moved and `to` owns the slot."""
        with self.calm():
            source = self.master_of(slot)
            to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
            source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(to))
            yield source
            while self.move_keys(slot, source, to, 100):
                pass
            for node in (to, source, *(node for node in self.living if role(node) == "master")):
                node.ask("CLUSTER", "SETSLOT", slot, "NODE", self.id_of(to))
            self.wait_ok()

    def move_keys(self, slot: int, source: Server, to: Server, at_most: int) -> int:
        """Moves some of the keys of a slot that is on its way; returns how many."""
        with line_to(source.port) as ask:
            keys = ask("CLUSTER", "GETKEYSINSLOT", slot, at_most)
            if keys:
                ask("MIGRATE", HOST, to.port, "", 0, CALM, "KEYS", *keys)
        return len(keys)

    def move_slot(self, slot: int, to: Server) -> None:
        """Moves a slot with its keys to another master, as resharding does it."""
        with self.moving(slot, to):
            pass

    def flush(self) -> None:
        """Removes all keys, and all scripts."""
        for node in self.living:
            if role(node) == "master":
                node.flush()


def owners(node: Server) -> list[tuple[int, int, int]]:
    """First slot, last slot and the owner's port, in order, as the node sees it."""
    return sorted((entry[0], entry[1], entry[2][1]) for entry in node.ask("CLUSTER", "SLOTS"))


@cache
def _shared_cluster(program: Program | None) -> Cluster:
    cluster = Cluster(program, replicas=0, node_timeout=CALM).__enter__()
    atexit.register(cluster.close)
    return cluster


def shared_cluster(program: Program | None = None) -> Cluster:
    """The one cluster of 3 masters of this process and program that tests may share, empty. No test may kill a node or
    move a slot of it."""
    cluster = _shared_cluster(program or (programs() or (None,))[0])
    cluster.flush()
    return cluster
