"""Commands for single memories: remember, recall, search, list, get, forget, promote."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemma_cli.commands.options import (
    TIERS,
    Actor,
    Json,
    Limit,
    MinImportance,
    Session,
    Tags,
    Tier,
    complete_tier,
    known_tier,
    known_time,
)
from gemma_cli.commands.session import ExitCode

if TYPE_CHECKING:
    from gemma_cli.rag import MemoryEntry, PythonRAGBackend, Recalled, WhyNot
    from gemma_cli.rag.finding import Filters


def _found(memories: "list[MemoryEntry]", as_json: bool) -> None:
    """Shows memories; that there are none is said on stderr and in the exit code."""
    from gemma_cli.commands.output import print_memories

    if memories or as_json:
        print_memories(memories, as_json=as_json)
    if not memories:
        raise _nothing()


def _nothing(within: str = "") -> typer.Exit:
    typer.echo(f"nothing found{within}", err=True)
    return typer.Exit(ExitCode.NOTHING_FOUND)


def _no_such(memory_id: str) -> typer.Exit:
    typer.echo(f"there is no memory {memory_id}", err=True)
    return typer.Exit(ExitCode.NOTHING_FOUND)


def remember(
    context: typer.Context,
    text: Annotated[str, typer.Argument(help="What to remember; - reads it from stdin.")],
    tier: Tier = "short_term",
    importance: Annotated[float, typer.Option("--importance", "-i", help="From 0 to 1.")] = 0.5,
    tag: Tags = None,
    actor: Actor = None,
    session: Session = None,
    at: Annotated[str | None, typer.Option(help="When it happened, ISO 8601.", callback=known_time)] = None,
    metadata: Annotated[str | None, typer.Option(help="A JSON object.")] = None,
    pin: Annotated[bool, typer.Option("--pin", help="Keep it from expiry and eviction.")] = False,
    as_json: Json = False,
) -> None:
    """Store one memory and print its id; until when it is kept, where it is not for good, stands on stderr."""
    from gemma_cli.commands.output import shown_time

    content = _stdin() if text == "-" else text
    extra = None if metadata is None else _json_object(metadata)

    async def store(backend: "PythonRAGBackend") -> "tuple[str, MemoryEntry | None]":
        memory_id = await backend.store_memory(
            content,
            "short_term" if tier is None else tier,
            importance,
            tag,
            extra,
            actor=actor,
            session=session,
            occurred_at=at,
            pinned=pin,
        )
        return memory_id, await backend.get_memory(memory_id)

    memory_id, memory = context.obj.ask(store, creates=True)
    end = None if memory is None or memory.pinned else memory.expires_at
    if as_json:
        where = {} if memory is None else {"tier": memory.tier, "expires_at": end and end.isoformat()}
        typer.echo(json.dumps({"id": memory_id, **where}))
        return
    typer.echo(memory_id)
    if end is not None:
        kept = f"kept until {shown_time(end)} unless it moves up or is pinned"
        typer.echo(f"{kept}; --tier semantic keeps it for good", err=True)


def _stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"what came on stdin is not text: {error}", param_hint="text") from error


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"is not JSON: {error}", param_hint="--metadata") from error
    if not isinstance(value, dict):
        raise typer.BadParameter("is not a JSON object", param_hint="--metadata")
    return value


def recall(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help="A question or some words.")],
    tier: Tier = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", "-n", help="How many at most; with --max-tokens, candidates.", show_default="5"),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            metavar="N",
            help="Print the best that fit into N tokens as text for a prompt, in reading order. "
            "The embedding model's tokenizer counts.",
        ),
    ] = None,
    tag: Tags = None,
    min_importance: MinImportance = 0.0,
    min_similarity: Annotated[float | None, typer.Option(help="Cosine, from -1 to 1.")] = None,
    min_confidence: Annotated[
        float | None, typer.Option(help="Give nothing if the answer is right with less than this probability, 0 to 1.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="Happened then or later, ISO 8601.", callback=known_time)] = None,
    until: Annotated[str | None, typer.Option(help="Happened then or earlier, ISO 8601.", callback=known_time)] = None,
    actor: Actor = None,
    session: Session = None,
    touch: Annotated[bool, typer.Option("--touch/--no-touch", help="Count this as an access.")] = True,
    explain: Annotated[bool, typer.Option("--explain", help="Show the parts of each score.")] = False,
    weight: Annotated[
        list[str] | None, typer.Option("--weight", help="NAME=NUMBER: what one signal counts for, e.g. recency=0.2.")
    ] = None,
    why_not: Annotated[
        str | None, typer.Option("--why-not", metavar="ID", help="Say why this memory is not among the answers.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find memories by meaning and by words."""
    if max_tokens is not None and (why_not is not None or (explain and not as_json)):
        raise typer.BadParameter(
            "goes neither with --why-not nor, without --json, with --explain", param_hint="--max-tokens"
        )
    filters: Filters = {
        "tags": tag,
        "min_importance": min_importance,
        "min_similarity": min_similarity,
        "since": since,
        "until": until,
        "actor": actor,
        "session": session,
    }
    weights = None if weight is None else dict(map(_weight, weight))

    async def find(backend: "PythonRAGBackend") -> "Recalled":
        return await backend.recall_memories(
            query,
            tier,
            limit,
            **filters,
            min_confidence=min_confidence,
            weights=weights,
            touch=touch,
            explain=explain,
            max_tokens=max_tokens,
        )

    async def ask_why(backend: "PythonRAGBackend") -> "WhyNot":
        assert why_not is not None
        return await backend.why_not(query, why_not, tier, 5 if limit is None else limit, **filters, weights=weights)

    if why_not is None:
        _recalled(context.obj.ask(find), as_json, max_tokens)
    else:
        from gemma_cli.commands.output import print_verdict

        verdict = context.obj.ask(ask_why)
        print_verdict(verdict, as_json=as_json)
        if verdict.stage == "missing":
            raise typer.Exit(ExitCode.NOTHING_FOUND)


def _recalled(found: "Recalled", as_json: bool, max_tokens: int | None) -> None:
    """Shows an answer and how sure it is: as JSON both, otherwise the memories on stdout and that on stderr."""
    from gemma_cli.commands.output import memory_json, print_json, print_memories, print_prompt

    if found.confidence and not as_json:
        typer.echo(f"confidence {found.confidence:.2f}", err=True)
    if as_json:
        print_json({"confidence": found.confidence, "memories": [memory_json(memory) for memory in found]})
    elif found and max_tokens is None:
        print_memories(found, as_json=False)
    elif found:
        print_prompt(found)
    if not found:
        raise _nothing("" if max_tokens is None else f" within {max_tokens} tokens")


def _weight(text: str) -> tuple[str, float]:
    name, separator, number = text.partition("=")
    try:
        return name.strip(), float(number)
    except ValueError:
        what = "is no number" if separator else "has no ="
        raise typer.BadParameter(f"{text!r} {what}; write NAME=NUMBER", param_hint="--weight") from None


def search(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help="Words; no operators, any text will do.")],
    tier: Tier = None,
    limit: Limit = 20,
    min_importance: MinImportance = 0.0,
    as_json: Json = False,
) -> None:
    """Find memories by words alone."""

    async def find(backend: "PythonRAGBackend") -> "list[MemoryEntry]":
        return await backend.search_memories(query, tier, min_importance, limit)

    _found(context.obj.ask(find, require_model=False), as_json)


def list_(
    context: typer.Context,
    tier: Tier = None,
    limit: Limit = 50,
    after: Annotated[str | None, typer.Option(help="Id of the last memory of the page before.")] = None,
    tag: Tags = None,
    actor: Actor = None,
    session: Session = None,
    pinned: Annotated[bool | None, typer.Option("--pinned/--not-pinned", help="Only these.")] = None,
    min_importance: MinImportance = 0.0,
    as_json: Json = False,
) -> None:
    """List memories, newest first."""

    async def page(backend: "PythonRAGBackend") -> "list[MemoryEntry]":
        return await backend.list_memories(
            tier,
            limit,
            after=after,
            tags=tag,
            actor=actor,
            session=session,
            pinned=pinned,
            min_importance=min_importance,
        )

    _found(context.obj.ask(page, require_model=False), as_json)


def get(context: typer.Context, memory_id: str, as_json: Json = False) -> None:
    """Show one memory."""
    from gemma_cli.commands.output import print_memory

    memory = context.obj.ask(lambda backend: backend.get_memory(memory_id), require_model=False)
    if memory is None:
        if as_json:
            typer.echo("null")
        raise _no_such(memory_id)
    print_memory(memory, as_json=as_json)


def forget(context: typer.Context, memory_ids: list[str]) -> None:
    """Remove memories for good."""

    async def delete(backend: "PythonRAGBackend") -> list[str]:
        return [memory_id for memory_id in memory_ids if not await backend.delete_memory(memory_id)]

    missing = context.obj.ask(delete, require_model=False)
    for memory_id in missing:
        typer.echo(f"there is no memory {memory_id}", err=True)
    if missing:
        raise typer.Exit(ExitCode.NOTHING_FOUND)


def promote(
    context: typer.Context,
    memory_id: str,
    tier: Annotated[
        str, typer.Argument(help=f"One of {', '.join(TIERS)}.", autocompletion=complete_tier, callback=known_tier)
    ],
) -> None:
    """Move one memory into another tier, up or down; its lifetime there begins now."""
    from gemma_cli.commands.output import shown_time

    async def move(backend: "PythonRAGBackend") -> "tuple[bool, MemoryEntry | None]":
        return await backend.promote_memory(memory_id, tier), await backend.get_memory(memory_id)

    moved, memory = context.obj.ask(move, require_model=False)
    if not moved:
        typer.echo(f"there is no memory {memory_id}, or it is in {tier} already", err=True)
        raise typer.Exit(ExitCode.NOTHING_FOUND)
    if memory is not None:
        kept = memory.pinned or memory.expires_at is None
        typer.echo(
            f"now in {memory.tier}, {'for good' if kept else f'until {shown_time(memory.expires_at)}'}", err=True
        )
