"""`gemma-rag demo`: the whole of it on real text, in a store of its own."""

import asyncio
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from gemma_cli.commands.output import out
from gemma_cli.rag import MemoryConsolidator, MemoryTier, PythonRAGBackend

HANDBOOK: Final = "lighthouse-handbook.md"
QUESTIONS: Final = "lighthouse-questions.json"

CONVERSATION: Final[tuple[Mapping[str, Any], ...]] = tuple(
    MappingProxyType(said)
    for said in (
        {"content": "I can't eat anything with peanuts, it sends me to hospital.", "actor": "Mia", "importance": 0.9},
        {"content": "Please keep your answers short, I read them on my phone.", "actor": "Mia", "importance": 0.6},
        {
            "content": "Yesterday we took the ferry to Skarvholm and the engine broke down half way.",
            "actor": "Mia",
            "memory_type": MemoryTier.EPISODIC,
        },
        {"content": "My sister Lea is getting married in Lisbon on 12 June.", "actor": "Mia", "importance": 0.8},
        {
            "content": "Mia writes a travel blog about lighthouses.",
            "memory_type": MemoryTier.SEMANTIC,
            "importance": 0.7,
        },
        {"content": "We are talking about the crossing.", "memory_type": MemoryTier.WORKING, "importance": 0.2},
    )
)

ABOUT_THE_CONVERSATION: Final = (
    ("Does she have any allergies?", "peanuts"),
    ("When is the wedding?", "12 June"),
)
FROM_THE_HANDBOOK: Final = (1, 2, 6)
"""Which of the handbook's questions are asked."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and words that the memory which answers it must hold."""

    text: str
    answer: str


def questions() -> list[Question]:
    """Five questions, none of which shares a telling word with its answer."""
    kept = json.loads(shipped(QUESTIONS))
    asked = [Question(kept[number]["question"], kept[number]["answer"]) for number in FROM_THE_HANDBOOK]
    return asked + [Question(*pair) for pair in ABOUT_THE_CONVERSATION]


def shipped(name: str) -> str:
    """A text that comes with the package: `HANDBOOK` or `QUESTIONS`."""
    return (resources.files("gemma_cli") / "demo_data" / name).read_text("utf-8")


def run_demo() -> None:
    """Runs in a directory that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="gemma-rag-demo-") as directory:
        asyncio.run(_demo(Path(directory)))


async def _demo(directory: Path) -> None:
    costs: dict[str, str] = {}
    document = directory / HANDBOOK
    document.write_text(shipped(HANDBOOK), "utf-8")
    async with PythonRAGBackend(url=f"sqlite:///{directory / 'demo.db'}") as backend:
        start = time.perf_counter()
        identity = await backend.try_model()
        costs["model loaded and tried"] = _seconds(start)
        out.print(f"Model: {identity.name}, {identity.dimension} wide, {identity.engine} {identity.precision}")

        start = time.perf_counter()
        chunks = await backend.ingest_document(document)
        costs[f"handbook read, cut into {chunks} chunks, embedded, stored"] = _seconds(start)
        start = time.perf_counter()
        ids = await backend.store_memories(CONVERSATION)
        costs[f"{len(ids)} memories of a conversation embedded and stored"] = _seconds(start)
        out.print(f"Stored: {chunks} chunks of a lighthouse's handbook and {len(ids)} memories of a conversation.")

        times = await _ask(backend)
        costs["one recall, question embedded (median)"] = f"{1e3 * median(times):.1f} ms"
        await _consolidate(backend, costs)
        info = await backend.get_info()
        costs["store on disk"] = f"{info.size_bytes / 1024:.0f} KiB"
        if backend.monitor is not None:
            memory = (await backend.monitor.get_report()).get("memory", {})
            if "rss_mb" in memory:
                costs["memory of this process, model included"] = f"{memory['rss_mb']:.0f} MB"
    _print_costs(costs)


async def _ask(backend: PythonRAGBackend) -> list[float]:
    """Asks every question, shows the best two answers and returns how long each took, in seconds."""
    times = []
    for question in questions():
        start = time.perf_counter()
        hits = await backend.recall_memories(question.text, limit=2, explain=True)
        times.append(time.perf_counter() - start)
        out.print(f"\n[bold]{question.text}[/bold]")
        table = Table(box=None, show_header=False, padding=(0, 1))
        for hit in hits:
            parts = " + ".join(f"{name} {value:.2f}" for name, value in (hit.explanation or {}).items())
            found = Text("✓" if question.answer in hit.content else " ", style="green")
            table.add_row(
                found, f"{hit.score:.3f}", Text(_around(hit.content, question.answer)), Text(parts, style="dim")
            )
        out.print(table)
    return times


def _around(content: str, answer: str, chars: int = 110) -> str:
    """The part of a text that holds the answer, else its beginning, on one line."""
    position = max(content.find(answer), 0)
    start = max(0, min(position - 30, len(content) - chars))
    part = " ".join(content[start : start + chars].split())
    return f"{'…' if start else ''}{part}{'…' if start + chars < len(content) else ''}"


async def _consolidate(backend: PythonRAGBackend, costs: dict[str, str]) -> None:
    consolidator = MemoryConsolidator(backend)
    start = time.perf_counter()
    promoted = await consolidator.run_consolidation()
    costs["consolidation"] = _seconds(start)
    out.print(f"\nConsolidated: {promoted} promoted {consolidator.get_stats()['promotions_by_tier'] or ''}")
    counts = await backend.get_memory_stats()
    out.print("Tiers: " + ", ".join(f"{tier} {count}" for tier, count in counts.items()))


def _seconds(start: float) -> str:
    elapsed = time.perf_counter() - start
    return f"{elapsed:.2f} s" if elapsed >= 1 else f"{1e3 * elapsed:.1f} ms"


def _print_costs(costs: Mapping[str, str]) -> None:
    table = Table(box=None, show_header=False, title="What it cost", title_justify="left")
    for what, cost in costs.items():
        table.add_row(what, cost)
    out.print()
    out.print(table)
