"""Memory for LLM agents, in five tiers, on the user's own machine."""

from gemma_cli.rag._version import __version__
from gemma_cli.rag.activity import Activity, ActivityWatcher, EventKind, MemoryEvent
from gemma_cli.rag.administration import BackendInfo
from gemma_cli.rag.background import BackgroundTasks
from gemma_cli.rag.batching import BatchEmbedder
from gemma_cli.rag.confidence import Recalled
from gemma_cli.rag.consolidation import MemoryConsolidator, Plan, PlannedLoss, PlannedMove
from gemma_cli.rag.echoes import EchoId
from gemma_cli.rag.embedders import EmbeddingOptions, create_embedder
from gemma_cli.rag.embedders.base import Embedder, ModelIdentity
from gemma_cli.rag.errors import (
    BackendStateError,
    CapacityError,
    DocumentError,
    DocumentNotFoundError,
    GemmaRagError,
    InvalidInputError,
    InvalidTypeError,
    MissingExtraError,
    ModelDamagedError,
    ModelError,
    ModelMismatchError,
    ModelNotFoundError,
    QueueFullError,
    SettingsError,
    StoreBusyError,
    StoreDamagedError,
    StoreError,
    StoreFullError,
    StoreLostError,
    StoreUnavailableError,
    StoreVersionError,
)
from gemma_cli.rag.memory import TIER_POLICIES, MemoryEntry, MemoryTier, TierPolicy, TierRules
from gemma_cli.rag.monitoring import PerformanceMonitor
from gemma_cli.rag.packing import TokenCounter, estimate_tokens, pack, render, token_counter
from gemma_cli.rag.python_backend import PythonRAGBackend
from gemma_cli.rag.queries import Answered, QueryOptimizer
from gemma_cli.rag.settings import Settings, load_settings
from gemma_cli.rag.stores.base import Link
from gemma_cli.rag.why_not import Stage, WhyNot

__all__ = [
    "TIER_POLICIES",
    "Activity",
    "ActivityWatcher",
    "Answered",
    "BackendInfo",
    "BackendStateError",
    "BackgroundTasks",
    "BatchEmbedder",
    "CapacityError",
    "DocumentError",
    "DocumentNotFoundError",
    "EchoId",
    "Embedder",
    "EmbeddingOptions",
    "EventKind",
    "GemmaRagError",
    "InvalidInputError",
    "InvalidTypeError",
    "Link",
    "MemoryConsolidator",
    "MemoryEntry",
    "MemoryEvent",
    "MemoryTier",
    "MissingExtraError",
    "ModelDamagedError",
    "ModelError",
    "ModelIdentity",
    "ModelMismatchError",
    "ModelNotFoundError",
    "PerformanceMonitor",
    "Plan",
    "PlannedLoss",
    "PlannedMove",
    "PythonRAGBackend",
    "QueryOptimizer",
    "QueueFullError",
    "Recalled",
    "Settings",
    "SettingsError",
    "Stage",
    "StoreBusyError",
    "StoreDamagedError",
    "StoreError",
    "StoreFullError",
    "StoreLostError",
    "StoreUnavailableError",
    "StoreVersionError",
    "TierPolicy",
    "TierRules",
    "TokenCounter",
    "WhyNot",
    "__version__",
    "create_embedder",
    "estimate_tokens",
    "load_settings",
    "pack",
    "render",
    "token_counter",
]
