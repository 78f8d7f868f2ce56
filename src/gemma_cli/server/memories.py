"""The endpoints about single memories, and those that find them."""

from dataclasses import asdict
from datetime import UTC, datetime

from gemma_cli.edge import operations, results
from gemma_cli.edge.failures import INVALID_INPUT, Refusal
from gemma_cli.edge.operations import no_such, store
from gemma_cli.server import bodies, told
from gemma_cli.server.endpoint import Call


async def list_memories(call: Call, asked: bodies.Listing) -> results.Page:
    return await operations.page(await call.backend(), **asked.model_dump())


async def store_memory(call: Call, asked: bodies.OneMemory) -> results.Remembered:
    return await store(await call.backend(), **asked.model_dump())


async def store_memories(call: Call, asked: bodies.Batch) -> told.Stored:
    from gemma_cli.rag import EchoId

    items = [one.item() for one in asked.memories]
    ids = await (await call.backend()).store_memories(items, echo_guard=asked.echo_guard)
    return told.Stored(ids=ids, known=[one for one in ids if isinstance(one, EchoId)] or None)


def all_known(answer: results.Remembered | told.Stored) -> bool:
    """The echo guard knew all of it, and nothing new was stored."""
    if isinstance(answer, told.Stored):
        return len(answer.known or ()) == len(answer.ids)
    return bool(answer.known)


async def get_memory(call: Call, memory_id: str) -> results.Memory:
    entry = await (await call.backend()).get_memory(memory_id)
    if entry is None:
        raise no_such(memory_id)
    return results.memory(entry)


async def update_memory(call: Call, asked: bodies.Change, memory_id: str) -> results.Memory:
    """One step: where the new tier has no room, nothing is changed."""
    given = asked.given()
    if "tier" in asked.model_fields_set:
        given["memory_type"] = asked.tier
    if not given:
        raise Refusal(INVALID_INPUT, "body: say what to change")
    updated = await (await call.backend()).update_memory(memory_id, **given)
    if updated is None:
        raise no_such(memory_id)
    return results.memory(updated)


async def promote_memory(call: Call, asked: bodies.Promotion, memory_id: str) -> results.Memory:
    await (await call.backend()).promote_memory(memory_id, asked.to_tier)
    return await get_memory(call, memory_id)


async def forget_memory(call: Call, memory_id: str) -> told.Removed:
    undo, until = await call.desk.undo.remove(await call.backend(), memory_id)
    return told.Removed(forgotten=1, undo=undo, undo_until=datetime.fromtimestamp(until, UTC).isoformat())


async def undo_removal(call: Call, token: str) -> results.Memory:
    return results.memory(await call.desk.undo.restore(await call.backend(), token))


async def recall(call: Call, asked: bodies.Recall) -> results.Recollection:
    return await operations.recall(await call.backend(), **asked.model_dump())


async def search(call: Call, asked: bodies.Search) -> results.Found:
    found = await (await call.backend()).search_memories(asked.query, asked.tier, asked.min_importance, asked.limit)
    return results.Found(memories=results.memories(found))


async def why_not(call: Call, asked: bodies.WhyNot) -> told.Verdict:
    verdict = await (await call.backend()).why_not(
        asked.query,
        asked.memory_id,
        asked.tier,
        asked.limit,
        weights=asked.weights,
        tags=asked.tags,
        min_importance=asked.min_importance,
        since=asked.since,
        until=asked.until,
        min_similarity=asked.min_similarity,
        actor=asked.actor,
        session=asked.session,
    )
    return told.Verdict(**asdict(verdict), margin=verdict.margin)
