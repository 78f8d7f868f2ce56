"""What is promoted, and what is forgotten: `python benchmarks/bench_promotion.py [--memories N] [--seeds N]`.

A simulation on the real backend and the real consolidator, with a clock that is set by hand. Memories arrive over ten
days; one in five is of value, which means that it is asked for again. How much so was only guessed when it was stored:
the importance is a noisy hint. Uses lie at ages between a minute and ten days, as likely in one decade of time as in
the next (the chance of being needed falls with 1 / age: Anderson and Schooler, "Reflections of the environment in
memory", 1991). A use is a recall by some words of the memory, which touches whatever it finds, others too. Memories
expire by their tiers; consolidation runs every five minutes.

Two baselines promote as many memories as the consolidator did, and are told that number in advance: "importance only"
takes those of the highest importance, "recency only" those that were used last when their first lifetime ended (in days
in which nothing was promoted). Chance would have a precision of one in five.

Says of each policy, over several seeds: the share of promoted memories that were of value (precision), the share of
those of value that were promoted (recall), of all decisions that were right (accuracy), the same for forgetting, and
the share of uses whose memory was still there. Writes `benchmarks/results/promotion.json`.
"""

import argparse
import asyncio
import json
import math
import random
import statistics
import tempfile
import time
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from circumstances import circumstances
from numpy.typing import NDArray

from gemma_cli.rag import MemoryConsolidator, MemoryTier, PythonRAGBackend, load_settings
from gemma_cli.rag.memory import SECONDS_PER_DAY, TIER_POLICIES

RESULT = Path(__file__).parent / "results" / "promotion.json"
START = 1_767_225_600.0
INTERVAL = 300.0
ARRIVAL_DAYS = 10.0
LATEST_USE_DAYS = 10.0
EARLIEST_USE_SECONDS = 60.0
OF_VALUE = 0.2
"""Share of the memories that are asked for again by their nature."""

DIMENSION = 128
TOPICS = 20
WORDS_PER_TOPIC = 40
WORDS_PER_MEMORY = 10
WORDS_PER_QUESTION = 4


@dataclass(frozen=True)
class Assumptions:
    """guess_of_value, guess_of_noise, guess_noise: mean importance of the two kinds, and the standard deviation of both
    (cut to [0, 1]). uses_of_value, uses_of_noise: mean number of uses (Poisson; what is of value is used once at
    least). arrives_in: the tier of new memories. limit: memories that a recall returns, and touches."""

    guess_of_value: float = 0.7
    guess_of_noise: float = 0.5
    guess_noise: float = 0.2
    uses_of_value: float = 3.0
    uses_of_noise: float = 0.2
    arrives_in: str = "short_term"
    limit: int = 5

    def chance_that_the_guess_is_right(self) -> float:
        """That a memory of value got a higher guess than one of none (the area under the ROC curve; the cut at 0 and 1
        left aside)."""
        if not self.guess_noise:
            return (
                0.5 if self.guess_of_value == self.guess_of_noise else float(self.guess_of_value > self.guess_of_noise)
            )
        apart = (self.guess_of_value - self.guess_of_noise) / (self.guess_noise * math.sqrt(2))
        return 0.5 * (1 + math.erf(apart / math.sqrt(2)))


VARIATIONS: dict[str, dict[str, Any]] = {
    "a good guess (standard deviation 0.1)": {"guess_noise": 0.1},
    "a bad guess (standard deviation 0.3)": {"guess_noise": 0.3},
    "a generous agent (0.9 against 0.5)": {"guess_of_value": 0.9},
    "no guess at all (0.5 for everything)": {"guess_of_value": 0.5, "guess_noise": 0.0},
    "used once": {"uses_of_value": 1.0},
    "used ten times": {"uses_of_value": 10.0},
    "arrives in episodic": {"arrives_in": "episodic"},
    "arrives in working": {"arrives_in": "working"},
    "a recall touches one memory": {"limit": 1},
}


@dataclass(frozen=True)
class Memory:
    content: str
    of_value: bool
    importance: float
    arrives: float
    uses: tuple[tuple[float, str], ...]
    """When it is asked for (seconds since the epoch), and with which words."""


class Words:
    """A deterministic embedder: the sum of a fixed random direction for each word."""

    def __init__(self) -> None:
        self._known: dict[str, NDArray[np.float64]] = {}

    def _direction(self, word: str) -> NDArray[np.float64]:
        if word not in self._known:
            self._known[word] = np.random.default_rng(zlib.crc32(word.encode())).standard_normal(DIMENSION)
        return self._known[word]

    def encode(self, texts: list[str]) -> NDArray[np.float64]:
        rows = np.stack([sum((self._direction(word) for word in text.split()), np.zeros(DIMENSION)) for text in texts])
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def poisson(rng: random.Random, mean: float) -> int:
    """Knuth's method; the means here are small."""
    count, product, floor = 0, rng.random(), math.exp(-mean)
    while product > floor:
        count += 1
        product *= rng.random()
    return count


def memories(rng: random.Random, count: int, given: Assumptions) -> list[Memory]:
    made = []
    for number in range(count):
        of_value = number < OF_VALUE * count
        topic = rng.randrange(TOPICS)
        words = [f"t{topic}w{word}" for word in rng.sample(range(WORDS_PER_TOPIC), WORDS_PER_MEMORY)]
        guess = rng.gauss(given.guess_of_value if of_value else given.guess_of_noise, given.guess_noise)
        arrives = START + rng.random() * ARRIVAL_DAYS * SECONDS_PER_DAY
        uses = max(poisson(rng, given.uses_of_value), 1) if of_value else poisson(rng, given.uses_of_noise)
        span = math.log(LATEST_USE_DAYS * SECONDS_PER_DAY / EARLIEST_USE_SECONDS)
        ages = [EARLIEST_USE_SECONDS * math.exp(span * rng.random()) for _ in range(uses)]
        asked = tuple((arrives + age, " ".join(rng.sample(words, WORDS_PER_QUESTION))) for age in ages)
        made.append(Memory(" ".join(words), of_value, min(max(guess, 0.0), 1.0), arrives, asked))
    return made


class Life:
    """The same days on a backend of their own, with or without promotions, and what became of each memory."""

    def __init__(self, made: list[Memory], given: Assumptions, *, promotes: bool) -> None:
        quiet = load_settings(environ={"GEMMA_RAG_MONITORING__ENABLED": "false"}, cwd=Path(tempfile.gettempdir()))
        self.made = made
        self.given = given
        self.promotes = promotes
        self.now = START
        self.backend = PythonRAGBackend(url="memory://", embedder=Words(), settings=quiet, clock=lambda: self.now)
        self.ids: dict[int, str] = {}
        self.numbers: dict[str, int] = {}
        self.reached: dict[MemoryTier, set[int]] = {tier: set() for tier in MemoryTier}
        self.last_use = [memory.arrives for memory in made]
        self.served = 0
        self.live: set[int] = set()

    async def run(self) -> None:
        stores = [(memory.arrives, number, "") for number, memory in enumerate(self.made)]
        uses = [(moment, number, words) for number, memory in enumerate(self.made) for moment, words in memory.uses]
        events = sorted([*stores, *uses])
        async with self.backend:
            consolidator = MemoryConsolidator(self.backend)
            for (moment, number, words), (following, *_) in pairwise([*events, (math.inf, 0, "")]):
                self.now = moment
                await (self.use(number, words) if words else self.store(number))
                if self.promotes:
                    await self.consolidate(consolidator, following)
            self.now = START + (ARRIVAL_DAYS + LATEST_USE_DAYS) * SECONDS_PER_DAY
            self.live = {self.numbers[entry.id] for entry in await self.backend.all_memories()}

    async def store(self, number: int) -> None:
        memory = self.made[number]
        stored = await self.backend.store_memory(memory.content, self.given.arrives_in, memory.importance)
        self.ids[number], self.numbers[stored] = stored, number

    async def use(self, number: int, words: str) -> None:
        self.served += await self.backend.get_memory(self.ids[number]) is not None
        for hit in await self.backend.recall_memories(words, limit=self.given.limit):
            self.last_use[self.numbers[hit.id]] = self.now

    async def consolidate(self, consolidator: MemoryConsolidator, following: float) -> None:
        """The runs until the next event. Without a store, a recall or a move since the last run, relevance can only
        have fallen: such a run promotes nothing, and what has expired is invisible without it. So they are left out."""
        tick = START + math.ceil((self.now - START) / INTERVAL) * INTERVAL
        while tick < following:
            self.now = tick
            if not await consolidator.run_consolidation():
                break
            for entry in await self.backend.all_memories():
                self.reached[entry.tier].add(self.numbers[entry.id])
            tick += INTERVAL


async def simulate(seed: int, count: int, given: Assumptions) -> dict[str, dict[str, float]]:
    """The measures of each policy for one seed."""
    made = memories(random.Random(seed), count, given)
    ours, untouched = (Life(made, given, promotes=promotes) for promotes in (True, False))
    await ours.run()
    await untouched.run()
    semantic = ours.reached[MemoryTier.SEMANTIC]
    long_term = semantic | ours.reached[MemoryTier.LONG_TERM]
    result = {"gemma-rag": measures(made, long_term, semantic, ours.live, ours.served)}
    lifetime = TIER_POLICIES[MemoryTier(given.arrives_in)].ttl
    assert lifetime is not None
    drawn = random.Random(~seed)  # among equals
    scores = {
        "importance only": [memory.importance for memory in made],
        "recency only": [used - memory.arrives for used, memory in zip(untouched.last_use, made, strict=True)],
    }
    for name, score in scores.items():
        order = sorted(range(count), key=lambda number, s=score: (s[number], drawn.random()), reverse=True)
        chosen = set(order[: len(long_term)])
        # What a baseline keeps, it keeps in time; all else is there for the lifetime of the tier that it came into.
        served = sum(
            number in chosen or moment < memory.arrives + lifetime.total_seconds()
            for number, memory in enumerate(made)
            for moment, _ in memory.uses
        )
        end = START + (ARRIVAL_DAYS + LATEST_USE_DAYS) * SECONDS_PER_DAY - lifetime.total_seconds()
        live = chosen | {number for number, memory in enumerate(made) if memory.arrives > end}
        result[name] = measures(made, chosen, set(order[: len(semantic)]), live, served)
    return result


def measures(
    made: list[Memory], long_term: set[int], semantic: set[int], live: set[int], served: int
) -> dict[str, float]:
    value = {number for number, memory in enumerate(made) if memory.of_value}
    everything = set(range(len(made)))
    return {
        "promoted to long_term, of all": len(long_term) / len(made),
        **rates("promotion to long_term", long_term, value),
        "accuracy of promotion to long_term": 1 - len(long_term ^ value) / len(made),
        "promoted to semantic, of all": len(semantic) / len(made),
        **rates("promotion to semantic", semantic, value),
        **rates("forgetting", everything - live, everything - value),
        "uses whose memory was still there": served / sum(len(memory.uses) for memory in made),
    }


def rates(name: str, chosen: set[int], right: set[int]) -> dict[str, float]:
    """Precision (NaN where nothing was chosen) and recall."""
    good = len(chosen & right)
    return {
        f"precision of {name}": good / len(chosen) if chosen else math.nan,
        f"recall of {name}": good / len(right),
    }


def over_seeds(runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation; seeds for which a measure is not defined are left out (None: all of them)."""
    return {
        policy: {measure: mean_and_spread(run[policy][measure] for run in runs) for measure in runs[0][policy]}
        for policy in runs[0]
    }


def mean_and_spread(values: Iterable[float]) -> dict[str, float] | None:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return None
    return {"mean": round(statistics.fmean(known), 3), "sd": round(statistics.pstdev(known), 3), "seeds": len(known)}


async def case(given: Assumptions, count: int, seeds: int) -> dict[str, Any]:
    policies = over_seeds([await simulate(seed, count, given) for seed in range(seeds)])
    guess = round(given.chance_that_the_guess_is_right(), 3)
    return {"assumptions": asdict(given) | {"chance_that_the_guess_is_right": guess}, "policies": policies}


def table(cases: dict[str, dict[str, Any]]) -> str:
    columns = {
        "P long": "precision of promotion to long_term",
        "R long": "recall of promotion to long_term",
        "acc": "accuracy of promotion to long_term",
        "P sem": "precision of promotion to semantic",
        "R sem": "recall of promotion to semantic",
        "P forget": "precision of forgetting",
        "R forget": "recall of forgetting",
        "served": "uses whose memory was still there",
    }
    lines = [f"{'':58}" + "".join(f"{name:>10}" for name in columns)]
    for name, made in cases.items():
        for policy, row in made["policies"].items():
            cells = ["-" if row[c] is None else f"{row[c]['mean']:.2f}" for c in columns.values()]
            lines.append(f"{name[:39]:40}{policy:18}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)


async def run(count: int, seeds: int, variation_seeds: int) -> dict[str, dict[str, Any]]:
    base = Assumptions()
    cases = {"base": await case(base, count, seeds)}
    for name, changes in VARIATIONS.items():
        if variation_seeds:
            cases[name] = await case(replace(base, **changes), count, variation_seeds)
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--variation-seeds", type=int, default=2, help="0 leaves the variations out")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    start = time.perf_counter()
    cases = asyncio.run(run(given.memories, given.seeds, given.variation_seeds))
    report = {
        "benchmark": "promotion",
        "circumstances": circumstances(("apsw",)),
        "memories": given.memories,
        "share_of_value": OF_VALUE,
        "seconds": round(time.perf_counter() - start, 1),
        "cases": cases,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    print(table(cases))
    print(f"saved to {given.out}")


if __name__ == "__main__":
    main()
