"""The shape of the source: imports run one way, the door is light, files stay short."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src"
PACKAGE = "gemma_cli.rag"
LONGEST_FILE = 400

LAYERS = (
    # Facts, checks and arithmetic: no store, no model.
    "_version errors validation memory words actors calendar_spans dates quantize documents settings settings_schema",
    "statements restatements combining lru_cache offload periodic replacing series tracing",
    # The parts that the policy is written over; each knows the foundations and its neighbours here.
    "embedders stores index blocks postings sessions signals candidates ranking late_interaction confidence",
    "readers readers_rich chunking",
    # What stands between a caller and those parts.
    "batch_engine batching queries similar prefetching monitoring activity",
    # The backend and the pieces it is put together from.
    "answers shared_model vectorizer repository intake duplicates packing why_not token_index echoes",
    "reembedding transfer ingestion migration_marks migration_report migration",
    "verbs",
    "administration finding",
    "python_backend",
    "consolidation background tuning",
    "optimizations",
)
"""The modules of gemma_cli.rag, lowest layer first. A module imports from its own layer and the ones before it; the
door, `gemma_cli.rag` itself, is above them all, and the rest of gemma_cli (the commands, the servers) above the door.
A new module gets its place here."""

DOOR = len(LAYERS)
ABOVE = DOOR + 1
HEAVY = (
    "openvino onnxruntime tokenizers redis torch sentence_transformers typer huggingface_hub rich starlette mcp "
    "opentelemetry"
)
"""Libraries that `import gemma_cli.rag` must not load: they are slow to import, or optional."""


def layer(module: str) -> int:
    """The layer of a module of this project, by its full name."""
    if module == PACKAGE:
        return DOOR
    if not module.startswith(f"{PACKAGE}."):
        return ABOVE
    part = module.removeprefix(f"{PACKAGE}.").partition(".")[0]
    for number, parts in enumerate(LAYERS):
        if part in parts.split():
            return number
    raise LookupError(f"{module} has no layer; add {part!r} to LAYERS in {Path(__file__).name}")


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, module: str, is_package: bool, known: Mapping[str, object]) -> Iterator[str]:
    """The modules of this project that a file imports, wherever in the file: at its top, in a function, for types."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                if submodule in known:
                    yield submodule
                elif base in known:
                    yield base


def import_graph(sources: Mapping[str, tuple[str, bool]]) -> dict[str, set[str]]:
    """For each module (its text, and whether it is a package) the modules of this project that it imports."""
    return {
        module: set(imported(ast.parse(text), module, is_package, sources)) - {module}
        for module, (text, is_package) in sources.items()
    }


def upward(graph: Mapping[str, set[str]]) -> list[str]:
    """The imports that run against the layers."""
    return [
        f"{module} imports {target}"
        for module, targets in sorted(graph.items())
        for target in sorted(targets)
        if layer(target) > layer(module)
    ]


@pytest.fixture(scope="module")
def files() -> list[Path]:
    found = sorted(SOURCE.rglob("*.py"))
    assert SOURCE / "gemma_cli/rag/memory.py" in found
    return found


@pytest.fixture(scope="module")
def graph(files: list[Path]) -> dict[str, set[str]]:
    return import_graph({module_name(path): (path.read_text(), path.name == "__init__.py") for path in files})


def test_imports_run_one_way(graph: dict[str, set[str]]) -> None:
    """No module imports from a layer above its own, and every module has a layer."""
    assert graph[f"{PACKAGE}.memory"] == {f"{PACKAGE}.validation", f"{PACKAGE}.errors"}
    assert upward(graph) == []


def test_no_two_modules_import_each_other(graph: dict[str, set[str]]) -> None:
    """Within a layer, too, imports have a direction: there is no circle, not even through a function's import.

    A package is left out where its own modules import it: making one of them is what it is for."""
    inner = {
        module: {target for target in targets if not module.startswith(f"{target}.")}
        for module, targets in graph.items()
    }
    try:
        TopologicalSorter(inner).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("memory", "from gemma_cli.rag.settings import Settings\nfrom gemma_cli.rag.index import Index"),
        ("index", "def later():\n    import gemma_cli.rag.python_backend"),
        ("queries", "if TYPE_CHECKING:\n    from gemma_cli.rag.python_backend import PythonRAGBackend"),
        ("stores.sqlite", "from ..batching import BatchEmbedder"),
        ("errors", "from . import index"),
        ("python_backend", "from gemma_cli.rag import PythonRAGBackend"),
        ("consolidation", "from gemma_cli import cli"),
    ],
)
def test_an_import_against_the_layers_is_found(module: str, text: str) -> None:
    """The check sees each way of writing an import that runs upward, relative, nested or for types alone."""
    names = ["memory", "index", "queries", "errors", "python_backend", "consolidation", "settings", "batching"]
    others = {f"{PACKAGE}.{name}": ("", False) for name in [*names, "stores.sqlite"]}
    packages = {"gemma_cli": ("", True), PACKAGE: ("", True), f"{PACKAGE}.stores": ("", True)}
    sources = others | packages | {"gemma_cli.cli": ("", False), f"{PACKAGE}.{module}": (text, False)}
    assert len(upward(import_graph(sources))) == 1


def test_a_module_without_a_layer_is_found() -> None:
    """A module that nobody has given a place fails the check instead of slipping through."""
    with pytest.raises(LookupError, match="'novelty' to LAYERS"):
        layer(f"{PACKAGE}.novelty")


def test_each_layer_is_filled_once() -> None:
    """No module stands in two layers, where the lower place would hide a wrong import."""
    names = " ".join(LAYERS).split()
    assert len(names) == len(set(names))


def test_the_door_is_light() -> None:
    """Importing the package loads none of the slow or optional libraries, and starts no thread."""
    code = "import gemma_cli.rag, json, sys, threading as t; print(json.dumps([sorted(sys.modules), t.active_count()]))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=path_to_source()
    )
    modules, threads = json.loads(done.stdout)
    assert PACKAGE in modules
    assert [name for name in HEAVY.split() if name in modules] == []
    assert threads == 1


def path_to_source() -> dict[str, str]:
    """An environment in which a child process finds this source, installed or not."""
    return os.environ | {"PYTHONPATH": str(SOURCE)}


def test_files_stay_short(files: list[Path]) -> None:
    """No file of the source is longer than 400 lines: beyond that, a second idea hides in it."""
    lengths = {str(path.relative_to(SOURCE)): len(path.read_text().splitlines()) for path in files}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE} == {}
