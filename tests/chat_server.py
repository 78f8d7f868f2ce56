"""A small OpenAI-compatible server for the tests of the chat: it answers from what the prompt quotes."""

import asyncio
import json
import re
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

RETOLD = {"I": "you", "I'm": "you're", "My": "Your", "my": "your", "am": "are"}


@dataclass
class ChatServer:
    """Models: `retells` says again, as an assistant would, what the user is quoted with, `breaks` stops within an
    answer, `slow` takes minutes for one; there are no others. `asked` keeps the bodies that came, `keys` who asked."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        self.keys.append(request.headers.get("authorization", ""))
        if body["model"] not in ("retells", "breaks", "slow"):
            return JSONResponse({"error": {"message": f"model {body['model']!r} not found"}}, 404)
        return StreamingResponse(self._pieces(body), media_type="text/event-stream")

    async def _pieces(self, body: dict[str, Any]) -> AsyncIterator[str]:
        quotes = re.findall(r"^> (?:\[[^\]]*\] )?user: (.*)$", body["messages"][0]["content"], re.MULTILINE)
        words = " ".join(RETOLD.get(word, word) for word in quotes[0].split()) if quotes else "Good to know."
        for piece in re.findall(r"\S+\s*", words[0].upper() + words[1:]):
            yield _event({"content": piece}, None)
            if body["model"] == "breaks":
                return
            if body["model"] == "slow":
                for _ in range(1_000):  # a minute and more: whoever asked is gone by then
                    yield ": still thinking\n\n"
                    await asyncio.sleep(0.1)
        yield _event({}, "stop")
        yield "data: [DONE]\n\n"


def _event(delta: dict[str, str], finish_reason: str | None) -> str:
    choice = {"index": 0, "delta": {"role": "assistant", **delta}, "finish_reason": finish_reason}
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return f"data: {json.dumps(chunk)}\n\n"


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    """Serves on a free port of this machine, in a thread, until the end of the block."""
    chat = ChatServer()
    app = Starlette(routes=[Route("/v1/chat/completions", chat.chat, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        chat.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield chat
        finally:
            server.should_exit = True
            thread.join(60)
