"""The API as one table, from which the routes and their description are made."""

from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gemma_cli.edge import results
from gemma_cli.edge.failures import NOT_FOUND
from gemma_cli.server import bodies, doors, memories, told, upkeep
from gemma_cli.server.desk import Desk
from gemma_cli.server.endpoint import LARGE_BODY, LONG, TINY_BODY, Call, Endpoint
from gemma_cli.server.faults import CONFLICT, NOT_READY, UNAUTHORIZED

V1: Final = "/api/v1"
MEMORIES: Final = f"{V1}/memories"
MEMORY: Final = f"{MEMORIES}/{{memory_id:path}}"
NDJSON: Final = "application/x-ndjson"
MEANING: Final = ("model_mismatch",)
"""What may go wrong where something is found by its meaning."""
WRITING: Final = ("tier_full", "store_full", *MEANING)
"""What may go wrong where something is stored."""

ENDPOINTS: Final = (
    Endpoint(
        "GET", MEMORIES, "List memories, newest first", memories.list_memories, results.Page, query=bodies.Listing
    ),
    Endpoint(
        "POST",
        MEMORIES,
        "Store a memory",
        memories.store_memory,
        results.Remembered,
        bodies.OneMemory,
        status=201,
        location=f"{MEMORIES}/{{id}}",
        unchanged=memories.all_known,
        fails=WRITING,
    ),
    Endpoint(
        "POST",
        f"{MEMORIES}/batch",
        "Store memories, all or none",
        memories.store_memories,
        told.Stored,
        bodies.Batch,
        status=201,
        unchanged=memories.all_known,
        fails=WRITING,
        max_body=LARGE_BODY,
    ),
    Endpoint(
        "POST",
        f"{MEMORY}/promote",
        "Move a memory into a tier",
        memories.promote_memory,
        results.Memory,
        bodies.Promotion,
        fails=(NOT_FOUND, *WRITING),
    ),
    Endpoint("GET", MEMORY, "Read a memory", memories.get_memory, results.Memory, fails=(NOT_FOUND,)),
    Endpoint(
        "PATCH",
        MEMORY,
        "Change a memory",
        memories.update_memory,
        results.Memory,
        bodies.Change,
        fails=(NOT_FOUND, *WRITING),
    ),
    Endpoint("DELETE", MEMORY, "Forget a memory", memories.forget_memory, told.Removed, fails=(NOT_FOUND,)),
    Endpoint(
        "POST",
        f"{V1}/undo/{{token}}",
        "Take a removal back",
        memories.undo_removal,
        results.Memory,
        fails=(NOT_FOUND, CONFLICT, *WRITING),
    ),
    Endpoint(
        "POST",
        f"{V1}/recall",
        "Find by meaning and words",
        memories.recall,
        results.Recollection,
        bodies.Recall,
        fails=MEANING,
    ),
    Endpoint("POST", f"{V1}/search", "Find by words", memories.search, results.Found, bodies.Search),
    Endpoint(
        "POST",
        f"{V1}/why-not",
        "Why a memory was not found",
        memories.why_not,
        told.Verdict,
        bodies.WhyNot,
        fails=MEANING,
    ),
    Endpoint(
        "POST",
        f"{V1}/ingest",
        "Read a document into memory",
        upkeep.ingest,
        results.Ingested,
        bodies.Ingest,
        fails=(NOT_FOUND, *WRITING),
        seconds=LONG,
    ),
    Endpoint("POST", f"{V1}/forget", "Forget memories", upkeep.forget, results.Forgotten, bodies.Forget, seconds=LONG),
    Endpoint(
        "POST",
        f"{V1}/consolidate",
        "Move up what matters, remove what has expired",
        upkeep.consolidate,
        results.Consolidated,
        bodies.Consolidate,
        fails=WRITING,
        seconds=LONG,
    ),
    Endpoint(
        "GET", f"{V1}/forecast", "What will be kept and forgotten", upkeep.forecast, told.Forecast, query=bodies.Horizon
    ),
    Endpoint("GET", f"{V1}/stats", "Counts, capacities and sizes", upkeep.stats, told.WholeStats),
    Endpoint("GET", f"{V1}/export", "All memories as JSON Lines", upkeep.export, media_type=NDJSON, seconds=LONG),
    Endpoint(
        "POST",
        f"{V1}/session",
        "Sign a browser in",
        doors.sign_in,
        body=bodies.SignIn,
        status=204,
        fails=(UNAUTHORIZED,),
        max_body=TINY_BODY,
        public=True,
    ),
    Endpoint("DELETE", f"{V1}/session", "Sign a browser out", doors.sign_out, status=204, public=True),
    Endpoint("GET", "/healthz", "Whether the process lives", doors.health, told.Health, public=True),
    Endpoint(
        "GET",
        "/readyz",
        "Whether the store answers, and the model is loaded and fits it",
        doors.readiness,
        told.Health,
        fails=(NOT_READY,),
    ),
)
"""Of two paths that match, the one that stands first counts."""


def routes(desk: Desk, endpoints: Sequence[Endpoint] = ENDPOINTS) -> list[Route]:
    """One route for each path, so that a method it does not take is told with those that it does."""
    return [_route(desk, path, list(rows)) for path, rows in groupby(endpoints, lambda row: row.path)]


def _route(desk: Desk, path: str, rows: Sequence[Endpoint]) -> Route:
    by_method = {row.method: row for row in rows}
    return Route(path, _handler(desk, by_method), methods=list(by_method))


def _handler(desk: Desk, by_method: dict[str, Endpoint]) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        row = by_method["GET" if request.method == "HEAD" else request.method]
        return await row.respond(Call(desk, request))

    return handle


def public_paths(endpoints: Sequence[Endpoint] = ENDPOINTS) -> frozenset[str]:
    """What needs no token."""
    return frozenset(row.path for row in endpoints if row.public)
