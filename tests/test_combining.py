"""The worker that serves callers in batches: order, isolation, cancellation, draining, several loops."""

import asyncio
import gc
import logging
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
from command_runs import TIMEOUT

from gemma_cli.rag.combining import CombiningWorker
from gemma_cli.rag.errors import BackendStateError, GemmaRagError, InvalidInputError, QueueFullError

pytestmark = pytest.mark.anyio


class Doubler:
    """A handler that doubles numbers, keeps its batches and can be held at the door."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[str] = set()
        self.entered = threading.Semaphore(0)
        self.door = threading.Event()
        self.door.set()

    def __call__(self, items: list[int]) -> list[int | BaseException]:
        self.batches.append(items)
        self.threads.add(threading.current_thread().name)
        self.entered.release()
        assert self.door.wait(60)
        return [2 * item for item in items]


def make(handler: Callable[[list[int]], list[int | BaseException]], **options: object) -> CombiningWorker[int, int]:
    settings: dict[str, object] = {"name": "doubler", "max_batch": 8, "max_waiting": 100} | options
    return CombiningWorker(handler, **settings)  # type: ignore[arg-type]


async def entered(handler: Doubler) -> None:
    """Waits, without blocking the loop, until the handler has been entered once more."""
    assert await asyncio.to_thread(handler.entered.acquire, timeout=60)


def thread_names() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


async def test_each_caller_gets_its_own_outcome_from_the_workers_thread() -> None:
    """Every caller receives the outcome of its item, computed off the event loop's thread."""
    handler = Doubler()
    worker = make(handler)
    assert "doubler" not in thread_names()  # nothing starts before the first item
    assert await asyncio.gather(*(worker.submit(n) for n in range(20))) == [2 * n for n in range(20)]
    assert handler.threads == {"doubler"}
    await worker.close()


async def test_what_arrives_while_the_thread_is_busy_is_the_next_batch() -> None:
    """A lone item goes at once; all that come during its batch are served together, in order."""
    handler = Doubler()
    handler.door.clear()
    worker = make(handler)
    first = asyncio.create_task(worker.submit(1))
    await entered(handler)
    rest = [asyncio.create_task(worker.submit(n)) for n in (2, 3, 4)]
    await asyncio.sleep(0)
    assert worker.waiting == 3
    handler.door.set()
    assert await first == 2
    assert await asyncio.gather(*rest) == [4, 6, 8]
    assert handler.batches == [[1], [2, 3, 4]]
    await worker.close()


async def test_no_batch_is_larger_than_max_batch() -> None:
    """A crowd is cut at `max_batch`, the oldest first."""
    handler = Doubler()
    handler.door.clear()
    worker = make(handler, max_batch=3)
    first = asyncio.create_task(worker.submit(0))
    await entered(handler)
    crowd = [asyncio.create_task(worker.submit(n)) for n in range(1, 8)]
    await asyncio.sleep(0)
    handler.door.set()
    await asyncio.gather(first, *crowd)
    assert handler.batches == [[0], [1, 2, 3], [4, 5, 6], [7]]
    await worker.close()


async def test_an_outcome_that_is_an_exception_reaches_its_caller_only() -> None:
    """One failing item leaves its batch mates untouched."""

    def handler(items: list[int]) -> list[int | BaseException]:
        return [ValueError("three") if item == 3 else item for item in items]

    worker = make(handler)
    outcomes = await asyncio.gather(*(worker.submit(n) for n in range(5)), return_exceptions=True)
    assert isinstance(outcomes.pop(3), ValueError)
    assert outcomes == [0, 1, 2, 4]
    await worker.close()


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
async def test_a_raising_handler_fails_its_batch_and_no_other(error: BaseException) -> None:
    """Whatever the handler raises reaches the callers of that batch, and the thread serves the next one."""

    def handler(items: list[int]) -> list[int | BaseException]:
        if 0 in items:
            raise error
        return list(items)

    worker = make(handler, max_batch=2)
    futures = worker.put_many([0, 1, 2, 3])
    await asyncio.wait(futures)
    assert [future.exception() for future in futures[:2]] == [error, error]
    assert [future.result() for future in futures[2:]] == [2, 3]
    await worker.close()


@pytest.mark.parametrize("outcome", [StopIteration("end"), asyncio.CancelledError()])
async def test_an_outcome_that_a_future_can_not_carry_is_wrapped(outcome: BaseException) -> None:
    """StopIteration and CancelledError reach the caller as an error that names them: no hang, no cancellation."""
    worker = make(lambda items: [outcome for _ in items])
    with pytest.raises(GemmaRagError, match=type(outcome).__name__) as caught:
        await worker.submit(1)
    assert caught.value.__cause__ is outcome
    await worker.close()


async def test_a_handler_that_loses_an_outcome_is_an_error() -> None:
    """A wrong number of outcomes fails the batch instead of giving somebody another's result."""
    worker = make(lambda items: list(items[1:]))
    with pytest.raises(GemmaRagError, match="0 outcomes for 1 items"):
        await worker.submit(1)
    await worker.close()


async def test_cancelled_callers_are_dropped_before_the_handler_sees_them() -> None:
    """A caller cancelled in the queue is not computed, frees its place at once and disturbs nobody."""
    handler = Doubler()
    handler.door.clear()
    worker = make(handler, max_waiting=3)
    first = asyncio.create_task(worker.submit(1))
    await entered(handler)
    waiting = [asyncio.create_task(worker.submit(n)) for n in (2, 3, 4)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    await asyncio.wait([waiting[1]])
    assert worker.waiting == 2
    late = asyncio.create_task(worker.submit(5))
    await asyncio.sleep(0)
    handler.door.set()
    assert await asyncio.gather(first, waiting[0], waiting[2], late) == [2, 4, 8, 10]
    assert waiting[1].cancelled()
    assert handler.batches == [[1], [2, 4, 5]]
    await worker.close()


async def test_a_future_cancelled_by_its_owner_is_not_computed() -> None:
    """`put` futures that were cancelled without `withdraw` are skipped when their turn comes."""
    handler = Doubler()
    handler.door.clear()
    worker = make(handler, max_batch=1)
    futures = [worker.put(n) for n in (1, 2, 3)]
    await entered(handler)
    futures[1].cancel()
    handler.door.set()
    assert await futures[2] == 6
    assert handler.batches == [[1], [3]]
    await worker.close()


async def test_withdraw_is_too_late_once_the_handler_has_the_item() -> None:
    """`withdraw` says whether it came in time; an item in progress still gets its outcome."""
    handler = Doubler()
    handler.door.clear()
    worker = make(handler)
    running = worker.put(1)
    await entered(handler)
    queued = worker.put(2)
    assert worker.withdraw(queued)
    assert queued.cancelled()
    assert not worker.withdraw(queued)
    assert not worker.withdraw(running)
    handler.door.set()
    assert await running == 2
    await worker.close()
    assert handler.batches == [[1]]


async def test_an_error_that_arrives_with_the_cancellation_is_not_reported_as_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A caller cancelled in the very turn in which its error arrives leaves no 'never retrieved' message."""
    seen = threading.Semaphore(0)

    def handler(items: list[int]) -> list[int | BaseException]:
        seen.release()
        return [ValueError("nobody wants it")]

    worker = make(handler, max_batch=1)
    first = asyncio.create_task(worker.submit(1))
    second = asyncio.create_task(worker.submit(2))
    await asyncio.sleep(0)
    assert seen.acquire(timeout=60)
    assert seen.acquire(timeout=60)  # blocks this loop on purpose: the first outcome is on its way and not yet seen
    asyncio.get_running_loop().call_soon(first.cancel)
    await asyncio.wait([first, second])
    assert first.cancelled()
    assert isinstance(second.exception(), ValueError)
    del first
    gc.collect()
    assert not caplog.records
    await worker.close()


async def test_a_full_queue_is_a_typed_error_and_drains() -> None:
    """One item more than `max_waiting` raises QueueFullError; those already there are served."""
    handler = Doubler()
    handler.door.clear()
    worker = make(handler, max_waiting=2)
    held = [worker.put(1)]
    await entered(handler)
    held += [worker.put(2), worker.put(3)]
    with pytest.raises(QueueFullError, match="doubler: 2 requests wait already"):
        await worker.submit(4)
    handler.door.set()
    assert [await future for future in held] == [2, 4, 6]
    assert await worker.submit(5) == 10
    await worker.close()


async def test_items_put_together_are_one_batch_or_refused_together() -> None:
    """`put_many` wakes the thread once for all of them, and takes none where not all of them fit."""
    handler = Doubler()
    worker = make(handler, max_waiting=8)
    futures = worker.put_many([1, 2, 3, 4, 5])
    assert await asyncio.gather(*futures) == [2, 4, 6, 8, 10]
    assert handler.batches == [[1, 2, 3, 4, 5]]
    with pytest.raises(QueueFullError):
        worker.put_many(list(range(9)))
    assert worker.waiting == 0
    assert worker.put_many([]) == []
    await worker.close()


async def test_close_serves_all_that_waits_and_ends_the_thread() -> None:
    """After `close` every caller has its outcome, the thread is gone, and a new item is refused."""
    handler = Doubler()
    handler.door.clear()
    worker = make(handler, max_batch=2)
    callers = [asyncio.create_task(worker.submit(n)) for n in range(5)]
    await entered(handler)
    closing = [asyncio.create_task(worker.close()) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(BackendStateError, match="doubler is closed"):
        await worker.submit(9)
    handler.door.set()
    await asyncio.gather(*closing)
    assert all(caller.done() for caller in callers)
    assert [caller.result() for caller in callers] == [0, 2, 4, 6, 8]
    assert "doubler" not in thread_names()
    await worker.close()


async def test_closing_an_idle_or_unused_worker_returns() -> None:
    """`close` needs no item before it, whether or not the thread ever ran."""
    await make(Doubler()).close()
    worker = make(Doubler())
    await worker.submit(1)
    await worker.close()
    assert "doubler" not in thread_names()


async def test_a_cancelled_close_still_closes() -> None:
    """Cancelling `close` stops the waiting for the end, not the end."""
    handler = Doubler()
    handler.door.clear()
    worker = make(handler)
    caller = asyncio.create_task(worker.submit(1))
    await entered(handler)
    closing = asyncio.create_task(worker.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    handler.door.set()
    assert await caller == 2
    await worker.close()
    assert "doubler" not in thread_names()


async def test_callers_in_several_event_loops_share_the_thread() -> None:
    """Loops in other threads get their own outcomes from the same worker."""
    handler = Doubler()
    worker = make(handler, max_waiting=1000)

    async def many(start: int) -> list[int]:
        return await asyncio.gather(*(worker.submit(n) for n in range(start, start + 200)))

    wait = [asyncio.to_thread(asyncio.run, many(start)) for start in (0, 1000, 2000)]
    results = await asyncio.gather(many(3000), *wait)
    assert results == [[2 * n for n in range(start, start + 200)] for start in (3000, 0, 1000, 2000)]
    assert handler.threads == {"doubler"}
    await worker.close()


async def test_one_batch_with_callers_of_two_loops_reaches_both() -> None:
    """A batch that mixes event loops resolves each future in its own loop."""
    handler = Doubler()
    handler.door.clear()
    worker = make(handler)
    here = [worker.put(1)]
    await entered(handler)

    async def elsewhere() -> int:
        future = worker.put(2)
        handler.door.set()
        return await future

    here.append(worker.put(3))
    assert await asyncio.to_thread(asyncio.run, elsewhere()) == 4
    assert [await future for future in here] == [2, 6]
    assert handler.batches == [[1], [3, 2]]
    await worker.close()


async def test_a_loop_that_closed_while_its_item_waited_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Outcomes for a closed event loop are dropped with a log event; the thread goes on."""
    handler = Doubler()
    handler.door.clear()
    worker = make(handler)

    async def leave() -> None:
        worker.put(1)

    await asyncio.to_thread(asyncio.run, leave())
    await entered(handler)
    with caplog.at_level(logging.DEBUG, "gemma_cli.rag.combining"):
        handler.door.set()
        assert await worker.submit(2) == 4
    assert [record.message for record in caplog.records] == ["callers_gone"]
    await worker.close()


async def test_lingering_gathers_company_for_a_lone_item() -> None:
    """With `linger`, an item that finds the thread idle waits for others, so both make one batch."""
    handler = Doubler()
    worker = make(handler, linger=600.0, max_batch=2)
    first = worker.put(1)
    await asyncio.sleep(0.01)
    assert not first.done()
    second = worker.put(2)  # the batch is full: no reason to linger any longer
    assert [await first, await second] == [2, 4]
    both = worker.put_many([3, 4])  # full at once
    assert [await future for future in both] == [6, 8]
    assert handler.batches == [[1, 2], [3, 4]]
    await worker.close()


async def test_lingering_ends_by_itself_and_with_close() -> None:
    """A lone item is served after `linger` seconds at most, and at once when the worker is closed."""
    handler = Doubler()
    worker = make(handler, linger=0.005)
    assert await worker.submit(1) == 2
    assert await worker.submit(2) == 4
    await worker.close()
    patient = make(handler, linger=600.0)
    future = patient.put(3)
    await asyncio.sleep(0.01)
    await patient.close()
    assert future.result() == 6


async def test_choose_decides_which_of_the_waiting_go_together() -> None:
    """`choose` sees the waiting items, oldest first, and makes the batch; the others keep their places."""
    handler = Doubler()
    handler.door.clear()
    seen: list[list[int]] = []

    def like_the_oldest(items: list[int]) -> list[int]:
        seen.append(items)
        return [place for place, item in enumerate(items) if item % 2 == items[0] % 2]

    worker = make(handler, choose=like_the_oldest)
    futures = [worker.put(n) for n in range(1, 2)]
    await entered(handler)
    futures += [worker.put(n) for n in (2, 3, 4, 5)]
    handler.door.set()
    assert [await future for future in futures] == [2, 4, 6, 8, 10]
    assert handler.batches == [[1], [2, 4], [3, 5]]
    assert seen == [[2, 3, 4, 5], [3, 5]]
    await worker.close()


async def test_an_item_withdrawn_during_the_choice_is_left_out() -> None:
    """A caller who leaves between the choice and the batch is not served, and the others are."""
    handler = Doubler()
    handler.door.clear()
    choosing, go_on = threading.Event(), threading.Event()

    def slow(items: list[int]) -> list[int]:
        choosing.set()
        assert go_on.wait(60)
        return list(range(len(items)))

    worker = make(handler, choose=slow)
    futures = [worker.put(1)]
    await entered(handler)
    futures += [worker.put(2), worker.put(3)]
    handler.door.set()
    assert await asyncio.to_thread(choosing.wait, 60)
    assert worker.withdraw(futures[1])
    go_on.set()
    assert await futures[2] == 6
    assert handler.batches == [[1], [3]]
    await worker.close()


@pytest.mark.parametrize("error", [OverflowError("too large"), SystemExit("from another's code")])
async def test_where_the_choice_fails_the_oldest_go(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """A `choose` that raises, or names what is not there, costs nobody an outcome; the oldest go next."""
    handler = Doubler()
    handler.door.clear()
    answers: list[BaseException | list[int]] = [error, [7]]

    def choose(items: list[int]) -> list[int]:
        if isinstance(answer := answers.pop(0), BaseException):
            raise answer
        return answer

    worker = make(handler, choose=choose, max_batch=2)
    futures = [worker.put(1)]
    await entered(handler)
    futures += [worker.put(n) for n in (2, 3, 4, 5, 6)]
    handler.door.set()
    assert [await asyncio.wait_for(future, 60) for future in futures] == [2, 4, 6, 8, 10, 12]
    assert handler.batches[:3] == [[1], [2, 3], [4, 5]]
    assert [record.message for record in caplog.records] == ["choice_failed"] * 2
    await worker.close()


@pytest.mark.parametrize("wrong", [{"max_batch": 0}, {"max_waiting": 0}, {"linger": -1.0}, {"linger": float("nan")}])
async def test_senseless_sizes_are_refused(wrong: dict[str, object]) -> None:
    """Sizes below one and negative times raise an error that names the argument."""
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        make(Doubler(), **wrong)


async def test_a_worker_nobody_holds_ends_its_thread() -> None:
    """A worker that was dropped instead of closed is collected, and its thread ends."""
    worker = make(lambda items: list(items), name="dropped")
    await worker.submit(1)
    thread = next(thread for thread in threading.enumerate() if thread.name == "dropped")
    del worker
    gc.collect()
    await asyncio.to_thread(thread.join, 60)
    assert not thread.is_alive()


def test_callers_cancelled_at_the_end_of_the_loop_leave_no_message() -> None:
    """A batch whose callers were all cancelled with their loop ends in silence: nobody is missing its outcome."""
    code = (
        "import asyncio, atexit, threading\n"
        "from gemma_cli.rag.combining import CombiningWorker\n"
        "entered, ended = threading.Event(), threading.Event()\n"
        "def held(items):\n"
        "    entered.set()\n"
        "    assert ended.wait(60)\n"
        "    return items\n"
        "worker = CombiningWorker(held, name='w', max_batch=1, max_waiting=9)\n"
        "async def main():\n"
        "    task = asyncio.create_task(worker.submit(1))\n"
        "    assert await asyncio.to_thread(entered.wait, 60)\n"
        "atexit.register(ended.set)\n"  # not before the exit has begun
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    assert done.stderr == ""


def test_a_forgotten_worker_does_not_keep_the_interpreter() -> None:
    """A process that never closed its worker ends, after the batch in progress and with nothing on stderr."""
    code = (
        "import asyncio, time\n"
        "from gemma_cli.rag.combining import CombiningWorker\n"
        "def slow(items):\n"
        "    time.sleep(0.2)\n"
        "    print('batch done', flush=True)\n"
        "    return items\n"
        "worker = CombiningWorker(slow, name='w', max_batch=1, max_waiting=9)\n"
        "async def main():\n"
        "    worker.put(1)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT, check=True)
    assert done.stdout == "batch done\n"
    assert "Traceback" not in done.stderr


async def test_nothing_is_lost_or_mixed_up_under_random_load() -> None:
    """Thousands of callers with random cancellations: who stayed has the right outcome, who left was cancelled."""
    chance = random.Random(7)

    def handler(items: list[int]) -> list[int | BaseException]:
        if chance.random() < 0.2:
            time.sleep(0.0005)
        return [ValueError(str(item)) if item % 10 == 0 else 2 * item for item in items]

    worker = make(handler, max_batch=16, max_waiting=10_000)

    async def call(n: int) -> str:
        for _ in range(n % 7):
            await asyncio.sleep(0)
        if n % 10 == 0:
            with pytest.raises(ValueError, match=f"^{n}$"):
                await worker.submit(n)
            return "error"
        assert await worker.submit(n) == 2 * n
        return "value"

    tasks = [asyncio.create_task(call(n)) for n in range(3000)]
    cancelled = []
    for turn in range(30):
        await asyncio.sleep(0.0005 * (turn % 2))
        cancelled += [task for task in chance.sample(tasks, 20) if task.cancel()]
    done, pending = await asyncio.wait(tasks, timeout=60)
    assert not pending
    assert cancelled
    stayed = [task for task in done if not task.cancelled()]
    assert len(stayed) + len({task for task in cancelled if task.cancelled()}) == 3000
    assert all(task.result() in {"error", "value"} for task in stayed)
    assert worker.waiting == 0
    await worker.close()
