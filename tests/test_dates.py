"""Times in a question: which spans it speaks of, what it must not take for one, and how memories fit them."""

import math
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_cli.rag.calendar_spans import EDGE_MOST_DAYS, Span, fit
from gemma_cli.rag.dates import MAX_CHARS, MAX_SPANS, time_spans
from gemma_cli.rag.errors import InvalidInputError, InvalidTypeError

NOW = datetime(2023, 8, 16, 12, tzinfo=UTC)  # a Wednesday
DAY = 86_400.0


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def span(start: str, end: str) -> Span:
    return Span(seconds(start) if start else -math.inf, seconds(end) if end else math.inf)


def test_a_complete_date_does_not_depend_on_the_clock() -> None:
    """A complete date means the same span whatever the clock says."""
    later = NOW + timedelta(days=4_000)
    assert time_spans("What was decided on 7 May 2023?", NOW) == time_spans("What was decided on 7 May 2023?", later)


@pytest.mark.parametrize(
    ("query", "start", "end"),
    [
        ("What did we decide on 7 May 2023?", "2023-05-07", "2023-05-08"),
        ("What did we decide on May 7, 2023?", "2023-05-07", "2023-05-08"),
        ("Who called on the 7th of May 2023", "2023-05-07", "2023-05-08"),
        ("Who called on Sunday, 7 May 2023?", "2023-05-07", "2023-05-08"),
        ("What was sold on December 1,2022?", "2022-12-01", "2022-12-02"),
        ("What was sold on Oct. 13th, 2022?", "2022-10-13", "2022-10-14"),
        ("what was sold on 7 may", "2023-05-07", "2023-05-08"),
        ("What did I do on July 4th?", "2023-07-04", "2023-07-05"),
        ("notes of 2023-05-07", "2023-05-07", "2023-05-08"),
        ("am 2023-05-07 beschlossen", "2023-05-07", "2023-05-08"),
        ("会議は2023-05-07に", "2023-05-07", "2023-05-08"),
        ("2023-05-07T10:00:00Z call", "2023-05-07", "2023-05-08"),
        ("the 2023-05 report", "2023-05-01", "2023-06-01"),
        ("invoice of 07.05.2023", "2023-05-07", "2023-05-08"),
        ("invoice of 13/05/2023", "2023-05-13", "2023-05-14"),
        ("Where did I go in May 2021?", "2021-05-01", "2021-06-01"),
        ("Where did I go in May of last year?", "2022-05-01", "2022-06-01"),
        ("Which car did she buy in 2022?", "2022-01-01", "2023-01-01"),
        ("Who sang in the 1990s?", "1990-01-01", "2000-01-01"),
        ("Where was she in the summer of 2021?", "2021-06-01", "2021-09-01"),
        ("What did he get for Christmas 2022?", "2022-12-24", "2022-12-27"),
        ("Who came on Thanksgiving 2022?", "2022-11-24", "2022-11-25"),
    ],
)
def test_an_absolute_date_is_its_day_month_or_year(query: str, start: str, end: str) -> None:
    """A date that is written out gives exactly its calendar span, in UTC."""
    assert time_spans(query, NOW) == (span(start, end),)


@pytest.mark.parametrize(
    ("query", "start", "end"),
    [
        ("Who called yesterday?", "2023-08-15", "2023-08-16"),
        ("What is due today?", "2023-08-16", "2023-08-17"),
        ("What did I cook last night?", "2023-08-15", "2023-08-16"),
        ("Who wrote the day before yesterday?", "2023-08-14", "2023-08-15"),
        ("Who visited last weekend?", "2023-08-12", "2023-08-14"),
        ("What did I cook last week?", "2023-08-07", "2023-08-14"),
        ("What did I read last month?", "2023-07-01", "2023-08-01"),
        ("Where did I work last year?", "2022-01-01", "2023-01-01"),
        ("What is planned for next month?", "2023-09-01", "2023-10-01"),
        ("Where did I go last May?", "2023-05-01", "2023-06-01"),
        ("Where did I go in May?", "2023-05-01", "2023-06-01"),
        ("Where did I go in October?", "2022-10-01", "2022-11-01"),
        ("Where did I go in August?", "2023-08-01", "2023-09-01"),
        ("Where did I go last August?", "2022-08-01", "2022-09-01"),
        ("Where was she last summer?", "2022-06-01", "2022-09-01"),
        ("What did she plant this spring?", "2023-03-01", "2023-06-01"),
        ("What did I eat on Monday?", "2023-08-14", "2023-08-15"),
        ("What did I eat on Wednesday?", "2023-08-16", "2023-08-17"),
        ("What did I eat last Wednesday?", "2023-08-09", "2023-08-10"),
        ("Who on Monday was late?", "2023-08-14", "2023-08-15"),
        ("Who comes next Friday?", "2023-08-18", "2023-08-19"),
        ("Who came Monday last week?", "2023-08-07", "2023-08-08"),
        ("What did I buy 3 days ago?", "2023-08-13", "2023-08-14"),
        ("What did I buy three weeks ago?", "2023-07-23", "2023-07-30"),
        ("What did I say an hour ago?", "2023-08-16T10:30", "2023-08-16T11:30"),
        ("What did I say in the last two weeks?", "2023-08-02T12:00", "2023-08-16T12:00"),
        ("What did I learn over the past year?", "2022-08-16T12:00", "2023-08-16T12:00"),
    ],
)
def test_a_relative_expression_counts_from_now(query: str, start: str, end: str) -> None:
    """ "Yesterday" and its like count from the clock that was given; a bare month is the latest that has begun."""
    assert time_spans(query, NOW) == (span(start, end),)


@pytest.mark.parametrize(
    ("query", "start", "end"),
    [
        ("What did they build between March and June 2023?", "2023-03-01", "2023-07-01"),
        ("What did they build from October to March?", "2022-10-01", "2023-04-01"),
        ("Where was he between August 11 and August 15 2022?", "2022-08-11", "2022-08-16"),
        ("What did we do from 3 to 7 May 2023?", "2023-05-03", "2023-05-08"),
        ("What did we do on May 3–7, 2023?", "2023-05-03", "2023-05-08"),
        ("Where did I live from 2019 to 2021?", "2019-01-01", "2022-01-01"),
        ("Who called between Friday and Monday?", "2023-08-11", "2023-08-15"),
        ("What was planned in the first week of June?", "2023-06-01", "2023-06-08"),
        ("What was planned on the last Friday of May 2023?", "2023-05-26", "2023-05-27"),
        ("Which class began in mid-May 2023?", "2023-05-11", "2023-05-21"),
        ("What was sold towards the end of 2022?", "2022-09-01", "2023-01-01"),
        ("What was bought two days before 3 June 2023?", "2023-06-01", "2023-06-02"),
        ("What was bought two weeks before 3 June 2023?", "2023-05-17", "2023-05-24"),
        ("What did Tim do the week before 16 November 2022?", "2022-11-09", "2022-11-16"),
        ("What did she do last weekend before April 10, 2023?", "2023-04-08", "2023-04-10"),
        ("What did he do the week of 7 June 2023?", "2023-06-05", "2023-06-12"),
        ("Who left before Christmas 2022?", "", "2022-12-24"),
        ("Who stayed until June 2023?", "", "2023-07-01"),
        ("What has changed since March?", "2023-03-01", ""),
        ("What was said after 7 May 2023?", "2023-05-08", ""),
    ],
)
def test_words_around_a_date_change_the_span(query: str, start: str, end: str) -> None:
    """Ranges, parts, distances and open sides are taken from the words beside a date."""
    assert time_spans(query, NOW) == (span(start, end),)


@pytest.mark.parametrize(
    "query",
    """May I ask you something?
    What may have caused the failure?
    This may be wrong
    They march for equality.
    When does the march start?
    Who came second in the race?
    The cat sat on the mat.
    Is there a sun in the picture?
    He bought 42 apples.
    What are the top 10 books?
    May 10 users log in?
    Does it run on Python 3.11?
    The proof ends in 1990 steps.
    Which port does it use, 8080 or 2023?
    What is 2001: A Space Odyssey about?
    from 2000 to 3000 people
    between 1990 and 2000 people
    Who is April?
    Did you buy a gift for June?
    How long did the last march in town take?
    What was lost in the last week of school?
    What did June say to August?
    How did he fall off the bike?
    Who wrote about the fall of Rome?
    Does the spring of the door squeak?
    What is the last name of Jan?
    When was the last time we met?
    What does he do on Mondays?
    Where do we walk on Sunday mornings?
    Who sings on Black Friday?
    How long ago was her birthday?
    What did Wendy do in her last year of school?
    What is the IP 10.12.20.23?
    Call 555-2021 now
    What is 5/7 of a pound?
    Are we going to the second floor?
    What happened on 31 February 2023?
    What happened 9999 years ago?
    What was half a year ago?""".splitlines(),
)
def test_what_only_looks_like_a_date_is_none(query: str) -> None:
    """Verbs, names, quantities, versions and days that no calendar has give no span."""
    assert time_spans(query.strip(), NOW) == ()


def test_an_ambiguous_date_gives_both_readings() -> None:
    """07/05/2023 is the seventh of May as well as the fifth of July."""
    expected = (span("2023-05-07", "2023-05-08"), span("2023-07-05", "2023-07-06"))
    assert time_spans("the invoice of 07/05/2023", NOW) == expected


def test_a_winter_belongs_to_both_of_its_years() -> None:
    """The winter of 2021 may have begun in 2020 or in 2021."""
    expected = (span("2020-12-01", "2021-03-01"), span("2021-12-01", "2022-03-01"))
    assert time_spans("Who skied in the winter of 2021?", NOW) == expected


def test_several_times_keep_their_order_and_repeats_count_once() -> None:
    """Each time of a question gives a span, in the question's order, a repeated one only once."""
    found = time_spans("Was it on 3 June 2023 or in May 2021, or on June 3, 2023?", NOW)
    assert found == (span("2023-06-03", "2023-06-04"), span("2021-05-01", "2021-06-01"))


def test_a_long_text_is_read_at_its_beginning() -> None:
    """A chronicle gives its first times, and nothing beyond the length that is read."""
    chronicle = " ".join(f"On {day} May 2023 it rained." for day in range(1, 29))
    assert time_spans(chronicle, NOW) == time_spans(chronicle[: 28 * MAX_SPANS], NOW)
    assert len(time_spans(chronicle, NOW)) == MAX_SPANS
    assert time_spans("x" * MAX_CHARS + " in May 2023", NOW) == ()


def test_now_is_read_as_utc() -> None:
    """A naive clock is UTC's, and one of another zone is converted."""
    there = NOW.astimezone(timezone(timedelta(hours=13)))  # already the 17th
    assert time_spans("yesterday", NOW.replace(tzinfo=None)) == time_spans("yesterday", NOW)
    assert time_spans("yesterday", there) == time_spans("yesterday", NOW)


def test_bad_input_is_named() -> None:
    """A query that is no text and a clock that is no time raise the project's errors."""
    with pytest.raises(InvalidTypeError, match="query"):
        time_spans(None, NOW)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="now"):
        time_spans("yesterday", "noon")  # type: ignore[arg-type]


WORDS = (
    "in on last next this the first week weekend of may march May 7 31 2023 29 february 0 since before after between "
    "and to from ago 3 9999 years months days year Monday yesterday spring winter early end past few a couple - , ?"
).split()


@given(st.lists(st.sampled_from(WORDS), max_size=12), st.datetimes())
def test_any_question_at_any_time_gives_spans_that_begin_before_they_end(words: list[str], now: datetime) -> None:
    """No order of words and no clock makes the reading fail or gives an empty span."""
    if now.year < 9999:
        assert all(found.start < found.end for found in time_spans(" ".join(words), now))


# Fitting


def test_fit_is_one_inside_and_falls_to_zero_outside() -> None:
    """A span is half open, has an edge on each side, and the later edge of a long span is the longer one."""
    month = Span(0.0, 20 * DAY)
    days = np.array([-40, -10, -5, -1, 0, 19.9, 20, 25, 30, 39, 41, 400]) * DAY
    found = fit([month], days)
    assert found.dtype == np.float32
    assert found[[4, 5]].tolist() == [1, 1]
    assert found[[0, 1, -2, -1]].tolist() == [0, 0, 0, 0]
    assert np.all(np.diff(found[:5]) >= 0)
    assert np.all(np.diff(found[5:]) <= 0)
    assert found[2] < found[7]  # five days before, five days after


def test_fit_takes_the_best_span() -> None:
    """With several spans, a time counts as well as in the one that it fits best."""
    spans = [Span(0.0, DAY), Span(50 * DAY, 51 * DAY)]
    times = np.array([0.5, 2.0, 25.0, 50.5]) * DAY
    each = [fit([one], times) for one in spans]
    np.testing.assert_array_equal(fit(spans, times), np.maximum(*each))


def test_fit_of_an_open_side_has_no_end() -> None:
    """All times before an open start and after an open end fit."""
    times = np.array([-1e12, 0.0, 10 * DAY, 1e12])
    assert fit([Span(-math.inf, 0.0)], times).tolist() == [1, 1, 0, 0]
    assert fit([Span(0.0, math.inf)], times).tolist() == [0, 1, 1, 1]


def test_fit_knows_nothing_of_unknown_times() -> None:
    """NaN fits no span, and without spans nothing fits."""
    assert fit([Span(0.0, DAY)], np.array([math.nan, 0.0])).tolist() == [0, 1]
    assert fit([], np.array([0.0, 1.0])).tolist() == [0, 0]
    assert fit([Span(0.0, DAY)], np.array([], np.float64)).shape == (0,)


@pytest.mark.parametrize("length", [60.0, 3_600.0, DAY, 30 * DAY, 3_650 * DAY])
def test_edges_grow_with_the_span_within_bounds(length: float) -> None:
    """An hour does not fade over days, nor a decade over years."""
    reach = min(4 * length, EDGE_MOST_DAYS * DAY)
    edges = fit([Span(0.0, length)], np.array([-reach, -reach / 1_000, length + reach / 1_000, length + reach]))
    assert edges[[0, 3]].tolist() == [0, 0]
    assert np.all(edges[1:3] > 0.98)
