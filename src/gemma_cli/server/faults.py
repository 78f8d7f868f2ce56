"""An error -> the answer that tells it: the one place where the HTTP API does that."""

import logging
import math
from dataclasses import asdict, replace
from typing import Final

from starlette.exceptions import HTTPException
from starlette.responses import Response

from gemma_cli.edge.failures import INTERNAL, INVALID_INPUT, NOT_ALLOWED, NOT_FOUND, Failure, Refusal, failure
from gemma_cli.server.answers import json_response

logger = logging.getLogger("gemma_cli.server")

UNAUTHORIZED: Final = "unauthorized"
WRONG_METHOD: Final = "wrong_method"
CONFLICT: Final = "conflict"
TOO_LARGE: Final = "too_large"
NOT_JSON: Final = "not_json"
TOO_MANY: Final = "too_many_requests"
TOO_SLOW: Final = "timed_out"
NOT_READY: Final = "not_ready"
BUSY: Final = "busy"

STATUSES: Final[dict[str, int]] = {
    "failed": 500,
    INVALID_INPUT: 422,
    "bad_configuration": 500,
    "shutting_down": 503,
    "tier_full": 409,
    BUSY: 503,
    "missing_extra": 501,
    "bad_document": 422,
    "document_not_found": 404,
    "model_failed": 500,
    "model_not_found": 500,
    "model_damaged": 500,
    "model_mismatch": 409,
    "store_failed": 500,
    "store_unavailable": 503,
    "store_busy": 503,
    "store_full": 507,
    "store_damaged": 500,
    "store_lost": 503,
    "store_version": 500,
    INTERNAL: 500,
    NOT_FOUND: 404,
    NOT_ALLOWED: 403,
    UNAUTHORIZED: 401,
    WRONG_METHOD: 405,
    CONFLICT: 409,
    TOO_LARGE: 413,
    NOT_JSON: 415,
    TOO_MANY: 429,
    TOO_SLOW: 503,
    NOT_READY: 503,
}
"""The HTTP status of each code."""

PASSING: Final = frozenset({TOO_MANY, TOO_SLOW, NOT_READY, BUSY})
"""Codes of this server's own after which the same call may succeed later."""

RETRY_AFTER: Final = 1
"""Seconds after which a client may ask again, where nothing better is known."""

BY_STATUS: Final = {
    404: (NOT_FOUND, "there is nothing here"),
    405: (WRONG_METHOD, "this address takes other methods; see Allow"),
}
"""Code and message for what the router turns away."""


class Wait(Refusal):
    """A call that may be made again after so many seconds."""

    def __init__(self, code: str, message: str, seconds: float = RETRY_AFTER) -> None:
        super().__init__(code, message)
        self.seconds = seconds


def answer(error: BaseException) -> Response:
    """What a client is told of an error. One that nobody foresaw goes to the log, and the client learns nothing."""
    known = failure(_refused(error) if isinstance(error, HTTPException) else error)
    if known is None:
        logger.error("request_failed", exc_info=error)
        known = Failure(INTERNAL, "it failed for a reason that nobody foresaw; the server's log has it")
    if known.code in PASSING:
        known = replace(known, retryable=True)
    return json_response({"error": asdict(known)}, STATUSES[known.code], _headers(error, known))


def _refused(error: HTTPException) -> Refusal:
    return Refusal(*BY_STATUS.get(error.status_code, (INVALID_INPUT, error.detail)))


def _headers(error: BaseException, known: Failure) -> dict[str, str]:
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if known.retryable:
        headers["Retry-After"] = str(math.ceil(error.seconds if isinstance(error, Wait) else RETRY_AFTER))
    if known.code == UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return headers
