"""How the Redis store grows, for `bench_redis.py --scale`: masters under many namespaces, and what many users need.

On a machine whose cores the masters share with the callers, calls a second say little about masters. What one call
costs a master in processor time does: by it the needs are computed.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from redis_workers import Crew, Job, Phase
from server_groups import Cluster
from servers import Program, Server

PROCESSES: Final = 2
WRITERS: Final = (16, 64)
READERS: Final = 16
BUSY_SHARE: Final = 0.1
SECONDS_A_DAY: Final = 86_400


@dataclass(frozen=True, slots=True)
class Load:
    """namespaces: of all processes together; memories: in each at first; seconds: of each phase."""

    namespaces: int
    memories: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Users:
    """Assumptions. peak: the busiest second against the mean; busy: share of a master's core that may be used;
    gigabytes: memory of a master (10^9 bytes); filled: share of it that memories may take; copies: of each memory, the
    master's own included."""

    users: float = 1e6
    memories_each: float = 1_000
    writes_a_day: float = 20
    recalls_a_day: float = 50
    peak: float = 5
    busy: float = 0.5
    gigabytes: float = 64
    filled: float = 0.6
    copies: float = 2


def scaled(program: Program, masters: int, load: Load) -> dict[str, Any]:
    """Writes a second, recalls with the indexes of the busy namespaces kept, and each namespace's first recall."""
    names = [f"user {number}" for number in range(load.namespaces)]
    with Cluster(program, masters=masters, replicas=0) as cluster:
        empty = sum(used(node, "used_memory") for node in cluster.nodes)
        shares = [tuple(names[start::PROCESSES]) for start in range(PROCESSES)]
        with Crew([Job(cluster.url, share, load.memories, seed=len(share)) for share in shares]) as crew:
            memories = load.namespaces * load.memories
            taken = sum(used(node, "used_memory") for node in cluster.nodes) - empty
            costs: dict[str, float] = {"bytes_per_memory": round(taken / memories)}
            found: dict[str, Any] = {"memories": memories, "server_mb": round(taken / 1e6, 1)}
            for writers in WRITERS:
                phase = Phase("writes", writers // PROCESSES, load.seconds)
                found[f"writes, {writers} callers"], costs["us_per_write"] = watched(cluster, crew, phase)
            busy = max(1, round(load.namespaces * BUSY_SHARE / PROCESSES))
            first = Phase("recalls", READERS // PROCESSES, 0, busy=busy, once=True)
            found["first recall of a namespace"], costs["us_per_first_recall"] = watched(cluster, crew, first)
            phase = Phase("recalls", READERS // PROCESSES, load.seconds, busy=busy)
            title = f"recalls of {busy * PROCESSES} busy namespaces, {READERS} callers"
            found[title], costs["us_per_recall"] = watched(cluster, crew, phase)
            title = f"recalls of {busy * PROCESSES} busy namespaces, {PROCESSES} callers"
            found[title], _ = watched(cluster, crew, Phase("recalls", 1, load.seconds, busy=busy))
    return found | {"costs": costs}


def used(node: Server, name: str) -> float:
    return float(node.info()[name])


def processor_seconds(cluster: Cluster) -> list[float]:
    """Of each master since it was started."""
    return [used(node, "used_cpu_user") + used(node, "used_cpu_sys") for node in cluster.nodes]


def watched(cluster: Cluster, crew: Crew, phase: Phase) -> tuple[dict[str, Any], float]:
    """What a phase did, with the microseconds of processor time that a call cost the masters."""
    before = processor_seconds(cluster)
    done = crew.run(phase)
    spent = [after - earlier for after, earlier in zip(processor_seconds(cluster), before, strict=True)]
    cost = round(1e6 * sum(spent) / max(done["n"], 1), 1)
    return done | {"masters_us_per_call": cost, "busiest_master_share": round(max(spent) / sum(spent), 3)}, cost


def needs(users: Users, costs: Mapping[str, float]) -> dict[str, Any]:
    """What `users` need by the costs of one memory and one call.

    costs: `bytes_per_memory`; processor time of a master in microseconds: `us_per_write`, `us_per_recall` (the process
    knows the namespace), `us_per_first_recall` (it loads it, at the size that was measured; a larger one costs more).
    Masters: what memory and what time ask for, whichever is more; time once with the indexes kept, and once as if no
    process ever kept one."""
    memory = users.users * users.memories_each * costs["bytes_per_memory"]
    per_second = users.users * users.peak / SECONDS_A_DAY
    writes, recalls = users.writes_a_day * per_second, users.recalls_a_day * per_second
    write_us, kept_us = costs["us_per_write"], costs["us_per_recall"]
    loaded_us = max(kept_us, costs["us_per_first_recall"])
    by_memory = math.ceil(round(memory / (users.gigabytes * 1e9 * users.filled), 6))
    cores = {
        "indexes kept": (writes * write_us + recalls * kept_us) / 1e6,
        "each recall loads its index": (writes * write_us + recalls * loaded_us) / 1e6,
    }
    by_time = {name: math.ceil(round(core / users.busy, 6)) for name, core in cores.items()}
    return {
        "assumptions": asdict(users),
        "costs": {name: costs[name] for name in sorted(costs)},
        "memory_gb": round(memory / 1e9, 1),
        "memory_gb_with_copies": round(users.copies * memory / 1e9, 1),
        "writes_per_second_at_peak": round(writes),
        "recalls_per_second_at_peak": round(recalls),
        "writes_per_second_a_master": round(users.busy * 1e6 / write_us),
        "masters_by_memory": by_memory,
        "masters_by_time": by_time,
        "masters": max(by_memory, *by_time.values()),
    }
