"""Spans around the backend's verbs, for whoever collects traces. OpenTelemetry is imported where it is switched on."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from gemma_cli.rag._version import __version__
from gemma_cli.rag.errors import MissingExtraError
from gemma_cli.rag.settings_schema import REDIS_SCHEMES

SCHEMA: Final = "https://opentelemetry.io/schemas/1.33.0"
"""The semantic conventions that the attributes follow: the first in which `db.*` is stable."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a verb: all that may be told of it outside. What it was called with is no part of it."""

    verb: str
    system: str
    """The database below: "sqlite" or "redis"."""


class Tracer(Protocol):
    """Whoever wants to know of calls as they begin and end."""

    def span(self, call: Call) -> AbstractContextManager[None]:
        """Entered before the verb runs, left after it: with the exception where it failed, which must pass on."""


def system_of(url: str) -> str:
    """The database that a store's URL stands for; a store in memory is one of SQLite's."""
    return "redis" if url.partition("://")[0] in REDIS_SCHEMES else "sqlite"


def open_telemetry() -> Tracer:
    """Spans `gemma_rag.<verb>` by the application's tracer provider, whenever that is set; until then they go nowhere.
    A span lies in the one that is current where the verb is called.

    Attributes: `db.system.name`, `db.operation.name` and, where the call failed, `error.type`. The exception's event
    holds its type alone: messages may quote a memory. Raises `MissingExtraError` without OpenTelemetry."""
    try:
        from opentelemetry.trace import Status, StatusCode, get_tracer
    except ImportError as error:
        raise MissingExtraError(
            'monitoring.tracing: needs OpenTelemetry; install it with: pip install "gemma-rag[otel]"'
        ) from error
    tracer = get_tracer("gemma_cli.rag", __version__, schema_url=SCHEMA)

    class Spans:
        @contextmanager
        def span(self, call: Call) -> Iterator[None]:
            attributes = {"db.system.name": call.system, "db.operation.name": call.verb}
            with tracer.start_as_current_span(
                f"gemma_rag.{call.verb}", attributes=attributes, record_exception=False, set_status_on_exception=False
            ) as span:
                try:
                    yield
                except Exception as error:  # a call that was cancelled did not fail
                    kind = _name(type(error))
                    span.set_attribute("error.type", kind)
                    span.add_event("exception", {"exception.type": kind})
                    span.set_status(Status(StatusCode.ERROR))
                    raise

    return Spans()


def _name(kind: type[Exception]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
