"""What requests may hold."""

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from gemma_cli.edge import bounds
from gemma_cli.edge.bounds import RECALL_LIMIT, WHOLE, After, Budget, Content, Id, Label, Labels, Query, Share
from gemma_cli.edge.results import Tier

MOST_LISTED: Final = 1_000
MOST_TOGETHER: Final = 1_000
"""Memories in one batch, and ids in one removal."""

When = Annotated[bounds.When, Field(json_schema_extra={"anyOf": [{"format": "date-time"}, {"format": "date"}]})]
Limit = Annotated[int, Field(ge=1, le=MOST_LISTED), WHOLE]


class Body(BaseModel):
    """A JSON object with these members and no others, of exactly these types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Parameters(BaseModel):
    """The query of a URL, with these parameters and no others."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class Listing(Parameters):
    tier: Tier | None = None
    limit: Limit = 50
    after: After | None = None
    tags: Annotated[Labels | None, Field(description="All of them; repeat the parameter.")] = None
    actor: Label | None = None
    session: Label | None = None
    pinned: bool | None = None
    min_importance: Share = 0.0


class NewMemory(Body):
    content: Content
    tier: Tier = "short_term"
    importance: Share = 0.5
    tags: Labels | None = None
    metadata: dict[str, Any] | None = None
    actor: Annotated[Label | None, Field(description="Who said or did it.")] = None
    session: Annotated[Label | None, Field(description="Which conversation it belongs to.")] = None
    occurred_at: When | None = None
    pinned: Annotated[bool, Field(description="Never expires, never makes room for others.")] = False

    def item(self) -> dict[str, Any]:
        """As `store_memories` takes it."""
        given = self.model_dump()
        return {"memory_type": given.pop("tier"), **given}


_ECHO_GUARD: Final = "Store nothing that only says again what was recalled lately; count a use of that memory instead."


class OneMemory(NewMemory):
    echo_guard: Annotated[bool, Field(description=_ECHO_GUARD)] = False


class Recall(Body):
    query: Query
    limit: Annotated[Limit | None, Field(description=RECALL_LIMIT)] = None
    tier: Tier | None = None
    tags: Annotated[Labels | None, Field(description="All of them.")] = None
    actor: Label | None = None
    session: Label | None = None
    since: When | None = None
    until: When | None = None
    min_importance: Share = 0.0
    min_similarity: Annotated[float | None, Field(ge=-1, le=1)] = None
    min_confidence: Annotated[Share | None, Field(description="Rather nothing than less sure; 0.2 is mild.")] = None
    max_tokens: Budget | None = None
    explain: bool = False
    touch: Annotated[bool, Field(description="Count the recall as a use of what it finds.")] = True
    weights: Annotated[
        dict[str, float] | None, Field(description="What single signals count for, by name, where not as usual.")
    ] = None


class Batch(Body):
    memories: Annotated[list[NewMemory], Field(min_length=1, max_length=MOST_TOGETHER)]
    echo_guard: Annotated[bool, Field(description=_ECHO_GUARD)] = False


def _left_out() -> Any:
    """Stands in a model for a member that was not given; only `model_fields_set` is asked for it."""


class Change(Body):
    """Members that are left out stay as they are. Null empties those that may be empty."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    content: Content = Field(default_factory=_left_out)
    tier: Tier = Field(default_factory=_left_out, description="Moves it, and starts the tier's lifetime.")
    importance: Share = Field(default_factory=_left_out)
    tags: Labels = Field(default_factory=_left_out, description="Replace those there are.")
    metadata: dict[str, Any] = Field(default_factory=_left_out, description="Replaces what there is.")
    actor: Label | None = None
    session: Label | None = None
    occurred_at: When | None = None
    expires_at: Annotated[When | None, Field(description="Its end; null: none, where nothing else ends it.")] = None
    pinned: bool = Field(default_factory=_left_out)

    def given(self) -> dict[str, Any]:
        """What `update_memory` takes: the members that are there, but the tier."""
        return self.model_dump(include=self.model_fields_set - {"tier"})


class Promotion(Body):
    to_tier: Tier


class Search(Body):
    query: Query
    limit: Limit = 20
    tier: Tier | None = None
    min_importance: Share = 0.0


class WhyNot(Body):
    """As for a recall, and the memory that was expected."""

    query: Query
    memory_id: Id
    limit: Limit = 5
    tier: Tier | None = None
    tags: Labels | None = None
    actor: Label | None = None
    session: Label | None = None
    since: When | None = None
    until: When | None = None
    min_importance: Share = 0.0
    min_similarity: Annotated[float | None, Field(ge=-1, le=1)] = None
    weights: dict[str, float] | None = None


class Ingest(Body):
    path: Annotated[str, Field(min_length=1, max_length=4_096, description="A file below the server's roots.")]
    tier: Tier = "long_term"
    importance: Share = 0.5
    tags: Labels | None = None


class Forget(Body):
    """Either ids, which are removed at once, or filters, of which all must hold."""

    memory_ids: Annotated[list[Id] | None, Field(max_length=MOST_TOGETHER)] = None
    tier: Tier | None = None
    tags: Annotated[Labels | None, Field(description="All of them.")] = None
    actor: Label | None = None
    session: Label | None = None
    before: Annotated[When | None, Field(description="Stored before this time, ISO 8601.")] = None
    confirm: Annotated[bool, Field(description="Carry out a removal by filter.")] = False


class Consolidate(Body):
    dry_run: Annotated[bool, Field(description="Only tell what would happen.")] = False
    days: Annotated[float, Field(ge=0, le=365, description="How far a dry run looks ahead.")] = 7.0


class Horizon(Parameters):
    days: Annotated[float, Field(gt=0, le=365)] = 7.0


class SignIn(Body):
    token: Annotated[str, Field(max_length=1_024)]
