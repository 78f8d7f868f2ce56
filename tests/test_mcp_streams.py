"""The end of what an MCP client sends on stdio: everything that it asked is answered first."""

import asyncio
from typing import Any

import anyio
import pytest
from mcp.shared.message import SessionMessage
from mcp.types import JSONRPCNotification, JSONRPCRequest, JSONRPCResponse

from gemma_cli.mcp_server import streams
from gemma_cli.mcp_server.streams import Answers, Owed, Questions

pytestmark = pytest.mark.anyio


def asked(number: int) -> SessionMessage:
    return SessionMessage(JSONRPCRequest(jsonrpc="2.0", id=number, method="tools/list"))


def cancelled(number: int) -> SessionMessage:
    method = "notifications/cancelled"
    return SessionMessage(JSONRPCNotification(jsonrpc="2.0", method=method, params={"requestId": number}))


def answer(number: int) -> SessionMessage:
    return SessionMessage(JSONRPCResponse(jsonrpc="2.0", id=number, result={}))


async def reading(owed: Owed, *messages: SessionMessage | Exception) -> asyncio.Task[list[Any]]:
    """A reader of messages that have all come, behind which the client has closed its end; it has read them."""
    send, receive = anyio.create_memory_object_stream[SessionMessage | Exception](len(messages))
    for message in messages:
        send.send_nowait(message)
    send.close()

    async def read() -> list[Any]:
        async with Questions(receive, owed) as questions:
            return [message async for message in questions]

    task = asyncio.create_task(read())
    while receive.statistics().current_buffer_used:  # noqa: ASYNC110 - the stream tells nobody that it is empty
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


async def test_what_was_asked_is_answered_before_the_end() -> None:
    """The stream of questions ends once the last answer has left, and with all that was in it."""
    owed = Owed()
    task = await reading(owed, asked(1), ValueError("no JSON"), asked(2))
    send, receive = anyio.create_memory_object_stream[SessionMessage](2)
    async with Answers(send, owed) as answers, receive:
        await answers.send(answer(2))
        assert not (await asyncio.wait([task], timeout=0.05))[0]
        await answers.send(answer(1))
        assert len(await asyncio.wait_for(task, 60)) == 3


@pytest.mark.parametrize("messages", [[], [ValueError("no JSON")], [asked(1), cancelled(1)]])
async def test_where_nothing_is_owed_it_ends_at_once(messages: list[Any]) -> None:
    """Nobody waits for answers to nothing, or to what the client has cancelled."""
    assert await asyncio.wait_for(await reading(Owed(), *messages), 60) == messages


async def test_a_signal_waits_for_nobody() -> None:
    """What is owed is given up, and so is what is still read."""
    owed = Owed()
    owed.give_up()
    assert len(await asyncio.wait_for(await reading(owed, asked(1)), 60)) == 1


async def test_an_answer_that_never_comes_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """After some seconds the stream ends all the same."""
    monkeypatch.setattr(streams, "LAST_ANSWERS", 0.05)
    assert len(await asyncio.wait_for(await reading(Owed(), asked(1)), 60)) == 1
