"""What every group of the backend's verbs is written over, and how verbs are timed."""

import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Concatenate, ParamSpec, TypeVar

from gemma_cli.rag.intake import Intake
from gemma_cli.rag.memory import TierRules
from gemma_cli.rag.monitoring import PerformanceMonitor
from gemma_cli.rag.repository import MemoryRepository
from gemma_cli.rag.token_index import index_new_tokens

P = ParamSpec("P")
T = TypeVar("T")
A = TypeVar("A", bound="Verbs")


def timed(verb: Callable[Concatenate[A, P], Awaitable[T]]) -> Callable[Concatenate[A, P], Awaitable[T]]:
    """The verb, with its time and its errors in the backend's monitor."""
    name = verb.__name__

    @functools.wraps(verb)
    async def timed_verb(self: A, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self.monitor is None:
            return await verb(self, *args, **kwargs)
        async with self.monitor.track_operation(name):
            return await verb(self, *args, **kwargs)

    return timed_verb


class Verbs:
    """Whoever inherits it opens and closes the repository."""

    namespace: str
    monitor: PerformanceMonitor | None
    """Times of every verb; None where monitoring is switched off."""
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

    async def _index_new_tokens(self, ids: Sequence[str]) -> None:
        """After whatever embeds a content."""
        if self._late_interaction and ids:
            await index_new_tokens(self._repository, ids)
