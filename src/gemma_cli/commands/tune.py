"""`gemma-rag tune`: measures which values of `[embedding]` are the quickest here, and writes them if told to."""

import asyncio
import json
import os
import re
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from rich.table import Table
from rich.text import Text

from gemma_cli.commands.demo import HANDBOOK, QUESTIONS, shipped
from gemma_cli.commands.output import err, out, print_json, progress_bar
from gemma_cli.rag import BatchEmbedder, EmbeddingOptions, InvalidInputError, Settings, SettingsError, create_embedder
from gemma_cli.rag.replacing import replaced_file
from gemma_cli.rag.settings import EmbeddingSettings, user_config_file
from gemma_cli.rag.tuning import Sample, Trial, Tuner, Tuning, knobs, usable_cores

SECTION: Final = "embedding"
TUNED: Final = tuple(key for knob in knobs(1) for key in knob.keys)
SENTENCES_A_TEXT: Final = (1, 1, 2, 1, 1, 4, 1)
"""How many of the handbook's sentences make one text of the bulk, over and over: 76 texts of 4 to 93 tokens."""

BULK_SECONDS: Final = 0.25
FEWEST_TEXTS: Final = 24
"""What the bulk is cut to, and how short it may become."""

CACHE_NOTE: Final = (
    "embedding.cache_size is left alone: its worth depends on how often your texts repeat, which nothing measured here "
    "can know; `cache_hit_rate` of the embedder in your application shows it"
)


def run_tune(settings: Settings, config: Path | None, *, seconds: float, apply: bool, as_json: bool) -> None:
    """Measures, prints and, with `apply`, writes; `config` is the file that was given before the command."""
    file = config or user_config_file()
    fixed = decided_elsewhere(settings, config)
    if settings.embedding.provider == "hashing":
        raise InvalidInputError('embedding.provider: "hashing" runs no model, so there is nothing to tune; use "local"')
    with EngineBench(settings.embedding) as machine, progress_bar("measuring, seconds") as progress:
        tuner = Tuner(
            machine,
            seconds=seconds,
            cores=usable_cores(),
            progress=lambda passed: progress(min(int(passed), int(seconds)), int(seconds)),
        )
        found = tuner.run(settings.embedding, fixed)
    if not as_json:
        print_tuning(found, settings.embedding, fixed)
    if apply and found.changes:
        write_values(file, found.changes)
    written = str(file) if apply and found.changes else None
    if as_json:
        report = {"trials": [asdict(trial) for trial in found.trials], "changes": dict(found.changes), "fixed": fixed}
        notes = {"left_alone": {"cache_size": CACHE_NOTE}}
        print_json(report | notes | {"complete": found.complete, "seconds": found.seconds, "written": written})
    elif written:
        err.print(f"written to {written}", markup=False, soft_wrap=True)
    elif found.changes:
        err.print(f"nothing was written; --apply writes to {file}", markup=False, soft_wrap=True)


def decided_elsewhere(settings: Settings, config: Path | None) -> dict[str, str]:
    """The tuned keys that a written value would not change, because an earlier source has them, and that source."""
    found = {}
    for key in TUNED:
        origin = settings.origins.get(f"{SECTION}.{key}", "default")
        from_other_file = config is None and origin.startswith("file ") and origin != f"file {user_config_file()}"
        if origin.startswith("environment ") or from_other_file:
            found[key] = origin
    return found


def print_tuning(found: Tuning, current: EmbeddingSettings, fixed: Mapping[str, str]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("knob", "value"):
        table.add_column(name, overflow="fold")
    for name in ("texts/s", "query p50", "p95", "speed", "ranking"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("result", no_wrap=True)
    for trial in found.trials:
        table.add_row(trial.knob, Text(trial.value), *_figures(trial), trial.verdict)
    out.print(table)
    for trial in found.trials:
        out.print(f"{trial.knob} {trial.value}: {trial.reason}", markup=False, soft_wrap=True)
    for key, value in found.changes.items():
        out.print(f"{SECTION}.{key}: {json.dumps(getattr(current, key))} -> {json.dumps(value)}", markup=False)
    if not found.changes:
        out.print("Nothing found that is clearly quicker than the values in use.")
    for key, origin in fixed.items():
        note = f"{SECTION}.{key} = {json.dumps(getattr(current, key))} comes from {origin}, which goes before the file"
        err.print(f"{note}; left as it is", markup=False, soft_wrap=True)
    err.print(CACHE_NOTE, markup=False, soft_wrap=True)
    if not found.complete:
        err.print("the time was too short to try everything; --seconds gives more", markup=False, soft_wrap=True)


def _figures(trial: Trial) -> list[str]:
    return [
        "" if trial.texts_per_second is None else f"{trial.texts_per_second:.0f}",
        "" if trial.query_p50 is None else f"{1e3 * trial.query_p50:.1f} ms",
        "" if trial.query_p95 is None else f"{1e3 * trial.query_p95:.1f} ms",
        "" if trial.gain is None else f"{trial.gain:.2f}x",
        "" if trial.ranking_kept is None else f"{trial.ranking_kept:.3f}",
    ]


class EngineBench:
    """Runs the real engines as a memory does, through a `BatchEmbedder`, on the texts that the demonstration brings:
    the handbook of a lighthouse, and questions about it. Its `f32` is the yardstick of the ranking."""

    def __init__(self, current: EmbeddingSettings) -> None:
        self._questions = [asked["question"] for asked in json.loads(shipped(QUESTIONS))]
        self._sentences = list(dict.fromkeys(sentences(shipped(HANDBOOK))))
        self._texts = mixed(self._sentences)
        self._sized = False
        self._exact = replace(current, precision="f32")
        self._reference: list[set[int]] | None = None
        self._models: dict[EmbeddingOptions, Any] = {}
        self._queues: dict[EmbeddingSettings, BatchEmbedder] = {}
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()
        self._runner.close()

    def engine(self, settings: EmbeddingSettings) -> str:
        identity = self._model(settings).identity
        return f"{identity.engine} {identity.precision}"

    def measure(self, settings: EmbeddingSettings) -> Sample:
        queue = self._queues.get(settings)
        if queue is None:
            queue = self._queues[settings] = BatchEmbedder(self._model(settings), settings.batch_size, 0)
            self._timed(queue)  # loads the weights, and shows the engine every shape
            if not self._sized:
                self._size_bulk(self._timed(queue).texts_per_second)
        return self._timed(queue)

    def _size_bulk(self, texts_per_second: float) -> None:
        """Makes the bulk short enough for many rounds on a slow machine, once, so that all are given the same work."""
        self._texts = self._texts[: max(FEWEST_TEXTS, round(BULK_SECONDS * texts_per_second))]
        self._sized = True

    def ranking_kept(self, settings: EmbeddingSettings) -> float:
        if self._reference is None:
            self._reference = self._nearest(self._exact)
        pairs = zip(self._nearest(settings), self._reference, strict=True)
        return sum(len(ours & exact) / len(exact) for ours, exact in pairs) / len(self._reference)

    def release(self) -> None:
        for queue in self._queues.values():
            self._runner.run(queue.close())
        for model in self._models.values():
            model.close()
        self._queues.clear()
        self._models.clear()

    def _timed(self, queue: BatchEmbedder) -> Sample:
        start = time.perf_counter()
        self._runner.run(queue.embed_batch(self._texts))
        bulk = time.perf_counter() - start
        queries = []
        for question in self._questions:
            start = time.perf_counter()
            self._runner.run(queue.embed_text(question))
            queries.append(time.perf_counter() - start)
        return Sample(len(self._texts) / bulk, tuple(queries))

    def _model(self, settings: EmbeddingSettings) -> Any:
        options = EmbeddingOptions.configured(settings)
        if options not in self._models:
            self._models[options] = create_embedder(options)
        return self._models[options]

    def _nearest(self, settings: EmbeddingSettings) -> list[set[int]]:
        """The ten nearest others of each sentence."""
        vectors = self._model(settings).encode(self._sentences)
        near = vectors @ vectors.T
        np.fill_diagonal(near, -np.inf)
        return [set(row) for row in np.argpartition(-near, 10, axis=1)[:, :10].tolist()]


def sentences(markdown: str) -> list[str]:
    """The sentences of its paragraphs, headings left out."""
    paragraphs = [" ".join(part.split()) for part in markdown.split("\n\n") if not part.startswith("#")]
    return [found for part in paragraphs for found in re.split(r"(?<=[.!?])\s+", part) if found]


def mixed(parts: Sequence[str]) -> list[str]:
    """The parts, each once and in order, put together to texts of mixed length."""
    texts: list[str] = []
    start = 0
    while start < len(parts):
        count = SENTENCES_A_TEXT[len(texts) % len(SENTENCES_A_TEXT)]
        texts.append(" ".join(parts[start : start + count]))
        start += count
    return texts


# The configuration file

_HEADER: Final = re.compile(rf"[ \t]*\[[ \t]*{SECTION}[ \t]*\][ \t]*(#.*)?")
_VALUE: Final = r"""(?P<before>[ \t]*{key}[ \t]*=[ \t]*)("(?:[^"\\]|\\.)*"|'[^']*'|[^\s#"']+)(?P<after>[ \t]*(#.*)?)"""


def edited(text: str, values: Mapping[str, Any]) -> str:
    """The TOML `text` with these values (numbers or plain strings) in `[embedding]`, every other line as it was.

    Raises ValueError where the outcome would say anything else than that: lines are matched, not parsed, so the outcome
    is parsed and compared before anybody gets it."""
    wanted = tomllib.loads(text.removeprefix("\N{BOM}"))
    wanted[SECTION] = {**wanted.get(SECTION, {}), **values}
    end = "\r" if "\r\n" in text else ""
    lines = [*text.removesuffix("\n").removesuffix("\r").split("\n")] if text else []
    lines = [line if line.endswith("\r") or not end else line + end for line in lines]
    header = next((at for at, line in enumerate(lines) if _HEADER.fullmatch(line.strip("\N{BOM}\r"))), None)
    if header is None:
        lines += [*([end] if lines else []), f"[{SECTION}]{end}"]
        header = len(lines) - 1
    for key, value in values.items():
        after = next((at for at in range(header + 1, len(lines)) if lines[at].lstrip().startswith("[")), len(lines))
        pattern = re.compile(_VALUE.format(key=re.escape(key)))
        for at in range(header + 1, after):
            if match := pattern.fullmatch(lines[at].removesuffix("\r")):
                lines[at] = f"{match['before']}{json.dumps(value)}{match['after']}{end}"
                break
        else:
            held = [
                at for at in range(header + 1, after) if lines[at].strip() and not lines[at].lstrip().startswith("#")
            ]
            indent = re.match(r"[ \t]*", lines[held[-1]])[0] if held else ""  # type: ignore[index]  # matches anything
            lines.insert((held[-1] if held else header) + 1, f"{indent}{key} = {json.dumps(value)}{end}")
    outcome = "\n".join(lines) + "\n"
    if tomllib.loads(outcome.removeprefix("\N{BOM}")) != wanted:
        raise ValueError(f"[{SECTION}] is written in a way that can't be edited line by line")
    return outcome


def write_values(path: Path, values: Mapping[str, Any]) -> None:
    """Puts the values into `[embedding]` of a file that may not be there yet. It is replaced whole or not at all, and
    keeps its mode; a link stays one. Raises SettingsError, which says what to write by hand."""
    by_hand = "; ".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
    target = path.resolve()
    try:
        there = target.exists()
        if there and not os.access(target, os.W_OK):
            raise PermissionError(f"{target} is read-only")
        content = edited(target.read_bytes().decode() if there else "", values).encode()
        target.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(target, keep_mode=True) as file:
            file.write(content)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: not changed: {error}; write into [{SECTION}] by hand: {by_hand}") from error
