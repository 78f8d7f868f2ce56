"""Processes that work on a place at once, for `bench_redis.py`: each holds backends for some namespaces and does what
its parent says, line by line, all of them at the same time."""

import asyncio
import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from bench_memory import Material, settings, spread

from gemma_cli.rag import MemoryEntry, MemoryTier, PythonRAGBackend

QUESTIONS: Final = 500
POOL: Final = 500
OPENED_TOGETHER: Final = 16


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker works on. namespaces: those of this worker; fill: memories stored in each, 0 for none."""

    url: str
    namespaces: tuple[str, ...]
    fill: int = 0
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Phase:
    """For so many seconds, so many callers of each worker do one thing after the other.

    work: "recalls" (the vector given by a table) or "writes" (one memory each); busy: how many of a worker's
    namespaces are worked on, 0 for all; once: every one of these once, in place of `seconds`."""

    work: str
    callers: int
    seconds: float
    busy: int = 0
    once: bool = False


class Worker:
    """The backends of a job and the material for it."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._material = Material(seed=job.seed)
        self._questions = self._material.questions(QUESTIONS)
        self._texts = [self._material.text() for _ in range(POOL)]
        self._vectors = self._material.vectors(POOL)
        self._chance = random.Random(job.seed)
        self._numbers = itertools.count()
        self._backends = [
            PythonRAGBackend(url=job.url, namespace=name, embedder=self._material, settings=settings())
            for name in job.namespaces
        ]

    async def open(self) -> None:
        for start in range(0, len(self._backends), OPENED_TOGETHER):
            await asyncio.gather(*(self._prepare(one) for one in self._backends[start : start + OPENED_TOGETHER]))

    async def _prepare(self, backend: PythonRAGBackend) -> None:
        await backend.open()
        if self._job.fill:
            await backend.store_memories([self._memory() for _ in range(self._job.fill)])

    async def close(self) -> None:
        for backend in self._backends:
            await backend.close()

    def _memory(self) -> MemoryEntry:
        at = next(self._numbers) % POOL
        return MemoryEntry(self._texts[at], MemoryTier.SEMANTIC, 0.5, embedding=self._vectors[at])

    async def run(self, phase: Phase) -> list[float]:
        """Seconds of each call."""
        chosen = self._backends[: phase.busy or None]
        left = iter(chosen if phase.once else ())
        seconds: list[float] = []
        end = time.perf_counter() + phase.seconds

        async def caller() -> None:
            while (now := time.perf_counter()) < end or phase.once:
                backend = next(left, None) if phase.once else self._chance.choice(chosen)
                if backend is None:
                    return
                if phase.work == "writes":
                    await backend.store_memories([self._memory()])
                else:
                    await backend.recall_memories(self._chance.choice(self._questions), touch=False)
                seconds.append(time.perf_counter() - now)

        await asyncio.gather(*(caller() for _ in range(phase.callers)))
        return seconds


async def serve() -> None:
    """The life of a worker process: a job on the first line of stdin, then phases; an answer on stdout for each."""
    given = json.loads(sys.stdin.readline())
    worker = Worker(Job(**{**given, "namespaces": tuple(given["namespaces"])}))
    try:
        await worker.open()
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            start = time.perf_counter()
            seconds = await worker.run(Phase(**json.loads(line)))
            print(json.dumps({"calls": seconds, "seconds": time.perf_counter() - start}), flush=True)
    finally:
        await worker.close()


class Crew:
    """Worker processes, one for each job. `with Crew(jobs) as crew: crew.run(Phase(...))`"""

    def __init__(self, jobs: Sequence[Job]) -> None:
        command = [sys.executable, __file__]
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in jobs
        ]
        self._say(map(asdict, jobs))
        for process in self._processes:
            self._line(process)

    def run(self, phase: Phase) -> dict[str, Any]:
        """Calls a second of all workers together, and the spread of the calls' times."""
        self._say(asdict(phase) for _ in self._processes)
        answers = [json.loads(self._line(process)) for process in self._processes]
        calls = [second for answer in answers for second in answer["calls"]]
        return {"per_second": round(len(calls) / max(answer["seconds"] for answer in answers)), **spread(calls)}

    def _say(self, things: Iterable[Any]) -> None:
        for process, thing in zip(self._processes, things, strict=True):
            assert process.stdin is not None
            process.stdin.write(json.dumps(thing) + "\n")
            process.stdin.flush()

    @staticmethod
    def _line(process: "subprocess.Popen[str]") -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with {process.wait()}")
        return line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            process.stdout.read()
            process.wait()
            process.stdout.close()


if __name__ == "__main__":
    asyncio.run(serve())
