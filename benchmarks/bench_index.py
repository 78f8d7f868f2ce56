"""Exact vector search, int8 codes first and float32 for the candidates: `python benchmarks/bench_index.py`.

65,115 vectors of 384 numbers in five tiers, random ones and ones around 500 centres. Our index (int8 codes in memory,
float32 vectors in a table of SQLite, read for the candidates only) against scans of float32 in memory: numpy, and where
they are installed faiss, usearch and simsimd. Every answer is compared with a float64 scan. The sides take turns
question by question. Also the memory that a process needs for either. Writes `benchmarks/results/index.json`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import numpy as np
from circumstances import circumstances
from numpy.typing import NDArray

from gemma_cli.rag.blocks import Rows
from gemma_cli.rag.candidates import Question, finish
from gemma_cli.rag.index import Changes, MemoryIndex
from gemma_cli.rag.memory import TIER_POLICIES, TIERS
from gemma_cli.rag.quantize import quantize
from gemma_cli.rag.ranking import Weights
from gemma_cli.rag.words import query_terms

RESULT = Path(__file__).parent / "results" / "index.json"
DIMENSION = 384
CENTRES = 500
BEST = 10
BY_MEANING = Weights(1.0, 0.0)
CAPACITIES = [TIER_POLICIES[tier].capacity for tier in TIERS]

Vectors = NDArray[np.float32]


def unit(rows: Any) -> Vectors:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def material(kind: str, count: int, asked: int) -> tuple[Vectors, Vectors]:
    """Vectors and questions; a question is a memory with some noise."""
    numbers = np.random.default_rng(7)
    noise = 1 / np.sqrt(DIMENSION)
    vectors = numbers.standard_normal((count, DIMENSION), dtype=np.float32)
    if kind == "clustered":
        centres = unit(numbers.standard_normal((CENTRES, DIMENSION)))
        vectors = centres[numbers.integers(0, CENTRES, count)] + 0.8 * noise * vectors
    vectors = unit(vectors)
    near = vectors[numbers.integers(0, count, asked)]
    return vectors, unit(near + 0.8 * noise * numbers.standard_normal((asked, DIMENSION)))


def indexed(vectors: Vectors) -> MemoryIndex:
    index = MemoryIndex(DIMENSION)
    tiers = np.repeat(np.arange(5, dtype=np.uint8), CAPACITIES)
    for start in range(0, len(vectors), 8192):
        part = vectors[start : start + 8192]
        codes = quantize(part)
        rows = Rows(
            rows=np.arange(start, start + len(part)),
            importance=np.full(len(part), 0.5),
            times=np.zeros(len(part)),
            expires=np.full(len(part), np.inf),
            codes=codes.codes,
            scales=codes.scales,
            errors=codes.errors,
            terms=[b""] * len(part),
        )
        index.apply(
            Changes(sequence=start, reset=False, removed=(), added=rows, tiers=tiers[start : start + len(part)])
        )
    return index


def top(scores: NDArray[Any]) -> list[int]:
    picked = np.argpartition(-scores, BEST)[:BEST]
    found: list[int] = picked[np.argsort(-scores[picked])].tolist()
    return found


def peers(vectors: Vectors) -> dict[str, Callable[[Vectors], list[int]]]:
    """What is installed, each with its exact search of float32 vectors and its own default of threads."""
    found: dict[str, Callable[[Vectors], list[int]]] = {"numpy float32": lambda q: top(vectors @ q)}
    try:  # first: it refuses every matrix when it is imported after faiss and usearch
        import simsimd  # type: ignore[import-not-found]

        found["simsimd cdist float32"] = lambda q: top(
            -np.asarray(simsimd.cdist(q[None], vectors, metric="sqeuclidean"), np.float32)[0]
        )
    except ImportError:
        print("simsimd is not installed; left out")
    try:
        import faiss  # type: ignore[import-not-found]

        flat = faiss.IndexFlatIP(DIMENSION)
        flat.add(vectors)
        found["faiss IndexFlatIP"] = lambda q: flat.search(q[None], BEST)[1][0].tolist()
    except ImportError:
        print("faiss is not installed; left out")
    try:
        from usearch.index import MetricKind, search  # type: ignore[import-not-found]

        found["usearch exact"] = lambda q: search(vectors, q, BEST, MetricKind.IP, exact=True).keys.tolist()
    except ImportError:
        print("usearch is not installed; left out")
    return found


def summary(milliseconds: list[float]) -> dict[str, float]:
    ordered = sorted(milliseconds)
    return {"p50_ms": round(statistics.median(ordered), 3), "p95_ms": round(ordered[int(0.95 * len(ordered))], 3)}


def compare(kind: str, count: int, asked: int) -> dict[str, Any]:
    vectors, questions = material(kind, count, asked)
    index = indexed(vectors)
    rivals = peers(vectors)
    times: dict[str, list[float]] = {}
    kept: dict[str, int] = dict.fromkeys(rivals, 0) | {"ours": 0}
    candidates_read = []
    with tempfile.TemporaryDirectory() as folder:
        db = apsw.Connection(str(Path(folder) / "vectors.db"))
        db.pragma("page_size", 8192)
        db.pragma("cache_size", -16_384)
        db.execute("CREATE TABLE vectors(row INTEGER PRIMARY KEY, vector BLOB NOT NULL) STRICT")
        with db:
            db.executemany("INSERT INTO vectors VALUES(?, ?)", ((i, v.tobytes()) for i, v in enumerate(vectors)))
        for q in questions:
            exact = vectors.astype(np.float64) @ q.astype(np.float64)
            best = set(top(exact))
            question = Question(vector=q, terms=query_terms(""), weights=BY_MEANING, limit=BEST)
            start = time.perf_counter()
            [found] = index.candidates([question], 0.0)
            scanned = time.perf_counter()
            blobs = [db.execute("SELECT vector FROM vectors WHERE row = ?", (row,)).get for row in found.rows.tolist()]
            hits = finish(found, np.frombuffer(b"".join(blobs), np.float32).reshape(len(blobs), DIMENSION)).hits()
            end = time.perf_counter()
            times.setdefault("ours: pass over the codes", []).append(1e3 * (scanned - start))
            times.setdefault("ours: candidates read and ordered", []).append(1e3 * (end - scanned))
            times.setdefault("ours", []).append(1e3 * (end - start))
            candidates_read.append(len(found.rows))
            kept["ours"] += len(best & {hit.row for hit in hits})
            for name, run in rivals.items():
                start = time.perf_counter()
                rows = run(q)
                times.setdefault(name, []).append(1e3 * (time.perf_counter() - start))
                kept[name] += len(best & set(rows))
        db.close()
    ordered = sorted(candidates_read)
    return {
        "times": {name: summary(values) for name, values in times.items()},
        "recall_at_10": {name: right / (BEST * asked) for name, right in kept.items()},
        "candidates": {"p50": ordered[asked // 2], "p95": ordered[int(0.95 * asked)], "max": ordered[-1]},
        "codes_bytes_per_memory": round(index.nbytes / count, 1),
    }


def resident(kind: str, count: int) -> None:
    """Prints the resident megabytes that a fresh process gains by the index, or by float32 vectors alone."""

    def rss() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

    part = np.ones((8192, DIMENSION), np.float32)
    before = rss()
    numbers = np.random.default_rng(7)
    if kind == "codes":
        index = MemoryIndex(DIMENSION)
        tiers = np.repeat(np.arange(5, dtype=np.uint8), CAPACITIES)
        for start in range(0, count, 8192):
            size = min(8192, count - start)
            numbers.standard_normal(out=part, dtype=np.float32)
            codes = quantize(part[:size])
            filled = Rows(
                rows=np.arange(start, start + size),
                importance=np.full(size, 0.5),
                times=np.zeros(size),
                expires=np.full(size, np.inf),
                codes=codes.codes,
                scales=codes.scales,
                errors=codes.errors,
                terms=[b""] * size,
            )
            index.apply(Changes(start, False, (), filled, tiers[start : start + size]))
        del codes, filled
        assert len(index) == count
    else:
        kept = np.empty((count, DIMENSION), np.float32)
        for start in range(0, count, 8192):
            numbers.standard_normal(out=part, dtype=np.float32)
            kept[start : start + 8192] = part[: min(8192, count - start)]
    print(rss() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--resident", choices=["codes", "float32"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    count = sum(CAPACITIES)
    if options.resident:
        resident(options.resident, count)
        return
    grown = {}
    for kind in ("codes", "float32"):
        command = [sys.executable, __file__, "--resident", kind]
        grown[kind] = round(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout), 1)
    result = {
        "circumstances": circumstances(["apsw", "numkong", "faiss-cpu", "usearch", "simsimd"]),
        "command": " ".join(["python", "benchmarks/bench_index.py", *sys.argv[1:]]),
        "entries": count,
        "questions": options.questions,
        "resident_mb_gained": grown,
        **{kind: compare(kind, count, options.questions) for kind in ("clustered", "random")},
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
