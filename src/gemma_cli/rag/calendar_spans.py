"""The calendar that questions speak of, as spans of seconds, and how well times fit them. Pure functions; UTC, weeks
from Monday, seasons of the north."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Span:
    """Seconds since the epoch, start <= t < end. "Before" and "since" leave a side open: -inf or inf."""

    start: float
    end: float


# The calendar, in seconds since the epoch

DAY: Final = 86_400.0
UNITS: Final = {
    "minute": (0, 60.0),
    "hour": (0, 3_600.0),
    "week": (0, 7 * DAY),
    **dict.fromkeys("day night morning afternoon evening".split(), (0, DAY)),
    "month": (1, 0.0),
    "quarter": (3, 0.0),
    "year": (12, 0.0),
    "decade": (120, 0.0),
}
"""How many months and seconds a unit has."""


def midnight(year: int, month: int = 1, day: int = 1) -> float:
    """A midnight. Months below 1 and above 12 belong to the years around; ValueError for 31 February."""
    return datetime(year + (month - 1) // 12, (month - 1) % 12 + 1, day, tzinfo=UTC).timestamp()


def days_from(start: float, days: int = 1) -> Span:
    return Span(start, start + days * DAY)


def months_from(year: int, month: int = 1, count: int = 1) -> Span:
    return Span(midnight(year, month), midnight(year, month + count))


def weekday_from(time: float, weekday: int, days: int = 1, weeks: int = 0) -> Span:
    """The first such weekday (Monday is 0) at or after a midnight, or `weeks` weeks later, and the days after it."""
    return days_from(time + ((weekday - time // DAY - 3) % 7 + 7 * weeks) * DAY, days)  # 1 January 1970: a Thursday, 3


def later(time: float, unit: str, count: int) -> float:
    """So many units later; the 31st runs over the end of a shorter month, by less than such a question means."""
    months, seconds = UNITS[unit]
    if not months:
        return time + count * seconds
    day = datetime.fromtimestamp(time, UTC)
    return time - midnight(day.year, day.month) + midnight(day.year, day.month + count * months)


def shifted(span: Span, unit: str, low: int, high: int) -> Span:
    """Moved by `low` to `high` units, and widened to one unit around the middle: "2 weeks ago" is no single day."""
    ends = [later(time, unit, count) for time in (span.start, span.end) for count in (low, high)]
    slack = max(0.0, later(min(ends), unit, 1) - max(ends)) / 2
    return Span(min(ends) - slack, max(ends) + slack)


def around(time: float, unit: str, count: int = 0) -> Span:
    """The calendar's unit (a day or longer) that holds a time, or the one `count` units later."""
    months, seconds = UNITS[unit]
    start = time - time % DAY
    if months:
        day = datetime.fromtimestamp(time, UTC)
        index = day.year * 12 + day.month - 1
        start = midnight(0, index // months * months + 1)
    elif seconds > DAY:
        start -= (start // DAY + 3) % 7 * DAY
    return Span(later(start, unit, count), later(start, unit, count + 1))


WEEKDAYS: Final = "monday tuesday wednesday thursday friday saturday sunday".split()
PLACES: Final = {"weekend": (5, 2)} | {name: (number, 1) for number, name in enumerate(WEEKDAYS)}
MONTHS: Final = "january february march april may june july august september october november december".split()
SEASONS: Final = {"spring": 3, "summer": 6, "autumn": 9, "fall": 9, "winter": 12}
HOLIDAYS: Final = {
    "christmas": (12, 24, 3),
    "christmas day": (12, 25, 1),
    "christmas eve": (12, 24, 1),
    "halloween": (10, 31, 1),
    **dict.fromkeys(["new year", "new year's", "new year's day"], (1, 1, 1)),
    "new year's eve": (12, 31, 1),
    "valentine's day": (2, 14, 1),
    "thanksgiving": (11, 22, 7),
}
"""Month, day, days. Thanksgiving is the fourth Thursday of November: the one in these seven days."""


def yearly(name: str, year: int) -> Span:
    """A month (by its first three letters), a season or a holiday; a winter belongs to the year that it begins in."""
    if name in HOLIDAYS:
        month, day, days = HOLIDAYS[name]
        start = midnight(year, month, day)
        return weekday_from(start, 3) if name == "thanksgiving" else days_from(start, days)
    return months_from(year, SEASONS[name], 3) if name in SEASONS else months_from(year, month_number(name))


def month_number(name: str) -> int:
    return next(number for number, month in enumerate(MONTHS, 1) if month.startswith(name[:3]))


EDGE_BEFORE: Final = 0.5
EDGE_AFTER: Final = 1.0
"""How far a span fades out, in its own lengths: people date loosely, and talk about a thing after it happened."""
EDGE_LEAST: Final = 4.0
EDGE_LEAST_DAYS: Final = 4.0
EDGE_MOST_DAYS: Final = 30.0
"""No edge is shorter than 4 lengths or 4 days, whichever is less, nor longer than 30 days. Chosen on the development
half of LoCoMo: of its 786 questions 125 hold a time; with cosine + BM25 + actor + 0.3 fit, their recall in the top 10
is .61 without the fit, .79 with hard edges, .84 with these; half or twice an edge changes that by about .01."""


def fit(spans: Sequence[Span], times: NDArray[np.float64]) -> NDArray[np.float32]:
    """How well times [n] (seconds since the epoch) fit the best of the spans: float32 [n], 1 inside it, falling in a
    straight line to 0 at the end of its edges. NaN, a time that is not known, fits nothing. Next to its open side, a
    span has no edge; on the other side it has that of a day."""
    best = np.zeros(len(times), np.float32)
    for span in spans:
        length = span.end - span.start if math.isfinite(span.end - span.start) else DAY
        least, most = min(EDGE_LEAST * length, EDGE_LEAST_DAYS * DAY), EDGE_MOST_DAYS * DAY
        before, after = (min(max(part * length, least), most) for part in (EDGE_BEFORE, EDGE_AFTER))
        outside = np.maximum((span.start - times) / before, (times - span.end) / after)
        np.fmax(best, np.clip(1 - outside, 0, 1), out=best, casting="same_kind")
    return best
