"""One row of the API: from a request to its checked input, from an answer to a response."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, get_args, get_origin
from urllib.parse import quote

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from gemma_cli.edge.failures import INVALID_INPUT, Refusal
from gemma_cli.server.answers import model_response
from gemma_cli.server.bodies import Body, Parameters
from gemma_cli.server.faults import NOT_JSON, TOO_LARGE, TOO_SLOW, Wait

if TYPE_CHECKING:
    from gemma_cli.rag import PythonRAGBackend
    from gemma_cli.server.desk import Desk

TINY_BODY: Final = 8 << 10
SMALL_BODY: Final = 1 << 20
LARGE_BODY: Final = 16 << 20
"""Bytes. The tiny one is for those who bear no token."""
MOST_DIGITS: Final = 18
"""Of a length that a client declares; what more digits say is too large by the first of them."""
SECONDS: Final = 30.0
LONG: Final = 600.0
"""Seconds for requests that read or write much."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request on its way: what it may use, and what only few need."""

    desk: "Desk"
    request: Request

    async def backend(self) -> "PythonRAGBackend":
        return await self.desk.opening.backend()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`run` takes the call, the checked input where there is a model for one, and the parameters of the path in their
    order. It gives an answer of the model `answer`, a response of its own, or None for 204.

    path: as Starlette has it; parameters take slashes too, since ids may hold them.
    location: of what was created or was there, over the fields of the answer.
    unchanged: tells of an answer that nothing was created; its status is 200 then.
    fails: codes of failures beside those that any endpoint may have.
    public: it needs no token.
    """

    method: str
    path: str
    summary: str
    run: Callable[..., Awaitable[BaseModel | Response | None]]
    answer: type[BaseModel] | None = None
    body: type[Body] | None = None
    query: type[Parameters] | None = None
    status: int = 200
    location: str | None = None
    unchanged: Callable[[Any], bool] | None = None
    media_type: str = "application/json"
    fails: tuple[str, ...] = ()
    max_body: int = SMALL_BODY
    seconds: float = SECONDS
    public: bool = False

    async def respond(self, call: Call) -> Response:
        """Raises what the caller turns into an answer of failure."""
        limit = asyncio.timeout(self.seconds)
        try:
            async with limit:
                answer = await self.run(call, *await self._input(call.request), *call.request.path_params.values())
        except TimeoutError as error:  # the errors of a store that is locked are such errors too
            if type(error) is TimeoutError and limit.expired():
                raise Wait(TOO_SLOW, f"it took longer than {self.seconds:g} s and was given up") from error
            raise
        return self._response(answer)

    async def _input(self, request: Request) -> tuple[BaseModel, ...]:
        if self.body is not None:
            return (self.body.model_validate_json(await _body(request, self.max_body)),)
        if self.query is not None:
            return (self.query.model_validate(_parameters(request, self.query)),)
        if unknown := next(iter(request.query_params), None):
            raise _unknown(unknown)
        return ()

    def _response(self, answer: BaseModel | Response | None) -> Response:
        if answer is None:
            return Response(status_code=204, headers={"Cache-Control": "no-store"})
        if isinstance(answer, Response):
            return answer
        headers = {}
        if self.location is not None:
            headers["Location"] = self.location.format_map({name: quote(str(value), "") for name, value in answer})
        unchanged = self.unchanged is not None and self.unchanged(answer)
        return model_response(answer, 200 if unchanged else self.status, headers)


async def _body(request: Request, most: int) -> bytes:
    """The body of a request that says it is JSON; no more of it is read than may be."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(NOT_JSON, "the body has to be JSON; say Content-Type: application/json")
    refused = Refusal(TOO_LARGE, f"the body has more than {most:,} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:MOST_DIGITS]) > most:
        raise refused
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise refused
    return bytes(body)


def _parameters(request: Request, model: type[Parameters]) -> Mapping[str, Any]:
    """The query of a URL: lists where the model has them, else one value."""
    found: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        field = model.model_fields.get(name)
        if field is None:
            raise _unknown(name)
        if _is_list(field.annotation):
            found.setdefault(name, []).append(value)
        elif name in found:
            raise Refusal(INVALID_INPUT, f"{name}: was given more than once")
        else:
            found[name] = value
    return found


def _unknown(name: str) -> Refusal:
    return Refusal(INVALID_INPUT, f"{name}: no such parameter")


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) is list or any(_is_list(part) for part in get_args(annotation))
