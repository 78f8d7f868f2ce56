"""How likely an answer holds what was asked for. Pure functions and one table.

    confidence = 1 / (1 + exp(-(intercept + slope * evidence)))

The evidence is what the best memory scores by itself: its parts `meaning`, `words` and `tokens` (see `ranking`). What
stands beside it, who said it and when help to order memories, and tell little more about whether there is an answer.
One memory decides, so the confidence does not depend on how many were asked for.

It tells whether the memories speak of what is asked. Where they do, and the one fact asked for is missing, it is hardly
lower (`removed` in `benchmarks/results/confidence.json`).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from gemma_cli.rag.errors import InvalidInputError
from gemma_cli.rag.memory import MemoryEntry
from gemma_cli.rag.ranking import RECALL, Weights

PARTS: Final = ("meaning", "words", "tokens")
"""The parts of a score that are the memory's own."""

MODEL: Final = "all-MiniLM-L6-v2"
"""The model whose cosines and tokens the calibrations are for; another one's have another spread."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A logistic curve over the evidence."""

    intercept: float
    slope: float

    def probability(self, evidence: float) -> float:
        """In [0, 1], rising with the evidence."""
        return 0.5 + 0.5 * math.tanh((self.intercept + self.slope * evidence) / 2)  # the logistic, without overflow


WITH_TOKENS: Final = Calibration(-5.11, 4.34)
WITHOUT_TOKENS: Final = Calibration(-3.96, 6.52)
"""By maximum likelihood (`benchmarks/bench_confidence.py` fits them anew) on the development half of LoCoMo: each
question asked to its own conversation, and to the others with the names of the speakers exchanged. True is an answer
whose best five hold evidence. Both kinds of question weigh the same: where an agent seldom asks for what is not there,
the confidence is on the low side."""


class Recalled(list[MemoryEntry]):
    """What a recall found: a list, and `confidence`, the probability in [0, 1] that the best of it hold what was asked
    for. It is 0 where nothing was found, and None where it is not known: with another model than `MODEL`, or with
    weights other than the defaults. Slices and copies by `list` are plain lists."""

    def __init__(self, found: Iterable[MemoryEntry] = (), confidence: float | None = None) -> None:
        super().__init__(found)
        self.confidence = confidence


def evidence(entry: MemoryEntry) -> float:
    """What a memory scores by itself, from its explanation."""
    parts = entry.explanation or {}
    return sum(parts.get(name, 0.0) for name in PARTS)


def confidence(found: Sequence[MemoryEntry], weights: Weights, model: str | None) -> float | None:
    """The confidence in a ranking, best first, with explanations, that was made with these weights and the vectors of
    the model of this name; see `Recalled`."""
    if not found:
        return 0.0
    if weights != RECALL or model != MODEL:
        return None
    best = found[0]
    calibration = WITH_TOKENS if "tokens" in (best.explanation or {}) else WITHOUT_TOKENS
    return calibration.probability(evidence(best))


def judged(found: Sequence[MemoryEntry], weights: Weights, model: str | None, at_least: float | None) -> Recalled:
    """A ranking with its confidence (see `confidence`), and without its memories where that is below `at_least`.

    Raises `InvalidInputError` where `at_least` is given and the confidence is not known."""
    told = confidence(found, weights, model)
    if at_least is None:
        return Recalled(found, told)
    if told is None:
        reason = (
            "weights were changed" if weights != RECALL else f"the vectors are those of {model!r}, not of {MODEL!r}"
        )
        raise InvalidInputError(f"min_confidence: how likely the answer is right is not known, since {reason}")
    return Recalled(found if told >= at_least else (), told)
