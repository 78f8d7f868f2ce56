"""Values -> responses of JSON."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

from gemma_cli.edge.results import compact


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON value as a response that nothing on the way may keep."""
    return _response(compact(value), status, headers)


def model_response(answer: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """The same of an answer, without members that are None. What users stored as null in their metadata stays."""
    return _response(answer.model_dump_json(exclude_none=True, by_alias=True), status, headers)


def _response(text: str, status: int, headers: Mapping[str, str] | None) -> Response:
    return Response(text, status, {"Cache-Control": "no-store", **(headers or {})}, "application/json")
