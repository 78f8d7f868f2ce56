"""The server under load: `python benchmarks/bench_server.py [--memories N] [--seconds S] [--viewers N] [--callers N]`.

`gemma-rag serve` in a process of its own, on a file of 10,000 memories (40 words, vectors given) and the real model;
viewers and callers in two more, on the same cores. Callers ask distinct questions: each alone, all as fast as answers
come, and all once a second, with viewers of the live stream and without. The peer is the same backend called in one
process, without HTTP. Writes `benchmarks/results/server.json`.
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import server_load
from bench_memory import Material
from circumstances import save

from gemma_cli.rag import MemoryTier, PythonRAGBackend

RESULT = Path(__file__).parent / "results" / "server.json"
SUBJECTS = "the ferry, the lamp, the harbour, my sister, the invoice, a dentist, our flight, the garden".split(", ")
TOGETHER = 1_000


def questions(seed: int) -> Iterator[str]:
    """Distinct ones: a kept answer would measure the cache."""
    for number in itertools.count(1_000_000 * seed):
        yield f"When was {SUBJECTS[number % len(SUBJECTS)]} number {number} seen for the last time?"


async def fill(url: str, memories: int) -> None:
    material = Material()
    async with PythonRAGBackend(url=url) as backend:
        for start in range(0, memories, TOGETHER):
            count = min(TOGETHER, memories - start)
            await backend.store_memories(material.entries(MemoryTier.SEMANTIC, count))


async def without_http(url: str, callers: int, seconds: float) -> server_load.Calls:
    """The same questions put to a backend in this process."""
    calls, asked = server_load.Calls(), questions(1)
    async with PythonRAGBackend(url=url) as backend:
        await backend.recall_memories("warm")
        end = time.perf_counter() + seconds

        async def caller() -> None:
            while (start := time.perf_counter()) < end:
                await backend.recall_memories(next(asked))
                calls.seconds.append(time.perf_counter() - start)

        await asyncio.gather(*(caller() for _ in range(callers)))
    return calls


@contextlib.contextmanager
def serving(store: str) -> Iterator[tuple[str, int]]:
    """A server on a free port: its URL and its process's id. It must end cleanly."""
    command = [sys.executable, "-m", "gemma_cli", "--url", store, "serve", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = next(line for line in process.stderr if "listening on" in line)
        match = re.search(r"http://\S+", said)
        assert match is not None, said
        yield match[0].rstrip("/"), process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said


def rss_mb(pid: int) -> float | None:
    """Resident memory; None where the system has no /proc."""
    with contextlib.suppress(OSError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)
    return None


def call(url: str, callers: int, seconds: float, seed: int, pause: float) -> server_load.Calls:
    return asyncio.run(server_load.recalls(url, callers, seconds, questions(seed), pause))


def view(url: str, viewers: int, seconds: float) -> server_load.Views:
    return asyncio.run(server_load.views(url, viewers, seconds))


def told(calls: server_load.Calls, seconds: float) -> dict[str, Any]:
    ordered = sorted(calls.seconds)
    if not ordered:
        raise SystemExit(f"no call was answered: {calls.errors[:1]}")
    return {
        "calls": len(ordered),
        "errors": len(calls.errors),
        "first_error": next(iter(calls.errors), None),
        "per_second": round(len(ordered) / seconds, 1),
        "p50_ms": round(1e3 * statistics.median(ordered), 2),
        "p95_ms": round(1e3 * ordered[int(0.95 * (len(ordered) - 1))], 2),
        "max_ms": round(1e3 * ordered[-1], 2),
    }


def seen(views: server_load.Views, seconds: float) -> dict[str, Any]:
    """Samples that came in time are one a second."""
    gaps = [later - earlier for times in views.samples for earlier, later in itertools.pairwise(times)]
    counts = [len(times) for times in views.samples]
    return {
        "viewers": len(counts),
        "errors": len(views.errors),
        "first_error": next(iter(views.errors), None),
        "seconds": round(seconds, 1),
        "samples_fewest": min(counts),
        "samples_most": max(counts),
        "longest_gap_s": round(max(gaps, default=0.0), 2),
    }


def measured(options: argparse.Namespace, store: str) -> dict[str, Any]:
    seconds, callers = options.seconds, options.callers
    figures: dict[str, Any] = {
        "without HTTP, one caller": told(asyncio.run(without_http(store, 1, seconds)), seconds),
        f"without HTTP, {callers} callers": told(asyncio.run(without_http(store, callers, seconds)), seconds),
    }
    with serving(store) as (url, pid), ProcessPoolExecutor(2) as clients:
        clients.submit(call, url, 1, 2.0, 2, 0.0).result()  # the model is loaded, the index read
        rss = {"warm": rss_mb(pid)}
        cases = [
            ("one caller", 1, 0.0),
            (f"{callers} callers", callers, 0.0),
            (f"{callers} callers, one call a second each", callers, 1.0),
        ]
        for seed, (name, count, pause) in enumerate(cases, 3):
            figures[name] = told(clients.submit(call, url, count, seconds, seed, pause).result(), seconds)
        rss["after callers"] = rss_mb(pid)
        watched = (len(cases) + 1) * seconds + 2
        watching = clients.submit(view, url, options.viewers, watched)
        time.sleep(2.0)
        rss["with viewers"] = rss_mb(pid)
        for seed, (name, count, pause) in enumerate(cases, 3 + len(cases)):
            figures[f"{name}, {options.viewers} viewers"] = told(
                clients.submit(call, url, count, seconds, seed, pause).result(), seconds
            )
        figures["viewers"] = seen(watching.result(), watched)
        rss["at the end"] = rss_mb(pid)
    return figures | {"rss_mb": rss}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memories", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--viewers", type=int, default=200)
    parser.add_argument("--callers", type=int, default=50)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{folder}/memory.db"
        asyncio.run(fill(store, options.memories))
        figures = measured(options, store)
    facts = {name: getattr(options, name) for name in ("memories", "seconds", "viewers", "callers")}
    save(options.out, figures, ("starlette", "uvicorn", "openvino"), benchmark="server", **facts)


if __name__ == "__main__":
    main()
