"""What may take long to answer is asked once at a time, and waited for as long as an asker likes."""

import asyncio

import pytest

from gemma_cli.server.looks import Looks

pytestmark = pytest.mark.anyio

ENOUGH = 60.0
"""Seconds after which a test gives up."""


class Slow:
    """Answers its calls by their number, once it is let."""

    def __init__(self) -> None:
        self.calls = 0
        self.let_go = asyncio.Event()

    async def __call__(self) -> int:
        self.calls += 1
        number = self.calls
        await self.let_go.wait()
        if number == 3:
            raise ValueError("the third fails")
        return number


async def test_one_look_serves_all_who_wait() -> None:
    """Those who ask while a look is under way, or gave up waiting for it, get that one; the next asks anew, and what a
    look raises comes with it."""
    slow = Slow()
    looks = Looks(slow, "look")
    assert await looks.within(0) is None
    waiting = [asyncio.create_task(looks.within(ENOUGH)) for _ in range(3)]
    await asyncio.sleep(0)
    slow.let_go.set()
    looked = await asyncio.gather(*waiting)
    assert [each is not None and each.result() for each in looked] == [1, 1, 1]
    second, third = await looks.within(ENOUGH), await looks.within(ENOUGH)
    assert second is not None
    assert second.result() == 2
    assert third is not None
    assert isinstance(third.exception(), ValueError)
    assert slow.calls == 3


@pytest.mark.parametrize(("fresh", "number"), [(False, 1), (True, 2)])
async def test_what_ended_meanwhile(fresh: bool, number: int) -> None:
    """A look that ended when nobody waited any more serves the next who asks, unless that one wants a fresh one."""
    slow = Slow()
    looks = Looks(slow, "look")
    assert await looks.within(0) is None
    slow.let_go.set()
    await asyncio.sleep(0.01)
    looked = await looks.within(ENOUGH, fresh=fresh)
    assert looked is not None
    assert looked.result() == number


async def test_the_end_ends_a_look() -> None:
    """At the end a look under way gets its time, and is ended then."""
    slow = Slow()
    looks = Looks(slow, "look")
    await looks.close()
    await looks.within(0)
    await looks.close()
    assert [task for task in asyncio.all_tasks() if task.get_name() == "look"] == []
