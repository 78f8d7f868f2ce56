"""What a server does with the bytes of a memory when nothing else is asked of it, for `bench_redis.py`."""

import csv
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from redis.asyncio import Redis

from gemma_cli.rag.memory import MemoryEntry
from gemma_cli.rag.stores.redis_rows import encode

if TYPE_CHECKING:
    from servers import Server

TOOLS: Final = ("redis-benchmark", "valkey-benchmark")
KEYS: Final = 10_000
PIPELINE: Final = 16
CALLERS: Final = 16


def find_tool(named: Path | None, servers: Iterable[Path]) -> Path | None:
    """`redis-benchmark`: the one that was named, else one beside a server, else one on PATH; None: there is none."""
    if named is not None:
        return named
    beside = [path.parent / name for path in servers for name in TOOLS]
    on_path = [Path(found) for name in TOOLS if (found := shutil.which(name))]
    return next((path for path in (*beside, *on_path) if path.exists()), None)


def fields(entry: MemoryEntry) -> dict[str, bytes]:
    """The fields of a memory as our store writes them."""
    [(_, numbers, found)] = encode([entry])
    return {"s": numbers} | {
        name: value if isinstance(value, bytes) else value.encode() for name, value in found.items()
    }


def padded(values: dict[str, bytes]) -> list[str]:
    """Names and values of the same lengths without bytes that a command line can't hold."""
    return [word for name, value in values.items() for word in (name, "x" * len(value))]


def parsed(text: str) -> dict[str, float]:
    """The last line of redis-benchmark's CSV. Raises ValueError for anything else."""
    rows = [row for row in csv.reader(text.splitlines()) if row]
    if len(rows) < 2 or "rps" not in rows[0]:
        raise ValueError(f"no table of redis-benchmark: {text[:200]!r}")
    row = dict(zip(rows[0][1:], map(float, rows[-1][1:]), strict=True))
    return {
        "per_second": round(row["rps"]),
        "p50_ms": row["p50_latency_ms"],
        "p95_ms": row["p95_latency_ms"],
    }


def measured(tool: Path, port: int, requests: int, command: Sequence[str], *, callers: int, pipeline: int) -> Any:
    options = ["-p", port, "-n", requests, "-c", callers, "-P", pipeline, "-r", KEYS, "--csv", "--precision", 3]
    line = [str(tool), *map(str, options), *command]
    return parsed(subprocess.run(line, capture_output=True, text=True, check=True).stdout)


def by_tool(tool: Path | None, server: "Server", entry: MemoryEntry, requests: int) -> dict[str, Any]:
    """SET and HSET of a memory's bytes by redis-benchmark; latencies are of a whole pipeline."""
    if tool is None:
        return {"skipped": "no redis-benchmark beside a server or on PATH"}
    values = fields(entry)
    size = sum(map(len, values.values()))
    commands = {
        "SET": ("SET", "bare:__rand_int__", "x" * size),
        "HSET": ("HSET", "bareh:__rand_int__", *padded(values)),
    }
    ways = {
        "one caller": (1, 1),
        f"{CALLERS} callers": (CALLERS, 1),
        f"one caller, pipeline of {PIPELINE}": (1, PIPELINE),
    }
    result: dict[str, Any] = {"bytes": size}
    for name, command in commands.items():
        for way, (callers, pipeline) in ways.items():
            result[f"{name}, {way}"] = measured(
                tool, server.port, requests, command, callers=callers, pipeline=pipeline
            )
    server.flush()
    return result


async def by_client(server: "Server", entry: MemoryEntry, rounds: int) -> dict[str, list[float]]:
    """Seconds of a PING and of an HSET of the same bytes through redis-py: what any client in Python pays."""
    values: Any = fields(entry)
    seconds: dict[str, list[float]] = {"PING": [], "HSET": []}
    client: Any = Redis.from_url(server.url)
    try:
        for number in range(rounds):
            start = time.perf_counter()
            await client.ping()
            middle = time.perf_counter()
            await client.hset(f"bare:{number}", mapping=values)
            seconds["PING"].append(middle - start)
            seconds["HSET"].append(time.perf_counter() - middle)
    finally:
        await client.aclose()
    server.flush()
    return seconds
