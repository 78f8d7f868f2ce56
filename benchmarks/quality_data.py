"""What `bench_quality.py` asks and how it judges: the data sets, the measures of a ranking, their intervals. No model,
no memory."""

import importlib
import inspect
import json
import math
import pkgutil
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag import PythonRAGBackend

HERE: Final = Path(__file__).parent
QUESTIONS: Final = HERE / "documents_questions.json"
SMALL_SETS: Final = HERE / "quality_sets.json"

DEPTH: Final = 10
"""Hits that are judged, and that every system is asked for."""

MEASURES: Final = ("R@5", "R@10", "nDCG@10", "hit@1")
RESAMPLES: Final = 2_000
SEED: Final = 7

Figures = NDArray[np.float64]
"""Shape [questions, len(MEASURES)], each in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Item:
    """One memory; `occurred_at` in ISO 8601."""

    content: str
    actor: str | None = None
    session: str | None = None
    occurred_at: str | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and what answers it: every need is met by any one of its items (positions in the corpus)."""

    text: str
    kind: str
    needs: tuple[frozenset[int], ...]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Memories that live in one namespace, and questions about them. `group` is what figures are summed up under."""

    group: str
    part: str
    items: tuple[Item, ...]
    questions: tuple[Asked, ...]


# --- measures ---


def judge(ranked: Sequence[int], needs: Sequence[frozenset[int]]) -> tuple[float, float, float, float]:
    """`MEASURES` of one ranking, best first. R@k: the share of needs met in the first k. nDCG@10: gain 1 where a need
    is first met, discounted by log2(1 + rank), over that of the needs met one by one from the top. hit@1: whether the
    first item meets one. An item meets one need at most."""
    unmet = list(needs)
    gains = []
    for item in ranked[:DEPTH]:
        met = next((need for need in unmet if item in need), None)
        if met is not None:
            unmet.remove(met)
        gains.append(met is not None)
    best = dcg([True] * min(len(needs), DEPTH))
    return (
        sum(gains[:5]) / len(needs),
        sum(gains) / len(needs),
        dcg(gains) / best,
        float(bool(gains) and gains[0]),
    )


def dcg(gains: Iterable[bool]) -> float:
    """Discounted cumulative gain (Järvelin & Kekäläinen 2002) of binary gains, first rank first."""
    return sum(1.0 / math.log2(1 + rank) for rank, gain in enumerate(gains, start=1) if gain)


def judged(rankings: Sequence[Sequence[int]], questions: Sequence[Asked]) -> Figures:
    """The measures of each question's ranking."""
    rows = [judge(ranked, asked.needs) for ranked, asked in zip(rankings, questions, strict=True)]
    return np.array(rows, np.float64).reshape(len(questions), len(MEASURES))


def interval(figures: NDArray[np.float64], resamples: int = RESAMPLES, seed: int = SEED) -> NDArray[np.float64]:
    """Where the mean of each column lies with 95 % confidence, shape [2, columns]: percentiles of the means of
    resamples with replacement (Efron & Tibshirani 1993)."""
    count = len(figures)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    bounds: NDArray[np.float64] = np.percentile(drawn @ figures / count, (2.5, 97.5), axis=0)
    return bounds


def summary(figures: Figures) -> dict[str, Any]:
    """Mean and 95 % interval of each measure, and how many questions they are from."""
    means, (low, high) = figures.mean(axis=0), interval(figures)
    rows = {
        name: {"mean": round(float(mean), 4), "low": round(float(least), 4), "high": round(float(most), 4)}
        for name, mean, least, most in zip(MEASURES, means, low, high, strict=True)
    }
    return {"questions": len(figures)} | rows


def difference(ours: Figures, theirs: Figures) -> dict[str, dict[str, float]]:
    """Ours less theirs on the same questions: mean and 95 % interval of the pairs' differences."""
    found = summary(ours - theirs)
    del found["questions"]
    return found


# --- baselines ---


class Bm25:
    """BM25 over words that the caller has cut and stemmed, scored for all items at once; apart from the product's index
    so that a change of that one does not move the baseline."""

    def __init__(self, documents: Sequence[Sequence[int]], k1: float = 1.2, b: float = 0.3) -> None:
        self.k1 = k1
        self.count = len(documents)
        lengths = np.array([len(words) for words in documents], np.float64)
        self.norm = k1 * (1 - b + b * lengths / max(float(lengths.mean()), 1.0))
        counts: defaultdict[int, defaultdict[int, int]] = defaultdict(lambda: defaultdict(int))
        for position, words in enumerate(documents):
            for word in words:
                counts[word][position] += 1
        self.postings = {
            word: (np.fromiter(found, np.intp), np.fromiter(found.values(), np.float64))
            for word, found in counts.items()
        }

    def scores(self, words: Iterable[int]) -> NDArray[np.float64]:
        """Shape [items]; over the most that these words could score, so in [0, 1]."""
        total, most = np.zeros(self.count), 0.0
        for word in dict.fromkeys(words):
            places, counts = self.postings.get(word, (np.empty(0, np.intp), np.empty(0)))
            idf = math.log1p((self.count - len(places) + 0.5) / (len(places) + 0.5))
            total[places] += idf * counts * (self.k1 + 1) / (counts + self.norm[places])
            most += idf * (self.k1 + 1)
        return total / most if most else total


def ranking(scores: NDArray[Any], depth: int) -> list[int]:
    """Positions of the highest scores, best first; earlier ones first among equals."""
    found: list[int] = np.argsort(-scores, kind="stable")[:depth].tolist()
    return found


def reciprocal_rank_fusion(rankings: Iterable[Sequence[int]], k: int = 60) -> list[int]:
    """Cormack, Clarke & Büttcher (2009): an item scores the sum of 1 / (k + its rank) over the rankings."""
    scores: defaultdict[int, float] = defaultdict(float)
    for ranked in rankings:
        for rank, item in enumerate(ranked, start=1):
            scores[item] += 1 / (k + rank)
    return sorted(scores, key=lambda item: (-scores[item], item))


# --- LoCoMo ---


def locomo(folder: Path) -> list[Corpus]:
    """The conversations in a folder: JSON files of `memories` (id, content, actor, session, occurred_at) and
    `questions` (question, category, evidence)."""
    corpora = []
    for path in sorted(folder.glob("conv-*.json")):
        read = json.loads(path.read_text(encoding="utf-8"))
        positions = {memory["id"]: position for position, memory in enumerate(read["memories"])}
        keys = ("content", "actor", "session", "occurred_at")
        corpora.append(
            Corpus(
                "LoCoMo",
                path.stem,
                tuple(Item(*(memory[key] for key in keys)) for memory in read["memories"]),
                tuple(
                    Asked(
                        asked["question"],
                        asked["category"],
                        tuple(frozenset({positions[item]}) for item in asked["evidence"]),
                    )
                    for asked in read["questions"]
                ),
            )
        )
    return corpora


# --- our own small sets ---


def small_sets(path: Path = SMALL_SETS) -> list[Corpus]:
    """The sets that were written for this benchmark: memories with an id each, questions that name the ids needed."""
    corpora = []
    for group, read in json.loads(path.read_text(encoding="utf-8")).items():
        positions = {memory["id"]: position for position, memory in enumerate(read["memories"])}
        items = (Item(**{key: value for key, value in memory.items() if key != "id"}) for memory in read["memories"])
        questions = (
            Asked(asked["question"], asked["kind"], tuple(frozenset({positions[item]}) for item in asked["needs"]))
            for asked in read["questions"]
        )
        corpora.append(Corpus(group, group, tuple(items), tuple(questions)))
    return corpora


# --- documents: the documentation of what the project depends on ---

DOCUMENTS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "apsw": ("apsw", "apsw"),
        "apsw.Connection": ("apsw", "apsw:Connection"),
        "apsw.Cursor": ("apsw", "apsw:Cursor"),
        "apsw.Blob": ("apsw", "apsw:Blob"),
        "click": ("click", "click"),
        "filelock": ("filelock", "filelock"),
        "fsspec.AbstractFileSystem": ("fsspec", "fsspec:AbstractFileSystem"),
        "huggingface_hub.HfApi": ("huggingface-hub", "huggingface_hub:HfApi"),
        "numpy": ("numpy", "numpy"),
        "numpy.linalg": ("numpy", "numpy.linalg"),
        "numpy.random.Generator": ("numpy", "numpy.random:Generator"),
        "openvino.Core": ("openvino", "openvino:Core"),
        "openvino.InferRequest": ("openvino", "openvino:InferRequest"),
        "platformdirs": ("platformdirs", "platformdirs"),
        "rich.console.Console": ("rich", "rich.console:Console"),
        "rich.progress": ("rich", "rich.progress"),
        "safetensors": ("safetensors", "safetensors"),
        "tokenizers.Encoding": ("tokenizers", "tokenizers:Encoding"),
        "tokenizers.Tokenizer": ("tokenizers", "tokenizers:Tokenizer"),
        "tqdm.tqdm": ("tqdm", "tqdm:tqdm"),
        "yaml": ("pyyaml", "yaml"),
    }
)
"""Each document: the distribution that it is from, and the module or class whose members it describes."""

SHORTEST_DOC: Final = 60
LONGEST_DOC: Final = 1_200
"""Characters. A shorter text says nothing to ask about; the rest of a longer one is examples."""


@dataclass(frozen=True, slots=True)
class DocumentQuestion:
    """A question and the members, any of which answers it, of one document."""

    document: str
    entities: frozenset[str]
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Documentation:
    """Markdown texts by document, the headings that each member stands under (`document`, `member`), and the questions
    that have a member there; `skipped` says how many have none."""

    texts: Mapping[str, str]
    headings: Mapping[tuple[str, str], str]
    questions: tuple[DocumentQuestion, ...]
    skipped: int
    versions: Mapping[str, str] = field(default_factory=dict)


def members(owner: Any, root: str) -> Iterator[tuple[str, str]]:
    """Name and docstring of the public callables that a package defines in a module or class, in order of names."""
    for name in sorted(dir(owner)):
        value = None if name.startswith("_") else getattr(owner, name, None)
        defined_in = getattr(value, "__module__", None) or root
        text = inspect.getdoc(value) if callable(value) and defined_in.partition(".")[0] == root else None
        if text is not None and len(text) >= SHORTEST_DOC:
            yield name, text


def described(document: str, found: Iterable[tuple[str, str]]) -> tuple[str, dict[str, str]]:
    """The Markdown of a document, a heading of the first level for each member, and the heading of each name. Names
    with the same text (aliases) share a heading."""
    names: defaultdict[str, list[str]] = defaultdict(list)
    for name, text in found:
        names[text].append(name)
    headings: dict[str, str] = {}
    parts = []
    for text, aliases in names.items():
        heading = f"{document}: {', '.join(aliases)}"
        headings |= dict.fromkeys(aliases, heading)
        # A line of a docstring that begins with # is a comment in an example, not a heading.
        escaped = re.sub("^#", r"\\#", text[:LONGEST_DOC], flags=re.MULTILINE)
        parts.append(f"# {heading}\n\n{escaped}\n")
    return "\n".join(parts), headings


def documentation(path: Path = QUESTIONS) -> Documentation:
    """What the installed packages say of themselves, and the questions about it. A package that is not installed has no
    document."""
    texts: dict[str, str] = {}
    headings: dict[tuple[str, str], str] = {}
    versions: dict[str, str] = {}
    for document, (distribution, target) in DOCUMENTS.items():
        root = target.partition(":")[0].partition(".")[0]
        try:
            importlib.import_module(root)
            versions[distribution] = metadata.version(distribution)
        except (ImportError, metadata.PackageNotFoundError):
            continue
        texts[document], found = described(document, members(pkgutil.resolve_name(target), root))
        headings |= {(document, name): heading for name, heading in found.items()}
    asked = [
        DocumentQuestion(row["document"], frozenset(row["entities"]), row["kind"], row["question"])
        for row in json.loads(path.read_text(encoding="utf-8"))
    ]
    kept = tuple(a for a in asked if any((a.document, name) in headings for name in a.entities))
    return Documentation(texts, headings, kept, len(asked) - len(kept), versions)


async def ingested(backend: PythonRAGBackend, read: Documentation) -> tuple[Corpus, list[str]]:
    """The corpus of the documents, each ingested from a file, and the ids of its chunks."""
    with tempfile.TemporaryDirectory() as folder:
        for document, text in read.texts.items():
            path = Path(folder) / f"{document}.md"
            path.write_text(text, encoding="utf-8")
            await backend.ingest_document(path, "semantic")
    entries = await backend.list_memories(limit=1_000_000)
    entries.sort(key=lambda entry: (entry.metadata["source"], entry.metadata["chunk"]))
    chunks = [(Path(e.metadata["source"]).stem, e.metadata["heading"], e.content) for e in entries]
    return document_corpus(read, chunks), [entry.id for entry in entries]


def document_corpus(read: Documentation, chunks: Sequence[tuple[str, str, str]]) -> Corpus:
    """The corpus of ingested chunks: (document, heading path, content) each. Any chunk under a member's heading counts
    as its documentation."""
    under: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for position, (document, path, _) in enumerate(chunks):
        under[document, path.partition(" > ")[0]].add(position)
    questions = []
    for asked in read.questions:
        places: set[int] = set()
        for name in asked.entities:
            places |= under[asked.document, read.headings.get((asked.document, name), "")]
        questions.append(Asked(asked.text, asked.kind, (frozenset(places),)))
    items = tuple(Item(content, session=document) for document, _, content in chunks)
    return Corpus("documents", "documents", items, tuple(questions))
