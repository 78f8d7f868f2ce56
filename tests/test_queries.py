"""The query cache: freshness, single flight, invalidation, watched sources, prefetching, closing."""

import asyncio
import gc
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import pytest
from command_runs import TIMEOUT
from hypothesis import given
from hypothesis import strategies as st

from gemma_cli.rag.errors import BackendStateError, GemmaRagError, InvalidInputError, InvalidTypeError
from gemma_cli.rag.prefetching import LEARNED_KEYS, OUTSTANDING, PROBE, Prefetcher, _Followers
from gemma_cli.rag.queries import QueryOptimizer

pytestmark = pytest.mark.anyio


class Clock:
    """Seconds that a test moves by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Query:
    """A query that keeps its calls and can be held at the door."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.door = asyncio.Event()
        self.door.set()
        self.cancelled = 0

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        number = len(self.calls)
        self.calls.append((args, kwargs) if kwargs else args)
        try:
            await self.door.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return number


class Source:
    """A store that other processes write to: its token is a number that the test raises."""

    def __init__(self) -> None:
        self.token = 1
        self.error: Exception | None = None

    async def change_token(self) -> Hashable:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return self.token


async def turn() -> None:
    """Lets every ready task go on until it waits for something."""
    for _ in range(8):
        await asyncio.sleep(0)


async def test_the_second_query_is_answered_from_the_cache() -> None:
    """A key asked again within the TTL costs no call; arguments reach the function as they were given."""
    async with QueryOptimizer() as optimizer:
        query = Query()
        assert [await optimizer.execute_query("k", query, 1, key=2, fn=3) for _ in range(3)] == [0, 0, 0]
        assert query.calls == [((1,), {"key": 2, "fn": 3})]
        assert await optimizer.execute_query(("another", 7), query) == 1
        assert optimizer.get_stats() == {
            "total_queries": 4,
            "cache_hits": 2,
            "cache_misses": 2,
            "cache_hit_rate": 0.5,
            "dedup_hits": 0,
            "cache_size": 2,
            "in_flight_queries": 0,
            "prefetch_issued": 0,
            "prefetch_used": 0,
        }


async def test_none_is_an_answer_like_any_other() -> None:
    """A function that returns None is not called again for that."""
    calls: list[int] = []

    async def nothing() -> None:
        calls.append(1)

    async with QueryOptimizer() as optimizer:
        assert await optimizer.execute_query("k", nothing) is None  # type: ignore[func-returns-value]
        assert await optimizer.execute_query("k", nothing) is None  # type: ignore[func-returns-value]
        assert calls == [1]


async def test_a_plain_function_may_be_a_query() -> None:
    """What a function without `async` returns or raises is treated the same."""
    async with QueryOptimizer() as optimizer:
        assert await optimizer.execute_query("k", lambda: 5) == 5  # type: ignore[arg-type, return-value]
        with pytest.raises(ZeroDivisionError):
            await optimizer.execute_query("z", lambda: 1 / 0)  # type: ignore[arg-type, return-value]


async def test_answers_expire() -> None:
    """An answer is given until `cache_ttl` has passed, and not at that moment or after."""
    clock = Clock()
    async with QueryOptimizer(cache_ttl=10, clock=clock) as optimizer:
        query = Query()
        await optimizer.execute_query("k", query)
        clock.now += 9.999
        assert await optimizer.execute_query("k", query) == 0
        clock.now += 0.001
        assert await optimizer.execute_query("k", query) == 1


@pytest.mark.parametrize("options", [{"cache_ttl": 0}, {"cache_size": 0}])
async def test_without_a_cache_equal_queries_still_share_one_call(options: dict[str, int]) -> None:
    """TTL 0 and size 0 keep no answer, and concurrent callers are still served by one execution."""
    async with QueryOptimizer(**options) as optimizer:  # type: ignore[arg-type]
        query = Query()
        assert await asyncio.gather(*(optimizer.execute_query("k", query) for _ in range(5))) == [0] * 5
        assert await optimizer.execute_query("k", query) == 1
        assert optimizer.get_stats()["cache_size"] == 0


async def test_a_stampede_is_one_execution() -> None:
    """Many callers of one key at once cost one call; all but the first are counted as deduplicated."""
    async with QueryOptimizer() as optimizer:
        query = Query()
        query.door.clear()
        tasks = [asyncio.create_task(optimizer.execute_query("k", query)) for _ in range(100)]
        await turn()
        assert optimizer.get_stats()["in_flight_queries"] == 1
        query.door.set()
        assert await asyncio.gather(*tasks) == [0] * 100
        stats = optimizer.get_stats()
        assert (stats["cache_misses"], stats["dedup_hits"], stats["cache_hits"]) == (1, 99, 0)
        assert stats["in_flight_queries"] == 0


async def test_the_flight_survives_its_first_caller() -> None:
    """When the caller who started the query is cancelled, the others get their answer from the same execution."""
    async with QueryOptimizer() as optimizer:
        query = Query()
        query.door.clear()
        leader, *followers = [asyncio.create_task(optimizer.execute_query("k", query)) for _ in range(3)]
        await turn()
        leader.cancel()
        await turn()
        assert leader.cancelled()
        query.door.set()
        assert await asyncio.gather(*followers) == [0, 0]
        assert (len(query.calls), query.cancelled) == (1, 0)


async def test_a_query_that_nobody_waits_for_is_cancelled() -> None:
    """With the last caller gone the function is cancelled, nothing is cached, and the next caller starts afresh."""
    async with QueryOptimizer() as optimizer:
        query = Query()
        query.door.clear()
        tasks = [asyncio.create_task(optimizer.execute_query("k", query)) for _ in range(2)]
        await turn()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        query.door.set()
        assert await optimizer.execute_query("k", query) == 1
        assert query.cancelled == 1


async def test_an_error_reaches_all_who_wait_and_is_not_kept() -> None:
    """Every caller of a failing flight gets the exception; the next query calls the function again."""
    calls: list[int] = []

    async def fails_once() -> str:
        calls.append(1)
        await asyncio.sleep(0)
        if len(calls) == 1:
            raise ConnectionError("down")
        return "up"

    async with QueryOptimizer() as optimizer:
        outcomes = await asyncio.gather(
            *(optimizer.execute_query("k", fails_once) for _ in range(4)), return_exceptions=True
        )
        assert [str(outcome) for outcome in outcomes] == ["down"] * 4
        assert await optimizer.execute_query("k", fails_once) == "up"
        assert len(calls) == 2


async def test_an_error_that_nobody_waits_for_any_more_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    """A query that fails while it is being cancelled leaves no 'exception was never retrieved' behind."""

    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise ValueError("in the clean-up")

    async with QueryOptimizer() as optimizer:
        task = asyncio.create_task(optimizer.execute_query("k", stubborn))
        await turn()
        task.cancel()
        await asyncio.wait([task])
        await turn()
    gc.collect()
    assert not caplog.records


async def test_a_function_that_cancels_itself_does_not_cancel_its_callers() -> None:
    """A CancelledError from within arrives as an error that says so."""

    async def gives_up() -> None:
        raise asyncio.CancelledError

    async with QueryOptimizer() as optimizer:
        with pytest.raises(GemmaRagError, match="cancelled from within"):
            await optimizer.execute_query("k", gives_up)


async def test_invalidation_forgets_one_answer_or_all() -> None:
    """Only what was named is asked again; without a key everything is."""
    async with QueryOptimizer(enable_prefetch=False) as optimizer:
        query = Query()
        for key in ("a", "b"):
            await optimizer.execute_query(key, query)
        optimizer.invalidate_cache("a")
        optimizer.invalidate_cache("never seen")
        assert await optimizer.execute_query("a", query) == 2
        assert await optimizer.execute_query("b", query) == 1
        optimizer.invalidate_cache()
        assert optimizer.get_stats()["cache_size"] == 0
        assert await optimizer.execute_query("b", query) == 3


@pytest.mark.parametrize("key", ["k", None])
async def test_an_invalidation_during_a_flight_keeps_its_result_out(key: str | None) -> None:
    """Those who asked before get the old answer, those who ask after it a new one, and only that is kept."""
    async with QueryOptimizer() as optimizer:
        query = Query()
        query.door.clear()
        before = asyncio.create_task(optimizer.execute_query("k", query))
        await turn()
        optimizer.invalidate_cache(key)
        after = asyncio.create_task(optimizer.execute_query("k", query))
        await turn()
        query.door.set()
        assert (await before, await after) == (0, 1)
        assert await optimizer.execute_query("k", query) == 1


async def test_a_caller_may_change_its_list_and_nobody_elses() -> None:
    """Lists, dicts and sets are copied for each caller, for the first one and against the function itself too."""
    own: dict[str, Any] = {"list": [1, 2], "dict": {"a": 1}, "set": {1}}

    async def give(kind: str) -> Any:
        return own[kind]

    async with QueryOptimizer() as optimizer:
        for kind in list(own):
            first = await optimizer.execute_query(kind, give, kind)
            expected = first.copy()
            first.clear()
            own[kind].clear()
            second = await optimizer.execute_query(kind, give, kind)
            assert second == expected
            second.clear()
            assert await optimizer.execute_query(kind, give, kind) == expected


@given(
    st.integers(1, 4),
    st.lists(
        st.tuples(st.sampled_from(["ask", "ask", "ask", "forget", "tick", "write"]), st.sampled_from("abcdef")),
        max_size=60,
    ),
)
def test_it_answers_like_a_textbook_cache(size: int, steps: list[tuple[str, str]]) -> None:
    """Any order of queries, invalidations, time and writes gives the hits and misses of an LRU with TTL."""

    async def run() -> None:
        clock, source, query = Clock(), Source(), Query()
        book: OrderedDict[str, tuple[int, float, int]] = OrderedDict()  # answer, expiry, token
        async with QueryOptimizer(10, enable_prefetch=False, cache_size=size, clock=clock) as optimizer:
            optimizer.watch(source)
            for step, key in steps:
                if step == "tick":
                    clock.now += 4
                elif step == "write":
                    source.token += 1
                elif step == "forget":
                    optimizer.invalidate_cache(key)
                    book.pop(key, None)
                else:
                    known = book.get(key)
                    if known is None or clock.now >= known[1] or known[2] != source.token:
                        book.pop(key, None)
                        book[key] = (len(query.calls), clock.now + 10, source.token)
                        if len(book) > size:
                            book.popitem(last=False)
                    else:
                        book.move_to_end(key)
                    assert await optimizer.execute_query(key, query) == book[key][0]
                assert optimizer.get_stats()["cache_size"] == len(book)

    asyncio.run(run())


async def test_a_write_makes_answers_stale() -> None:
    """A watched source whose token changed is asked anew, also for a write that came while the answer was computed."""
    async with QueryOptimizer(enable_prefetch=False) as optimizer:
        source, query = Source(), Query()
        optimizer.watch(source)
        assert [await optimizer.execute_query("k", query) for _ in range(2)] == [0, 0]
        source.token += 1
        assert await optimizer.execute_query("k", query) == 1
        query.door.clear()
        optimizer.invalidate_cache()
        during = asyncio.create_task(optimizer.execute_query("k", query))
        await turn()
        source.token += 1  # the function may have read before this write
        later = asyncio.create_task(optimizer.execute_query("k", query))
        await turn()
        query.door.set()
        assert (await during, await later) == (2, 3)
        assert await optimizer.execute_query("k", query) == 3


async def test_several_sources_are_watched_together() -> None:
    """A write to any of them makes the answers stale; what was cached before `watch` is forgotten."""
    async with QueryOptimizer(enable_prefetch=False) as optimizer:
        one, two, query = Source(), Source(), Query()
        await optimizer.execute_query("k", query)
        optimizer.watch(one)
        optimizer.watch(two)
        assert await optimizer.execute_query("k", query) == 1
        for number, source in enumerate((one, two), start=2):
            source.token += 1
            assert await optimizer.execute_query("k", query) == number
            assert await optimizer.execute_query("k", query) == number


async def test_a_source_that_fails_is_not_taken_for_unchanged() -> None:
    """Without a token nobody knows whether the answer holds: its error reaches the caller, and the answer survives."""
    async with QueryOptimizer() as optimizer:
        source, query = Source(), Query()
        optimizer.watch(source)
        await optimizer.execute_query("k", query)
        source.error = ConnectionError("down")
        with pytest.raises(ConnectionError, match="down"):
            await optimizer.execute_query("k", query)
        source.error = None
        assert await optimizer.execute_query("k", query) == 0
        with pytest.raises(InvalidTypeError, match="change_token"):
            optimizer.watch(object())  # type: ignore[arg-type]


async def ask(optimizer: QueryOptimizer, query: Query, keys: str) -> None:
    for key in keys:
        await optimizer.execute_query(key, query, key)
        await turn()


async def test_the_likely_next_query_is_asked_ahead() -> None:
    """Once B has followed A often enough, asking A warms B, and the query for B costs no call of its own."""
    async with QueryOptimizer() as optimizer:
        query = Query()
        for _ in range(3):
            await ask(optimizer, query, "ab")
            optimizer.invalidate_cache()
        query.calls.clear()
        await ask(optimizer, query, "a")
        assert query.calls == [("a",), ("b",)]
        assert optimizer.get_stats()["prefetch_issued"] == 1
        await ask(optimizer, query, "bb")
        assert query.calls == [("a",), ("b",)]
        stats = optimizer.get_stats()
        assert (stats["prefetch_used"], stats["prefetch_issued"]) == (1, 1)


async def test_a_cache_hit_prefetches_too_and_a_fresh_answer_is_not_asked_again() -> None:
    """The successor of a cached key is warmed when it is missing, and left alone when it is there."""
    async with QueryOptimizer() as optimizer:
        query = Query()
        await ask(optimizer, query, "abababab")
        assert query.calls == [("a",), ("b",)]
        optimizer.invalidate_cache("b")
        await ask(optimizer, query, "a")
        assert query.calls == [("a",), ("b",), ("b",)]


async def test_a_query_joins_the_prefetch_of_its_key() -> None:
    """Who asks for what is just being prefetched shares that execution, which then counts as used."""
    async with QueryOptimizer() as optimizer:
        query = Query()
        for _ in range(3):
            await ask(optimizer, query, "ab")
        optimizer.invalidate_cache("b")
        query.door.clear()
        await ask(optimizer, query, "a")
        joined = asyncio.create_task(optimizer.execute_query("b", query, "b"))
        await turn()
        query.door.set()
        assert await joined == len(query.calls) - 1
        assert optimizer.get_stats()["prefetch_used"] == 1
        assert optimizer.get_stats()["dedup_hits"] == 1


async def test_prefetching_waits_until_no_query_is_in_flight() -> None:
    """While any caller waits for a query, nothing is asked ahead; when the last one is answered, it is."""
    async with QueryOptimizer() as optimizer:
        query, slow = Query(), Query()
        for _ in range(3):
            await ask(optimizer, query, "ab")
        optimizer.invalidate_cache("b")
        slow.door.clear()
        waiting = asyncio.create_task(optimizer.execute_query("slow", slow))
        await turn()
        await ask(optimizer, query, "a")
        assert optimizer.get_stats()["prefetch_issued"] == 0
        slow.door.set()
        await waiting
        await turn()
        assert optimizer.get_stats()["prefetch_issued"] == 1


async def test_a_prefetched_answer_goes_stale_like_any_other() -> None:
    """A write after the prefetch keeps its answer from being given."""
    async with QueryOptimizer() as optimizer:
        source, query = Source(), Query()
        optimizer.watch(source)
        for _ in range(3):
            await ask(optimizer, query, "ab")
            source.token += 1
        await ask(optimizer, query, "a")
        assert optimizer.get_stats()["prefetch_issued"] == 1
        source.token += 1
        asked = query.calls.count(("b",))
        await ask(optimizer, query, "b")
        assert query.calls.count(("b",)) == asked + 1
        assert optimizer.get_stats()["prefetch_used"] == 0


async def test_a_failing_prefetch_is_logged_and_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """What a prefetch raises is a log event, not an answer; a query for the key calls the function again."""
    async with QueryOptimizer() as optimizer:
        query = Query()
        broken = False

        async def sometimes(key: str) -> Any:
            if broken:
                raise ConnectionError("down")
            return await query(key)

        for _ in range(3):
            for key in "ab":
                await optimizer.execute_query(key, sometimes, key)
        optimizer.invalidate_cache("b")
        broken = True
        await optimizer.execute_query("a", sometimes, "a")
        await turn()
        assert [record.message for record in caplog.records] == ["prefetch_failed"]
        broken = False
        assert await optimizer.execute_query("b", sometimes, "b") == len(query.calls) - 1
        assert optimizer.get_stats()["prefetch_used"] == 0


async def test_prefetching_stops_when_it_does_not_pay() -> None:
    """When what is asked ahead is no longer asked for, prefetches dwindle to a probe now and then."""
    async with QueryOptimizer() as optimizer:
        query = Query()
        for _ in range(10):
            await ask(optimizer, query, "ab")
        issued = []
        for _ in range(100):
            optimizer.invalidate_cache("b")
            await ask(optimizer, query, "a")  # b does not follow, and a does not count as its own successor
            issued.append(optimizer.get_stats()["prefetch_issued"])
        assert issued[5] >= 5
        assert issued[-1] - issued[49] <= 50 / PROBE + 1
        assert optimizer.get_stats()["prefetch_used"] == 0


async def test_without_prefetching_nothing_is_asked_ahead() -> None:
    """`enable_prefetch=False` calls a function only for a query."""
    async with QueryOptimizer(enable_prefetch=False) as optimizer:
        query = Query()
        for _ in range(6):
            await ask(optimizer, query, "ab")
            optimizer.invalidate_cache()
        assert len(query.calls) == 12


def test_the_learner_needs_a_clear_pattern() -> None:
    """A successor is likely after three sightings and with half of all cases, and not when successors vary."""
    learner = Prefetcher()
    call: Any = (print, (), {})
    guesses = []
    for _ in range(4):
        for key in "ab":
            learner.saw(key, call)
            guesses.append(learner.likely)
    assert guesses == [None] * 6 + ["b", "a"]
    for n in range(200):
        learner.saw("x", call)
        assert learner.likely is None
        learner.saw(f"y{n % 7}", call)


def test_the_learner_recovers_when_the_pattern_is_back() -> None:
    """After prefetches did not pay, probes that are used bring prefetching back."""
    learner = Prefetcher()
    for _ in range(20):
        ticket = learner.ticket()
        if ticket is not None:
            ticket.settle(used=False)
    assert learner.ticket() is None
    granted = 0
    for _ in range(10 * PROBE):
        ticket = learner.ticket()
        if ticket is not None:
            ticket.settle(used=True)
            granted += 1
    assert granted > 5 * PROBE


@given(st.lists(st.integers(0, 2000), max_size=300), st.integers(0, 40))
def test_the_learner_is_bounded(keys: list[int], tickets: int) -> None:
    """However many keys come and prefetches lie unused, the tables keep their size."""
    learner = Prefetcher()
    for key in [*keys, *range(2 * LEARNED_KEYS)]:
        learner.saw(key, (print, (), {}))
    for _ in range(tickets):
        learner.ticket()
    assert len(learner.calls) <= LEARNED_KEYS
    assert len(learner._followers) <= LEARNED_KEYS
    assert len(learner._outstanding) <= OUTSTANDING
    assert all(len(followers.counts) <= 4 for followers in learner._followers.values())


@given(st.lists(st.sampled_from("aaaabbcdefg"), max_size=300))
def test_the_likely_successor_is_one_with_the_highest_count(keys: list[str]) -> None:
    """Whatever came, was crowded out or aged: the best successor is never behind another."""
    followers = _Followers()
    for key in keys:
        followers.add(key)
        assert followers.counts.get(followers.best, 0) == max(followers.counts.values(), default=0)


async def test_close_ends_prefetches_lets_queries_finish_and_refuses_new_ones() -> None:
    """After `close` no task of the optimizer is left; who waited has an answer, who comes is told."""
    optimizer = QueryOptimizer()
    query = Query()
    for _ in range(3):
        await ask(optimizer, query, "ab")
    optimizer.invalidate_cache("b")
    query.door.clear()
    await ask(optimizer, query, "a")  # starts the prefetch of b, which now hangs at the door
    waiting = asyncio.create_task(optimizer.execute_query("c", query))
    await turn()
    assert optimizer.get_stats()["in_flight_queries"] == 2
    closing = [asyncio.create_task(optimizer.close()) for _ in range(2)]
    await turn()
    assert query.cancelled == 1
    assert not waiting.done()
    query.door.set()
    await asyncio.gather(*closing)
    assert await waiting == len(query.calls) - 1
    assert optimizer.get_stats()["in_flight_queries"] == 0
    assert optimizer.get_stats()["cache_size"] == 0
    with pytest.raises(BackendStateError, match="closed"):
        await optimizer.execute_query("a", query)
    with pytest.raises(BackendStateError, match="closed"):
        await optimizer.__aenter__()


def test_an_optimizer_that_is_never_closed_leaves_nothing_at_exit() -> None:
    """A loop that ends with a query and a prefetch in flight ends without a word."""
    code = (
        "import asyncio\n"
        "from gemma_cli.rag.queries import QueryOptimizer\n"
        "async def query(key):\n"
        "    await asyncio.sleep(0 if key in calm else 60)\n"
        "calm = {'a', 'b'}\n"
        "async def main():\n"
        f"    asyncio.get_running_loop().slow_callback_duration = {TIMEOUT}\n"  # a slow machine is not what is told of
        "    optimizer = QueryOptimizer()\n"
        "    for key in 'abababa':\n"
        "        await optimizer.execute_query(key, query, key)\n"
        "    optimizer.invalidate_cache('b')\n"
        "    calm.clear()\n"
        "    await optimizer.execute_query('a', query, 'a')\n"
        "    await asyncio.sleep(0.01)\n"
        "    assert optimizer.get_stats()['prefetch_issued'] == 1\n"
        "    task = asyncio.create_task(optimizer.execute_query('c', query, 'c'))\n"
        "    await asyncio.sleep(0.01)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-W", "error", "-X", "dev", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    assert done.stderr == ""


@pytest.mark.parametrize(
    "wrong", [{"cache_ttl": -1}, {"cache_ttl": float("nan")}, {"cache_size": -1}, {"enable_prefetch": "no"}]
)
def test_senseless_arguments_are_refused(wrong: dict[str, Any]) -> None:
    """The constructor names the argument that it can't work with."""
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        QueryOptimizer(**wrong)


async def test_a_key_must_be_usable() -> None:
    """None (which means all keys) and unhashable values are refused by name."""
    async with QueryOptimizer() as optimizer:
        for key in (None, ["a"]):
            with pytest.raises(InvalidInputError, match="key"):
                await optimizer.execute_query(key, Query())  # type: ignore[arg-type]
        with pytest.raises(InvalidTypeError, match="key"):
            optimizer.invalidate_cache(["a"])  # type: ignore[arg-type]
