"""The four performance classes, under the name that the documentation gives them."""

from gemma_cli.rag.batching import BatchEmbedder
from gemma_cli.rag.consolidation import MemoryConsolidator
from gemma_cli.rag.monitoring import PerformanceMonitor
from gemma_cli.rag.queries import QueryOptimizer

__all__ = ["BatchEmbedder", "MemoryConsolidator", "PerformanceMonitor", "QueryOptimizer"]
