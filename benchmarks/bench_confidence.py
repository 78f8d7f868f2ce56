"""Whether a recall knows when it has no answer: `python benchmarks/bench_confidence.py`.

Every question is asked to the memories that it is about, and to others, which can't answer it:

- `another`: to each of the other conversations; the smaller sets and the documents get the questions of all others;
- `renamed` (LoCoMo): to the other conversations, with their speakers' names in place of the question's, so that an
  unknown name gives nothing away. Some may be answered there by chance; nobody has looked;
- `removed`: its own memories without the evidence. What is left speaks of the same people and subjects, and sometimes
  answers all the same.

Fits the calibrations of `confidence.py` (Newton's method on the likelihood) to LoCoMo's own and `renamed` questions,
and judges them: on LoCoMo leaving out one conversation after the other; elsewhere, where nothing was fitted, as they
are. LoCoMo is CC BY-NC and not part of the project (`--locomo FOLDER`); without it, what the module has is judged.
Writes `benchmarks/results/confidence.json`.
"""

import argparse
import asyncio
import re
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import quality_data as data
from circumstances import ROOT, save
from numpy.typing import NDArray

from gemma_cli.rag import PythonRAGBackend, load_settings
from gemma_cli.rag.confidence import WITH_TOKENS, WITHOUT_TOKENS, Calibration, evidence

RESULT: Final = Path(__file__).parent / "results" / "confidence.json"
LOCOMO: Final = ROOT.parent / "shared" / "data" / "locomo-dev"
FITTED_ON: Final = ("own", "renamed")
BEST: Final = 5
"""An answer counts as true if evidence is among so many."""

CAUGHT: Final = 0.9
"""The share of the unanswerable questions that the reported threshold catches."""

BINS: Final = 10
NAMES: Final = {True: "late interaction", False: "without"}
EVERY: Final = 4
"""One in so many of LoCoMo's questions is asked to other groups."""

DAY: Final = 86_400.0
TODAY: Final = datetime.fromisoformat("2026-01-01T00:00:00+00:00").timestamp()

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sample:
    """One question asked to one set of memories: what the best memory scored by itself, whether the set can answer it,
    and whether the best five did."""

    group: str
    part: str
    source: str
    kind: str
    evidence: float
    tokens: bool
    held: bool

    @property
    def answerable(self) -> bool:
        return self.kind == "own"


@dataclass(frozen=True, slots=True)
class Store:
    corpus: data.Corpus
    backend: PythonRAGBackend
    ids: Sequence[str]

    @property
    def speakers(self) -> list[str]:
        return [name for name in dict.fromkeys(item.actor for item in self.corpus.items) if name]


# --- asking ---


@asynccontextmanager
async def filled(corpora: Sequence[data.Corpus], late_interaction: bool) -> AsyncIterator[list[Store]]:
    """A backend for each corpus, and one for the documents."""
    plain = load_settings(environ={}, cwd=Path(tempfile.gettempdir()))
    settings = replace(plain, memory=replace(plain.memory, late_interaction=late_interaction))
    async with AsyncExitStack() as stack:
        stores = []
        for corpus in corpora:
            moments = [
                datetime.fromisoformat(item.occurred_at).timestamp() for item in corpus.items if item.occurred_at
            ]
            now = max(moments) + DAY if moments else TODAY
            backend = PythonRAGBackend(url="memory://", settings=settings, clock=lambda now=now: now)  # type: ignore[misc]
            await stack.enter_async_context(backend)
            names = ("content", "actor", "session", "occurred_at")
            rows = [{n: getattr(item, n) for n in names} | {"memory_type": "semantic"} for item in corpus.items]
            stores.append(Store(corpus, backend, await backend.store_memories(rows)))
        backend = PythonRAGBackend(url="memory://", settings=settings, clock=lambda: TODAY)
        stores.append(await documents(await stack.enter_async_context(backend)))
        yield stores


async def documents(backend: PythonRAGBackend) -> Store:
    read = data.documentation()
    corpus, ids = await data.ingested(backend, read)
    return Store(corpus, backend, ids)


async def asked(store: Store, source: Store, kind: str, text: str, needs: Sequence[frozenset[int]] = ()) -> Sample:
    found = await store.backend.recall_memories(text, limit=BEST, touch=False, explain=True)
    wanted = {store.ids[position] for need in needs for position in need}
    return Sample(
        store.corpus.group,
        store.corpus.part,
        source.corpus.part,
        kind,
        evidence(found[0]),
        "tokens" in (found[0].explanation or {}),
        any(entry.id in wanted for entry in found),
    )


async def asked_without(store: Store, question: data.Asked) -> Sample:
    """Asked to its own memories while the evidence is away."""
    away = [store.ids[position] for position in sorted(set().union(*question.needs))]
    entries = [entry for entry in [await store.backend.get_memory(id_) for id_ in away] if entry is not None]
    for id_ in away:
        await store.backend.delete_memory(id_)
    sample = await asked(store, store, "removed", question.text)
    await store.backend.store_memories(entries)
    return sample


def renamed(text: str, names: Sequence[str], others: Sequence[str]) -> str:
    """The text with the names of two speakers exchanged for those of two others; a name that both have stays."""
    new = dict(zip([n for n in names if n not in others], [n for n in others if n not in names], strict=False))
    return re.sub(r"\b(" + "|".join(map(re.escape, names)) + r")\b", lambda found: new.get(found[1], found[1]), text)


async def samples(stores: Sequence[Store]) -> list[Sample]:
    made = []
    for store in stores:
        kin = [other for other in stores if other.corpus.group == store.corpus.group and other is not store]
        for number, question in enumerate(store.corpus.questions):
            made.append(await asked(store, store, "own", question.text, question.needs))
            for other in kin:
                made.append(await asked(other, store, "another", question.text))
                text = renamed(question.text, store.speakers, other.speakers)
                made.append(await asked(other, store, "renamed", text))
            if not kin or number % EVERY == 0:
                strangers = [s for s in stores if s.corpus.group != store.corpus.group and s.corpus.group != "LoCoMo"]
                made += [await asked(other, store, "another", question.text) for other in strangers]
    for store in stores:  # last, since what comes back stands behind the others of its time
        made += [await asked_without(store, question) for question in store.corpus.questions]
    return made


# --- fitting and judging ---


def columns(chosen: Sequence[Sample]) -> tuple[Floats, NDArray[np.bool_], NDArray[np.bool_], Floats]:
    """Evidence, answerable, held, and weights by which both kinds of question count the same."""
    answerable = np.array([sample.answerable for sample in chosen])
    weights = np.where(answerable, 0.5 / max(answerable.sum(), 1), 0.5 / max((~answerable).sum(), 1))
    held = np.array([sample.held for sample in chosen])
    return np.array([sample.evidence for sample in chosen]), answerable, held, weights


def fitted(chosen: Sequence[Sample]) -> Calibration:
    """The logistic curve of the greatest likelihood that an answer with this evidence held what was asked for."""
    x, _, held, weights = columns(chosen)
    design, found = np.stack([np.ones_like(x), x], axis=1), np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-design @ found))
        step = np.linalg.solve(
            (design * (weights * p * (1 - p))[:, None]).T @ design, design.T @ (weights * (held - p))
        )
        found += step
        if np.abs(step).max() < 1e-9:
            break
    return Calibration(*map(float, found))


def area(positive: Floats, negative: Floats) -> float:
    """Under the ROC curve: how often a positive is above a negative (Hanley & McNeil, 1982), ties half."""
    ordered = np.sort(negative)
    below, upto = np.searchsorted(ordered, positive, "left"), np.searchsorted(ordered, positive, "right")
    return float((below + upto).mean() / 2 / len(negative))


def judged(chosen: Sequence[Sample], p: Floats) -> dict[str, Any]:
    """Figures of one set against one kind of unanswerable question. Both kinds of question weigh the same."""
    _, answerable, held, weights = columns(chosen)
    threshold = float(np.quantile(p[~answerable], CAUGHT))
    bins = np.minimum((p * BINS).astype(int), BINS - 1)
    reliability = []
    error = 0.0
    for number in range(BINS):
        inside = bins == number
        if inside.any():
            share = weights[inside] / weights[inside].sum()
            told, true = float(p[inside] @ share), float(held[inside] @ share)
            error += float(weights[inside].sum()) * abs(told - true)
            reliability.append({"told": round(told, 3), "true": round(true, 3), "samples": int(inside.sum())})
    return {
        "answerable": int(answerable.sum()),
        "unanswerable": int((~answerable).sum()),
        "answerable_that_the_best_five_held": round(float(held[answerable].mean()), 3),
        "roc_auc_answerable": round(area(p[answerable], p[~answerable]), 3),
        "roc_auc_held": round(area(p[held], p[~held]), 3),
        "mean_confidence_answerable": round(float(p[answerable].mean()), 3),
        "mean_confidence_unanswerable": round(float(p[~answerable].mean()), 3),
        "brier": round(float(weights @ (p - held) ** 2), 3),
        "ece": round(error, 3),
        "threshold_that_catches_90_percent": round(threshold, 3),
        "false_abstention_there": round(float((p[answerable] <= threshold).mean()), 3),
        "at_fixed_thresholds": {
            f"{fixed:.1f}": {
                "caught": round(float((p[~answerable] < fixed).mean()), 3),
                "false_abstention": round(float((p[answerable] < fixed).mean()), 3),
            }
            for fixed in (0.1, 0.2, 0.3, 0.5)
        },
        "reliability": reliability,
    }


def told(calibration: Calibration, chosen: Sequence[Sample]) -> Floats:
    return np.array([calibration.probability(sample.evidence) for sample in chosen])


def left_out(made: Sequence[Sample]) -> Iterator[tuple[Sample, float]]:
    """LoCoMo's samples, each with the confidence of a fit that saw neither its memories nor its question."""
    for part in sorted({sample.part for sample in made}):
        seen = [s for s in made if part not in (s.part, s.source) and s.kind in FITTED_ON]
        mine = [sample for sample in made if sample.part == part]
        yield from zip(mine, told(fitted(seen), mine).tolist(), strict=True)


def rounded(calibration: Calibration) -> dict[str, float]:
    return {"intercept": round(calibration.intercept, 2), "slope": round(calibration.slope, 2)}


def report(made: Sequence[Sample], table: Mapping[bool, Calibration]) -> dict[str, Any]:
    """By set and kind of unanswerable question. `table`: the calibration with tokens and without."""
    figures: dict[str, Any] = {}
    for group in dict.fromkeys(sample.group for sample in made):
        pairs: list[tuple[Sample, float]] = []
        if group == "LoCoMo":
            pairs = list(left_out([sample for sample in made if sample.group == group]))
        else:
            for sample in made:  # a set whose texts have no token codes is told by the other calibration
                if sample.group == group:
                    pairs.append((sample, table[sample.tokens].probability(sample.evidence)))
        for kind in ("another", "renamed", "removed"):
            chosen = [(s, p) for s, p in pairs if s.kind in ("own", kind)]
            if any(not s.answerable for s, _ in chosen):
                figures.setdefault(group, {})[kind] = judged([s for s, _ in chosen], np.array([p for _, p in chosen]))
    return figures


async def run(given: argparse.Namespace) -> None:
    corpora = data.locomo(given.locomo) + data.small_sets()
    table = {True: WITH_TOKENS, False: WITHOUT_TOKENS}
    figures: dict[str, Any] = {"in the module": {NAMES[tokens]: rounded(found) for tokens, found in table.items()}}
    made = {}
    for tokens in table:
        async with filled(corpora, tokens) as stores:
            made[tokens] = await samples(stores)
        seen = [s for s in made[tokens] if s.group == "LoCoMo" and s.kind in FITTED_ON and s.tokens is tokens]
        if seen:
            table[tokens] = fitted(seen)
            figures.setdefault("fitted", {})[NAMES[tokens]] = rounded(table[tokens])
    figures |= {NAMES[tokens]: report(found, table) for tokens, found in made.items()}
    save(given.out, figures, ("openvino", "apsw"), benchmark="confidence")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--locomo", type=Path, default=LOCOMO, help="folder of conversations")
    asyncio.run(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
