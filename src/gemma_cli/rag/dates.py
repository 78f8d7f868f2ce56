"""Which times a question speaks of, for English, and ISO 8601.

A question is read in three steps. `_RULES` find expressions: a date, a month, "yesterday", "3 weeks ago". The words
to the left say what is meant by each ("the end of", "two days before", "since"), and neighbours become ranges
("between .. and .."). What is only sometimes a time (May, spring, Monday, 2022) is weak: it counts where such a word,
or at least a preposition, stands before it. The calendar is UTC's, weeks begin on Monday, seasons are northern.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import Final

from gemma_cli.rag import validation as check
from gemma_cli.rag.calendar_spans import (
    DAY,
    HOLIDAYS,
    MONTHS,
    PLACES,
    SEASONS,
    UNITS,
    WEEKDAYS,
    Span,
    around,
    days_from,
    later,
    midnight,
    month_number,
    months_from,
    shifted,
    weekday_from,
    yearly,
)
from gemma_cli.rag.errors import InvalidTypeError

MAX_SPANS: Final = 8
"""A text with more times than this is a chronicle, not a question about a time; the first ones count."""

MAX_CHARS: Final = 2_000
"""Of a longer text the rest is not read: whoever pastes a page asks about something else than its dates."""


# The words

_ONE_TO_TWELVE: Final = "one two three four five six seven eight nine ten eleven twelve".split()
_COUNTS: Final = {word: (count, count) for count, word in enumerate(_ONE_TO_TWELVE, 1)} | (
    {"a": (1, 1), "an": (1, 1), "a couple of": (2, 3), "a few": (2, 5), "few": (2, 5), "several": (3, 8)}
)
_ORDINALS: Final = "first second third fourth 1st 2nd 3rd 4th".split()
_NTHS: Final = {word: number % 4 for number, word in enumerate(_ORDINALS)} | {"last": -1}
_WHICH: Final = {"last": -1, "past": -1, "this": 0, "next": 1, "coming": 1}
_THIRDS: Final = ("early", "start of", "beginning of"), ("mid", "middle of"), ("late", "end of")
_PARTS: Final = {word: (part, 3) for part, words in enumerate(_THIRDS) for word in words} | (
    {"first half of": (0, 2), "second half of": (1, 2)}
)
_VERBS: Final = frozenset({"may", "march"})
_NAMES: Final = _VERBS | {"april", "june", "august"}


@cache
def _re(pattern: str) -> re.Pattern[str]:
    """Compiled when first needed: all of them would take 15 ms of every start."""
    return re.compile(pattern, re.IGNORECASE)


def _any(words: Iterable[str]) -> str:
    """A pattern for one of the words, the longest first, whatever the blanks inside them."""
    return "(?:" + "|".join(sorted(words, key=len, reverse=True)).replace(" ", r"\s+") + ")"


def _said(match: re.Match[str], group: str) -> str:
    """What a group matched, as the tables have it; "" for a group that did not take part."""
    return " ".join((match[group] or "").lower().rstrip(".").split())


_COUNT: Final = rf"(?P<count>[1-9]\d{{0,3}}|{_any(_COUNTS)})"
_UNIT: Final = rf"(?P<unit>{_any(UNITS)})s?\b"
_MONTH: Final = rf"(?P<month>{_any([*MONTHS, *(month[:3] for month in MONTHS), 'sept'])})\b\.?"
_FREE: Final = r"(?<![\w.:/$€£#-])(?<!\d,)"
_YEAR: Final = r"(?P<year>(?:19|20)\d\d)(?![\w%]|[.,:/-]\d)"
_OF_YEAR: Final = rf"(?:,?\s*(?:(?:of|in)\s+)?{_YEAR}|\s+(?:of\s+)?(?P<which>last|this|next)\s+year\b)"
_NUMBER: Final = r"(?P<{}>0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th)?(?!\w|[.:/]\d)"
_TO: Final = r"\s*(?:(?P<to>-|\bto\b|\buntil\b|\btill\b|\bthrough\b)|\band\b)\s*"
_NUMBERS: Final = rf"{_NUMBER.format('day')}(?:{_TO}{_NUMBER.format('until')})?"
_LEAD: Final = rf"(?:\b{_any(WEEKDAYS)},?\s+)?(?:the\s+)?"
_NOT_THEIRS: Final = "".join(f"(?<!{word} )" for word in ("my", "his", "her", "its", "our", "your", "their", "'s"))
_NOT_OF: Final = r"(?!\s+of\b)"
_END: Final = r"\s*(?:$|[?!;:)\]\"]|[.,](?!\d))"
_FUNCTION_WORDS: Final = (
    "about after am and are as at because before but by can could did do does during for from had has have he how i if "
    "in into is it me my on or our pm she should since so than that the their then there they this till to together "
    "until was we were what when where which while who why will with would you your"
)
_ALONE: Final = rf"{_END}|'(?:s\b|(?!\w))|\s*-\s|\s+(?:(?-i:[A-Z][a-z])|\d\d?:\d|{_any(_FUNCTION_WORDS.split())}\b)"
"""What may follow a bare month, day or year; anything else is what the number counts or the name describes."""

_NEAR: Final = {"yesterday": -1, "today": 0, "tonight": 0, "tomorrow": 1}
_HINT: Final = re.compile(
    rf"[0-9]{{4}}|\b(?:{_any([*SEASONS, *HOLIDAYS, *_NEAR, *_WHICH, 'ago', 'back'])}\b"
    rf"|{_any([*WEEKDAYS, *(month[:3] for month in MONTHS)])})",
    re.IGNORECASE,
)
_PLAIN: Final = str.maketrans("\u2018\u2019\u2013\u2014\u2212", "''---")


@dataclass(frozen=True, slots=True)
class _Found:
    """An expression at text[start:stop]. `pick(year, which)` gives its spans; if it comes again, those in a year, else
    the last (-1), this (0), the next (1) one or (None) the latest that has begun."""

    start: int
    stop: int
    pick: Callable[[int | None, int | None], Sequence[Span]]
    name: str = ""
    year: int | None = None
    weak: bool = False
    comes_again: bool = False


_Rule = Callable[[re.Match[str], float], _Found | None]


def _fixed(match: re.Match[str], *spans: Span) -> _Found:
    return _Found(match.start(), match.end(), lambda _year, _which: spans)


def _choose(ordered: Sequence[Span], this: Span, now: float, which: int | None) -> Sequence[Span]:
    if which == 0:
        return [this]
    if which == 1:
        return [span for span in ordered if span.start > now][:1]
    return [span for span in ordered if (span.start if which is None else span.end) <= now][-1:]


def _recurring(match: re.Match[str], now: float, name: str, make: Callable[[int], Span]) -> _Found:
    """What comes every year; weak if the match gives no year."""
    current = datetime.fromtimestamp(now, UTC).year
    year = int(match["year"]) if match["year"] else None
    if match["which"]:
        year = current + _WHICH[_said(match, "which")]

    def pick(given: int | None, which: int | None) -> Sequence[Span]:
        if exact := year or given:  # people call a winter after either of its years
            return [make(exact - 1), make(exact)] if name == "winter" else [make(exact)]
        spans = [make(each) for each in range(current - 2, current + 2)]
        this = next((span for span in spans if span.start <= now < span.end), spans[2])
        return _choose(spans, this, now, which)

    return _Found(match.start(), match.end(), pick, name, year, year is None, year is None)


def _iso(match: re.Match[str], _now: float) -> _Found:
    year, month, day = (int(part or 0) for part in match.group("year", "month", "day"))
    return _fixed(match, days_from(midnight(year, month, day)) if day else months_from(year, month))


def _numeric(match: re.Match[str], _now: float) -> _Found:
    """07.05.2023 has the day first; 07/05/2023 is read both ways."""
    year, first, second = (int(part) for part in match.group("year", "first", "second"))
    orders = {(second, first)} | ({(first, second)} if match["by"] != "." else set())
    return _fixed(match, *(days_from(midnight(year, month, day)) for month, day in sorted(orders) if month <= 12))


def _day_of_month(match: re.Match[str], now: float) -> _Found | None:
    name, day = _said(match, "month"), int(match["day"])
    days = int(match["until"] or day) - day + 1
    after = _END if name in _VERBS and match["month"].islower() else _ALONE
    if days < 1 or not (match["year"] or match["which"] or _re(after).match(match.string, match.end())):
        return None
    found = _recurring(match, now, "", lambda year: days_from(midnight(year, month_number(name), day), days))
    return replace(found, weak=False)


def _named(match: re.Match[str], now: float) -> _Found | None:
    name = _said(match, "name")
    if match["month"] and name not in MONTHS and match["name"].islower() and not match["year"]:
        return None  # "mar", "dec", "sep": abbreviations have a capital
    return _recurring(match, now, name, lambda year: yearly(name, year))


def _weekday(match: re.Match[str], now: float) -> _Found:
    days = [weekday_from(around(now, "week", week).start, *PLACES[_said(match, "name")]) for week in range(-2, 3)]
    if match["which"]:
        return _fixed(match, days[2 + _WHICH[_said(match, "which")]])
    pick = lambda _year, which: _choose(days, days[2], now, which)  # noqa: E731
    return _Found(match.start(), match.end(), pick, "weekday", None, True, True)


def _calendar_unit(match: re.Match[str], now: float) -> _Found:
    if match["near"]:
        return _fixed(match, around(now, "day", _NEAR[_said(match, "near")]))
    which, unit = _WHICH[_said(match, "which")], _said(match, "unit")
    if unit == "weekend":
        return _fixed(match, weekday_from(around(now, "week", which).start, *PLACES[unit]))
    return _fixed(match, around(now, unit, which))


def _counted(match: re.Match[str]) -> tuple[int, int]:
    word = _said(match, "count") or "a"
    return (int(word), int(word)) if word.isdecimal() else _COUNTS[word]


def _rolling(match: re.Match[str], now: float) -> _Found:
    """The last 3 weeks, up to now; the next 3 weeks, from now."""
    unit, (_, count) = _said(match, "unit"), _counted(match)
    ends = (now, later(now, unit, count if _WHICH[_said(match, "which")] > 0 else -count))
    return _fixed(match, Span(min(ends), max(ends)))


def _ago(match: re.Match[str], now: float) -> _Found:
    unit, (low, high) = _said(match, "unit"), _counted(match)
    base = Span(now, now) if unit in ("minute", "hour") else around(now, "day")
    return _fixed(match, shifted(base, unit, -high, -low))


def _year(match: re.Match[str], _now: float) -> _Found:
    year = int(match["decade"] or match["year"])
    found = replace(_fixed(match, months_from(year, count=120 if match["decade"] else 12)), year=year)
    return found if match["decade"] else replace(found, name="year", weak=True)


_RULES: Final[Sequence[tuple[str, _Rule]]] = [
    (
        r"(?<![0-9A-Za-z./-])(?P<year>(?:19|20)[0-9]{2})(?P<by>[-/])(?P<month>0[1-9]|1[0-2])"
        r"(?:(?P=by)(?P<day>[0-9]{2})(?:T[0-9:.]+(?:Z|[+-][0-9:]+)?)?)?(?![0-9A-Za-z/-])",
        _iso,
    ),
    (
        rf"{_FREE}(?P<first>\d\d?)(?P<by>[./-])(?P<second>\d\d?)(?P=by)(?P<year>(?:19|20)\d\d)(?![\w/-]|[.:]\d)",
        _numeric,
    ),
    (rf"{_LEAD}{_FREE}{_NUMBERS}\s+(?:of\s+)?{_MONTH}{_OF_YEAR}?", _day_of_month),
    (rf"{_LEAD}\b{_MONTH}\s+(?:the\s+)?{_NUMBERS}{_OF_YEAR}?", _day_of_month),
    (rf"\b(?P<name>{_any([*HOLIDAYS, *SEASONS])}\b|{_MONTH}){_OF_YEAR}?", _named),
    (
        rf"\b(?:in|over|during|within|for)\s+the\s+(?P<which>{_any(_WHICH)})\s+(?:{_COUNT}\s+)?{_UNIT}{_NOT_OF}",
        _rolling,
    ),
    (rf"{_NOT_THEIRS}\b(?P<which>last|past|next|coming)\s+{_COUNT}\s+{_UNIT}{_NOT_OF}", _rolling),
    (rf"(?<!half ){_FREE}\b{_COUNT}\s+{_UNIT}\s+(?:ago|back)\b", _ago),
    (
        rf"\b(?P<name>{_any(WEEKDAYS)})\b(?:\s+(?:of\s+)?(?P<which>last|this|next)\s+week\b)?",
        _weekday,
    ),
    (
        rf"{_NOT_THEIRS}(?<!the )\b(?:(?P<which>last|this|next)\s+(?P<unit>weekend|{_any(UNITS)})\b{_NOT_OF}"
        rf"|(?P<near>{_any(_NEAR)})\b)",
        _calendar_unit,
    ),
    (rf"{_FREE}(?:(?P<decade>(?:19|20)\d0)s\b|{_YEAR}(?!\s*(?:-|to|and|or)\s*(?!(?:19|20)\d\d\b)\d))", _year),
]


# What the words to the left make of an expression. Each pattern ends where the expression begins.


def _left(pattern: str) -> str:
    return rf"\b{pattern}(?:\s+the)?[\s-]*$"


_PLACE: Final = rf"(?P<place>{_any([*UNITS, *PLACES])})s?"
_WHICH_ONE: Final = _left(rf"(?P<which>{_any(_WHICH)})")
_WITHIN: Final = _left(r"(?:in|during|throughout|year|(?:month|year)\s+of)")
_AT: Final = _left(r"(?:on|at|by|from|over|around|for)")
_AND: Final = rf"{_TO}(?:the\s+)?"
_BETWEEN: Final = _left(r"(?:between|from)")


def _part(span: Span, match: re.Match[str]) -> Span:
    """One of equal parts in whole days; a few days are too short to have parts."""
    (part, parts), days = _PARTS[_said(match, "part")], (span.end - span.start) // DAY
    first, last = (days * number // parts for number in (part, part + 1))
    return Span(span.start + first * DAY, span.start + last * DAY) if days > 4 else span


def _nth(span: Span, match: re.Match[str]) -> Span:
    """The first week of June is its first seven days."""
    nth, place, (_, count) = _NTHS[_said(match, "nth")], _said(match, "place"), _counted(match)
    if place in PLACES:
        return weekday_from(span.end if nth < 0 else span.start, *PLACES[place], nth)
    if nth < 0:
        return Span(later(span.end, place, -count), span.end)
    return Span(later(span.start, place, nth), later(span.start, place, nth + count))


def _offset(span: Span, match: re.Match[str]) -> Span:
    """Two weeks before: moved. The week before: beside it. The weekend before: the nearest. The week of: around it."""
    place, (low, high) = _said(match, "place"), _counted(match)
    sign = {"after": 1, "following": 1, "of": 0}.get(_said(match, "side"), -1)
    if place in PLACES:
        day, days = PLACES[place]
        start = {1: span.end, 0: around(span.start, "week").start, -1: span.start - (6 + days) * DAY}[sign]
        return weekday_from(start, day, days)
    if not sign:
        return around(span.start, place)
    if match["count"]:
        return shifted(span, place, *sorted((sign * low, sign * high)))
    ends = [span.end if sign > 0 else span.start]
    ends.append(later(ends[0], place, sign))
    return Span(min(ends), max(ends))


def _open(span: Span, match: re.Match[str]) -> Span:
    side = _said(match, "side")
    if side in ("after", "since"):
        return Span(span.end if side == "after" else span.start, math.inf)
    return Span(-math.inf, span.start if side in ("before", "prior to") else span.end)


_CHANGES: Final = (
    (_left(rf"(?P<nth>{_any(_NTHS)})\s+(?:{_COUNT}\s+)?{_PLACE}\s+(?:of|in)"), _nth),
    (_left(rf"(?P<part>{_any(_PARTS)})(?:\s+in)?"), _part),
    (_left(rf"(?:{_COUNT}\s+|last\s+)?\b{_PLACE}\s+(?P<side>before|prior\s+to|after|following|of)"), _offset),
    (_left(r"(?P<side>before|prior\s+to|until|till|up\s+to|after|since)"), _open),
)
_LOOK_BACK: Final = 40
"""Characters: the longest words that can stand to the left, and some to spare."""


def _in_context(text: str, found: _Found) -> tuple[int, Sequence[Span]]:
    """Where the expression begins, with the words that belong to it, and its spans: none if it is no time."""
    at, which, name = found.start, None, found.name

    def left(pattern: str) -> re.Match[str] | None:
        return _re(pattern).search(text, max(0, at - _LOOK_BACK), at)

    closed, alone = (bool(_re(after).match(text, found.stop)) for after in (_END, _ALONE))
    counts = not found.weak or (alone and bool(left(_WITHIN) or (name not in _NAMES and left(_AT))))
    if name in _VERBS and text[at].islower():
        alone = closed
    if found.comes_again and (match := left(_WHICH_ONE)) and (alone or name not in _VERBS | {"spring", "fall"}):
        at, which, counts = match.start(), _WHICH[_said(match, "which")], True
    spans = found.pick(None, which)
    for pattern, change in _CHANGES:
        sure = counts or (closed if change is _open and name in _NAMES else alone)
        if sure and (match := left(pattern)):
            spans, at, counts = [change(span, match) for span in spans], match.start(), True
    return at, spans if counts else []


def _joined(text: str, left: _Found, right: _Found) -> Sequence[Span]:
    """The range from one expression to the next, if the words around them make it one."""
    to = _re(_AND).fullmatch(text, left.stop, right.start)
    between = _re(_BETWEEN).search(text, max(0, left.start - _LOOK_BACK), left.start)
    if not to or not (between or (to["to"] and not (left.weak and right.weak))):
        return []
    if right.weak and not _re(_ALONE).match(text, right.stop):
        return []
    ends = right.pick(left.year, None)
    year = right.year or (datetime.fromtimestamp(ends[0].start, UTC).year if ends else None)
    for back in (0, 1):  # from October to March
        begins = left.pick(year and year - back, None)
        ranges = [Span(begin.start, end.end) for begin, end in zip(begins, ends, strict=False)]
        if all(span.start < span.end for span in ranges):
            return ranges
    return []


def _expressions(text: str, now: float) -> list[_Found]:
    """In the order of the text; where two overlap, the one of the earlier rule."""
    taken: list[_Found] = []
    for pattern, rule in _RULES:
        for match in _re(pattern).finditer(text):
            if all(match.end() <= other.start or other.stop <= match.start() for other in taken):
                with suppress(ValueError, OverflowError):  # 31 February, 9,999 years ago: no calendar has them
                    if found := rule(match, now):
                        taken.append(found)
    return sorted(taken, key=lambda found: found.start)


def time_spans(query: str, now: datetime) -> tuple[Span, ...]:
    """The times that a question speaks of, in its order, without repeats, at most `MAX_SPANS`; () if it speaks of none.

    `now` (naive: UTC) is what "yesterday" counts from, and what "in May" looks back from: the latest May that has
    begun. A date that can be read in two ways (07/05/2023) gives both spans."""
    if not isinstance(query, str):
        raise InvalidTypeError(f"query: expected text, got {type(query).__name__}")
    anchor = check.moment("now", now).timestamp()
    if not _HINT.search(query[:MAX_CHARS]):
        return ()
    text = query[:MAX_CHARS].translate(_PLAIN)
    found = _expressions(text, anchor)
    spans: list[Span] = []
    limit = len(text)  # from the right: an expression takes the words to its left, and what stands among them
    while found:
        last = found.pop()
        with suppress(ValueError, OverflowError):
            if found and (joined := _joined(text, found[-1], last)):
                limit, this = found.pop().start, joined
            elif last.stop <= limit:
                limit, this = _in_context(text, last)
            else:
                continue
            spans = [*this, *spans]
    return tuple(dict.fromkeys(spans))[:MAX_SPANS]
