"""The description of the API (OpenAPI 3.1), made from the table of its endpoints."""

import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gemma_cli.edge.failures import INTERNAL, INVALID_INPUT, NOT_ALLOWED
from gemma_cli.edge.schemas import NULL, slim
from gemma_cli.rag._version import __version__
from gemma_cli.server import bodies, told
from gemma_cli.server.endpoint import Endpoint
from gemma_cli.server.faults import BUSY, NOT_JSON, STATUSES, TOO_LARGE, TOO_MANY, TOO_SLOW, UNAUTHORIZED

Mode = Literal["validation", "serialization"]
REF: Final = "#/components/schemas/{model}"
ANYWHERE: Final = (INVALID_INPUT, NOT_ALLOWED, TOO_MANY, INTERNAL, TOO_SLOW, "missing_extra")
"""Failures that any endpoint may have."""
WITH_BODY: Final = (TOO_LARGE, NOT_JSON)
SECURITY: Final = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "What the server was started with. In a browser, the cookie of a session stands for it.",
    }
}
DESCRIPTION: Final = (
    "Memory for LLM agents, in five tiers. Members that would be null are left out of answers. Every failure is a JSON "
    "object `error` with a stable `code`; where it is `retryable`, `Retry-After` says when."
)


REQUIRED: Final[list[dict[str, list[str]]]] = [{name: []} for name in SECURITY]
STREAMS: Final = (
    ("/api/v1/live", "follow", "What happens, as server-sent events: hello, sample, activity", "text/event-stream"),
    ("/api/v1/live/hello", "hello", "What a stream begins with, once", "application/json"),
    ("/metrics", "metrics", "Figures for Prometheus", "text/plain"),
    ("/openapi.json", "describe", "This description", "application/json"),
)
"""Path, name, summary and media type of what is served beside the table of endpoints."""


def describe(endpoints: Sequence[Endpoint], *, guarded: bool) -> dict[str, Any]:
    """guarded: whether the server asks for a token."""
    schemas, queries, names = _schemas(endpoints)
    paths: dict[str, dict[str, Any]] = {}
    for row in endpoints:
        path = re.sub(r":\w+}", "}", row.path)
        paths.setdefault(path, {})[row.method.lower()] = _operation(row, names, queries, guarded)
    for path, name, summary, media_type in STREAMS:
        paths[path] = {"get": _stream(name, summary, media_type, guarded)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "gemma-rag", "version": __version__, "description": DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {_name(status): _failed(status) for status in sorted(set(STATUSES.values()))},
            "securitySchemes": SECURITY,
        },
    }


def _schemas(endpoints: Iterable[Endpoint]) -> tuple[dict[str, Any], dict[str, Any], dict[type[BaseModel], str]]:
    """The schemas of bodies and answers by name, those of queries by name, and the name of each model."""
    models: dict[type[BaseModel], Mode] = {told.Failed: "serialization"}
    for row in endpoints:
        models |= {model: "validation" for model in (row.body, row.query) if model is not None}
        models |= {row.answer: "serialization"} if row.answer is not None else {}
    ordered = sorted(models.items(), key=lambda item: item[0].__name__)
    _, whole = models_json_schema(ordered, ref_template=REF)
    names = {model: model.__name__ for model in models}
    queries = {row.query.__name__ for row in endpoints if row.query is not None}
    schemas = {name: slim(schema, nulls=hasattr(bodies, name)) for name, schema in whole["$defs"].items()}
    return (
        {name: schema for name, schema in schemas.items() if name not in queries},
        {name: schemas[name] for name in queries},
        names,
    )


def _operation(
    row: Endpoint, refs: Mapping[type[BaseModel], str], queries: Mapping[str, Any], guarded: bool
) -> dict[str, Any]:
    operation: dict[str, Any] = {"operationId": row.run.__name__, "summary": row.summary}
    if parameters := [*_path_parameters(row.path), *_query_parameters(row, refs, queries)]:
        operation["parameters"] = parameters
    if row.body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": _reference(refs[row.body])}}
    statuses = {row.status, *([200] if row.unchanged is not None else [])}
    operation["responses"] = {
        **{str(status): _success(row, status, refs) for status in sorted(statuses)},
        **_failures(row, guarded),
    }
    if guarded and not row.public:
        operation["security"] = REQUIRED
    return operation


def _stream(name: str, summary: str, media_type: str, guarded: bool) -> dict[str, Any]:
    codes = [NOT_ALLOWED, TOO_MANY, INTERNAL, BUSY, *([UNAUTHORIZED] if guarded else [])]
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": {"description": "OK", "content": {media_type: {}}}, **_references(codes)},
        **({"security": REQUIRED} if guarded else {}),
    }


def _reference(name: str) -> dict[str, Any]:
    return {"schema": {"$ref": REF.format(model=name)}}


def _path_parameters(path: str) -> list[dict[str, Any]]:
    """Every parameter of a path is an id or a token."""
    schema = {"type": "string", "minLength": 1, "maxLength": 512}
    return [{"name": name, "in": "path", "required": True, "schema": schema} for name in re.findall(r"{(\w+)", path)]


def _query_parameters(
    row: Endpoint, refs: Mapping[type[BaseModel], str], queries: Mapping[str, Any]
) -> list[dict[str, Any]]:
    if row.query is None:
        return []
    schema = queries[refs[row.query]]
    return [
        {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": _without_null(each)}
        for name, each in schema["properties"].items()
    ]


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A query has no way to say null."""
    if isinstance(schema.get("type"), list):
        return schema | {"type": schema["type"][0]}
    kinds = [each for each in schema.get("anyOf", ()) if each != NULL]
    return {name: value for name, value in schema.items() if name != "anyOf"} | (kinds[0] if kinds else {})


def _success(row: Endpoint, status: int, refs: Mapping[type[BaseModel], str]) -> dict[str, Any]:
    success: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if row.answer is not None:
        success["content"] = {row.media_type: _reference(refs[row.answer])}
    elif status != HTTPStatus.NO_CONTENT:
        success["content"] = {row.media_type: {}}
    if row.location is not None:
        success["headers"] = {"Location": {"schema": {"type": "string"}, "description": "Where it is."}}
    return success


def _failures(row: Endpoint, guarded: bool) -> dict[str, Any]:
    codes = [*ANYWHERE, *row.fails]
    if row.body is not None:
        codes += WITH_BODY
    if guarded and not row.public:
        codes.append(UNAUTHORIZED)
    return _references(codes)


def _references(codes: Iterable[str]) -> dict[str, Any]:
    return {
        str(status): {"$ref": f"#/components/responses/{_name(status)}"}
        for status in sorted({STATUSES[code] for code in codes})
    }


def _name(status: int) -> str:
    return f"Failed{status}"


def _failed(status: int) -> dict[str, Any]:
    codes = sorted(code for code, each in STATUSES.items() if each == status)
    failed: dict[str, Any] = {
        "description": f"Codes: {', '.join(codes)}.",
        "content": {"application/json": _reference(told.Failed.__name__)},
    }
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        failed["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return failed
