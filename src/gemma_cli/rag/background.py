"""What an application may let run beside its work, as the configuration says: promotion, clean-up, reports."""

import logging
from types import TracebackType
from typing import Self

from gemma_cli.rag.consolidation import MemoryConsolidator
from gemma_cli.rag.errors import BackendStateError
from gemma_cli.rag.periodic import Periodic
from gemma_cli.rag.python_backend import PythonRAGBackend

logger = logging.getLogger("gemma_cli.rag.background")


class BackgroundTasks:
    """Runs between `async with` and its end; nothing of it starts by itself.

    `[memory] enable_background_tasks` switches clean-up and promotion on, `cleanup_interval` is the time between two
    runs, and `auto_consolidate` says whether a run promotes as well as removing what has expired. `[monitoring]
    enabled` switches reports to the log on, `report_interval` is the time between two."""

    def __init__(self, backend: PythonRAGBackend) -> None:
        memory = backend.settings.memory
        self._backend = backend
        self._enabled = memory.enable_background_tasks
        self._interval = memory.cleanup_interval
        self._cleaner: Periodic | None = None
        self.consolidator = (
            MemoryConsolidator(
                backend,
                promotion_threshold=memory.consolidation_threshold,
                time_decay_factor=memory.importance_decay_rate,
                consolidation_interval=memory.cleanup_interval,
            )
            if memory.auto_consolidate
            else None
        )

    async def __aenter__(self) -> Self:
        if self._enabled:
            if self.consolidator is not None:
                await self.consolidator.start_background_task()
            else:
                self._cleaner = Periodic("gemma-rag-cleanup", self._interval, self._backend.cleanup_expired, self._note)
        if self._backend.monitor is not None:
            await self._backend.monitor.start_reporting(self._backend.settings.monitoring.report_interval)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.consolidator is not None:
            await self.consolidator.stop_background_task()
        if self._cleaner is not None:
            await self._cleaner.stop()
        if self._backend.monitor is not None:
            await self._backend.monitor.stop_reporting()

    def _note(self, error: Exception) -> bool:
        """One failed run must not end all later ones; the monitor counts it as well. After the backend's end none can
        fare better."""
        logger.error("cleanup_failed", extra={"reason": f"{type(error).__name__}: {error}"})
        return not isinstance(error, BackendStateError)
