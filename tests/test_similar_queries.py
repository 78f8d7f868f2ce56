"""Reworded questions: which cached answer may serve them, how it is labelled, and when it may not."""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Hashable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_cli.rag.batching import BatchEmbedder
from gemma_cli.rag.errors import InvalidInputError, InvalidTypeError, ModelError
from gemma_cli.rag.queries import Answered, QueryOptimizer
from gemma_cli.rag.similar import FIRST_ROWS, remaining

pytestmark = pytest.mark.anyio

CLOSE = math.cos(math.radians(6.5))
"""Keys are directions in degrees; those up to six degrees apart are similar enough."""


class Compass:
    """An embedder of keys such as "10" or "10 north": the number is the direction in degrees."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.door = asyncio.Event()
        self.door.set()
        self.output: Any = None

    async def __call__(self, key: str) -> Any:
        self.asked.append(key)
        await self.door.wait()
        if isinstance(self.output, Exception):
            raise self.output
        if self.output is not None:
            return self.output
        angle = math.radians(float(key.split()[0]))
        return [3 * math.cos(angle), 3 * math.sin(angle)]


class Query:
    """Answers with the number of its call, in a list."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.door = asyncio.Event()
        self.door.set()

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(args)
        answer = [len(self.calls) - 1]
        await self.door.wait()
        return answer


class Source:
    def __init__(self) -> None:
        self.token = 1

    async def change_token(self) -> Hashable:
        return self.token


async def turn() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


def optimizer_with(compass: Compass, **options: Any) -> QueryOptimizer:
    return QueryOptimizer(**{"similarity": CLOSE, "embed": compass, "enable_prefetch": False} | options)


async def ask(optimizer: QueryOptimizer, query: Any, key: str, **options: Any) -> Answered[Any]:
    return await optimizer.execute_labelled(key, query, key, **options)


async def test_a_reworded_question_gets_the_nearest_answer_and_is_told_so() -> None:
    """The answer of the nearest similar key is given without a call, named as what it is, and counted."""
    query = Query()
    async with optimizer_with(Compass()) as optimizer:
        assert await ask(optimizer, query, "0") == Answered([0], "computed")
        assert await ask(optimizer, query, "8") == Answered([1], "computed")
        answered = await ask(optimizer, query, "3")
        assert (answered.value, answered.source, answered.similar_to) == ([0], "similar", "0")
        assert answered.similarity == pytest.approx(math.cos(math.radians(3)))
        assert await optimizer.execute_query("5", query, "5") == [1]
        assert len(query.calls) == 2
        stats = optimizer.get_stats()
        assert (stats["similar_hits"], stats["cache_misses"], stats["cache_hits"], stats["cache_size"]) == (2, 4, 0, 2)


async def test_equal_questions_are_labelled_without_similarity_too() -> None:
    """By default nothing is embedded; the label still tells a computed, a shared and a cached answer apart."""
    query = Query()
    async with QueryOptimizer() as optimizer:
        query.door.clear()
        both = [asyncio.create_task(ask(optimizer, query, "0")) for _ in range(2)]
        await turn()
        query.door.set()
        assert await asyncio.gather(*both) == [Answered([0], "computed"), Answered([0], "shared")]
        assert await ask(optimizer, query, "0") == Answered([0], "cached")
        assert await ask(optimizer, query, "0.001") == Answered([1], "computed")
        assert "similar_hits" not in optimizer.get_stats()


async def test_an_exact_hit_embeds_nothing() -> None:
    """The vector of a question is made when it is not in the cache, and only then."""
    compass, query = Compass(), Query()
    async with optimizer_with(compass) as optimizer:
        for _ in range(3):
            await ask(optimizer, query, "0")
        assert compass.asked == ["0"]
        assert (await ask(optimizer, query, "0")).source == "cached"


async def test_an_answer_goes_no_further_than_its_own_neighbours() -> None:
    """A reworded question leaves no answer of its own behind, so meanings can't drift from key to key."""
    query = Query()
    async with optimizer_with(Compass()) as optimizer:
        await ask(optimizer, query, "0")
        for _ in range(2):
            assert (await ask(optimizer, query, "5")).source == "similar"
        assert (await ask(optimizer, query, "10")).source == "computed"


async def test_another_function_or_other_arguments_are_another_question() -> None:
    """Only the argument that is the question may differ, once; not the function, the limit, its type or a filter."""
    query, other = Query(), Query()
    async with optimizer_with(Compass()) as optimizer:
        await optimizer.execute_query("0", query, "0", 5, tags=["a", "b"], where={"actor": "0"})
        same: dict[str, Any] = {"tags": ["a", "b"], "where": {"actor": "0"}}
        assert (await optimizer.execute_labelled("1", query, "1", 5, **same)).source == "similar"
        for function, args, changed in (
            (other, ("1", 5), {}),
            (query, ("1", 6), {}),
            (query, ("1", 5.0), {}),
            (query, ("another", 5), {}),
            (query, ("1",), {"limit": 5}),
            (query, ("1", 5), {"tags": ["a"]}),
            (query, ("1", 5), {"where": {"actor": "1"}}),
        ):
            answered = await optimizer.execute_labelled("1", function, *args, **(same | changed))
            assert answered.source == "computed", (args, changed)
            optimizer.invalidate_cache("1")
            await optimizer.execute_query("0", query, "0", 5, **same)


def test_what_remains_of_a_call_without_its_question() -> None:
    """The first argument that equals the key is left out, wherever it stands; a second one counts."""
    assert remaining("q", (print, ("q", 1), {})) == remaining("r", (print, ("r", 1), {}))
    assert remaining("q", (print, (), {"query": "q"})) == remaining("r", (print, (), {"query": "r"}))
    assert remaining("Ana", (print, ("Ana",), {"actor": "Ana"})) != remaining(
        "Anna", (print, ("Anna",), {"actor": "Anna"})
    )
    assert remaining("q", (print, (1,), {})) != remaining("q", (print, (True,), {}))
    assert remaining("q", (print, ({"a": {1, 2}},), {})) == remaining("q", (print, ({"a": {2, 1}},), {}))
    assert remaining("q", (print, ([1, 2],), {})) != remaining("q", (print, ([2, 1],), {}))
    assert remaining("q", (print, ([1, 2],), {})) != remaining("q", (print, ((1, 2),), {}))


async def test_what_cannot_be_compared_is_computed() -> None:
    """Keys that are not text and arguments without a value are asked as they are, and never embedded."""
    compass, query = Compass(), Query()
    endless: list[Any] = []
    endless.append(endless)
    async with optimizer_with(compass) as optimizer:
        for key in (("0", 1), 0):
            assert (await optimizer.execute_labelled(key, query)).source == "computed"
        for key, argument in (("0", bytearray(b"x")), ("1", bytearray(b"x")), ("2", endless)):
            assert (await optimizer.execute_labelled(key, query, key, argument)).source == "computed"
        assert compass.asked == []


async def test_a_vector_without_a_direction_resembles_nothing() -> None:
    """A question whose vector is all zeros is computed, and kept for equal questions alone."""
    compass, query = Compass(), Query()
    compass.output = [0.0, 0.0]
    async with optimizer_with(compass) as optimizer:
        for key in "ab":
            assert (await ask(optimizer, query, key)).source == "computed"
        assert (await ask(optimizer, query, "a")).source == "cached"


async def test_a_similarity_of_one_takes_equal_vectors_alone() -> None:
    """Rounding does not keep two keys with one vector apart; the least difference in meaning does."""
    query = Query()
    async with optimizer_with(Compass(), similarity=1.0) as optimizer:
        await ask(optimizer, query, "33")
        assert (await ask(optimizer, query, "33 north")).similarity == pytest.approx(1.0)
        assert (await ask(optimizer, query, "33.5")).source == "computed"
        for angle in range(50, 90):
            await ask(optimizer, query, str(angle))
            similarity = (await ask(optimizer, query, f"{angle} north")).similarity
            assert similarity is not None
            assert 0.9999 < similarity <= 1.0


async def test_an_expired_answer_serves_nobody(clock: Any) -> None:
    """TTL holds for a reworded question as for an equal one, and being of use does not prolong it."""
    query = Query()
    async with optimizer_with(Compass(), cache_ttl=10, clock=clock) as optimizer:
        await ask(optimizer, query, "0")
        clock.tick(9.9)
        assert (await ask(optimizer, query, "1")).source == "similar"
        clock.tick(0.1)
        assert (await ask(optimizer, query, "1")).source == "computed"


async def test_a_write_makes_similar_answers_stale() -> None:
    """After a watched source changed, a reworded question is computed anew."""
    source, query = Source(), Query()
    async with optimizer_with(Compass()) as optimizer:
        optimizer.watch(source)
        await ask(optimizer, query, "0")
        assert (await ask(optimizer, query, "1")).source == "similar"
        source.token += 1
        assert (await ask(optimizer, query, "1")).source == "computed"
        assert (await ask(optimizer, query, "0")).similar_to == "1"


@pytest.mark.parametrize("named", ["0", None])
async def test_an_invalidated_answer_serves_nobody(named: str | None) -> None:
    """Forgetting an answer, or all, also takes it from those who ask in other words, while they are being embedded."""
    compass, query = Compass(), Query()
    async with optimizer_with(compass) as optimizer:
        await ask(optimizer, query, "0")
        compass.door.clear()
        waiting = asyncio.create_task(ask(optimizer, query, "1"))
        await turn()
        optimizer.invalidate_cache(named)
        compass.door.set()
        assert (await waiting).source == "computed"


async def test_an_invalidated_question_gets_no_older_answer_under_another_name() -> None:
    """Who invalidates a key is not given what was known, or being computed, before, whichever key it stands under."""
    query = Query()
    async with optimizer_with(Compass()) as optimizer:
        await ask(optimizer, query, "0")
        query.door.clear()
        slow = asyncio.create_task(ask(optimizer, query, "20"))
        await turn()
        optimizer.invalidate_cache("1")
        optimizer.invalidate_cache("21")
        query.door.set()
        assert (await slow).source == "computed"
        assert (await ask(optimizer, query, "2")).similar_to == "0"
        for key in ("1", "21"):
            assert (await ask(optimizer, query, key)).source == "computed"
            assert (await ask(optimizer, query, f"{key} again")).source == "similar"


async def test_a_question_does_not_resemble_itself() -> None:
    """An answer to the very same question that came while it was being embedded is never called a similar one."""
    query, compass = Query(), Compass()
    async with optimizer_with(compass) as optimizer:
        compass.door.clear()
        early = asyncio.create_task(ask(optimizer, query, "0"))
        await turn()
        optimizer.invalidate_cache()
        held, compass.door = compass.door, asyncio.Event()
        compass.door.set()
        assert (await ask(optimizer, query, "0")).source == "computed"
        held.set()
        assert await early == Answered([1], "computed")


async def test_no_number_of_invalidations_brings_an_answer_back() -> None:
    """More invalidated keys than can be remembered one by one cost similar answers, never freshness."""
    query = Query()
    async with optimizer_with(Compass(), cache_size=3) as optimizer:
        await ask(optimizer, query, "0")
        for key in range(1, 30):
            optimizer.invalidate_cache(str(key))
        assert (await ask(optimizer, query, "1")).source == "computed"
        assert (await ask(optimizer, query, "1 again")).source == "similar"
        similar: Any = optimizer._similar
        assert len(similar._renewed) <= 3


async def test_vectors_are_bounded_with_the_cache() -> None:
    """What left the cache answers nobody, its row is used again, and being of use keeps an answer in it."""
    query = Query()
    size = FIRST_ROWS + 10
    async with optimizer_with(Compass(), cache_size=size, similarity=math.cos(math.radians(0.4))) as optimizer:
        for number in range(3 * size):
            await ask(optimizer, query, str(number % 350))
            await ask(optimizer, query, "0.1")
        assert (await ask(optimizer, query, "0.1")).similar_to == "0"
        assert (await ask(optimizer, query, "20.1")).source == "computed"
        similar: Any = optimizer._similar
        assert len(similar._rows) == optimizer.get_stats()["cache_size"] == size
        assert len(similar._matrix) == len(similar._entries) == size + 1


async def test_a_stampede_of_rewordings_is_embedded_once() -> None:
    """Callers who ask the same at once share one embedding and one similar answer, each told and with a copy."""
    compass, query = Compass(), Query()
    async with optimizer_with(compass) as optimizer:
        await ask(optimizer, query, "0")
        compass.door.clear()
        leader, *others = [asyncio.create_task(ask(optimizer, query, "1")) for _ in range(20)]
        await turn()
        leader.cancel()
        await turn()
        compass.door.set()
        answers = await asyncio.gather(*others)
        assert leader.cancelled()
        assert {(answer.source, answer.similar_to) for answer in answers} == {("similar", "0")}
        answers[0].value.clear()
        assert answers[1].value == (await ask(optimizer, query, "0")).value == [0]
        assert compass.asked == ["0", "1"]
        assert optimizer.get_stats()["similar_hits"] == 1


async def test_a_prefetch_computes_although_something_similar_is_there() -> None:
    """What is asked ahead becomes an answer of its own, which then serves equal and similar questions."""
    query = Query()
    async with optimizer_with(Compass(), enable_prefetch=True) as optimizer:
        for _ in range(3):
            for key in ("0", "50"):
                await ask(optimizer, query, key)
                await turn()
            optimizer.invalidate_cache()
        await ask(optimizer, query, "51")
        calls = len(query.calls)
        await ask(optimizer, query, "0")
        await turn()
        assert query.calls[calls:] == [("0",), ("50",)]
        assert (await ask(optimizer, query, "50")).source == "cached"
        assert optimizer.get_stats()["prefetch_used"] == 1


async def test_an_embedder_that_fails_is_heard() -> None:
    """Its error reaches the caller, nothing is kept, and the next question is tried again."""
    compass, query = Compass(), Query()
    async with optimizer_with(compass) as optimizer:
        compass.output = ConnectionError("down")
        with pytest.raises(ConnectionError, match="down"):
            await ask(optimizer, query, "0")
        for damaged in ([math.nan, 1.0], [[1.0, 0.0]], [], "words", ["a"]):
            compass.output = damaged
            with pytest.raises(ModelError, match="embed"):
                await ask(optimizer, query, "0")
        compass.output = None
        assert (await ask(optimizer, query, "0")).source == "computed"
        compass.output = [1.0, 0.0, 0.0]
        with pytest.raises(ModelError, match="3 dimensions after 2"):
            await ask(optimizer, query, "1")
        assert len(query.calls) == 1


@pytest.mark.parametrize("options", [{"cache_ttl": 0}, {"cache_size": 0}])
async def test_without_a_cache_nothing_is_embedded(options: dict[str, int]) -> None:
    """Where no answer is kept there is none to compare with."""
    compass, query = Compass(), Query()
    async with optimizer_with(compass, **options) as optimizer:
        for key in ("0", "1"):
            assert (await ask(optimizer, query, key)).source == "computed"
        assert compass.asked == []


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"similarity": 0.9, "embed": None}, "embed: is missing"),
        ({"similarity": None}, "similarity: is missing"),
        ({"similarity": 0}, "similarity"),
        ({"similarity": 1.01}, "similarity"),
        ({"similarity": math.nan}, "similarity"),
        ({"similarity": "0.9"}, "similarity"),
        ({"embed": "model"}, "embed"),
    ],
)
def test_half_an_option_or_a_senseless_one_is_refused(wrong: dict[str, Any], named: str) -> None:
    """The two options come together, the threshold in (0, 1]; the message says which one is wrong."""
    with pytest.raises(InvalidInputError, match=named) as raised:
        optimizer_with(Compass(), **wrong)
    assert isinstance(raised.value, InvalidTypeError) == (wrong in ({"similarity": "0.9"}, {"embed": "model"}))


async def test_a_batch_embedder_makes_the_vectors() -> None:
    """`BatchEmbedder.embed_text` fits as it is."""

    class Letters:
        """Counts letters, so that only their order is lost."""

        def encode(self, texts: list[str]) -> Any:
            return np.array([[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts])

    query = Query()
    async with (
        BatchEmbedder(Letters()) as embedder,
        QueryOptimizer(similarity=0.99, embed=embedder.embed_text) as optimizer,
    ):
        await ask(optimizer, query, "where is the dog")
        assert (await ask(optimizer, query, "the dog is where")).source == "similar"
        assert (await ask(optimizer, query, "who sings in the choir")).source == "computed"


@given(
    st.integers(1, 4),
    st.lists(
        st.tuples(
            st.sampled_from(["ask", "ask", "ask", "forget", "forget all", "tick", "write"]),
            st.sampled_from([0, 1, 4, 10, 12, 17]),  # a Golomb ruler: no two pairs are equally far apart
        ),
        max_size=50,
    ),
)
def test_it_answers_like_a_search_through_everything(size: int, steps: list[tuple[str, int]]) -> None:
    """Any order of questions, invalidations, time and writes gives what a plain search of all fresh answers gives."""

    async def run() -> None:
        clock, source, query = [0.0], Source(), Query()
        book: OrderedDict[int, tuple[int, float, int, int]] = OrderedDict()  # answer, expiry, token, step
        renewed: dict[int, int] = {}
        async with optimizer_with(Compass(), cache_ttl=10, cache_size=size, clock=partial(clock.__getitem__, 0)) as o:
            o.watch(source)
            for number, (step, angle) in enumerate(steps):
                if step == "tick":
                    clock[0] += 4
                elif step == "write":
                    source.token += 1
                elif step == "forget":
                    o.invalidate_cache(str(angle))
                    book.pop(angle, None)
                    renewed[angle] = number
                elif step == "forget all":
                    o.invalidate_cache()
                    book.clear()
                else:
                    fresh = {k: a for k, a in book.items() if clock[0] < a[1] and a[2] == source.token}
                    if angle not in fresh:
                        book.pop(angle, None)
                    alike = [k for k, a in fresh.items() if abs(k - angle) < 6.5 and a[3] > renewed.get(angle, -1)]
                    answered = await ask(o, query, str(angle))
                    if answered.source == "computed" and len(renewed) > size:
                        assert angle not in fresh  # too many invalidations to remember: it may compute once more
                    elif angle in fresh or alike:
                        best = angle if angle in fresh else min(alike, key=lambda k: abs(k - angle))
                        book.move_to_end(best)
                        assert answered.value == [book[best][0]]
                        assert answered.similar_to == (None if best == angle else str(best))
                    else:
                        assert answered.source == "computed"
                    if answered.source == "computed":
                        book[angle] = (len(query.calls) - 1, clock[0] + 10, source.token, number)
                        if len(book) > size:
                            book.popitem(last=False)
                assert o.get_stats()["cache_size"] == len(book)

    asyncio.run(run())
