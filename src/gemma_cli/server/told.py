"""What only the HTTP API answers with; the rest is in `edge.results`."""

from pydantic import BaseModel, Field

from gemma_cli.edge.results import Memory, Stats, Tier


class Stored(BaseModel):
    """The ids of the memories, in the order in which they were given. `known` are those among them for which nothing
    new was stored."""

    ids: list[str]
    known: list[str] | None = None


class Removed(BaseModel):
    """`POST /api/v1/undo/{undo}` takes it back until `undo_until`, once."""

    forgotten: int
    undo: str
    undo_until: str


class Verdict(BaseModel):
    """Where a memory was lost in a recall, and by what margin. `rank` 1 is the best; `cut` is the score of the last
    answer, `margin` the memory's own score less that."""

    stage: str
    reason: str
    rank: int | None = None
    score: float | None = None
    cut: float | None = None
    margin: float | None = None
    explanation: dict[str, float] | None = None


class ForecastMove(BaseModel):
    memory: Memory
    from_tier: Tier
    to_tier: Tier
    relevance: float


class ForecastLoss(BaseModel):
    """`missing`: what its relevance lacks to be kept by a promotion; 0: only room in the next tier."""

    memory: Memory
    expires_at: str
    missing: float


class Step(BaseModel):
    """How many memories of each tier expire in a part of the time."""

    from_: str = Field(alias="from")
    until: str
    losses: dict[str, int]


class Forecast(BaseModel):
    """What the next consolidation would move up, and what will be forgotten within `days` if nobody uses it. The first
    of each, with their total number; the time line counts all losses."""

    days: float
    moves: list[ForecastMove]
    losses: list[ForecastLoss]
    total_moves: int
    total_losses: int
    timeline: list[Step]


class WholeStats(Stats):
    """Live memories by tier, how many each tier holds at most, and where they are kept. `engine` runs the model."""

    index_bytes: int
    engine: str | None = None
    capacities: dict[str, int]


class Health(BaseModel):
    status: str


class Error(BaseModel):
    """`code` is stable, `message` is for people and may change. `retryable`: the same call may succeed later."""

    code: str
    message: str
    retryable: bool


class Failed(BaseModel):
    error: Error
