"""The MCP server: which tools and resources there are, and the one place where an error becomes an answer."""

import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from mcp.server.caching import CacheHint
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import FuncMetadata
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    CallToolResult,
    InputRequiredResult,
    TextContent,
    ToolAnnotations,
)
from mcp_types import Tool as ListedTool
from pydantic import BaseModel

from gemma_cli.edge import results
from gemma_cli.edge.failures import INTERNAL, INVALID_INPUT, NOT_FOUND, UNKNOWN_TOOL, Failure, failure
from gemma_cli.edge.opening import Opening
from gemma_cli.edge.operations import no_such, stats
from gemma_cli.edge.schemas import slim
from gemma_cli.mcp_server.tools import Tools

logger = logging.getLogger("gemma_cli.mcp_server")

INSTRUCTIONS: Final = (
    "A memory that lasts across conversations, on the user's own machine. Recall before you answer anything that may "
    "depend on earlier conversations; remember what will matter later; update_memory when a fact has changed."
)
LISTING: Final = CacheHint(ttl_ms=3_600_000, scope="public")
"""The tools stay the same while the server runs."""
JSON: Final = "application/json"
NESTED: Final = ("array", "object")
"""What `type` is in the schema of an argument that no single text can be."""


@dataclass(frozen=True, slots=True)
class Hints:
    """What a client may show or ask before a call."""

    title: str
    reads: bool = False
    destroys: bool = False
    repeatable: bool = False

    def annotations(self) -> ToolAnnotations:
        return ToolAnnotations(
            title=self.title,
            read_only_hint=self.reads,
            destructive_hint=self.destroys,
            idempotent_hint=self.reads or self.repeatable,
            open_world_hint=False,
        )


# A recall counts as a use of what it finds, which changes no answer a client could see as a change: it reads.
TOOLS: Final[dict[str, Hints]] = {
    "remember": Hints("Remember"),
    "recall": Hints("Recall", reads=True),
    "search": Hints("Search by words", reads=True),
    "forget": Hints("Forget", destroys=True, repeatable=True),
    "get_memory": Hints("Read a memory", reads=True),
    "list_memories": Hints("List memories", reads=True),
    "update_memory": Hints("Update a memory", destroys=True, repeatable=True),
    "ingest_document": Hints("Ingest a document", destroys=True, repeatable=True),
    "consolidate": Hints("Consolidate", destroys=True, repeatable=True),
    "memory_stats": Hints("Memory statistics", reads=True),
}
CONNECTOR: Final[dict[str, tuple[str, Hints]]] = {
    "search": ("connector_search", Hints("Search", reads=True)),
    "fetch": ("fetch", Hints("Fetch", reads=True)),
}
"""Name, method and hints of the pair that ChatGPT's connectors ask for."""


class MemoryServer(MCPServer[Any]):
    """roots: resolved directories that documents may be ingested from. connector: serve the pair `search` and `fetch`
    alone, which only read."""

    def __init__(self, opening: Opening, roots: Sequence[Path] = (), *, connector: bool = False) -> None:
        methods = Tools(opening, roots)
        table = CONNECTOR if connector else {name: (name, hints) for name, hints in TOOLS.items()}
        tools = [_tool(getattr(methods, method), name, hints) for name, (method, hints) in table.items()]
        super().__init__(
            "gemma-rag",
            title="gemma-rag memory",
            instructions=None if connector else INSTRUCTIONS,
            version=_version(),
            tools=tools,
            log_level="WARNING",
            cache_hints={"tools/list": LISTING},
            subscriptions=False,
        )
        self._opening = opening
        self._arguments = {tool.name: frozenset(tool.parameters["properties"]) for tool in tools}
        self._add_resources()

    async def run_streams(self, questions: Any, answers: Any) -> None:
        """Serves one client on streams as those of the SDK until `questions` ends."""
        await self._lowlevel_server.run(questions, answers, self._lowlevel_server.create_initialization_options())

    async def list_tools(self) -> list[ListedTool]:
        """As the SDK has it. A client that asks will call soon: the model begins to load."""
        self._opening.warm_soon()
        return await super().list_tools()

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """The answer of a tool, or the error as an answer: nothing is raised but cancellation and protocol errors."""
        if name not in self._arguments:
            known = ", ".join(self._arguments)
            return _refused(Failure(UNKNOWN_TOOL, f"there is no tool {name!r}; there are {known}"))
        if unknown := sorted(set(arguments) - self._arguments[name]):
            known = ", ".join(sorted(self._arguments[name]))
            return _refused(Failure(INVALID_INPUT, f"{unknown[0]}: no such argument; {name} takes {known}"))
        try:
            return _compact(await super().call_tool(name, arguments, context))
        except ToolError as error:
            return _refused(self._told(error, name))

    def _told(self, error: ToolError, name: str) -> Failure:
        known = failure(error.__cause__)
        if known is not None:
            return known
        logger.error("tool_failed", extra={"tool": name}, exc_info=error)
        return Failure(INTERNAL, f"{name} failed for a reason that nobody foresaw; the server's log has it")

    # Resources

    def _add_resources(self) -> None:
        @self.resource("memory://stats", title="Memory statistics", mime_type=JSON)
        async def memory_statistics() -> str:
            """How many memories each tier holds, and where they are kept."""
            return await self._read(self._stats())

        @self.resource("memory://{memory_id}", title="A memory", mime_type=JSON)
        async def memory(memory_id: str) -> str:
            """One memory in full, by its id."""
            return await self._read(self._memory(memory_id))

    async def _stats(self) -> BaseModel:
        return await stats(await self._opening.backend())

    async def _memory(self, memory_id: str) -> BaseModel:
        entry = await (await self._opening.backend()).get_memory(memory_id)
        if entry is None:
            raise no_such(memory_id)
        return results.memory(entry)

    async def _read(self, reading: Awaitable[BaseModel]) -> str:
        """What is read, as JSON. Errors become protocol errors, since a resource has no other way to tell one."""
        try:
            return results.compact(results.filled((await reading).model_dump(mode="json")))
        except Exception as error:
            known = failure(error)
            if known is None:
                raise
            code = INVALID_PARAMS if known.code in (NOT_FOUND, INVALID_INPUT) else INTERNAL_ERROR
            raise MCPError(code=code, message=known.message, data=asdict(known)) from error


class _Arguments(FuncMetadata):
    """nested: the arguments that are lists or objects. Of the texts that arrive, the SDK reads as JSON what is JSON,
    since some clients send lists so. Elsewhere that changes what was said: a filter "null" would be none."""

    nested: list[str]

    def pre_parse_json(self, data: dict[str, Any]) -> dict[str, Any]:
        read = super().pre_parse_json({name: data[name] for name in self.nested if name in data})
        return data | {name: value for name, value in read.items() if value is not None}


def _tool(method: Callable[..., Any], name: str, hints: Hints) -> Tool:
    """A method as a tool. Arguments that it does not have are an error in the schema too, not something left unread."""
    text = " ".join((method.__doc__ or "").split())
    tool = Tool.from_function(method, name, hints.title, text, annotations=hints.annotations())
    tool.parameters = slim(tool.parameters) | {"additionalProperties": False}
    made = tool.fn_metadata
    tool.fn_metadata = _Arguments(
        arg_model=made.arg_model,
        output_schema=slim(made.output_schema),
        output_model=made.output_model,
        wrap_output=made.wrap_output,
        nested=[name for name, schema in tool.parameters["properties"].items() if schema.get("type") in NESTED],
    )
    return tool


def _compact(result: CallToolResult | InputRequiredResult) -> CallToolResult | InputRequiredResult:
    """The same without members that are null, its text on one line."""
    if isinstance(result, InputRequiredResult) or result.structured_content is None:
        return result
    told = results.filled(result.structured_content)
    text = TextContent(type="text", text=results.compact(told))
    return CallToolResult(content=[text], structured_content=told)


def _refused(failure: Failure) -> CallToolResult:
    """The tool error that carries it, as text and as data."""
    told = {"error": asdict(failure)}
    text = TextContent(type="text", text=json.dumps(told, ensure_ascii=False))
    return CallToolResult(content=[text], structured_content=told, is_error=True)


def _version() -> str:
    """From the installed package: the library, which has it too, is imported after the tools have been listed."""
    try:
        return version("gemma-rag")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"
