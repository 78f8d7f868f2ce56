"""Spans around the verbs, with the real SDK of OpenTelemetry and its exporter in memory."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from command_runs import run_python
from memory_places import WordEmbedder
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from gemma_cli.rag import InvalidInputError, PythonRAGBackend, Settings
from gemma_cli.rag.settings import MonitoringSettings
from gemma_cli.rag.tracing import Call, system_of

pytestmark = pytest.mark.anyio

SECRET = "the harbour master keeps a parrot"
TRACED = Settings(monitoring=MonitoringSettings(tracing=True))


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """The spans of this process; a provider can be set but once."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
async def backend(exporter: InMemorySpanExporter) -> AsyncIterator[PythonRAGBackend]:
    async with PythonRAGBackend(url="memory://", namespace="mine", embedder=WordEmbedder(), settings=TRACED) as backend:
        exporter.clear()
        yield backend


async def test_each_verb_is_a_span_by_the_conventions(
    backend: PythonRAGBackend, exporter: InMemorySpanExporter
) -> None:
    """A call is one finished span, named for its verb, with the database and the operation as attributes."""
    await backend.store_memory("x")
    await backend.recall_memories("x")
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["gemma_rag.store_memory", "gemma_rag.recall_memories"]
    assert dict(spans[0].attributes or {}) == {"db.system.name": "sqlite", "db.operation.name": "store_memory"}
    assert spans[0].status.status_code is StatusCode.UNSET
    assert spans[0].instrumentation_scope is not None
    assert spans[0].instrumentation_scope.name == "gemma_cli.rag"


async def test_spans_follow_the_context(backend: PythonRAGBackend, exporter: InMemorySpanExporter) -> None:
    """A call lies in the span that is current where it is made, each of several at once in its own."""
    tracer = trace.get_tracer("application")

    async def turn(number: int) -> None:
        with tracer.start_as_current_span(f"turn {number}"):
            await backend.store_memory(f"memory {number}")

    await asyncio.gather(turn(1), turn(2))
    spans = {span.context.span_id: span for span in exporter.get_finished_spans() if span.context}
    stores = [span for span in spans.values() if span.name == "gemma_rag.store_memory"]
    assert sorted(parent(span, spans).name for span in stores) == ["turn 1", "turn 2"]


async def test_what_a_verb_does_lies_in_its_span(backend: PythonRAGBackend, tmp_path: Path) -> None:
    """The span of a verb is the current one as long as it runs, and not after it."""
    document = tmp_path / "notes.md"
    document.write_text("The dinghy is called Terna.")
    current: list[object] = []
    await backend.ingest_document(document, progress=lambda *_: current.append(trace.get_current_span()))
    assert current
    for span in current:
        assert isinstance(span, ReadableSpan)
        assert span.name == "gemma_rag.ingest_document"
    assert not trace.get_current_span().is_recording()


def parent(span: ReadableSpan, spans: dict[int, ReadableSpan]) -> ReadableSpan:
    assert span.parent is not None
    return spans[span.parent.span_id]


async def test_errors_are_recorded_by_type_alone(backend: PythonRAGBackend, exporter: InMemorySpanExporter) -> None:
    """A failed call has the error's type and status, and neither its message nor its traceback."""
    with pytest.raises(InvalidInputError, match="importance"):
        await backend.store_memory(SECRET, importance=7.0)
    with pytest.raises(InvalidInputError, match=SECRET):
        await backend.store_memory("x", SECRET)
    for span in exporter.get_finished_spans():
        assert span.attributes is not None
        assert span.attributes["error.type"] == "gemma_cli.rag.errors.InvalidInputError"
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description is None
        [event] = span.events
        assert event.name == "exception"
        assert dict(event.attributes or {}) == {"exception.type": "gemma_cli.rag.errors.InvalidInputError"}
    assert len(exporter.get_finished_spans()) == 2


async def test_a_cancelled_call_did_not_fail(backend: PythonRAGBackend, exporter: InMemorySpanExporter) -> None:
    """The span of a call whose caller gave up ends, without an error."""
    task = asyncio.ensure_future(backend.recall_memories("x"))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    [span] = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.UNSET
    assert "error.type" not in (span.attributes or {})


async def test_no_span_holds_anything_of_the_user(backend: PythonRAGBackend, exporter: InMemorySpanExporter) -> None:
    """Neither contents nor questions, tags, ids, actors or the namespace leave the process."""
    identity = await backend.store_memory(SECRET, tags=["private"], actor="someone", session="talk")
    await backend.recall_memories(SECRET, tags=["private"])
    await backend.get_memory(identity)
    await backend.delete_memory(identity)
    told = "".join(span.to_json() for span in exporter.get_finished_spans())
    assert told.count("gemma_rag.") == 4
    for word in (SECRET, "private", "someone", "talk", identity, "mine"):
        assert word not in told


async def test_any_tracer_can_be_told_of_calls() -> None:
    """Whatever has the one method gets the facts of each call, in the order of begin and end."""
    told: list[object] = []

    class Diary:
        def span(self, call: Call) -> AbstractContextManager[None]:
            @contextmanager
            def written() -> Iterator[None]:
                told.append(call)
                yield
                told.append("done")

            return written()

    async with PythonRAGBackend(url="memory://", embedder=WordEmbedder(), settings=Settings()) as backend:
        backend.tracer = Diary()
        await backend.store_memory("x")
    assert told == [Call("store_memory", "sqlite"), "done"]


@pytest.mark.parametrize(
    ("url", "system"),
    [
        ("", "sqlite"),
        ("memory://", "sqlite"),
        ("sqlite:///redis.db", "sqlite"),
        ("redis://here:1/0", "redis"),
        ("rediss+cluster://here:1", "redis"),
    ],
)
def test_the_database_is_told_from_the_url(url: str, system: str) -> None:
    """Each scheme stands for one of the two databases."""
    assert system_of(url) == system


def test_off_nothing_is_imported_and_on_a_missing_library_is_named(tmp_path: Path) -> None:
    """A process that does not trace never loads OpenTelemetry; one that shall and can't says which extra to install."""
    code = """
import asyncio, sys
from gemma_cli.rag import MissingExtraError, PythonRAGBackend, Settings
from gemma_cli.rag.settings import EmbeddingSettings, MonitoringSettings
hashing = EmbeddingSettings(provider="hashing")
async def use():
    async with PythonRAGBackend(url="memory://", settings=Settings(embedding=hashing)) as backend:
        await backend.store_memory("x")
asyncio.run(use())
print([name for name in sys.modules if name.startswith("opentelemetry")])
sys.modules["opentelemetry"] = sys.modules["opentelemetry.trace"] = None
try:
    PythonRAGBackend(url="memory://", settings=Settings(monitoring=MonitoringSettings(tracing=True)))
except MissingExtraError as error:
    print(error)
"""
    outcome = run_python("-c", code, cwd=tmp_path)
    assert outcome.code == 0, outcome.stderr
    lines = outcome.stdout.splitlines()
    assert lines[0] == "[]"
    assert 'pip install "gemma-rag[otel]"' in lines[1]
    assert "opentelemetry" in sys.modules  # this process has it, so that the other could have
