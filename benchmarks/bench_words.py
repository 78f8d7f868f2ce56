"""Words by our own postings and by SQLite's FTS5, on the same texts: `python benchmarks/bench_words.py [--entries N]`.

65,115 texts of 40 words, Zipf-distributed over 20,000, with a fixed seed. Each question is 5 words of one text, put to
both sides in turn, so that company on the machine disturbs both alike. Writes `benchmarks/results/words.json`.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import numpy as np
from circumstances import circumstances

from gemma_cli.rag.blocks import Rows
from gemma_cli.rag.candidates import Question, finish
from gemma_cli.rag.index import Changes, MemoryIndex
from gemma_cli.rag.memory import TIER_POLICIES, TIERS
from gemma_cli.rag.quantize import quantize
from gemma_cli.rag.ranking import BY_WORDS, RECALL, Weights
from gemma_cli.rag.words import encode_terms, query_terms

RESULT = Path(__file__).parent / "results" / "words.json"
DIMENSION = 384
WORDS = 20_000
WORDS_PER_TEXT = 40
FUNCTION_WORDS = 100
"""The commonest words, which stand for those that a person would not ask for (and that we leave out of the index)."""
TOGETHER = 1_000
TABLE = "CREATE VIRTUAL TABLE words USING fts5(content, content='', contentless_delete=1, tokenize='porter unicode61')"


def texts(count: int, chance: random.Random) -> list[list[int]]:
    weights = [1 / (rank + 1) for rank in range(WORDS)]
    drawn = chance.choices(range(WORDS), weights, k=count * WORDS_PER_TEXT)
    return [drawn[i : i + WORDS_PER_TEXT] for i in range(0, len(drawn), WORDS_PER_TEXT)]


def spelled(ranks: list[int]) -> str:
    """Letters and figures that no stemmer changes, so that both sides index the same words."""
    return " ".join(f"w{rank}" for rank in ranks)


def asked(documents: list[list[int]], count: int, rarest_from: int, chance: random.Random) -> list[list[int]]:
    """Five different words of one text each, none of the `rarest_from` commonest."""
    found: list[list[int]] = []
    while len(found) < count:
        words = sorted({rank for rank in chance.choice(documents) if rank >= rarest_from})
        if len(words) >= 5:
            found.append(chance.sample(words, 5))
    return found


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return 1e3 * (time.perf_counter() - start), result


def summary(milliseconds: list[float]) -> dict[str, float]:
    ordered = sorted(milliseconds)
    return {"p50_ms": round(statistics.median(ordered), 3), "p95_ms": round(ordered[int(0.95 * len(ordered))], 3)}


def changes(start: int, packed: list[bytes], vectors: Any, tiers: Any) -> Changes:
    count = len(packed)
    codes = quantize(vectors)
    rows = Rows(
        rows=np.arange(start, start + count),
        importance=np.full(count, 0.5),
        times=np.zeros(count),
        expires=np.full(count, np.inf),
        codes=codes.codes,
        scales=codes.scales,
        errors=codes.errors,
        terms=packed,
    )
    return Changes(sequence=start, reset=False, removed=(), added=rows, tiers=tiers)


def build(contents: list[str], vectors: Any, tiers: Any) -> tuple[MemoryIndex, dict[str, Any]]:
    """The index, filled as a store's load fills it, and what the words cost."""
    encode_ms, packed = timed(lambda: [encode_terms(text) for text in contents])
    index = MemoryIndex(DIMENSION)
    all_changes = [
        changes(start, packed[start : start + 8192], vectors[start : start + 8192], tiers[start : start + 8192])
        for start in range(0, len(packed), 8192)
    ]

    def load() -> None:
        for change in all_changes:
            index.apply(change)

    load_ms, _ = timed(load)
    postings = sum(block.postings.nbytes for block in index._blocks.values())
    return index, {
        "encode_us_per_text": round(1e3 * encode_ms / len(packed), 2),
        "load_all_ms": round(load_ms, 1),
        "bytes_on_disk_per_text": round(sum(map(len, packed)) / len(packed), 1),
        "bytes_in_memory_per_text": round((postings + sum(map(sys.getsizeof, packed))) / len(packed), 1),
    }


def insertion(contents: list[str], vectors: Any, tiers: Any, index: MemoryIndex) -> dict[str, Any]:
    """Into the full index: texts to terms and into the postings, the vector's part excluded from the time."""
    count = len(contents)
    alone, start = [], 10_000_000
    for i in range(count):
        encode_ms, packed = timed(lambda i=i: [encode_terms(contents[i])])  # type: ignore[misc]
        change = changes(start + i, packed, vectors[i : i + 1], tiers[i : i + 1])
        apply_ms, _ = timed(lambda change=change: index.apply(change))  # type: ignore[misc]
        alone.append(encode_ms + apply_ms)
    encode_ms, packed = timed(lambda: [encode_terms(text) for text in contents])
    change = changes(start + count, packed, vectors[:count], tiers[:count])
    together_ms, _ = timed(lambda: index.apply(change))
    return {
        "one": summary(alone) | {"mean_ms": round(statistics.fmean(alone), 3)},
        f"{count}_together_ms": round(encode_ms + together_ms, 1),
    }


def question(words: list[int], weights: Weights, vector: Any) -> Question:
    return Question(vector=vector, terms=query_terms(spelled(words)), weights=weights, limit=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=sum(policy.capacity for policy in TIER_POLICIES.values()))
    parser.add_argument("--questions", type=int, default=200)
    options = parser.parse_args()
    chance, numbers = random.Random(7), np.random.default_rng(7)
    documents = texts(options.entries, chance)
    contents = [spelled(ranks) for ranks in documents]
    vectors = numbers.standard_normal((options.entries, DIMENSION), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    capacities = [TIER_POLICIES[tier].capacity for tier in TIERS]
    tiers = np.repeat(np.arange(5, dtype=np.uint8), capacities)[: options.entries]
    tiers = np.concatenate((tiers, np.full(options.entries - len(tiers), 4, np.uint8)))
    index, ours = build(contents, vectors, tiers)
    with tempfile.TemporaryDirectory() as folder:
        db = apsw.Connection(str(Path(folder) / "words.db"))
        db.pragma("journal_mode", "wal")
        db.pragma("synchronous", "normal")
        db.pragma("cache_size", -65_536)
        db.execute(TABLE)
        insert = "INSERT INTO words(rowid, content) VALUES(?, ?)"

        def fill() -> None:
            with db:
                db.executemany(insert, enumerate(contents))

        fill_ms, _ = timed(fill)
        optimize_ms, _ = timed(lambda: db.execute("INSERT INTO words(words) VALUES('optimize')"))
        used = db.execute("SELECT sum(pgsize) FROM dbstat WHERE name LIKE 'words%'").get
        theirs: dict[str, Any] = {
            "fill_all_ms": round(fill_ms, 1),
            "optimize_ms": round(optimize_ms, 1),
            "bytes_on_disk_per_text": round(used / options.entries, 1),
        }
        queries: dict[str, Any] = {}
        for kind, rarest_from in (("five words", FUNCTION_WORDS), ("five words, common ones too", 0)):
            taken: dict[str, list[float]] = {}
            matches = []
            for i, words in enumerate(asked(documents, options.questions, rarest_from, chance)):
                near = vectors[i * 7]
                by_words, hybrid = question(words, BY_WORDS, None), question(words, RECALL, near)
                match = " OR ".join(f'"w{rank}"' for rank in words)
                found = db.execute("SELECT count(*) FROM words WHERE words MATCH ?", (match,)).get
                matches.append(found)
                runs: dict[str, Callable[[], Any]] = {
                    "ours, by words": lambda: finish(index.candidates([by_words], 0.0)[0], None).hits(),  # noqa: B023
                    "ours, meaning and words": lambda: _hybrid(index, hybrid, vectors),  # noqa: B023
                    "fts5, best 10": lambda: db.execute(
                        "SELECT rowid, rank FROM words WHERE words MATCH ? ORDER BY rank LIMIT 10",
                        (match,),  # noqa: B023
                    ).fetchall(),
                    "fts5, every match scored": lambda: db.execute(
                        "SELECT rowid, bm25(words) FROM words WHERE words MATCH ?",
                        (match,),  # noqa: B023
                    ).fetchall(),
                }
                for name, run in runs.items():
                    taken.setdefault(name, []).append(timed(run)[0])
            queries[kind] = {name: summary(times) for name, times in taken.items()} | {
                "matches_p50": int(statistics.median(matches))
            }
        fresh = texts(TOGETHER, chance)
        fresh_contents = [spelled(ranks) for ranks in fresh]
        ours["insert"] = insertion(fresh_contents, vectors, tiers[-TOGETHER:], index)
        alone = []
        for i, text in enumerate(fresh_contents):
            alone.append(timed(lambda i=i, text=text: db.execute(insert, (10_000_000 + i, text)))[0])  # type: ignore[misc]

        def together() -> None:
            with db:
                db.executemany(insert, [(20_000_000 + i, text) for i, text in enumerate(fresh_contents)])

        together_ms, _ = timed(together)
        theirs["insert"] = {
            "one": summary(alone) | {"mean_ms": round(statistics.fmean(alone), 3)},
            f"{TOGETHER}_together_ms": round(together_ms, 1),
        }
        db.close()
    result = {
        "circumstances": circumstances(["apsw", "numkong", "pystemmer"]) | {"sqlite": apsw.sqlite_lib_version()},
        "command": " ".join(["python", "benchmarks/bench_words.py", *sys.argv[1:]]),
        "entries": options.entries,
        "questions": options.questions,
        "queries": queries,
        "ours": ours,
        "fts5": theirs,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def _hybrid(index: MemoryIndex, asked: Question, vectors: Any) -> Any:
    [found] = index.candidates([asked], 0.0)
    return finish(found, vectors[found.rows]).hits()


if __name__ == "__main__":
    main()
