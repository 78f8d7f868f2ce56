"""How the commands show things: tables for people, JSON for programs. Data goes to stdout, all else to stderr."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from gemma_cli.rag import MemoryEntry, Plan, WhyNot

ID_CHARS: Final = 36
WIDE: Final = 100
"""Columns from which an id has room beside a text."""
SHOWN_CHARS: Final = 400
"""Characters of a memory in a table: a chunk of a document would fill the screen."""

_CONTROLS: Final = dict.fromkeys([*range(32), *range(127, 160)], "\N{REPLACEMENT CHARACTER}") | {
    ord("\n"): "\n",
    ord("\t"): "\t",
    ord("\r"): "",
}
"""The characters of Unicode's category Cc, and what is shown in their place."""

err = Console(stderr=True, highlight=False)
out = Console(highlight=False)


def print_json(value: Any) -> None:
    """One JSON document on stdout, the same whatever the terminal."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def memory_json(memory: "MemoryEntry") -> dict[str, Any]:
    """A memory without its vector, which no reader wants on a screen."""
    return {name: value for name, value in memory.to_dict().items() if name != "embedding"}


def print_memories(memories: "Sequence[MemoryEntry]", *, as_json: bool) -> None:
    """Best or newest first, as they come; scores where there are any."""
    if as_json:
        print_json([memory_json(memory) for memory in memories])
        return
    if out.width < WIDE:
        for memory in memories:
            score = [] if memory.score is None else [f"{memory.score:.3f}"]
            print_listed(_described(memory), [*score, memory.tier.value, memory.id])
        return
    scored = any(memory.score is not None for memory in memories)
    table = Table(box=None, pad_edge=False)
    if scored:
        table.add_column("score", justify="right", no_wrap=True)
    table.add_column("memory", ratio=1, overflow="fold")
    table.add_column("tier", no_wrap=True)
    table.add_column("id", no_wrap=True, min_width=ID_CHARS, style="dim")
    for memory in memories:
        cells = [_described(memory), Text(memory.tier.value), Text(memory.id)]
        table.add_row(*([f"{memory.score:.3f}"] if scored else []), *cells)
    out.print(table)


def print_listed(text: Text, facts: Sequence[str]) -> None:
    """A text over the whole width, for a pipe on one line, and below it what else there is, unbroken."""
    out.print(text, soft_wrap=not out.is_terminal)
    out.print(Text("  " + "  ".join(facts), style="dim"), soft_wrap=True)


def print_prompt(memories: "Sequence[MemoryEntry]") -> None:
    """The text for a prompt, on stdout as it is: neither wrapped nor coloured."""
    from gemma_cli.rag import render

    typer.echo(visible(render(memories)))


def _described(memory: "MemoryEntry") -> Text:
    """Content, who said it, tags, and the parts of the score where they were asked for; never read as markup."""
    text = Text(f"{visible(memory.actor)}: " if memory.actor else "")
    text.append(visible(shorten(memory.content)))
    if memory.tags:
        text.append("  " + " ".join(f"#{visible(tag)}" for tag in sorted(memory.tags)), style="cyan")
    if memory.explanation:
        parts = " + ".join(f"{name} {value:.3f}" for name, value in memory.explanation.items())
        text.append(f"\n= {parts}", style="dim")
    return text


def shown_time(moment: datetime) -> str:
    """In the user's own time, to the minute."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"


def counted(number: int, one: str, many: str = "") -> str:
    """A number of things: "1 memory", "1,200 memories". many: where it is not just an s more."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def shorten(text: str) -> str:
    """The beginning of a long text; `get` and JSON have all of it."""
    return text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS - 1].rstrip()}…"


def visible(text: str) -> str:
    """Without control characters: a stored text must not move the cursor of the terminal that it is read on, or worse.
    JSON has them as escapes."""
    return text.translate(_CONTROLS)


def one_line(text: str) -> str:
    """On one line, without anything that moves a cursor or changes how the rest reads."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in " ".join(text.split()))


def print_memory(memory: "MemoryEntry", *, as_json: bool) -> None:
    """Every field of one memory."""
    if as_json:
        print_json(memory_json(memory))
        return
    print_facts({name: value for name, value in memory_json(memory).items() if value not in (None, [], {})})


def print_verdict(verdict: "WhyNot", *, as_json: bool) -> None:
    """What became of one memory in a recall; parts that are not there are left out."""
    facts = asdict(verdict) | {"margin": verdict.margin}
    if as_json:
        print_json(facts)
        return
    facts["explanation"] = " + ".join(f"{name} {value:.3f}" for name, value in verdict.explanation.items())
    print_facts({name: value for name, value in facts.items() if value not in (None, "")})


def print_facts(facts: Mapping[str, Any]) -> None:
    """Names and values, one a line."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_plain)
        table.add_row(name, Text(visible(shown)))
    out.print(table)


def print_plan(plan: "Plan") -> None:
    """What would move and what will be forgotten, and why; of which there is none is left out."""
    if plan.moves:
        _print_moves(plan)
    if plan.losses:
        _print_losses(plan)
    if plan.duplicates:
        out.print("say nearly the same, by cosine, the newer one first:", style="italic")
    for link in plan.duplicates:
        out.print(Text(f"{link.similarity:.3f}  {link.first}  {link.second}"), soft_wrap=True)


def _print_moves(plan: "Plan") -> None:
    moves = Table("relevance", "memory", "from", "to", box=None, pad_edge=False, title="would move up now")
    for move in plan.moves:
        row = (f"{move.relevance:.3f}", Text(_short(move.memory.content)), move.from_tier, move.to_tier)
        moves.add_row(*row)
    out.print(moves)


def _print_losses(plan: "Plan") -> None:
    losses = Table("expires", "memory", "tier", "lacks, to move up", box=None, pad_edge=False)
    losses.title = f"will be forgotten within {plan.days:g} days"
    for loss in plan.losses:
        losses.add_row(
            shown_time(loss.expires_at),
            Text(_short(loss.memory.content)),
            loss.memory.tier.value,
            f"{loss.missing:.3f}",
        )
    out.print(losses)


def _short(text: str, chars: int = 60) -> str:
    line = visible(" ".join(text.split()))
    return line if len(line) <= chars else f"{line[: chars - 1]}…"


@contextmanager
def progress_bar(title: str) -> Iterator[Any]:
    """Gives a function that takes what is done and how much there is. Drawn on stderr, on a terminal only."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
