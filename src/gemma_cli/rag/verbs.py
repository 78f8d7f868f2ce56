"""What every group of the backend's verbs is written over, and how verbs are timed."""

import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Concatenate, Final, ParamSpec, TypeVar

from gemma_cli.rag.intake import Intake
from gemma_cli.rag.memory import TierRules
from gemma_cli.rag.monitoring import PerformanceMonitor
from gemma_cli.rag.repository import MemoryRepository
from gemma_cli.rag.token_index import index_new_tokens
from gemma_cli.rag.tracing import Call, Tracer, system_of

P = ParamSpec("P")
T = TypeVar("T")
A = TypeVar("A", bound="Verbs")


TIMED: Final[set[str]] = set()
"""The names of all verbs that are timed: what an operation of a backend can be called."""


def timed(verb: Callable[Concatenate[A, P], Awaitable[T]]) -> Callable[Concatenate[A, P], Awaitable[T]]:
    """The verb, with its time and its errors in the backend's monitor and a span around it where calls are traced."""
    name = verb.__name__
    TIMED.add(name)

    async def measured(self: A, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self.monitor is None:
            return await verb(self, *args, **kwargs)
        async with self.monitor.track_operation(name):
            return await verb(self, *args, **kwargs)

    @functools.wraps(verb)
    async def timed_verb(self: A, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self.tracer is None:
            return await measured(self, *args, **kwargs)
        with self.tracer.span(Call(name, system_of(self.url))):
            return await measured(self, *args, **kwargs)

    return timed_verb


def promotions(from_tier: str, to_tier: str) -> str:
    """The metric that counts the memories which runs have moved from one tier to another."""
    return f"promotions {from_tier}->{to_tier}"


NEAR_DUPLICATES: Final = "near_duplicates"
"""The metric that counts the links between memories that say nearly the same."""


class Verbs:
    """Whoever inherits it opens and closes the repository."""

    url: str
    namespace: str
    monitor: PerformanceMonitor | None
    """Times of every verb; None where monitoring is switched off."""
    tracer: Tracer | None = None
    """Told of every call; None where tracing is switched off."""
    _intake: Intake
    _repository: MemoryRepository
    _late_interaction: bool
    """Whether token vectors are kept and asked."""

    @property
    def rules(self) -> TierRules:
        """Capacities, lifetimes, decay and the threshold of promotion that hold here."""
        return self._repository.rules

    def now(self) -> float:
        """Seconds since the epoch, by this backend's clock."""
        return self._repository.now()

    def _observed(self, name: str, count: int) -> None:
        """Adds what a verb has done to the monitor's metrics."""
        if self.monitor is not None and count:
            self.monitor.record_metric(name, count)

    async def _index_new_tokens(self, ids: Sequence[str]) -> None:
        """After whatever embeds a content."""
        if self._late_interaction and ids:
            await index_new_tokens(self._repository, ids)
