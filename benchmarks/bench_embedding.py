"""Engines side by side: `python benchmarks/bench_embedding.py [--rounds N] [--engine NAME ...] [--model-dir DIR]`.

Times, in one run on one machine and alternating between the engines, the cases of `CASES`, and compares each engine's
vectors with those of sentence-transformers in float32 (where it can't be imported: with onnxruntime's). The peer is
`SentenceTransformer.encode` itself, as its users call it. Writes `benchmarks/results/embedding.json`.

The texts are made from the prose below with a fixed seed; their lengths in tokens are saved with the figures.
"""

import argparse
import gc
import importlib.util
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from circumstances import circumstances

from gemma_cli.rag.embedders import EmbeddingOptions, create_embedder
from gemma_cli.rag.embedders.base import Vectors
from gemma_cli.rag.embedders.weights import locate

RESULT = Path(__file__).parent / "results" / "embedding.json"
PEER = "sentence-transformers (its own encode)"
EXACT = ("onnx", "openvino-f32")
REPEATS_DIVISOR = {1: 1, 10: 1, 100: 3, 1_000: 8}
"""By what the number of rounds is divided for a case of so many texts."""
WARM_UP_TEXTS = 100
FIDELITY_TEXTS = 400
Encode = Callable[[list[str]], Vectors]

SUBJECTS = """my sister|the man at the ferry|our landlord|Dr. Osei|the choir|a colleague from Turin|the youngest of us|
the old baker|my neighbour Ines|the night guard|the new intern|grandfather|the plumber|Mr. Halloran|the whole team|
a student of mine|the ranger|her cousin|the librarian|our goalkeeper""".replace("\n", "").split("|")
ACTIONS = """has started to repair clocks|asked me to water the tomatoes|moved to a flat above the pharmacy|lost a ring
 in the snow|is writing a paper on tidal mills|cancelled the trip to Porto|bought a second-hand cello|wants to learn
 Polish|found a wallet on the tram|is allergic to walnuts|refused to sign the contract|baked three loaves of rye|passed
 the exam at last|broke the kitchen window|sold the boat for next to nothing|sings in a different key|keeps bees on the
 roof|fixed the memory leak in the importer|painted the hallway green|swims every morning before work""".replace(
    "\n", ""
).split("|")
REASONS = """because the doctor said so|although nobody had asked|before the rain came|and told no one about it|while we
 were away in the mountains|for the third time this year|as a surprise for the children|since the shop on the corner
 closed|and it took the better part of a day|which made everybody laugh|so we had to change our plans|without spending a
 penny|in spite of the heat|just as the guests arrived|and I still think about it""".replace("\n", "").split("|")
OPENINGS = [
    "Did you hear?",
    "By the way,",
    "I forgot to say:",
    "Honestly,",
    "Guess what,",
    "Well,",
    "Last week",
    "Today",
]


def sentence(rng: random.Random) -> str:
    return f"{rng.choice(SUBJECTS)} {rng.choice(ACTIONS)} {rng.choice(REASONS)}."


def turn(rng: random.Random) -> str:
    """One turn of a chat, some 20 tokens."""
    return f"{rng.choice(OPENINGS)} {sentence(rng)}"


def mixed(rng: random.Random) -> str:
    """A text of one to twenty sentences, most of them short."""
    return " ".join(sentence(rng) for _ in range(min(20, 1 + int(rng.expovariate(0.55)))))


def cases() -> dict[str, tuple[list[str], bool]]:
    """Texts by case, and whether they go one by one."""
    rng = random.Random(20240607)
    hundred = [turn(rng) for _ in range(100)]
    return {
        '10 x "text N"': ([f"text {n}" for n in range(10)], False),
        "10 chat turns": (hundred[:10], False),
        "one query": (["where did my sister lose the ring?"], False),
        "100 chat turns, one by one": (hundred, True),
        "100 chat turns, batched": (hundred, False),
        "1,000 mixed texts": ([mixed(rng) for _ in range(1_000)], False),
    }


def engines(wanted: list[str] | None, model_dir: Path | None) -> dict[str, Encode]:
    """A loaded encoder by name, for each engine that is installed."""
    options = {
        "openvino": EmbeddingOptions(provider="openvino", model_dir=model_dir),
        "openvino-f32": EmbeddingOptions(provider="openvino", precision="f32", model_dir=model_dir),
        "onnx": EmbeddingOptions(provider="onnx", model_dir=model_dir),
        "sentence-transformers": EmbeddingOptions(provider="sentence-transformers", device="cpu", model_dir=model_dir),
    }
    if create_embedder(options["openvino"]).identity.precision == "f32":
        del options["openvino-f32"]  # the same thing under two names
    for name, module in {"onnx": "onnxruntime", "sentence-transformers": "sentence_transformers"}.items():
        if importlib.util.find_spec(module) is None:
            del options[name]
    loaded: dict[str, Encode] = {
        name: create_embedder(chosen).encode for name, chosen in options.items() if not wanted or name in wanted
    }
    if "sentence-transformers" in options and (not wanted or PEER in wanted or "sentence-transformers" in wanted):
        from sentence_transformers import SentenceTransformer

        directory = locate("all-MiniLM-L6-v2", configured=model_dir).directory
        peer = SentenceTransformer(str(directory), device="cpu")
        loaded[PEER] = lambda texts: peer.encode(texts, convert_to_numpy=True)
    return loaded


def timed(encode: Encode, texts: list[str], one_by_one: bool) -> float:
    gc.collect()
    start = time.perf_counter()
    if one_by_one:
        for text in texts:
            encode([text])
    else:
        encode(texts)
    return time.perf_counter() - start


def fidelity(vectors: Vectors, reference: Vectors) -> dict[str, float]:
    """Cosine with the reference, and the share of each text's ten nearest that is kept."""
    cosines = (vectors * reference).sum(axis=1)
    kept = [len(ours & theirs) / 10 for ours, theirs in zip(top_ten(vectors), top_ten(reference), strict=True)]
    return {
        "cosine_mean": float(cosines.mean()),
        "cosine_min": float(cosines.min()),
        "top_ten_kept": statistics.mean(kept),
    }


def top_ten(vectors: Vectors) -> list[set[int]]:
    near = vectors @ vectors.T
    np.fill_diagonal(near, -np.inf)
    return [set(row) for row in np.argpartition(-near, 10, axis=1)[:, :10].tolist()]


def measure(encoders: dict[str, Encode], rounds: int, count_tokens: Callable[[list[str]], list[int]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for case, (texts, one_by_one) in cases().items():
        repeats = max(1, rounds // REPEATS_DIVISOR[len(texts)])
        times: dict[str, list[float]] = {name: [] for name in encoders}
        for encode in encoders.values():
            encode(texts[:WARM_UP_TEXTS])
        for _ in range(repeats):
            for name, encode in encoders.items():
                times[name].append(timed(encode, texts, one_by_one))
        result[case] = {
            "texts": len(texts),
            "tokens": sum(count_tokens(texts)) + 2 * len(texts),
            "rounds": repeats,
            "median_ms": {name: round(1e3 * statistics.median(values), 2) for name, values in times.items()},
            "best_ms": {name: round(1e3 * min(values), 2) for name, values in times.items()},
        }
        print(case, result[case]["median_ms"], flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--engine", action="append", help="measure only this one (repeatable)")
    parser.add_argument("--model-dir", type=Path)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    encoders = engines(given.engine, given.model_dir)
    tokenizer = create_embedder(EmbeddingOptions(model_dir=given.model_dir))
    timings = measure(encoders, given.rounds, tokenizer.count_tokens)
    # The ranking is compared where every engine sees the whole text: the peer cuts a text off at 256 tokens.
    texts = [text for text in cases()["1,000 mixed texts"][0] if tokenizer.count_tokens([text])[0] <= tokenizer.window]
    texts = texts[:FIDELITY_TEXTS]
    reference_name = next((name for name in (PEER, *EXACT) if name in encoders), next(iter(encoders)))
    reference = encoders[reference_name](texts)
    report = {
        "benchmark": "embedding",
        "circumstances": circumstances(
            ("openvino", "onnxruntime", "tokenizers", "sentence-transformers", "torch", "transformers")
        ),
        "default_precision": tokenizer.identity.precision,
        "timings": timings,
        "fidelity": {
            "reference": reference_name,
            "texts": len(texts),
            "engines": {name: fidelity(encode(texts), reference) for name, encode in encoders.items()},
        },
    }
    if PEER in encoders:
        report["times_faster_than_peer"] = {
            case: {name: round(row["median_ms"][PEER] / ms, 2) for name, ms in row["median_ms"].items()}
            for case, row in timings.items()
        }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps({key: report.get(key) for key in ("fidelity", "times_faster_than_peer")}, indent=2))
    print(f"saved to {given.out}")


if __name__ == "__main__":
    main()
