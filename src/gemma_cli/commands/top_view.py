"""What `gemma-rag top` shows: the state that a stream's events add up to, and one frame of it."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any, Final

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gemma_cli.commands.options import TIERS
from gemma_cli.commands.output import one_line
from gemma_cli.server.live_samples import drop_old_words

Json = Mapping[str, Any]

MINUTE: Final = 60.0
KEPT_SAMPLES: Final = 900
KEPT_EVENTS: Final = 200
LEAST_EVENTS: Final = 3
"""Events that are shown even where the screen is full."""
PIPE_LINES: Final = 40
"""Lines of a frame where nothing says how many there are room for."""
WIDE: Final = 76
"""Columns from which there is room for every column of a table."""
NARROW: Final = 48
"""Columns below which only the most telling ones are left, and no bars."""
EVENT_STYLES: Final[Mapping[str, str]] = {
    "stored": "green",
    "updated": "cyan",
    "moved": "blue",
    "faded": "dim",
    "evicted": "yellow",
    "forgotten": "red",
}
BLOCKS: Final = "▁▂▃▄▅▆▇█"


@dataclass
class View:
    """All that has been heard. source: whose operations these are, for the reader."""

    source: str
    note: str = ""
    hello: Json = field(default_factory=dict)
    samples: deque[Json] = field(default_factory=lambda: deque(maxlen=KEPT_SAMPLES))
    activity: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=KEPT_EVENTS))

    def take(self, name: str, data: Json) -> None:
        """One event of the stream. A `hello` replaces all that was heard before."""
        if name == "hello":
            self.hello = data
            self.samples = deque(data["history"], KEPT_SAMPLES)
            self.activity = deque(data["activity"], KEPT_EVENTS)
        elif name == "sample":
            self.samples.append(data)
        elif name == "activity":
            if data["more"]:  # of events that are not told: what is known of earlier ones may be old
                self.activity.clear()
            drop_old_words(self.activity, data["events"])
            self.activity.extend(data["events"])

    @property
    def ready(self) -> bool:
        """Whether there is anything to show: the store's figures, or why there are none."""
        return bool(self.samples) and (bool(self.latest.get("tiers")) or "error" in self.latest)

    @property
    def latest(self) -> Json:
        return self.samples[-1] if self.samples else {}

    def last_minute(self) -> Sequence[Json]:
        """The samples of the last 60 seconds before the latest, oldest first."""
        if not self.samples:
            return ()
        end = _seconds(self.latest)
        return [sample for sample in self.samples if end - _seconds(sample) < MINUTE]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        minute = self.last_minute()
        above = Group(
            self._head(width),
            _tiers(self, minute, width),
            Text(),
            _operations(minute, width),
            Text(),
            _figures(self.latest, minute),
            Text(),
        )
        yield above
        used = len(console.render_lines(above, options.update(height=None)))
        room = max((options.height or PIPE_LINES) - used, LEAST_EVENTS)
        yield _activity(self.activity, room)

    def _head(self, width: int) -> Group:
        store = self.hello.get("store") or {}
        facts = [store.get(name) for name in ("namespace", "model", "engine")]
        url = one_line(store.get("url") or "")
        head = Text(no_wrap=True, overflow="ellipsis")
        head.append(f"gemma-rag {self.hello.get('version', '')}  ", style="bold")
        head.append("  ".join(one_line(fact) for fact in facts if fact))
        # Of a long path the end says more than the beginning.
        head.append(f"\n{url if len(url) <= width else f'…{url[len(url) - width + 1 :]}'}")
        rest = Text(one_line(self.source), style="dim")
        for problem in (self.note, self.latest.get("error")):
            if problem:
                rest.append(f"\n{one_line(problem)}", style="bold red")
        return Group(head, rest.append("\n"))


def _tiers(view: View, minute: Sequence[Json], width: int) -> Table:
    """The tiers in their order, and what came and went within the last minute."""
    columns = ("tier", "", "memories>", "came>", "went>") if width >= NARROW else ("tier", "memories>", "came>")
    table = _table(*columns)
    policies = {tier["name"]: tier for tier in view.hello.get("tiers", ())}
    for name in TIERS:
        figures = view.latest.get("tiers", {}).get(name)
        if figures is None:
            continue
        count, capacity = figures["count"], policies.get(name, {}).get("capacity")
        came, went = (f"{number:,}" if number else "" for number in _moves(minute, name))
        of = f" / {capacity:,}" if capacity is not None and width >= WIDE else ""
        cells: dict[str, RenderableType] = {
            "tier": name,
            "": _bar(count, capacity),
            "memories>": f"{count:,}{of}",
            "came>": came,
            "went>": went,
        }
        table.add_row(*(cells[column] for column in columns))
    return table


def _bar(count: int, capacity: int | None) -> ProgressBar:
    full = capacity is not None and count >= capacity
    return ProgressBar(total=capacity or max(count, 1), completed=count, complete_style="red" if full else "green")


def _moves(minute: Sequence[Json], tier: str) -> tuple[int, int]:
    tiers = [sample["tiers"][tier] for sample in minute if tier in sample.get("tiers", {})]
    return sum(figures["arrived"] for figures in tiers), sum(figures["left"] for figures in tiers)


def _operations(minute: Sequence[Json], width: int) -> Table | Text:
    """Calls and errors of the last minute; latencies of the latest sample in which the operation ran, and the longest
    of the minute."""
    calls: dict[str, int] = {}
    errors: dict[str, int] = {}
    latest: dict[str, Json] = {}
    longest: dict[str, float] = {}
    for sample in minute:
        for name, figures in sample.get("operations", {}).items():
            calls[name] = calls.get(name, 0) + figures["count"]
            errors[name] = errors.get(name, 0) + figures["errors"]
            latest[name] = figures
            longest[name] = max(longest.get(name, 0.0), figures.get("max_ms", 0.0))
    if not calls:
        return Text("no operations within the last minute", style="dim")
    columns = ["operation", "calls>", "errors>", "p50 ms>", "p95 ms>", "p99 ms>", "max ms>"]
    if width < WIDE:
        columns.remove("p99 ms>")
    if width < NARROW:
        columns = ["operation", "calls>", "p95 ms>"]
    table = _table(*columns)
    table.columns[0].header = Text(f"operation {_spark(minute) if width >= NARROW else ''}")
    for name in sorted(calls, key=lambda name: (-calls[name], name)):
        cells: dict[str, RenderableType] = {
            "operation": one_line(name),
            "calls>": f"{calls[name]:,}",
            "errors>": Text(f"{errors[name]:,}" if errors[name] else "", style="red"),
            **{f"{p} ms>": _ms(latest[name].get(f"{p}_ms")) for p in ("p50", "p95", "p99")},
            "max ms>": _ms(longest[name]),
        }
        table.add_row(*(cells[column] for column in columns))
    return table


def _spark(minute: Sequence[Json]) -> str:
    """Calls of each of the latest samples, the busiest one full."""
    calls = [sum(figures["count"] for figures in sample.get("operations", {}).values()) for sample in minute][-20:]
    most = max(calls, default=0) or 1
    return "".join(BLOCKS[(len(BLOCKS) - 1) * call // most] for call in calls)


def _figures(latest: Json, minute: Sequence[Json]) -> Table:
    table = Table.grid(padding=(0, 2))
    for row in _facts(latest, minute):
        table.add_row(*row)
    return table


def _facts(latest: Json, minute: Sequence[Json]) -> Iterator[tuple[Text, str]]:
    for name, cache in latest.get("caches", {}).items():
        asked = cache["hits"] + cache["misses"]
        rate = f"{cache['hits'] / asked:.0%} of {asked:,} found" if asked else "not asked yet"
        yield _name(f"{name} kept"), f"{rate}, {cache['size']:,} / {cache['capacity']:,}"
    embedder = latest.get("embedder")
    if embedder:
        batch = embedder["texts"] / embedder["batches"] if embedder["batches"] else 0.0
        new = _grown(minute, "texts")
        yield (
            _name("embedded"),
            f"{new:,}/min, {embedder['texts']:,} in all, {batch:.1f} a batch, {embedder['queue_length']:,} waiting",
        )
    sizes = latest.get("store") or {}
    process = latest.get("process") or {}
    if sizes:
        yield _name("sizes"), f"store {_mb(sizes['size_bytes'])}, indexes {_mb(sizes['index_bytes'])}"
    used = [f"{process['rss_mb']:,.0f} MB"] if "rss_mb" in process else []
    if process:
        yield _name("process"), ", ".join([*used, f"{process['cpu_percent']:.0f} % of a core"])


def _grown(minute: Sequence[Json], total: str) -> int:
    """How much a total of the embedder has grown within the samples; a restart begins at 0."""
    values = [sample["embedder"][total] for sample in minute if sample.get("embedder")]
    return sum(max(after - before, 0) for before, after in pairwise(values))


def _activity(activity: Sequence[Json], room: int) -> Table:
    """The latest events, newest first."""
    table = Table.grid(padding=(0, 1), expand=True)
    for _ in range(3):
        table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, ratio=1, overflow="ellipsis")
    for event in list(activity)[-room:][::-1]:
        at = datetime.fromisoformat(event["time"]).astimezone().strftime("%H:%M:%S")
        where = f"{event['from_tier']} > {event['tier']}" if event.get("from_tier") else event["tier"]
        kind = Text(event["kind"], style=EVENT_STYLES.get(event["kind"], ""))
        table.add_row(Text(at, style="dim"), kind, where, Text(one_line(event.get("text") or "")))
    return table


def _table(*columns: str) -> Table:
    """Columns whose name ends with `>` are numbers."""
    table = Table(box=None, pad_edge=False, expand=True, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        right = column.endswith(">")
        table.add_column(
            column.rstrip(">"),
            justify="right" if right else "left",
            no_wrap=True,
            min_width=None if column != "tier" else max(map(len, TIERS)),
            ratio=None if right or column == "tier" else 1,
        )
    return table


def _name(text: str) -> Text:
    return Text(text, style="dim")


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _seconds(sample: Json) -> float:
    return datetime.fromisoformat(sample["time"]).timestamp()
