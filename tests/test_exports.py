"""The front door: which names `gemma_cli.rag` gives, what importing costs, and the imports that are documented."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gemma_cli.rag
from gemma_cli.rag import optimizations

HEAVY = (
    "openvino",
    "onnxruntime",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "sentence_transformers",
    "torch",
    "transformers",
    "redis",
    "starlette",
    "uvicorn",
    "mcp",
    "typer",
    "rich",
    "pypdf",
    "docx",
)
"""Packages that only some uses need: engines, servers, readers, the command line."""

DOCUMENTED = """
from gemma_cli.rag import BatchEmbedder
from gemma_cli.rag import MemoryConsolidator, PythonRAGBackend
from gemma_cli.rag import PerformanceMonitor
from gemma_cli.rag import QueryOptimizer
from gemma_cli.rag import (
    PythonRAGBackend,
    BatchEmbedder,
    MemoryConsolidator,
    PerformanceMonitor,
    QueryOptimizer,
)
from gemma_cli.rag.memory import MemoryEntry, MemoryTier
from gemma_cli.rag.python_backend import PythonRAGBackend
from gemma_cli.rag.optimizations import BatchEmbedder, MemoryConsolidator, PerformanceMonitor, QueryOptimizer
"""


def bound_names(module: Path) -> set[str]:
    """What a module's import statements bind."""
    names = set()
    for node in ast.parse(module.read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def in_new_process(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_all_is_sorted_without_doubles() -> None:
    """Constants, then classes, then the rest, each by name, as ruff orders `__all__`."""
    names = gemma_cli.rag.__all__
    assert len(set(names)) == len(names)
    kinds = [(not name.isupper(), not name[:1].isupper()) for name in names]
    assert names == [name for _, name in sorted(zip(kinds, names, strict=True))]


def test_all_is_what_the_module_imports() -> None:
    """Nothing is imported there that is not exported, and nothing exported that is not there."""
    assert set(gemma_cli.rag.__all__) == bound_names(Path(gemma_cli.rag.__file__))
    assert [name for name in gemma_cli.rag.__all__ if not hasattr(gemma_cli.rag, name)] == []


def test_a_star_import_gives_exactly_all() -> None:
    """`from gemma_cli.rag import *` binds the exported names and no other."""
    bound: dict[str, object] = {}
    exec("from gemma_cli.rag import *", bound)
    assert set(bound) - {"__builtins__"} == set(gemma_cli.rag.__all__)


@pytest.mark.parametrize("name", ["BatchEmbedder", "MemoryConsolidator", "PerformanceMonitor", "QueryOptimizer"])
def test_the_performance_classes_are_the_same_under_both_names(name: str) -> None:
    """`gemma_cli.rag.optimizations` gives the very classes of the front door."""
    assert getattr(optimizations, name) is getattr(gemma_cli.rag, name)


def test_optimizations_has_the_four_classes_only() -> None:
    """The thin door to the performance classes exports nothing else."""
    assert optimizations.__all__ == ["BatchEmbedder", "MemoryConsolidator", "PerformanceMonitor", "QueryOptimizer"]


@pytest.mark.parametrize("lines", [DOCUMENTED.split("from ")[i] for i in range(1, len(DOCUMENTED.split("from ")))])
def test_a_documented_import_works(lines: str) -> None:
    """Each import line of the documentation binds classes."""
    bound: dict[str, object] = {}
    exec(f"from {lines}", bound)
    made = {name: value for name, value in bound.items() if name != "__builtins__"}
    assert made
    assert all(isinstance(value, type) for value in made.values())


def test_importing_loads_nothing_heavy() -> None:
    """Engines, servers, readers and the command line's libraries wait until they are used."""
    code = f"import sys, gemma_cli.rag; print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    assert in_new_process(code) == ""


def test_importing_starts_no_thread_and_writes_no_file(tmp_path: Path) -> None:
    """An import has no effect but the names: one thread, an untouched home and working directory."""
    code = (
        f"import os, threading; os.chdir({str(tmp_path)!r}); os.environ['HOME'] = {str(tmp_path)!r}\n"
        "import gemma_cli.rag; print(threading.active_count())"
    )
    assert in_new_process(code) == "1"
    assert list(tmp_path.iterdir()) == []


def test_the_version_is_one_line_of_numbers() -> None:
    """`__version__` is the release that the package's metadata is built from."""
    parts = gemma_cli.rag.__version__.split(".")
    assert len(parts) == 3
    assert parts[0].isdigit()
    assert parts[1].isdigit()
