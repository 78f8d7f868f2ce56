"""The embedder between many callers and one model: batches, cache, single flight, errors, closing."""

import asyncio
import gc
import random
import subprocess
import sys
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from command_runs import TIMEOUT
from hypothesis import given
from hypothesis import strategies as st

from gemma_cli.rag.batch_engine import (
    ALIKE,
    PATIENCE,
    SHORT,
    TEXT_COST,
    Engine,
    LruCache,
    Pace,
    Request,
    estimated_tokens,
)
from gemma_cli.rag.batching import BatchEmbedder
from gemma_cli.rag.errors import BackendStateError, InvalidInputError, InvalidTypeError, ModelError, QueueFullError

pytestmark = pytest.mark.anyio

WIDTH = 4


def vector_of(text: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The vector that `Model` gives a text, computed apart from it."""
    return np.array([len(text), *(ord(c) for c in (text + "\0\0\0")[:3])], np.float32)


class Model:
    """A model with a door: it keeps its calls, can be held, and checks that it is never entered twice."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.threads: set[int] = set()
        self.entered = threading.Semaphore(0)
        self.door = threading.Event()
        self.door.set()
        self.inside = threading.Lock()

    def encode(self, texts: list[str]) -> Any:
        assert self.inside.acquire(blocking=False), "two threads in the model"
        try:
            assert type(texts) is list
            self.calls.append(texts)
            self.threads.add(threading.get_ident())
            self.entered.release()
            assert self.door.wait(60)
            return self.output(texts)
        finally:
            self.inside.release()

    def output(self, texts: list[str]) -> Any:
        return np.stack([vector_of(text) for text in texts])

    async def held(self) -> None:
        """Waits, without blocking the loop, until the model has been entered once more."""
        assert await asyncio.to_thread(self.entered.acquire, timeout=60)


class Saying(Model):
    """A model that returns what it was told to."""

    def __init__(self, said: Any) -> None:
        super().__init__()
        self.said = said

    def output(self, texts: list[str]) -> Any:
        return self.said(texts) if callable(self.said) else self.said


class Counting(Model):
    """A model of which each word is a token; it keeps what it was asked to count, and in which threads."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: list[list[str]] = []

    def count_tokens(self, texts: list[str]) -> Any:
        assert self.inside.acquire(blocking=False), "two threads in the model"
        try:
            self.counted.append(texts)
            self.threads.add(threading.get_ident())
            return [len(text.split()) for text in texts]
        finally:
            self.inside.release()


async def turn() -> None:
    """Lets every ready task go on to its next await."""
    for _ in range(3):
        await asyncio.sleep(0)


def embedder_threads() -> int:
    return sum(thread.name == "gemma-rag-embedder" for thread in threading.enumerate())


async def test_vectors_come_back_as_the_model_made_them_and_in_order() -> None:
    """Each text gets its own float32 vector, whatever the order of the batch inside, duplicates included."""
    model = Model()
    async with BatchEmbedder(model, batch_size=3) as embedder:
        texts = ["cc", "a", "bbbb", "a", "", "ddd", "cc"]
        vectors = await embedder.embed_batch(texts)
        assert isinstance(vectors, list)
        for text, vector in zip(texts, vectors, strict=True):
            np.testing.assert_array_equal(vector, vector_of(text))
            assert vector.dtype == np.float32
        np.testing.assert_array_equal(await embedder.embed_text("a"), vector_of("a"))
        assert await embedder.embed_batch([]) == []
        np.testing.assert_array_equal((await embedder.embed_batch(iter(["a"])))[0], vector_of("a"))
    assert threading.get_ident() not in model.threads


async def test_a_cached_text_does_not_reach_the_model_again() -> None:
    """The second request for a text is answered from the cache, by the same read-only array."""
    model = Model()
    async with BatchEmbedder(model) as embedder:
        first = await embedder.embed_text("once")
        assert (await embedder.embed_batch(["once"]))[0] is first
        assert model.calls == [["once"]]
        with pytest.raises(ValueError, match="read-only"):
            first[0] = 1
        assert first.base is None  # a view would keep its whole batch alive
        stats = embedder.get_stats()
        assert (stats["cache_hits"], stats["cache_misses"], stats["cache_hit_rate"]) == (1, 1, 0.5)


async def test_the_cache_drops_what_was_used_least_recently() -> None:
    """A hit refreshes an entry; the one that nobody asked for longest makes room."""
    model = Model()
    async with BatchEmbedder(model, cache_size=2) as embedder:
        for text in ("a", "b", "a", "c", "a", "b"):
            await embedder.embed_text(text)
        assert model.calls == [["a"], ["b"], ["c"], ["b"]]
        assert embedder.get_stats()["cache_size"] == 2


@given(st.integers(0, 4), st.lists(st.tuples(st.booleans(), st.sampled_from("abcdef")), max_size=60))
def test_the_cache_is_a_real_lru(capacity: int, steps: list[tuple[bool, str]]) -> None:
    """Any order of gets and puts leaves the contents that a textbook LRU would have, within its capacity."""
    cache = LruCache(capacity)
    textbook: OrderedDict[str, float] = OrderedDict()
    for number, (put, key) in enumerate(steps):
        if put:
            cache.put_many({key: np.array([number], np.float32)})
            textbook[key] = number
            textbook.move_to_end(key)
            while len(textbook) > capacity:
                textbook.popitem(last=False)
        else:
            found = cache.get(key)
            assert (None if found is None else found[0]) == textbook.get(key)
            if key in textbook:
                textbook.move_to_end(key)
        assert list(cache.values) == list(textbook)


async def test_cache_size_0_keeps_nothing_but_still_computes_once_at_a_time() -> None:
    """Without a cache a text is computed for each request, but not for each of several at the same moment."""
    model = Model()
    async with BatchEmbedder(model, cache_size=0) as embedder:
        await asyncio.gather(*(embedder.embed_text("x") for _ in range(10)), embedder.embed_batch(["x", "x"]))
        assert model.calls == [["x"]]
        await embedder.embed_text("x")
        assert model.calls == [["x"], ["x"]]
        assert embedder.get_stats()["cache_size"] == 0


async def test_a_stampede_computes_once() -> None:
    """A hundred callers of one text, some of them while it is with the model, cost one computation."""
    model = Model()
    model.door.clear()
    async with BatchEmbedder(model) as embedder:
        early = [asyncio.create_task(embedder.embed_text("same")) for _ in range(50)]
        await model.held()
        late = [asyncio.create_task(embedder.embed_text("same")) for _ in range(49)]
        late_batch = asyncio.create_task(embedder.embed_batch(["same", "same"]))
        await turn()
        model.door.set()
        vectors = await asyncio.gather(*early, *late)
        assert all(vector is vectors[0] for vector in [*vectors, *await late_batch])
        assert model.calls == [["same"]]
        stats = embedder.get_stats()
        assert (stats["cache_misses"], stats["dedup_hits"], stats["total_embeddings"]) == (101, 100, 1)


async def test_a_text_under_computation_is_not_computed_again_for_a_newcomer_after_all_left() -> None:
    """Who asks for a text whose callers were all cancelled while the model had it joins that computation."""
    model = Model()
    model.door.clear()
    async with BatchEmbedder(model, cache_size=0) as embedder:
        gone = asyncio.create_task(embedder.embed_text("x"))
        await model.held()
        gone.cancel()
        await asyncio.wait([gone])
        newcomer = asyncio.create_task(embedder.embed_text("x"))
        await turn()
        model.door.set()
        np.testing.assert_array_equal(await newcomer, vector_of("x"))
        assert model.calls == [["x"]]


async def test_batches_form_while_the_model_is_busy() -> None:
    """Single texts that arrive during a batch go to the model together, at most `batch_size` at a time."""
    model = Model()
    model.door.clear()
    async with BatchEmbedder(model, batch_size=4) as embedder:
        first = asyncio.create_task(embedder.embed_text("first"))
        await model.held()
        rest = [asyncio.create_task(embedder.embed_text(f"text {n}")) for n in range(6)]
        await turn()
        assert embedder.get_stats()["queue_length"] == 6
        model.door.set()
        await asyncio.gather(first, *rest)
        assert [len(call) for call in model.calls] == [1, 4, 2]
        stats = embedder.get_stats()
        assert (stats["batch_count"], stats["total_embeddings"], stats["queue_length"]) == (3, 7, 0)
        assert stats["avg_batch_size"] == pytest.approx(7 / 3)


async def test_a_large_batch_is_cut_into_full_calls() -> None:
    """100 texts of like length are ceil(100 / 32) calls of the model."""
    model = Model()
    async with BatchEmbedder(model, batch_size=32) as embedder:
        await embedder.embed_batch([f"text {n}" for n in range(100)])
        assert [len(call) for call in model.calls] == [32, 32, 32, 4]


async def test_a_caller_beside_a_bulk_job_does_not_wait_for_its_end() -> None:
    """A lone text that comes during a bulk job is served after two more batches at most."""
    model = Model()
    model.door.clear()
    async with BatchEmbedder(model, batch_size=8) as embedder:
        bulk = asyncio.create_task(embedder.embed_batch([f"bulk {n:04}" for n in range(400)]))
        await model.held()
        lone = asyncio.create_task(embedder.embed_text("question"))
        await turn()
        model.door.set()
        await lone
        at = next(place for place, call in enumerate(model.calls) if "question" in call)
        assert at <= 2
        assert len(await bulk) == 400


async def test_a_bulk_job_larger_than_the_queue_is_served() -> None:
    """`embed_batch` feeds the queue by and by, so that its size limits nobody's batch."""
    async with BatchEmbedder(Model(), batch_size=8, max_queue=3) as embedder:
        assert len(await embedder.embed_batch([f"{n}" for n in range(50)])) == 50


async def test_a_full_queue_refuses_the_newcomer_and_harms_nobody_else() -> None:
    """One text more than `max_queue` is a QueueFullError; a bulk job waits its turn, and all others are served."""
    model = Model()
    model.door.clear()
    async with BatchEmbedder(model, batch_size=1, max_queue=2) as embedder:
        tasks = [asyncio.create_task(embedder.embed_text("a"))]
        await model.held()
        bulk = asyncio.create_task(embedder.embed_batch(["b", "c", "d"]))  # two of them fill the queue
        await turn()
        with pytest.raises(QueueFullError, match="embedder"):
            await embedder.embed_text("too many")
        tasks.append(asyncio.create_task(embedder.embed_text("b")))  # joins, and needs no room
        await turn()
        model.door.set()
        await asyncio.gather(*tasks)
        assert len(await bulk) == 3
        assert sorted(text for call in model.calls for text in call) == ["a", "b", "c", "d"]


async def test_a_failing_batch_fails_its_own_callers_only() -> None:
    """The model's own exception reaches the callers of that batch, is not cached, and the next batch is served."""

    def picky(texts: list[str]) -> Any:
        if "bad" in texts:
            raise RuntimeError("can't embed that")
        return np.stack([vector_of(text) for text in texts])

    model = Saying(picky)
    model.door.clear()
    async with BatchEmbedder(model, batch_size=2) as embedder:
        tasks = [asyncio.create_task(embedder.embed_text("first"))]
        await model.held()
        tasks += [asyncio.create_task(embedder.embed_text(text)) for text in ("bad", "bad", "mate", "good")]
        await turn()
        model.door.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(outcome, RuntimeError) for outcome in outcomes] == [False, True, True, True, False]
        np.testing.assert_array_equal(await embedder.embed_text("mate"), vector_of("mate"))
        with pytest.raises(RuntimeError, match="can't embed that"):
            await embedder.embed_batch(["good", "bad"])


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (lambda texts: np.zeros((len(texts) + 1, WIDTH)), r"shape \(2, 4\) for 1 texts"),
        (lambda texts: np.zeros(WIDTH), r"shape \(4,\)"),
        (lambda texts: np.zeros((1, 0)), r"shape \(1, 0\)"),
        (lambda texts: np.zeros((1, 2, 2)), r"shape \(1, 2, 2\)"),
        (None, "NoneType|shape"),
        ("text", "str"),
        ([[1.0, 2.0], [3.0]], "list"),
        (np.zeros((1, 4), complex), "ndarray that is no array of real numbers"),
        (np.full((1, 4), np.nan), "NaN or infinity"),
        (np.full((1, 4), 1e300), "NaN or infinity"),
    ],
)
async def test_unusable_output_is_a_model_error(said: Any, message: str) -> None:
    """What is not one finite row of numbers a text is refused with what was wrong, and nothing of it is cached."""
    async with BatchEmbedder(Saying(said)) as embedder:
        with pytest.raises(ModelError, match=message):
            await embedder.embed_text("x")
        assert embedder.get_stats()["cache_size"] == 0


@pytest.mark.parametrize("said", [[[1, 2]], [np.array([1.0, 2.0])], np.array([[1, 2]], np.float16), ((1, 2),)])
async def test_anything_that_is_an_array_of_numbers_is_taken(said: Any) -> None:
    """Lists, rows apart, half precision and integers become float32."""
    async with BatchEmbedder(Saying(said)) as embedder:
        vector = await embedder.embed_text("x")
        assert (vector.dtype, vector.tolist()) == (np.float32, [1.0, 2.0])


async def test_one_damaged_row_fails_its_own_caller_only() -> None:
    """A row with NaN is an error for its text; its neighbours in the batch get their vectors."""

    def one_bad(texts: list[str]) -> Any:
        return np.stack([vector_of(text) * (np.nan if text == "bad" else 1) for text in texts])

    async with BatchEmbedder(Saying(one_bad)) as embedder:
        good, bad = await asyncio.gather(
            embedder.embed_text("good"), embedder.embed_text("bad"), return_exceptions=True
        )
        np.testing.assert_array_equal(good, vector_of("good"))
        assert isinstance(bad, ModelError)


async def test_a_model_that_changes_its_width_is_refused() -> None:
    """Vectors of another width than before are an error, not a trap for whoever stacks them."""
    widths = iter([4, 5, 4])
    async with BatchEmbedder(Saying(lambda texts: np.zeros((len(texts), next(widths))))) as embedder:
        await embedder.embed_text("a")
        with pytest.raises(ModelError, match="5 dimensions after 4"):
            await embedder.embed_text("b")
        assert len(await embedder.embed_text("c")) == 4


async def test_cancelled_callers_are_dropped_unless_others_want_their_text() -> None:
    """A text whose callers all left while it waited never reaches the model; one that somebody still wants does."""
    model = Model()
    model.door.clear()
    async with BatchEmbedder(model, batch_size=8) as embedder:
        first = asyncio.create_task(embedder.embed_text("first"))
        await model.held()
        unwanted = [asyncio.create_task(embedder.embed_text("unwanted")) for _ in range(2)]
        leaver, stayer = (asyncio.create_task(embedder.embed_text("wanted")) for _ in range(2))
        bulk = asyncio.create_task(embedder.embed_batch(["bulk 1", "bulk 2", "wanted"]))
        await turn()
        for task in (*unwanted, leaver, bulk):
            task.cancel()
        await asyncio.wait([*unwanted, leaver, bulk])
        assert embedder.get_stats()["queue_length"] == 1
        model.door.set()
        await asyncio.gather(first, stayer)
        assert model.calls == [["first"], ["wanted"]]
        np.testing.assert_array_equal(await embedder.embed_text("unwanted"), vector_of("unwanted"))


async def test_an_error_that_nobody_waits_for_any_more_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    """A batch that fails after its callers left leaves no 'exception was never retrieved' behind."""
    model = Saying(None)
    model.door.clear()
    async with BatchEmbedder(model) as embedder:
        task = asyncio.create_task(embedder.embed_text("x"))
        await model.held()
        task.cancel()
        await asyncio.wait([task])
        model.door.set()
    gc.collect()
    assert not caplog.records


async def test_the_background_processor_starts_and_drains() -> None:
    """`stop` gives every waiting caller its vector and ends the thread; the embedder remains usable."""
    model = Model()
    embedder = BatchEmbedder(model, batch_size=2)
    assert embedder_threads() == 0
    await embedder.start_background_processor()
    await embedder.start_background_processor()
    assert embedder_threads() == 1
    assert embedder.get_stats()["background_processor"] is True
    model.door.clear()
    tasks = [asyncio.create_task(embedder.embed_text(f"{n}")) for n in range(7)]
    await model.held()
    stopping = asyncio.create_task(embedder.stop_background_processor())
    await turn()
    assert not stopping.done()
    model.door.set()
    await stopping
    assert embedder_threads() == 0
    await turn()
    assert all(task.done() for task in tasks)
    await embedder.stop_background_processor()
    await embedder.embed_text("on its own")
    await embedder.start_background_processor()
    await embedder.embed_text("again")
    await embedder.close()
    assert embedder_threads() == 0


async def test_texts_that_come_while_the_processor_stops_are_served_by_one_thread_at_a_time() -> None:
    """The change of threads at start and stop never lets two of them into the model, and loses no text."""
    model = Model()
    async with BatchEmbedder(model, batch_size=3) as embedder:

        async def switch() -> None:
            for _ in range(20):
                await embedder.start_background_processor()
                await embedder.stop_background_processor()

        callers = [embedder.embed_batch([f"{n} {m}" for m in range(20)]) for n in range(10)]
        await asyncio.gather(switch(), *callers)
        assert sum(len(call) for call in model.calls) == 200
    assert embedder_threads() == 0


async def test_a_lone_text_lingers_for_company_at_most() -> None:
    """With a `queue_timeout` the idle processor waits for a second text, and close ends the waiting."""
    model = Model()
    embedder = BatchEmbedder(model, batch_size=2, queue_timeout=600.0)
    await embedder.start_background_processor()
    first = asyncio.create_task(embedder.embed_text("a"))
    await turn()
    assert model.calls == []
    await asyncio.gather(first, embedder.embed_text("b"))
    assert [sorted(call) for call in model.calls] == [["a", "b"]]
    last = asyncio.create_task(embedder.embed_text("c"))
    await turn()
    await embedder.close()
    np.testing.assert_array_equal(await last, vector_of("c"))


async def test_close_serves_who_waits_and_refuses_who_comes() -> None:
    """`close` drains, is idempotent, leaves the model alone, and every later verb says that it is closed."""
    model = Model()
    model.door.clear()
    embedder = BatchEmbedder(model)
    task = asyncio.create_task(embedder.embed_text("x"))
    await model.held()
    closing = [asyncio.create_task(embedder.close()) for _ in range(2)]
    await turn()
    model.door.set()
    await asyncio.gather(*closing)
    np.testing.assert_array_equal(await task, vector_of("x"))
    for verb in (
        embedder.embed_text("x"),
        embedder.embed_batch(["x"]),
        embedder.start_background_processor(),
        embedder.__aenter__(),
    ):
        with pytest.raises(BackendStateError, match="closed"):
            await verb
    await embedder.stop_background_processor()
    assert embedder_threads() == 0
    assert embedder.model is model


async def test_a_call_too_large_for_the_queue_goes_on_while_the_processor_stops_and_ends_with_close() -> None:
    """What such a call has not queued yet is computed all the same after `stop_background_processor`; after `close` it
    raises."""
    for end, lasting in ((BatchEmbedder.stop_background_processor, True), (BatchEmbedder.close, False)):
        model = Model()
        model.door.clear()
        embedder = BatchEmbedder(model, batch_size=2)
        await embedder.start_background_processor()
        texts = [f"text {n}" for n in range(20)]
        call = asyncio.create_task(embedder.embed_batch(texts))
        await model.held()
        ending = asyncio.create_task(end(embedder))
        await turn()
        model.door.set()
        await ending
        if lasting:
            np.testing.assert_array_equal(np.stack(await call), np.stack([vector_of(text) for text in texts]))
            await embedder.close()
        else:
            with pytest.raises(BackendStateError, match="closed"):
                await call


async def test_callers_in_other_event_loops_share_cache_and_thread() -> None:
    """Loops in several threads get right vectors from one embedder, each text computed once while it is cached."""
    model = Model()
    async with BatchEmbedder(model, batch_size=4) as embedder:
        texts = [f"{n % 40}" for n in range(200)]
        results = await asyncio.gather(
            embedder.embed_batch(texts),
            *(asyncio.to_thread(asyncio.run, embedder.embed_batch(texts)) for _ in range(3)),
        )
        for vectors in results:
            np.testing.assert_array_equal(np.stack(vectors), np.stack([vector_of(text) for text in texts]))
        assert sum(len(call) for call in model.calls) == 40
        assert len(model.threads) == 1


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [(3, InvalidTypeError, "text: expected text, got int"), ("\ud800", InvalidInputError, "text: character 0 is half")],
)
async def test_what_is_not_text_is_refused_before_it_can_hurt_a_batch(
    text: Any, error: type[Exception], message: str
) -> None:
    """A wrong value raises at once, names its place in a batch, and never reaches the model."""
    model = Model()
    async with BatchEmbedder(model) as embedder:
        with pytest.raises(error, match=message):
            await embedder.embed_text(text)
        with pytest.raises(error, match=message.replace("text:", r"texts\[1\]:")):
            await embedder.embed_batch(["fine", text])
        with pytest.raises(InvalidTypeError, match="texts: expected a list of texts, got str"):
            await embedder.embed_batch("letters")
        assert model.calls == []


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"cache_size": -1}, {"queue_timeout": -0.1}, {"max_queue": 0}, {"model": object()}],
)
def test_senseless_arguments_are_refused(wrong: dict[str, Any]) -> None:
    """The constructor names the argument that no embedder can work with."""
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        BatchEmbedder(**({"model": Model()} | wrong))


def words(count: int, word: str = "w") -> str:
    """A text of so many tokens of `Counting`."""
    return " ".join([word] * count)


def engine(batch_size: int = 8, token_limit: float = float("inf")) -> Engine:
    made = Engine(Counting(), batch_size, 0, None, lambda: 0.0)
    made.token_limit = token_limit
    return made


def test_long_texts_wait_for_the_short_ones_but_not_for_ever() -> None:
    """A long text among short ones goes alone; it is passed over a limited number of times, then it is its turn."""
    chooser = engine(batch_size=4)
    waiting = [Request(words(1000))] + [Request(words(1 + n % SHORT)) for n in range(30)]
    served: list[list[int]] = []
    while waiting:
        chosen = chooser.choose(waiting)
        served.append([waiting[place].tokens for place in chosen])
        waiting = [request for place, request in enumerate(waiting) if place not in chosen]
    assert [1000] in served[: PATIENCE + 1]
    assert all(max(tokens) <= SHORT for tokens in served if tokens != [1000])


@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=64),
    st.integers(1, 40),
    st.one_of(st.just(float("inf")), st.integers(0, 2_000)),
)
def test_every_choice_is_a_batch_and_every_text_gets_its_turn(
    lengths: list[int], batch_size: int, token_limit: float
) -> None:
    """Whatever waits: a choice is of different places, not empty, within both limits and alike; in the end all went."""
    chooser = engine(batch_size, token_limit)
    waiting = [Request(words(length)) for length in lengths]
    for _ in range(len(lengths)):
        if not waiting:
            break
        chosen = chooser.choose(waiting)
        assert 1 <= len(set(chosen)) == len(chosen) <= batch_size
        tokens = [len(waiting[place].text.split()) for place in chosen]
        assert len(tokens) == 1 or sum(count + TEXT_COST for count in tokens) <= token_limit
        assert max(*tokens, SHORT) <= ALIKE * max(min(tokens), SHORT)
        waiting = [request for place, request in enumerate(waiting) if place not in chosen]
    assert not waiting


def test_texts_go_together_by_their_tokens_not_by_their_characters() -> None:
    """Of two texts of one length in characters, the one that the model cuts up finely goes with its like."""
    chooser = engine()
    waiting = [Request("w" * 399), Request(words(200)), Request("w" * 100), Request(words(150))]
    assert sorted(chooser.choose(waiting)) == [0, 2]


async def test_a_text_is_counted_once_in_the_models_thread() -> None:
    """However often the batches pass a text over, it is counted once, together with all others; a lone one, with the
    next queue."""
    model = Counting()
    model.door.clear()
    async with BatchEmbedder(model, batch_size=4) as embedder:
        first = asyncio.create_task(embedder.embed_text("first"))
        await model.held()
        rest = [asyncio.create_task(embedder.embed_text(f"{words(1 + 40 * (n % 3))} {n}")) for n in range(16)]
        await turn()
        model.door.set()
        await asyncio.gather(first, *rest)
    assert len(model.calls) > 4
    assert [len(counted) for counted in model.counted] == [17]
    assert len(model.threads) == 1
    assert threading.get_ident() not in model.threads


def broken_count(_: list[str]) -> Any:
    raise RuntimeError("no vocabulary")


@pytest.mark.parametrize(
    "count",
    [
        broken_count,
        lambda texts: len(texts),
        lambda texts: [1],
        lambda texts: [-1] * len(texts),
        lambda texts: [10**400] * len(texts),
        lambda texts: [2**63] * len(texts),
        lambda _: ["two"] * 3,
    ],
)
async def test_a_model_that_can_not_count_is_estimated(count: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A count that raises or is no count fails no text: it is replaced by the estimate, with one warning."""
    model = Counting()
    model.count_tokens = count  # type: ignore[method-assign]
    async with BatchEmbedder(model) as embedder:
        for texts in (["a", "bb", "ccc"], ["dddd", "eeeee"]):
            for text, vector in zip(texts, await embedder.embed_batch(texts), strict=True):
                np.testing.assert_array_equal(vector, vector_of(text))
    assert [record.message for record in caplog.records] == ["token_count_failed"]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("My neighbour Ines found a wallet on the tram and took it to the police.", 16),
        ("Die Nachbarin hat im Zug eine Geldbörse gefunden und abgegeben.", 21),
        ("我的邻居在电车上捡到一个钱包,把它交给了警察。", 23),
        ("for key, value in sorted(table.items()):\n    print(key, value)", 20),
        ("", 0),
    ],
)
def test_the_estimate_is_of_the_right_size(text: str, tokens: int) -> None:
    """Without a tokenizer the tokens are known to within a factor of 1.5, in scripts that need most as in English."""
    assert tokens / 1.5 <= estimated_tokens(text) <= 1.5 * tokens


@given(st.floats(1e-5, 0.2), st.floats(4e-7, 4e-4), st.integers(0, 2**32))
def test_the_pace_finds_a_machines_overhead_and_speed(overhead: float, slope: float, seed: int) -> None:
    """From a machine's times comes the least batch with 95 % of its throughput, where the ceiling allows it."""
    chance = random.Random(seed)
    pace = Pace()
    for _ in range(100):
        cost = chance.randint(20, 8_000)
        pace.observe(cost, overhead + slope * cost)
    limit = pace.limit()
    throughput = limit / (overhead + slope * limit)
    if overhead + slope * limit < 0.99 * Pace.CEILING:
        assert throughput * slope >= 0.949
        assert limit <= max(Pace.FLOOR, 19.2 * overhead / slope)
    else:  # the ceiling, or as much work as there is overhead where that alone fills half of it
        assert overhead + slope * limit <= 1.01 * max(Pace.CEILING, 2 * overhead)


def test_the_pace_says_nothing_without_evidence() -> None:
    """Batches of one size, or too few, or times that fall with size, give no limit."""
    for points in ([(1000, 0.01)] * 50, [(100, 0.1), (1000, 1.0)] * 3, [(100 * n, 1 / n) for n in range(1, 50)]):
        pace = Pace()
        for cost, seconds in points:
            pace.observe(cost, seconds)
        assert pace.limit() == float("inf")


async def test_the_batch_size_follows_the_machine() -> None:
    """On a machine that is slow by the token, batches of long texts become smaller, and never above batch_size."""
    now = 0.0

    class Slow(Counting):
        def output(self, texts: list[str]) -> Any:
            nonlocal now
            now += 0.005 + 4e-5 * sum(len(text.split()) for text in texts)  # 1,125 tokens: 50 ms
            return super().output(texts)

    model = Slow()
    async with BatchEmbedder(model, batch_size=32, cache_size=0, clock=lambda: now) as embedder:
        for size in (5, 125, 15, 225, 10, 175, 75, 25, 150):
            await embedder.embed_batch([words(size, f"{n}") for n in range(8)])
        limit = embedder.get_stats()["batch_token_limit"]
        assert limit is not None
        assert 900 < limit < 1400
        model.calls.clear()
        await embedder.embed_batch([words(250, f"{n}") for n in range(32)])
        assert {len(call) for call in model.calls} <= {3, 4, 5, 6}
        model.calls.clear()
        await embedder.embed_batch([f"{n:04}" for n in range(64)])
        assert [len(call) for call in model.calls] == [32, 32]


async def test_times_come_from_the_clock() -> None:
    """avg_time_per_embedding_ms is the model's time over the texts that it computed."""
    ticks = iter([1.0, 1.5])
    async with BatchEmbedder(Model(), clock=lambda: next(ticks)) as embedder:
        await embedder.embed_batch(["a", "b"])
        assert embedder.get_stats()["avg_time_per_embedding_ms"] == 250.0


async def test_a_forgotten_embedder_ends_its_thread() -> None:
    """An embedder that nobody holds is collected, and its thread ends."""
    embedder = BatchEmbedder(Model())
    await embedder.embed_text("x")
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "gemma-rag-embedder")
    del embedder
    gc.collect()
    await asyncio.to_thread(thread.join, 60)
    assert not thread.is_alive()


@pytest.mark.parametrize("start", ["", "    await embedder.start_background_processor()\n"])
def test_an_embedder_that_is_never_closed_leaves_nothing_at_exit(start: str) -> None:
    """A process that forgot `close`, even with a text in progress, ends with nothing on stderr."""
    code = (
        "import asyncio, atexit, threading\n"
        "from gemma_cli.rag.batching import BatchEmbedder\n"
        "entered, ended = threading.Event(), threading.Event()\n"
        "class Model:\n"
        "    def encode(self, texts):\n"
        "        if texts == ['late']:\n"
        "            entered.set()\n"
        "            assert ended.wait(60)\n"
        "        return [[1.0, 2.0]] * len(texts)\n"
        "embedder = BatchEmbedder(Model())\n"
        "async def main():\n"
        f"    asyncio.get_running_loop().slow_callback_duration = {TIMEOUT}\n"  # a slow machine is not what is told of
        + start
        + "    print((await embedder.embed_batch(['a', 'b']))[1])\n"
        + "    task = asyncio.create_task(embedder.embed_text('late'))\n"
        + "    assert await asyncio.to_thread(entered.wait, 60)\n"
        + "atexit.register(ended.set)\n"  # not before the exit has begun
        + "asyncio.run(main())\n"
    )
    command = [sys.executable, "-W", "error", "-X", "dev", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    assert (done.stdout, done.stderr) == ("[1. 2.]\n", "")


async def test_nothing_is_lost_or_mixed_up_under_random_load() -> None:
    """Hundreds of callers with shared texts, errors and cancellations: who stayed has the right answer."""
    chance = np.random.default_rng(7)

    def moody(texts: list[str]) -> Any:
        return np.stack([vector_of(text) * (np.nan if text.endswith("7") else 1) for text in texts])

    async def call(embedder: BatchEmbedder, n: int) -> None:
        text = f"{n % 97:0{1 + n % 300}}"
        for _ in range(n % 5):
            await asyncio.sleep(0)
        try:
            vectors = await embedder.embed_batch([text, text + "!"]) if n % 3 else [await embedder.embed_text(text)]
        except ModelError:
            assert text.endswith("7")
        else:
            np.testing.assert_array_equal(vectors[0], vector_of(text))

    async with BatchEmbedder(Saying(moody), batch_size=8, cache_size=20) as embedder:
        tasks = [asyncio.create_task(call(embedder, n)) for n in range(1000)]
        await turn()
        for place in chance.choice(1000, 200, replace=False):
            tasks[place].cancel()
        done, pending = await asyncio.wait(tasks, timeout=60)
        assert not pending
        for task in done:
            if not task.cancelled():
                task.result()
        assert embedder.get_stats()["queue_length"] == 0
