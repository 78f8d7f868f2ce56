"""JSON schemas as pydantic makes them -> as clients should read them."""

from typing import Any, Final

NULL: Final = {"type": "null"}

_BY_NAME: Final = ("properties", "$defs")
"""Members of a schema whose own members are named by users, "title" among them."""


def slim(schema: Any, *, nulls: bool = False) -> Any:
    """A schema without titles that repeat names, its texts on one line: models read all of a tool's with every prompt.
    nulls: whether the word stays that a member may be null; else such a member is one that may be left out."""
    if isinstance(schema, list):
        return [slim(each, nulls=nulls) for each in schema]
    if not isinstance(schema, dict):
        return " ".join(schema.split()) if isinstance(schema, str) else schema
    whole = {name: value for name, value in schema.items() if not _idle(name, value)}
    kinds = [kind for kind in whole.get("anyOf", ()) if kind != NULL]
    if len(kinds) == 1 and (not nulls or "enum" not in kinds[0]):
        del whole["anyOf"]
        whole = kinds[0] | ({"type": [kinds[0]["type"], "null"]} if nulls else {}) | whole
    return {
        name: {key: slim(each, nulls=nulls) for key, each in value.items()}
        if name in _BY_NAME
        else slim(value, nulls=nulls)
        for name, value in whole.items()
        if not _idle(name, value)
    }


def _idle(name: str, value: Any) -> bool:
    return (name == "title" and isinstance(value, str)) or (name == "default" and value is None)
