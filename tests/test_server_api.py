"""The endpoints of the HTTP API: what they take, what they answer, what they refuse."""

import asyncio
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import apsw
import pytest
from conftest import Clock
from http_servers import BEARER, MEMORIES, TOKEN, in_process, refused, told

from gemma_cli.edge.failures import CODES
from gemma_cli.edge.opening import Opening
from gemma_cli.rag import MemoryEntry, PythonRAGBackend
from gemma_cli.rag.consolidation import Plan
from gemma_cli.server import faults, openapi
from gemma_cli.server.endpoints import ENDPOINTS
from gemma_cli.server.undo import LIFETIME, MOST, Undo
from gemma_cli.server.upkeep import STEPS, timeline

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("hashing")]


# What comes in


@pytest.mark.parametrize(
    ("method", "path", "body", "named"),
    [
        ("POST", MEMORIES, {}, "content"),
        ("POST", MEMORIES, {"content": ""}, "content"),
        ("POST", MEMORIES, {"content": "  "}, "content"),
        ("POST", MEMORIES, {"content": 5}, "content"),
        ("POST", MEMORIES, {"content": "x" * 100_001}, "content"),
        ("POST", MEMORIES, {"content": "x", "importance": 1.5}, "importance"),
        ("POST", MEMORIES, {"content": "x", "importance": "0.5"}, "importance"),
        ("POST", MEMORIES, {"content": "x", "importance": True}, "importance"),
        ("POST", MEMORIES, {"content": "x", "tier": "eternal"}, "tier"),
        ("POST", MEMORIES, {"content": "x", "pinned": 1}, "pinned"),
        ("POST", MEMORIES, {"content": "x", "tags": "home"}, "tags"),
        ("POST", MEMORIES, {"content": "x", "tags": ["y" * 513]}, "tags.0"),
        ("POST", MEMORIES, {"content": "x", "tags": ["y"] * 51}, "tags"),
        ("POST", MEMORIES, {"content": "x", "metadata": []}, "metadata"),
        ("POST", MEMORIES, {"content": "x", "metadata": {"actor": []}}, "metadata.actor"),
        ("POST", MEMORIES, {"content": "x", "occurred_at": "yesterday"}, "occurred_at"),
        ("POST", MEMORIES, {"content": "x", "importanse": 1}, "importanse"),
        ("POST", MEMORIES, [], "arguments"),
        ("POST", f"{MEMORIES}/batch", {"memories": []}, "memories"),
        ("POST", f"{MEMORIES}/batch", {"memories": [{"content": "x"}] * 1_001}, "memories"),
        ("POST", f"{MEMORIES}/batch", {"memories": [{"content": "x"}, {"content": " "}]}, "memories.1.content"),
        (
            "POST",
            f"{MEMORIES}/batch",
            {"memories": [{"content": "x"}, {"content": "y", "occurred_at": "z"}]},
            "items[1]: occurred_at",
        ),
        ("PATCH", f"{MEMORIES}/a", {}, "body"),
        ("PATCH", f"{MEMORIES}/a", {"content": None}, "content"),
        ("PATCH", f"{MEMORIES}/a", {"tags": None}, "tags"),
        ("PATCH", f"{MEMORIES}/a", {"id": "b"}, "id"),
        ("GET", f"{MEMORIES}/{'a' * 513}", None, "memory_id"),
        ("POST", f"{MEMORIES}/a/promote", {"to_tier": "up"}, "to_tier"),
        ("POST", "/api/v1/recall", {"query": " "}, "query"),
        ("POST", "/api/v1/recall", {"query": "x", "limit": 1_001}, "limit"),
        ("POST", "/api/v1/recall", {"query": "x", "limit": 1.5}, "limit"),
        ("POST", "/api/v1/recall", {"query": "x", "max_tokens": 0}, "max_tokens"),
        ("POST", "/api/v1/recall", {"query": "x", "since": "soon"}, "since"),
        ("POST", "/api/v1/recall", {"query": "x", "min_similarity": 2}, "min_similarity"),
        ("POST", "/api/v1/recall", {"query": "x", "weights": {"luck": 1}}, "weights"),
        ("POST", "/api/v1/recall", {"query": "x", "weights": {"words": -1}}, "weights['words']"),
        ("POST", "/api/v1/search", {"query": "x" * 4_001}, "query"),
        ("POST", "/api/v1/why-not", {"query": "x"}, "memory_id"),
        ("POST", "/api/v1/forget", {}, "memory_ids"),
        ("POST", "/api/v1/forget", {"confirm": True}, "memory_ids"),
        ("POST", "/api/v1/forget", {"memory_ids": ["a"], "tier": "working"}, "memory_ids"),
        ("POST", "/api/v1/forget", {"before": "then"}, "before"),
        ("POST", "/api/v1/consolidate", {"days": -1}, "days"),
        ("POST", "/api/v1/ingest", {"path": ""}, "path"),
        ("GET", f"{MEMORIES}?limit=0", None, "limit"),
        ("GET", f"{MEMORIES}?limit=1&limit=2", None, "limit"),
        ("GET", f"{MEMORIES}?min_importance=nan", None, "min_importance"),
        ("GET", f"{MEMORIES}?pinned=perhaps", None, "pinned"),
        ("GET", f"{MEMORIES}?after=nobody", None, "after"),
        ("GET", f"{MEMORIES}?colour=red", None, "colour"),
        ("GET", "/api/v1/stats?colour=red", None, "colour"),
        ("GET", "/api/v1/forecast?days=0", None, "days"),
    ],
)
async def test_what_no_request_may_carry(method: str, path: str, body: Any, named: str, url: str) -> None:
    """A value out of bounds or of another type, and a member that nothing knows, are refused with one code, the
    member's name and not its value; nothing is stored."""
    async with in_process(url) as web:
        error = refused(await web.request(method, path, json=body), 422)
        assert (error["code"], error["retryable"]) == ("invalid_input", False)
        assert error["message"].startswith(f"{named}: ")
        assert "xxxxx" not in error["message"]
        assert told(await web.get("/api/v1/stats"))["total"] == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b'{"content": NaN}',
        b'{"content": "x", "importance": NaN}',
        b'{"content": "x", "importance": Infinity}',
        b'{"content": "x", "metadata": {"a": NaN}}',
        b'{"content": "x", "metadata": {"a": -Infinity}}',
        b'{"content": "\\ud800"}',
        b'{"content": "x"} {}',
        b"[" * 100_000,
    ],
    ids=lambda body: body[:45].decode("latin-1"),
)
async def test_what_is_no_json_is_refused(body: bytes, url: str) -> None:
    """What JSON does not have, NaN and infinities among it, is refused wherever it stands."""
    async with in_process(url) as web:
        response = await web.post(MEMORIES, content=body, headers={"Content-Type": "application/json"})
        assert refused(response, 422)["code"] == "invalid_input"
        assert told(await web.get("/api/v1/stats"))["total"] == 0


async def test_a_batch_is_stored_whole_or_not_at_all(url: str) -> None:
    """Ids come in the order of the memories; one bad memory keeps all of them out."""
    async with in_process(url) as web:
        batch = [{"content": f"Note {n}", "tier": "semantic"} for n in range(40)]
        bad = [*batch, {"content": "Late", "occurred_at": "never"}]
        refused(await web.post(f"{MEMORIES}/batch", json={"memories": bad}), 422)
        assert told(await web.get("/api/v1/stats"))["total"] == 0
        ids = told(await web.post(f"{MEMORIES}/batch", json={"memories": batch}), 201)["ids"]
        for place in (0, 39):
            assert told(await web.get(f"{MEMORIES}/{ids[place]}"))["content"] == f"Note {place}"


async def test_pages_follow_each_other(url: str) -> None:
    """Newest first, each memory once, until no `next` is told; filters hold on every page."""
    async with in_process(url) as web:
        batch = [{"content": f"Note {n}", "tags": ["even", "all"] if n % 2 == 0 else ["all"]} for n in range(9)]
        told(await web.post(f"{MEMORIES}/batch", json={"memories": batch}), 201)
        seen: list[str] = []
        asked: dict[str, Any] = {"limit": 2, "tags": ["even", "all"], "pinned": "false"}
        while True:
            page = told(await web.get(MEMORIES, params=asked))
            seen += [memory["content"] for memory in page["memories"]]
            if "next" not in page:
                break
            asked["after"] = page["next"]
        assert seen == [f"Note {n}" for n in (8, 6, 4, 2, 0)]


async def test_a_page_may_end_at_what_is_gone(url: str) -> None:
    """The last memory of a page may be removed before the next one is read; none is left out, none comes twice."""
    async with in_process(url) as web:
        batch = [{"content": f"Note {n}", "tier": "semantic"} for n in range(7)]
        told(await web.post(f"{MEMORIES}/batch", json={"memories": batch}), 201)
        seen: list[str] = []
        asked: dict[str, Any] = {"limit": 2}
        while "next" in (page := told(await web.get(MEMORIES, params=asked))):
            seen += [memory["content"] for memory in page["memories"]]
            told(await web.delete(f"{MEMORIES}/{page['memories'][-1]['id']}"))
            asked["after"] = page["next"]
        assert [*seen, *(memory["content"] for memory in page["memories"])] == [f"Note {n}" for n in range(6, -1, -1)]


async def test_a_page_goes_on_after_an_id(url: str) -> None:
    """The id of a memory that is there serves as `after` too; what looks like `next` and is no time does not."""
    async with in_process(url) as web:
        batch = [{"content": f"Note {n}", "tier": "semantic"} for n in range(3)]
        ids = told(await web.post(f"{MEMORIES}/batch", json={"memories": batch}), 201)["ids"]
        page = told(await web.get(MEMORIES, params={"after": ids[1]}))
        assert [memory["id"] for memory in page["memories"]] == [ids[0]]
        error = refused(await web.get(MEMORIES, params={"after": f"{'9' * 18}-{ids[1]}"}), 422)
        assert error["message"].startswith("after: ")


async def test_the_first_unknown_parameter_is_named(url: str) -> None:
    """A query of very many names is not looked through to its end."""
    async with in_process(url) as web:
        error = refused(await web.get(f"{MEMORIES}?limit=1&{'&'.join(f'x{n}' for n in range(5_000))}"), 422)
    assert error["message"] == "x0: no such parameter"


async def test_another_models_store_is_not_ready(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the store holds another model's vectors, the server says so before the first recall fails; both are among
    the described failures."""
    async with in_process(url) as web:
        told(await web.post(MEMORIES, json={"content": "x", "tier": "semantic"}), 201)
        told(await web.get("/readyz"))
    monkeypatch.setenv("GEMMA_RAG_EMBEDDING__DIMENSION", "64")
    async with in_process(url) as web:
        lacking = refused(await web.get("/readyz"), 503)
        assert (lacking["code"], lacking["retryable"]) == ("not_ready", True)
        assert lacking["message"].startswith("model: the store holds vectors of")
        failed = refused(await web.post("/api/v1/recall", json={"query": "x"}), 409)
        assert failed["code"] == "model_mismatch"
        paths = told(await web.get("/openapi.json"))["paths"]
        assert all("409" in paths[f"/api/v1/{name}"]["post"]["responses"] for name in ("recall", "why-not"))


async def test_a_change_leaves_the_rest(url: str) -> None:
    """PATCH changes the members that are given, null empties those that may be empty, and a tier moves."""
    async with in_process(url) as web:
        given = {"content": "x", "actor": "Ada", "session": "s", "occurred_at": "2024-05-01", "metadata": {"n": None}}
        new = told(await web.post(MEMORIES, json=given), 201)
        here = f"{MEMORIES}/{new['id']}"
        before = told(await web.get(here))
        assert before["metadata"] == {"n": None}
        after = told(await web.patch(here, json={"session": None, "occurred_at": None, "importance": 0}))
        left = {name: value for name, value in before.items() if name not in ("session", "occurred_at")}
        assert after == left | {"importance": 0}
        moved = told(await web.patch(here, json={"tier": "semantic"}))
        assert moved == {name: value for name, value in after.items() if name != "expires_at"} | {"tier": "semantic"}
        assert told(await web.patch(here, json={"tier": "semantic"})) == moved
        for method, path, body in (
            ("GET", "", None),
            ("DELETE", "", None),
            ("PATCH", "", {"pinned": True}),
            ("PATCH", "", {"tier": "semantic"}),
            ("POST", "/promote", {"to_tier": "semantic"}),
        ):
            error = refused(await web.request(method, f"{MEMORIES}/nobody{path}", json=body), 404)
            assert error["code"] == "not_found"


async def test_any_id_is_found(url: str) -> None:
    """Ids with slashes and other marks, as imports may bring them, can be read, promoted and removed."""
    name = "a/b?c#d/promote é %"
    async with in_process(url) as web:
        async with PythonRAGBackend(url=url) as backend:
            await backend.store_memories([MemoryEntry("x", "working", id=name)])
        here = f"{MEMORIES}/{quote(name, safe='')}"
        assert told(await web.get(here))["id"] == name
        assert told(await web.post(f"{here}/promote", json={"to_tier": "episodic"}))["tier"] == "episodic"
        assert told(await web.delete(here))["forgotten"] == 1


async def test_recall_takes_what_the_backend_takes(url: str) -> None:
    """Filters, weights and `touch` reach the backend: each of them changes the answer as it says."""
    async with in_process(url) as web:
        for number, actor in enumerate(("Ada", "Bob")):
            given = {"content": f"The lamp number {number}", "actor": actor, "importance": number, "tags": [actor]}
            told(await web.post(MEMORIES, json={**given, "occurred_at": f"2024-05-0{number + 1}"}), 201)
        for asked in (
            {"actor": "Ada"},
            {"tags": ["Ada"]},
            {"until": "2024-05-01T12:00:00Z"},
            {"weights": {"importance": -10}, "limit": 1},
        ):
            found = told(await web.post("/api/v1/recall", json={"query": "lamp", "touch": False, **asked}))
            assert [memory["content"] for memory in found["memories"]] == ["The lamp number 0"], asked
            assert "access_count" not in found["memories"][0]
        nothing = told(await web.post("/api/v1/recall", json={"query": "lamp", "min_similarity": 1}))
        assert nothing["memories"] == []
        error = refused(await web.post("/api/v1/recall", json={"query": "lamp", "min_confidence": 0.5}), 422)
        assert error["message"].startswith("min_confidence: ")
        used = told(await web.post("/api/v1/recall", json={"query": "lamp"}))
        assert [memory["access_count"] for memory in used["memories"]] == [1, 1]


# What goes wrong


def test_every_code_has_a_status() -> None:
    """Each code that can be told has one status of failure, and what may pass is told with a status that says so."""
    assert {code for code, _ in CODES.values()} <= set(faults.STATUSES)
    assert set(faults.STATUSES.values()) <= {401, 403, 404, 405, 409, 413, 415, 422, 429, 500, 501, 503, 507}
    retryable = {code for code, again in CODES.values() if again} | faults.PASSING
    assert {code for code, status in faults.STATUSES.items() if status in (429, 503)} == retryable


async def test_a_store_out_of_reach_can_be_tried_again() -> None:
    """The server stands whatever the store; a call tells that trying again may help, and no secret."""
    async with in_process("redis://user:geheim@127.0.0.1:1/0") as web:
        error = refused(await web.get("/api/v1/stats"), 503)
        assert (error["code"], error["retryable"]) == ("store_unavailable", True)
        assert "geheim" not in error["message"]
        assert told(await web.get("/healthz")) == {"status": "ok"}
        error = refused(await web.get("/readyz"), 503)
        assert error["code"] == "not_ready"
        assert error["message"].startswith("store: ")


async def test_without_a_model_the_rest_works(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the model is missing, what needs it says so, and what needs none goes on."""
    monkeypatch.setenv("GEMMA_RAG_EMBEDDING__PROVIDER", "openvino")
    monkeypatch.setenv("GEMMA_RAG_EMBEDDING__MODEL", "no-such-model")
    async with in_process(url) as web:
        error = refused(await web.post(MEMORIES, json={"content": "x"}), 500)
        assert (error["code"], error["retryable"]) == ("model_not_found", False)
        assert told(await web.post("/api/v1/search", json={"query": "x"})) == {"memories": []}
        assert "model: " in refused(await web.get("/readyz"), 503)["message"]


async def test_a_locked_store_can_be_tried_again(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that another process keeps locked is an error that passes, and not the request's own time limit."""
    monkeypatch.setattr("gemma_cli.rag.stores.sqlite_schema.BUSY_MS", 50)
    async with in_process(url) as web:
        told(await web.post(MEMORIES, json={"content": "x"}), 201)
        other = apsw.Connection(str(tmp_path / "memory.db"))
        other.execute("BEGIN IMMEDIATE")
        error = refused(await web.post(MEMORIES, json={"content": "y"}), 503)
        other.execute("ROLLBACK")
        other.close()
        assert error["code"] == "store_busy"
        told(await web.post(MEMORIES, json={"content": "y"}), 201)


async def test_a_tier_without_room_is_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tier full of pinned memories is a conflict, told as one."""
    monkeypatch.setenv("GEMMA_RAG_MEMORY__WORKING_CAPACITY", "1")
    async with in_process(url) as web:
        given = {"content": "x", "tier": "working", "pinned": True}
        told(await web.post(MEMORIES, json=given), 201)
        assert refused(await web.post(MEMORIES, json=given), 409)["code"] == "tier_full"


async def test_an_end_is_set(url: str) -> None:
    """PATCH gives a memory an end of its own; one that is past is refused, and so is none in a tier that has one."""
    async with in_process(url) as web:
        new = told(await web.post(MEMORIES, json={"content": "x"}), 201)
        here = f"{MEMORIES}/{new['id']}"
        after = told(await web.patch(here, json={"expires_at": "2100-01-01"}))
        assert after["expires_at"] == "2100-01-01T00:00:00+00:00"
        for end in ("2020-01-01", None):
            assert "expires_at" in refused(await web.patch(here, json={"expires_at": end}), 422)["message"]
        assert told(await web.get(here)) == after


async def test_a_change_that_finds_no_room_changes_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PATCH is one step: refused for the tier, it leaves the text and all else as it was."""
    monkeypatch.setenv("GEMMA_RAG_MEMORY__WORKING_CAPACITY", "1")
    async with in_process(url) as web:
        told(await web.post(MEMORIES, json={"content": "x", "tier": "working", "pinned": True}), 201)
        new = told(await web.post(MEMORIES, json={"content": "y", "importance": 0.2}), 201)
        here = f"{MEMORIES}/{new['id']}"
        before = told(await web.get(here))
        change = {"content": "z", "importance": 0.9, "tier": "working"}
        assert refused(await web.patch(here, json=change), 409)["code"] == "tier_full"
        assert told(await web.get(here)) == before
        moved = told(await web.patch(here, json=change | {"tier": "semantic"}))
        assert (moved["content"], moved["importance"], moved["tier"]) == ("z", 0.9, "semantic")


async def test_what_nobody_foresaw_tells_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A mistake of our own is logged in full and told without its text."""

    async def fail(*_: object) -> None:
        raise RuntimeError("the password is geheim")

    async with in_process(url) as web:
        monkeypatch.setattr(Opening, "backend", fail)
        for path in ("/api/v1/stats", "/readyz"):
            response = await web.get(path)
            assert "geheim" not in response.text
        error = refused(await web.get("/api/v1/stats"), 500)
        assert (error["code"], error["retryable"]) == ("internal", False)
    assert "geheim" in caplog.text


async def test_an_export_that_fails_is_an_error(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong while an export is written is told with a status, not as a file cut short; nothing of an export
    stays on the disk."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    async with in_process(url) as web:
        told(await web.post(MEMORIES, json={"content": "x", "metadata": {"n": None}}), 201)
        whole = await web.get("/api/v1/export")
        assert whole.headers["content-type"] == "application/x-ndjson"
        assert int(whole.headers["content-length"]) == len(whole.content)
        assert json.loads(whole.text.splitlines()[1])["metadata"] == {"n": None}
        assert list(folder.iterdir()) == []
        folder.rmdir()
        refused(await web.get("/api/v1/export"), 500)


# Taking back


async def backend_at(url: str, clock: Callable[[], float]) -> PythonRAGBackend:
    backend = PythonRAGBackend(url=url, clock=clock)
    await backend.open()
    return backend


async def test_what_is_taken_back_is_as_it_was(url: str, clock: Clock) -> None:
    """Id, text, vector, tier, stamps, expiry, accesses and labels are as they were before the removal, also of a
    pinned memory, and of one whose labels were emptied while its metadata names some."""
    async with await backend_at(url, clock) as backend:
        undo = Undo()
        common: dict[str, Any] = {"tags": {"a", "b"}, "metadata": {"actor": "Bob", "n": [1, None]}, "importance": 0.3}
        ids = [
            await backend.store_memory("A pinned one.", "working", pinned=True, **common),
            await backend.store_memory("A fleeting one.", "episodic", session="s", occurred_at=5.5, **common),
            await backend.store_memory("A lasting one.", "semantic", actor="Ada", **common),
        ]
        await backend.update_memory(ids[1], actor=None)
        clock.tick(7.25)
        await backend.recall_memories("one")
        clock.tick(100)
        for memory_id in ids:
            before = await backend.get_memory(memory_id)
            assert before is not None
            assert before.access_count == 1
            token, until = await undo.remove(backend, memory_id)
            assert until == clock() + LIFETIME
            assert await backend.get_memory(memory_id) is None
            clock.tick(LIFETIME - 1)
            assert await undo.restore(backend, token) == before
            assert await backend.get_memory(memory_id) == before
            found = await backend.recall_memories("one", touch=False)
            assert memory_id in [entry.id for entry in found]


async def test_what_can_not_be_taken_back(url: str, clock: Clock) -> None:
    """A token serves once, for its time, and not where the memory would have expired or its id is taken; it is still
    good after a failure."""
    async with await backend_at(url, clock) as backend:
        undo = Undo()

        async def refusal(token: str) -> tuple[str, str]:
            with pytest.raises(faults.Refusal) as caught:
                await undo.restore(backend, token)
            return caught.value.code, str(caught.value)

        memory_id = await backend.store_memory("x", "semantic")
        entry = await backend.get_memory(memory_id)
        assert entry is not None
        token, _ = await undo.remove(backend, memory_id)
        assert (await refusal("unknown"))[0] == "not_found"
        await backend.store_memories([entry])
        assert (await refusal(token))[0] == "conflict"
        await backend.delete_memory(memory_id)
        await undo.restore(backend, token)
        assert (await refusal(token))[0] == "not_found"
        token, _ = await undo.remove(backend, memory_id)
        clock.tick(LIFETIME)
        assert (await refusal(token))[0] == "not_found"
        fleeting = await backend.store_memory("y", "working")
        clock.tick(14 * 60)
        token, _ = await undo.remove(backend, fleeting)
        clock.tick(120)
        assert "would have expired" in (await refusal(token))[1]


async def test_only_the_latest_removals_are_kept(url: str, clock: Clock) -> None:
    """Of more removals than are kept, the oldest can't be taken back; two who use one token at once get it once."""
    async with await backend_at(url, clock) as backend:
        undo = Undo(most=2)
        ids = await backend.store_memories([{"content": f"Note {n}"} for n in range(3)])
        tokens = [(await undo.remove(backend, memory_id))[0] for memory_id in ids]
        with pytest.raises(faults.Refusal):
            await undo.restore(backend, tokens[0])
        both = await asyncio.gather(*(undo.restore(backend, tokens[1]) for _ in range(2)), return_exceptions=True)
        assert [type(one).__name__ for one in both] == ["MemoryEntry", "Refusal"]
        assert MOST == 100


# The forecast


def test_the_time_line_counts_every_loss() -> None:
    """Steps are of equal length and follow each other; a loss at the very end counts in the last."""
    empty = timeline(Plan((), (), (), 7.0), 0.0)
    assert len(empty) == STEPS
    assert all(one.until == other.from_ for one, other in itertools.pairwise(empty))
    assert (empty[0].from_, empty[-1].until) == ("1970-01-01T00:00:00+00:00", "1970-01-08T00:00:00+00:00")


async def test_a_forecast_tells_what_moves_and_what_fades(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What deserves it is foretold to move, the rest to be forgotten; consolidation then does what was foretold."""
    monkeypatch.setenv("GEMMA_RAG_MEMORY__CONSOLIDATION_THRESHOLD", "0.6")
    async with in_process(url) as web:
        for importance in (0.1, 1.0):
            given = {"content": f"Worth {importance}", "tier": "episodic", "importance": importance}
            told(await web.post(MEMORIES, json=given), 201)
        forecast = told(await web.get("/api/v1/forecast", params={"days": 8}))
        [move], [loss] = forecast["moves"], forecast["losses"]
        assert (move["memory"]["content"], move["from_tier"], move["to_tier"]) == ("Worth 1.0", "episodic", "long_term")
        assert (loss["memory"]["content"], loss["expires_at"]) == ("Worth 0.1", loss["memory"]["expires_at"])
        assert move["relevance"] > 0.6
        assert loss["missing"] > 0
        counted = [step["losses"] for step in forecast["timeline"]]
        assert [place for place, losses in enumerate(counted) if losses] == [41]
        assert counted[41] == {"episodic": 1}
        done = told(await web.post("/api/v1/consolidate", json={}))
        assert done == {"dry_run": False, "moved": {"episodic->long_term": 1}}


# The description


def test_the_description_names_every_failure() -> None:
    """Every operation tells its input, its answer and each status it may fail with, and what it needs a token for."""
    whole = openapi.describe(ENDPOINTS, guarded=True)
    schemas, responses = whole["components"]["schemas"], whole["components"]["responses"]
    assert len({one["operationId"] for path in whole["paths"].values() for one in path.values()}) == sum(
        map(len, whole["paths"].values())
    )
    for row in ENDPOINTS:
        operation = whole["paths"][row.path.replace(":path}", "}")][row.method.lower()]
        statuses = {faults.STATUSES[code] for code in (*openapi.ANYWHERE, *row.fails)}
        assert {str(status) for status in statuses} <= set(operation["responses"])
        assert ("security" in operation) == (not row.public)
        assert ("401" in operation["responses"]) == (not row.public or faults.UNAUTHORIZED in row.fails)
        assert (row.body is not None) == ({"413", "415"} <= set(operation["responses"]))
    assert set(re.findall(r"#/components/schemas/(\w+)", json.dumps(whole))) <= set(schemas)
    assert all(f"Failed{status}" in responses for status in faults.STATUSES.values())
    assert schemas["Memory"]["properties"]["score"] == {"type": "number"}
    assert schemas["NewMemory"]["properties"]["actor"]["type"] == ["string", "null"]
    assert schemas["NewMemory"]["additionalProperties"] is False


async def test_the_description_fits_the_server(url: str) -> None:
    """It is served, and tells of a token where there is one."""
    async with in_process(url) as web:
        assert told(await web.get("/openapi.json")) == openapi.describe(ENDPOINTS, guarded=False)
    async with in_process(url, token=TOKEN) as web:
        assert told(await web.get("/openapi.json", headers=BEARER)) == openapi.describe(ENDPOINTS, guarded=True)
