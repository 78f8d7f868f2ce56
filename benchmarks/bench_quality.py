"""How good recall is, on four kinds of memories: `python benchmarks/bench_quality.py`.

- LoCoMo, where its files are there (`--locomo FOLDER`; CC BY-NC, so none of it is kept, only figures).
- Documents: what the project's dependencies say of themselves, ingested, with 120 questions.
- Sets of our own: one-line notes, long messages of an assistant, notes in Chinese and Japanese.

Everything goes through the public API, a namespace for each conversation. Beside it, on the same vectors: cosine,
BM25, their fusion by ranks and their plain sum; with `--peer-python PATH` (again and again) LanceDB, LlamaIndex and
txtai from the environments of those interpreters. Intervals are 95 %, over questions.

`--ablate` switches off each signal of the ranking in turn. `--stages` measures what a recall spends its time on.
Writes `benchmarks/results/quality.json`.
"""

import argparse
import asyncio
import inspect
import json
import re
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import quality_data as data
from circumstances import ROOT, circumstances
from numpy.typing import NDArray
from quality_stages import SIZES, stages

from gemma_cli.rag import BatchEmbedder, PythonRAGBackend, Settings, create_embedder, load_settings
from gemma_cli.rag.ranking import Weights
from gemma_cli.rag.words import word_terms

RESULT = Path(__file__).parent / "results" / "quality.json"
LOCOMO = ROOT.parent / "shared" / "data" / "locomo-dev"
OURS = "gemma-rag"
GROUPS = ("LoCoMo", "notes", "long messages", "Chinese and Japanese", "documents")
PEERS = ("lancedb", "llamaindex", "txtai")
NOT_INSTALLED = 3
"""What `quality_peers.py` exits with where its environment has no such peer."""

FUSED = 100
"""Hits of each ranking that RRF is given."""

DAY = 86_400.0
TODAY = datetime.fromisoformat("2026-01-01T00:00:00+00:00").timestamp()
"""The clock where memories have no dates."""

Rankings = list[list[int]]


def plain() -> Settings:
    """The defaults, whatever this machine's user has configured."""
    return load_settings(environ={}, cwd=Path(tempfile.gettempdir()))


@dataclass(frozen=True, slots=True)
class Filled:
    """A backend and where its memories are in the corpus."""

    backend: PythonRAGBackend
    positions: Mapping[str, int]

    async def recall(self, questions: Sequence[data.Asked], **options: Any) -> Rankings:
        return [
            self._places(await self.backend.recall_memories(asked.text, limit=data.DEPTH, touch=False, **options))
            for asked in questions
        ]

    async def search(self, questions: Sequence[data.Asked]) -> Rankings:
        return [self._places(await self.backend.search_memories(asked.text, limit=data.DEPTH)) for asked in questions]

    def _places(self, found: Sequence[Any]) -> list[int]:
        return [self.positions[entry.id] for entry in found]


@dataclass(frozen=True, slots=True)
class Subject:
    """A corpus with its vectors (rows of length 1), as a user would store it and as bare contents."""

    corpus: data.Corpus
    vectors: NDArray[np.float32]
    question_vectors: NDArray[np.float32]
    whole: Filled
    bare: Filled

    @property
    def questions(self) -> Sequence[data.Asked]:
        return self.corpus.questions


# --- filling ---


@dataclass(frozen=True, slots=True)
class Shelf:
    """Opens backends on one embedder, which computes each text once, and closes them in the end."""

    embedder: BatchEmbedder
    stack: AsyncExitStack

    async def backend(self, now: float) -> PythonRAGBackend:
        made = PythonRAGBackend(url="memory://", embedder=self.embedder, settings=plain(), clock=lambda: now)
        return await self.stack.enter_async_context(made)

    async def subject(self, corpus: data.Corpus, whole: Filled | None = None) -> Subject:
        moments = [datetime.fromisoformat(item.occurred_at).timestamp() for item in corpus.items if item.occurred_at]
        now = max(moments) + DAY if moments else TODAY
        return Subject(
            corpus,
            np.stack(await self.embedder.embed_batch([item.content for item in corpus.items])),
            np.stack(await self.embedder.embed_batch([asked.text for asked in corpus.questions])),
            whole or await self.filled(now, corpus.items, ("content", "actor", "session", "occurred_at")),
            await self.filled(now, corpus.items, ("content",)),
        )

    async def filled(self, now: float, items: Sequence[data.Item], names: Sequence[str]) -> Filled:
        backend = await self.backend(now)
        rows = [{name: getattr(item, name) for name in names} | {"memory_type": "semantic"} for item in items]
        ids = await backend.store_memories(rows)
        return Filled(backend, {id_: position for position, id_ in enumerate(ids)})

    async def documents(self, read: data.Documentation) -> Subject:
        """Each document ingested from a file."""
        backend = await self.backend(TODAY)
        corpus, ids = await data.ingested(backend, read)
        return await self.subject(corpus, Filled(backend, {id_: position for position, id_ in enumerate(ids)}))


# --- systems ---


def by_meaning(subject: Subject) -> NDArray[np.float64]:
    """Cosines, shape [questions, items]."""
    cosines: NDArray[np.float64] = subject.question_vectors.astype(np.float64) @ subject.vectors.astype(np.float64).T
    return cosines


def by_words(subject: Subject) -> NDArray[np.float64]:
    """BM25 over the most that a question could score, shape [questions, items]."""
    index = data.Bm25([word_terms(item.content) for item in subject.corpus.items])
    return np.stack([index.scores(word_terms(asked.text)) for asked in subject.questions])


def matching(scores: NDArray[np.float64], depth: int) -> list[int]:
    """The best of those that hold a word of the question."""
    return [position for position in data.ranking(scores, depth) if scores[position] > 0]


async def cosine(subject: Subject) -> Rankings:
    return [data.ranking(scores, data.DEPTH) for scores in by_meaning(subject)]


async def bm25(subject: Subject) -> Rankings:
    return [matching(scores, data.DEPTH) for scores in by_words(subject)]


async def fused(subject: Subject) -> Rankings:
    return [
        data.reciprocal_rank_fusion((data.ranking(meaning, FUSED), matching(words, FUSED)))
        for meaning, words in zip(by_meaning(subject), by_words(subject), strict=True)
    ]


async def summed(subject: Subject) -> Rankings:
    return [data.ranking(scores, data.DEPTH) for scores in by_meaning(subject) + by_words(subject)]


SYSTEMS: dict[str, Callable[[Subject], Awaitable[Rankings]]] = {
    OURS: lambda subject: subject.whole.recall(subject.questions),
    "gemma-rag, contents alone": lambda subject: subject.bare.recall(subject.questions),
    "gemma-rag, search_memories": lambda subject: subject.whole.search(subject.questions),
    "cosine": cosine,
    "BM25": bm25,
    "cosine and BM25, RRF": fused,
    "cosine + BM25": summed,
}


# --- peers ---


def peers(subjects: Sequence[Subject], pythons: Sequence[Path]) -> tuple[dict[str, list[Rankings]], dict[str, str]]:
    """For each system of the peers, its rankings of each subject, and the versions; says which peers did not run."""
    rankings: dict[str, list[Rankings]] = {}
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        texts = [
            {"texts": [i.content for i in s.corpus.items], "questions": [q.text for q in s.questions]} for s in subjects
        ]
        Path(folder, "corpora.json").write_text(json.dumps(texts), encoding="utf-8")
        arrays = {f"texts{number}": subject.vectors for number, subject in enumerate(subjects)}
        arrays |= {f"questions{number}": subject.question_vectors for number, subject in enumerate(subjects)}
        np.savez(Path(folder, "vectors.npz"), **arrays)  # type: ignore[arg-type]
        for peer in PEERS:
            if not any(ran(python, peer, folder) for python in pythons):
                print(f"{peer}: not run; no interpreter given with --peer-python has it")
                continue
            report = json.loads(Path(folder, f"{peer}.json").read_text(encoding="utf-8"))
            rankings |= report["rankings"]
            versions |= report["versions"]
    return rankings, versions


def ran(python: Path, peer: str, folder: str) -> bool:
    """Whether the peer ran in that environment; False where it is not installed there, an error where it failed."""
    script = Path(__file__).with_name("quality_peers.py")
    done = subprocess.run([python, script, "--peer", peer, folder], capture_output=True, text=True, check=False)
    if done.returncode not in (0, NOT_INSTALLED):
        raise SystemExit(f"{peer} failed in {python}:\n{done.stderr}")
    return done.returncode == 0


# --- figures ---


@dataclass(frozen=True, slots=True)
class Judged:
    """The measures of every question of a group of corpora, under each system."""

    memories: int
    kinds: NDArray[np.str_]
    systems: Mapping[str, data.Figures]

    def report(self) -> dict[str, Any]:
        """Means and intervals, over all and by kind of question, and how far ours is ahead, question by question."""
        ours = self.systems[OURS]
        return {
            "memories": self.memories,
            "systems": {
                name: {"all": data.summary(figures)}
                | {str(kind): data.summary(figures[self.kinds == kind]) for kind in np.unique(self.kinds)}
                | ({} if name == OURS else {"gemma-rag less this": data.difference(ours, figures)})
                for name, figures in self.systems.items()
            },
        }


def grouped(subjects: Sequence[Subject], rankings: Mapping[str, Sequence[Rankings]]) -> Iterator[tuple[str, Judged]]:
    """`rankings` hold, for each system, those of each subject."""
    for group in dict.fromkeys(subject.corpus.group for subject in subjects):
        chosen = [number for number, subject in enumerate(subjects) if subject.corpus.group == group]
        questions = [asked for number in chosen for asked in subjects[number].questions]
        yield (
            group,
            Judged(
                sum(len(subjects[number].corpus.items) for number in chosen),
                np.array([asked.kind for asked in questions]),
                {
                    name: data.judged([ranked for number in chosen for ranked in found[number]], questions)
                    for name, found in rankings.items()
                },
            ),
        )


def table(title: str, heads: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    wide = max(map(len, rows), default=0)
    print(f"\n{title}\n{'':{wide}}  " + "  ".join(f"{head:>23}" for head in heads))
    for name, cells in rows.items():
        print(f"{name:{wide}}  " + "  ".join(f"{cell:>23}" for cell in cells))


def percent(figure: Mapping[str, float]) -> str:
    return f"{100 * figure['mean']:.1f} ({100 * figure['low']:.1f} to {100 * figure['high']:.1f})"


def show(group: str, report: Mapping[str, Any]) -> None:
    systems = report["systems"]
    title = f"{group}: {report['memories']:,} memories, {systems[OURS]['all']['questions']} questions; %"
    table(
        title, data.MEASURES, {name: [percent(row["all"][m]) for m in data.MEASURES] for name, row in systems.items()}
    )
    kinds = [kind for kind in systems[OURS] if kind != "all"]
    if len(kinds) > 1:
        heads = [f"{kind} ({systems[OURS][kind]['questions']})" for kind in kinds]
        rows = {name: [percent(row[kind]["R@10"]) for kind in kinds] for name, row in systems.items()}
        table(f"{group}, R@10 by kind of question; %", heads, rows)


async def ablated(subjects: Sequence[Subject]) -> dict[str, Any]:
    """What each signal is worth: the measures without it less those with all, per group."""
    if "weights" not in inspect.signature(PythonRAGBackend.recall_memories).parameters:
        print("\n--ablate: left out; recall_memories takes no weights")
        return {}
    rankings = {OURS: [await subject.whole.recall(subject.questions) for subject in subjects]}
    for field in fields(Weights):
        options = {"weights": {field.name: 0.0}}
        rankings[field.name] = [await subject.whole.recall(subject.questions, **options) for subject in subjects]
    figures: dict[str, Any] = {}
    for group, judged in grouped(subjects, rankings):
        ours = judged.systems[OURS]
        figures[group] = {
            name: data.difference(without, ours) for name, without in judged.systems.items() if name != OURS
        }
        rows = {name: [percent(row[m]) for m in data.MEASURES] for name, row in figures[group].items()}
        table(f"{group}: without a signal, less with all of them; points", data.MEASURES, rows)
    return figures


def written(report: Mapping[str, Any]) -> str:
    """JSON with each figure and its interval on one line, so that a reader finds their way in it."""
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    return re.sub(r'\{\s+("mean": \S+)\s+("low": \S+)\s+("high": \S+)\s+\}', r"{\1 \2 \3}", text)


async def run(options: argparse.Namespace) -> None:
    report: dict[str, Any] = {"benchmark": "quality", "circumstances": circumstances(["openvino", "pystemmer"])}
    figures: dict[str, Any] = {}
    corpora = [corpus for corpus in data.small_sets() if corpus.group in options.only]
    if "LoCoMo" in options.only and options.locomo.is_dir():
        corpora = [*data.locomo(options.locomo), *corpora]
    elif "LoCoMo" in options.only:
        print(f"LoCoMo: left out; there is no folder {options.locomo} (--locomo FOLDER)")
    async with AsyncExitStack() as stack:
        embedder = await stack.enter_async_context(BatchEmbedder(create_embedder(), cache_size=1_000_000))
        shelf = Shelf(embedder, stack)
        subjects = [await shelf.subject(corpus) for corpus in corpora]
        if "documents" in options.only:
            read = data.documentation()
            report["documents"] = {"versions": read.versions, "questions": len(read.questions), "skipped": read.skipped}
            if read.skipped:
                print(f"documents: {read.skipped} questions left out; the installed versions lack what they ask about")
            subjects.append(await shelf.documents(read))
        rankings = {name: [await system(subject) for subject in subjects] for name, system in SYSTEMS.items()}
        theirs, report["peers"] = peers(subjects, options.peer_python)
        for group, judged in grouped(subjects, rankings | theirs):
            figures[group] = judged.report()
            show(group, figures[group])
        if options.ablate:
            report["ablation"] = await ablated(subjects)
    if options.stages:
        report["stages"] = await stages(options.sizes)
        heads = list(next(iter(report["stages"].values())))
        rows = {size: [f"{cost:,.0f}" for cost in row.values()] for size, row in report["stages"].items()}
        table("cost of a recall, medians; microseconds", heads, rows)
    report["figures"] = figures
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(written(report), encoding="utf-8")
    print(f"\nsaved to {options.out}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--locomo", type=Path, default=LOCOMO, help="folder of LoCoMo's conversations")
    parser.add_argument("--only", choices=GROUPS, nargs="+", default=GROUPS, help="some of the sets")
    parser.add_argument("--peer-python", type=Path, action="append", default=[], help="interpreter that has peers")
    parser.add_argument("--ablate", action="store_true", help="switch off each signal of the ranking in turn")
    parser.add_argument("--stages", action="store_true", help="measure the stages of a recall")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="memories, for --stages")
    asyncio.run(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
