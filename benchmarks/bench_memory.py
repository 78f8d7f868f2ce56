"""The embedded store with all tiers full: `python benchmarks/bench_memory.py [--entries N] [--rounds N] [--no-model]`.

65,115 memories of 40 words (Zipf-distributed) with 384 wide vectors around 500 centres, made with a fixed seed. Peers
in the same run, on the same vectors: a numpy float32 scan and, where it is installed, sqlite-vec (vectors and contents
in one file, as its documentation shows). Where the question's vector is given, neither side embeds anything. Writes
`benchmarks/results/memory.json`.
"""

import argparse
import asyncio
import functools
import hashlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import numpy as np
from circumstances import save
from numpy.typing import NDArray

from gemma_cli.rag import MemoryConsolidator, MemoryEntry, MemoryTier, PythonRAGBackend, load_settings
from gemma_cli.rag.memory import TIER_POLICIES

RESULT = Path(__file__).parent / "results" / "memory.json"
DIMENSION = 384
CENTRES = 500
WORDS = 20_000
WORDS_PER_MEMORY = 40
STOP_WORDS = 20
"""The commonest words of a language are in no index: Zipf's law begins after them."""
LOADED_TOGETHER = 1_000
CALLERS = 16
TAGGED = 100
"""Every so many-th memory carries the tag that is filtered by."""

Vectors = NDArray[np.float32]


class Material:
    """Texts and vectors from a fixed seed; also the embedder, which knows the vector of every text that it gave out."""

    def __init__(self, seed: int = 7) -> None:
        self._random = random.Random(seed)
        self._numbers = np.random.default_rng(seed)
        self._centres = self._unit(self._numbers.standard_normal((CENTRES, DIMENSION)))
        self._weights = [1 / (rank + STOP_WORDS) for rank in range(WORDS)]
        self._known: dict[str, Vectors] = {}

    @staticmethod
    def _unit(rows: NDArray[np.float64]) -> Vectors:
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def vectors(self, count: int) -> Vectors:
        near = self._centres[self._numbers.integers(0, CENTRES, count)]
        return self._unit(near + self._numbers.standard_normal((count, DIMENSION)) * 0.8 / np.sqrt(DIMENSION))

    def text(self, words: int = WORDS_PER_MEMORY) -> str:
        return " ".join(f"w{number:x}" for number in self._random.choices(range(WORDS), self._weights, k=words))

    def entries(self, tier: MemoryTier, count: int) -> list[MemoryEntry]:
        return [
            MemoryEntry(
                content=self.text(),
                memory_type=tier,
                importance=self._random.random() / 2,
                embedding=vector,
                tags={"rare"} if number % TAGGED == 0 else set(),
            )
            for number, vector in enumerate(self.vectors(count))
        ]

    def questions(self, count: int) -> list[str]:
        texts = [self.text(8) for _ in range(count)]
        self._known.update(zip(texts, self.vectors(count), strict=True))
        return texts

    def encode(self, texts: list[str]) -> Vectors:
        return np.stack([self._known[text] if text in self._known else self._made_up(text) for text in texts])

    def _made_up(self, text: str) -> Vectors:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
        return self._unit(np.random.default_rng(seed).standard_normal((1, DIMENSION)))[0]


def settings() -> Any:
    """The defaults, and no cache that could answer in the store's or the model's place."""
    uncached = {"GEMMA_RAG_EMBEDDING__CACHE_EMBEDDINGS": "false", "GEMMA_RAG_MEMORY__QUERY_CACHE_TTL": "0"}
    return load_settings(environ=uncached, cwd=Path(tempfile.gettempdir()))


def open_backend(path: Path, embedder: Any) -> PythonRAGBackend:
    return PythonRAGBackend(url=f"sqlite:///{path}", embedder=embedder, settings=settings())


def spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return {"p50_ms": round(1e3 * statistics.median(ordered), 4), "p95_ms": round(1e3 * p95, 4), "n": len(ordered)}


async def timed(calls: Iterator[Callable[[], Awaitable[Any]]]) -> list[float]:
    seconds = []
    for call in calls:
        start = time.perf_counter()
        await call()
        seconds.append(time.perf_counter() - start)
    return seconds


async def fill(backend: PythonRAGBackend, material: Material, entries: int) -> dict[str, Any]:
    """All tiers, in proportion to their capacities; returns what a thousand cost."""
    share = entries / sum(policy.capacity for policy in TIER_POLICIES.values())
    seconds = []
    for tier, policy in TIER_POLICIES.items():
        left = max(1, round(policy.capacity * share))
        while left:
            batch = material.entries(tier, min(left, LOADED_TOGETHER))
            start = time.perf_counter()
            await backend.store_memories(batch)
            if len(batch) == LOADED_TOGETHER:
                seconds.append(time.perf_counter() - start)
            left -= len(batch)
    return spread(seconds) if seconds else {}


async def recalls(backend: PythonRAGBackend, material: Material, rounds: int) -> dict[str, Any]:
    ways: dict[str, dict[str, Any]] = {
        "all tiers": {},
        "all tiers, with touch": {"touch": True},
        "one tier of 5,000": {"memory_type": "episodic"},
        "a tag on every hundredth": {"tags": ["rare"]},
    }
    result = {}
    for name, options in ways.items():
        ask = functools.partial(backend.recall_memories, **{"touch": False} | options)
        asked = material.questions(rounds)
        result[f"recall, {name}"] = spread(await timed(functools.partial(ask, question) for question in asked))
    asked = material.questions(rounds)
    result["search by words"] = spread(await timed((lambda q=q: backend.search_memories(q, limit=5)) for q in asked))
    return result


async def crowd(backend: PythonRAGBackend, material: Material, rounds: int) -> dict[str, float]:
    """Recalls a second with many callers at once, each asking one after the other."""

    async def caller(asked: list[str]) -> None:
        for question in asked:
            await backend.recall_memories(question, touch=False)

    portions = [material.questions(max(rounds // 4, 5)) for _ in range(CALLERS)]
    start = time.perf_counter()
    await asyncio.gather(*(caller(portion) for portion in portions))
    return {"per_second": round(sum(map(len, portions)) / (time.perf_counter() - start))}


async def writes(backend: PythonRAGBackend, material: Material, rounds: int) -> dict[str, Any]:
    """Stores into the full semantic tier: each one makes room, too."""
    ones = material.entries(MemoryTier.SEMANTIC, rounds)
    one = await timed((lambda e=e: backend.store_memories([e])) for e in ones)
    thousands = [material.entries(MemoryTier.SEMANTIC, 1_000) for _ in range(5)]
    thousand = await timed((lambda b=b: backend.store_memories(b)) for b in thousands)
    return {"store one, tier full": spread(one), "store 1,000, tier full": spread(thousand)}


async def consolidation(directory: Path, material: Material) -> dict[str, Any]:
    """1,000 memories, half of which deserve promotion."""
    seconds = []
    for number in range(5):
        async with open_backend(directory / f"consolidate{number}.db", material) as backend:
            entries = material.entries(MemoryTier.EPISODIC, 1_000)
            for entry in entries[::2]:
                entry.importance, entry.access_count = 1.0, 20
            await backend.store_memories(entries)
            start = time.perf_counter()
            promoted = await MemoryConsolidator(backend).run_consolidation()
            seconds.append(time.perf_counter() - start)
            assert promoted == 500, promoted
    return spread(seconds)


async def cold(path: Path) -> None:
    """Runs in a process of its own: opens the file and recalls once, the vector given."""
    material = Material(seed=11)
    question = material.questions(1)[0]
    start = time.perf_counter()
    async with open_backend(path, material) as backend:
        await backend.recall_memories(question, touch=False)
        print(json.dumps({"seconds": time.perf_counter() - start}))


async def with_model(path: Path, rounds: int) -> None:
    """Runs in a process of its own: the real model, questions that it has not seen, and what the process occupies."""
    import resource

    from gemma_cli.rag import create_embedder

    model = create_embedder()
    material = Material(seed=13)
    asked = [f"What did they say about {material.text(2)} in the year {number}?" for number in range(rounds)]

    async with open_backend(path, Passing(model)) as backend:
        await backend.recall_memories("warm up", touch=False)
        seconds = await timed((lambda q=q: backend.recall_memories(q, touch=False)) for q in asked)
    print(json.dumps(spread(seconds) | {"rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


class Passing:
    """The real model in the place of the one that made the stored vectors: only times count here."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._probed = False

    def encode(self, texts: list[str]) -> Any:
        if not self._probed:  # the backend's question whether this is the model of the store
            self._probed = True
            return Material().encode(texts)
        return self._model.encode(texts)


def in_process(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def peers(path: Path, material: Material, rounds: int, directory: Path) -> dict[str, Any]:
    db = apsw.Connection(str(path))
    rows = list(db.execute("SELECT v.vector, m.content FROM vectors v JOIN memories m USING(row)"))
    vectors = np.frombuffer(b"".join(row[0] for row in rows), np.float32).reshape(-1, DIMENSION)
    result: dict[str, Any] = {}
    seconds = []
    for question in material.vectors(rounds):
        start = time.perf_counter()
        scores = vectors @ question
        best = np.argpartition(scores, -5)[-5:]
        best[np.argsort(-scores[best])]
        seconds.append(time.perf_counter() - start)
    result["numpy float32 scan, vectors only, all tiers"] = spread(seconds)
    try:
        import sqlite_vec
    except ImportError:
        return result | {"sqlite-vec": "not installed"}
    peer = apsw.Connection(str(directory / "sqlite_vec.db"))
    peer.enable_load_extension(True)
    peer.load_extension(sqlite_vec.loadable_path())
    peer.pragma("journal_mode", "wal")
    peer.pragma("synchronous", "normal")
    peer.execute(
        f"CREATE VIRTUAL TABLE memories USING vec0(vector float[{DIMENSION}] distance_metric=cosine, +content text)"
    )
    seconds = []
    for start_row in range(0, len(rows), LOADED_TOGETHER):
        part = rows[start_row : start_row + LOADED_TOGETHER]
        start = time.perf_counter()
        with peer:
            peer.executemany("INSERT INTO memories(vector, content) VALUES(?, ?)", part)
        if len(part) == LOADED_TOGETHER:
            seconds.append(time.perf_counter() - start)
    result["sqlite-vec, store 1,000"] = spread(seconds)
    seconds = []
    for question in material.vectors(max(rounds // 4, 5)):
        start = time.perf_counter()
        list(peer.execute("SELECT content FROM memories WHERE vector MATCH ? AND k = 5", (question.tobytes(),)))
        seconds.append(time.perf_counter() - start)
    result["sqlite-vec, recall, all tiers"] = spread(seconds)
    seconds = []
    for vector in material.vectors(rounds):
        start = time.perf_counter()
        peer.execute("INSERT INTO memories(vector, content) VALUES(?, ?)", (vector.tobytes(), rows[0][1]))
        seconds.append(time.perf_counter() - start)
    result["sqlite-vec, store one"] = spread(seconds)
    return result


async def run(entries: int, rounds: int, model: bool) -> dict[str, Any]:
    material = Material()
    figures: dict[str, Any] = {"entries": entries}
    with tempfile.TemporaryDirectory(prefix="gemma-rag-bench-") as name:
        directory = Path(name)
        path = directory / "memory.db"
        async with open_backend(path, material) as backend:
            figures["store 1,000, while filling"] = await fill(backend, material, entries)
            figures |= await recalls(backend, material, rounds)
            figures[f"recall, {CALLERS} callers"] = await crowd(backend, material, rounds)
            figures |= await writes(backend, material, rounds)
            stored = sum((await backend.get_memory_stats()).values())
        size = path.stat().st_size
        figures["file"] = {"mb": round(size / 1e6, 1), "bytes_per_memory": round(size / stored), "memories": stored}
        opened = [in_process("--cold", str(path))["seconds"] for _ in range(5)]
        figures["cold open and first recall"] = spread(opened)
        if model:
            figures["recall end to end, question embedded"] = in_process(
                "--with-model", str(path), "--rounds", str(rounds)
            )
        figures["consolidate 1,000"] = await consolidation(directory, material)
        figures["peers"] = peers(path, material, rounds, directory)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=sum(policy.capacity for policy in TIER_POLICIES.values()))
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--no-model", action="store_true", help="leave out what needs the embedding model")
    parser.add_argument("--cold", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--with-model", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cold:
        asyncio.run(cold(given.cold))
    elif given.with_model:
        asyncio.run(with_model(given.with_model, given.rounds))
    else:
        figures = asyncio.run(run(given.entries, given.rounds, not given.no_model))
        save(RESULT, figures, ("apsw", "numkong", "openvino", "sqlite-vec"))


if __name__ == "__main__":
    main()
