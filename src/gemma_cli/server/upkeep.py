"""The endpoints about the memory as a whole."""

import asyncio
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from starlette.responses import Response

from gemma_cli.edge import operations, results
from gemma_cli.edge.roots import allowed
from gemma_cli.server import bodies, told
from gemma_cli.server.endpoint import Call
from gemma_cli.server.exporting import exported

if TYPE_CHECKING:
    from gemma_cli.rag import Plan

SHOWN: Final = 100
"""Moves and losses that a forecast names."""
STEPS: Final = 48
"""Parts of a forecast's time line."""
SECONDS_PER_DAY: Final = 86_400.0


async def stats(call: Call) -> told.WholeStats:
    backend = await call.backend()
    info = await backend.get_info()
    return told.WholeStats(
        **operations.counts(info),
        index_bytes=info.index_bytes,
        engine=info.engine,
        capacities={tier.value: policy.capacity for tier, policy in backend.rules.policies.items()},
    )


async def ingest(call: Call, asked: bodies.Ingest) -> results.Ingested:
    file = await asyncio.to_thread(allowed, asked.path, call.desk.roots)
    backend = await call.backend()
    new = await backend.ingest_document(file, asked.tier, importance=asked.importance, tags=asked.tags)
    return results.Ingested(path=str(file), new_chunks=new)


async def forget(call: Call, asked: bodies.Forget) -> results.Forgotten:
    selection = operations.Selection(asked.tier, asked.tags, asked.actor, asked.session, asked.before)
    return await operations.forget(call.desk.opening, asked.memory_ids, selection, confirm=asked.confirm)


async def consolidate(call: Call, asked: bodies.Consolidate) -> results.Consolidated:
    return await operations.consolidate(await call.backend(), asked.days, dry_run=asked.dry_run)


async def forecast(call: Call, asked: bodies.Horizon) -> told.Forecast:
    backend = await call.backend()
    plan = await operations.consolidator(backend).plan(asked.days)
    return told.Forecast(
        days=plan.days,
        moves=[
            told.ForecastMove(
                memory=results.memory(move.memory),
                from_tier=move.from_tier.value,
                to_tier=move.to_tier.value,
                relevance=round(move.relevance, 4),
            )
            for move in plan.moves[:SHOWN]
        ],
        losses=[
            told.ForecastLoss(
                memory=results.memory(loss.memory),
                expires_at=loss.expires_at.isoformat(),
                missing=round(loss.missing, 4),
            )
            for loss in plan.losses[:SHOWN]
        ],
        total_moves=len(plan.moves),
        total_losses=len(plan.losses),
        timeline=timeline(plan, backend.now()),
    )


def timeline(plan: "Plan", now: float) -> list[told.Step]:
    """The losses of a plan made at `now` (seconds since the epoch), counted by tier in equal steps."""
    step = plan.days * SECONDS_PER_DAY / STEPS
    counts: list[Counter[str]] = [Counter() for _ in range(STEPS)]
    for loss in plan.losses:
        place = int((loss.expires_at.timestamp() - now) / step)
        counts[min(max(place, 0), STEPS - 1)][loss.memory.tier.value] += 1
    edges = [datetime.fromtimestamp(now + number * step, UTC).isoformat() for number in range(STEPS + 1)]
    return [
        told.Step.model_validate({"from": edges[number], "until": edges[number + 1], "losses": count})
        for number, count in enumerate(counts)
    ]


async def export(call: Call) -> Response:
    return await exported(await call.backend())
