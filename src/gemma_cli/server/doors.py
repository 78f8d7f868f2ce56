"""The endpoints about the server itself: whether it lives, and who may use it."""

from starlette.responses import Response

from gemma_cli.edge.failures import Refusal
from gemma_cli.server import bodies, told
from gemma_cli.server.endpoint import Call
from gemma_cli.server.faults import NOT_READY, UNAUTHORIZED, Wait


async def health(call: Call) -> told.Health:
    return told.Health(status="ok")


async def readiness(call: Call) -> told.Health:
    if lacking := await call.desk.readiness.lacking():
        raise Wait(NOT_READY, "; ".join(lacking))
    return told.Health(status="ok")


async def sign_in(call: Call, asked: bodies.SignIn) -> Response:
    if not call.desk.access.knows(asked.token):
        raise Refusal(UNAUTHORIZED, "token: is not the server's")
    response = Response(status_code=204)
    call.desk.access.begin_session(response, call.request.scope)
    return response


async def sign_out(call: Call) -> Response:
    response = Response(status_code=204)
    call.desk.access.end_session(response, call.request.scope)
    return response
