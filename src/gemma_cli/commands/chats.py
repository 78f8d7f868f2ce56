"""Chats of other assistants: into the memory, and conversations out of it."""

import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma_cli.commands.options import Json, Tags, Tier, known_time
from gemma_cli.commands.session import CliSession, ExitCode

if TYPE_CHECKING:
    from gemma_cli.integrations.chat_exports import Chat, ChatImport, Conversation
    from gemma_cli.rag import PythonRAGBackend

app = typer.Typer(
    help="Import the chats that Claude and ChatGPT export, list them, write them out.", no_args_is_help=True
)

Namespace = Annotated[
    str | None,
    typer.Option("--namespace", help="Whose chats; overrides a --namespace given before `chats`."),
]


class Format(StrEnum):
    """What a conversation is written as."""

    OPENAI = "openai"
    JSONL = "jsonl"
    MARKDOWN = "markdown"


@app.command("import")
def import_(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The zip, the folder it was unpacked into, or a conversations.json.")],
    tier: Tier = "episodic",
    since: Annotated[
        str | None, typer.Option(help="Only messages from then on, e.g. 2025-01-01.", callback=known_time)
    ] = None,
    latest: Annotated[bool, typer.Option("--latest", help="Where not all fit, the latest that do.")] = False,
    importance: Annotated[float, typer.Option("--importance", "-i", help="From 0 to 1.")] = 0.5,
    tag: Tags = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be imported.")] = False,
    namespace: Namespace = None,
    as_json: Json = False,
) -> None:
    """Store the messages of an export, each once however often it is imported.

    The tier's lifetime begins now, whatever the age of a chat; `--tier semantic` keeps them for good. Nothing is
    evicted: what the tier has no room for is refused, or with --latest left out."""
    from gemma_cli.commands.output import print_json, progress_bar
    from gemma_cli.integrations.chat_exports import import_chats
    from gemma_cli.rag import StoreUnavailableError

    async def store(backend: "PythonRAGBackend") -> "ChatImport":
        with progress_bar(file.name) as progress:
            return await import_chats(
                backend,
                file,
                "episodic" if tier is None else tier,
                since=since,
                latest=latest,
                importance=importance,
                tags=tag,
                dry_run=dry_run,
                progress=progress,
            )

    opened = _session(context, namespace)
    if dry_run:
        try:
            opened.check_there()
        except StoreUnavailableError:  # everything would be new to it
            opened = replace(opened, url="memory://")
    done = opened.ask(store, require_model=not dry_run, creates=True)
    if as_json:
        print_json(done)
        return
    for line in _report(done):
        typer.echo(line, err=True)


def _report(done: "ChatImport") -> list[str]:
    """What was done and what becomes of it."""
    from gemma_cli.commands.output import counted

    verb = "would be imported" if done.dry_run else "imported"
    conversations = counted(done.conversations, "conversation")
    lines = [f"{counted(done.new, 'message')} {verb} into {done.tier} (of {done.messages:,} in {conversations})"]
    if done.there:
        there = f"{done.there} {'was' if done.there == 1 else 'were'} there already"
        lines.append(f"{there}; {done.moved} of them moved up into {done.tier}" if done.moved else there)
    left_out = {**done.left_out, f"too many for {done.tier}": done.too_many, "before --since": done.earlier}
    if any(left_out.values()):
        lines.append("left out: " + ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count))
    lines.append(f"{done.tier} holds {done.held} of {done.capacity}; when it is full, the least relevant make room")
    if done.expires_at is None:
        lines.append("what it holds is kept for good")
    elif done.new or done.moved:
        lines.append(
            f"they are forgotten on {done.expires_at.astimezone():%Y-%m-%d %H:%M} unless promoted or pinned; import "
            "again with --tier semantic to keep them for good"
        )
    return lines


@app.command("list")
def list_(context: typer.Context, namespace: Namespace = None, as_json: Json = False) -> None:
    """Show the conversations of which there are memories, the latest first."""
    from gemma_cli.commands.output import print_json
    from gemma_cli.integrations.chat_exports import list_chats

    chats = _session(context, namespace).ask(list_chats, require_model=False)
    if as_json:
        print_json(chats)
    elif chats:
        _print_chats(chats)
    if not chats:
        typer.echo("no conversations", err=True)
        raise typer.Exit(ExitCode.NOTHING_FOUND)


def _print_chats(chats: "list[Chat]") -> None:
    from rich.table import Table
    from rich.text import Text

    from gemma_cli.commands.output import ID_CHARS, WIDE, counted, one_line, out, print_listed, visible

    if out.width < WIDE:
        for chat in chats:
            facts = (f"{chat.last.astimezone():%Y-%m-%d}", counted(chat.messages, "message"), chat.source or "")
            print_listed(Text(one_line(chat.title)), [*filter(None, facts), visible(chat.session)])
        return

    table = Table("last", "messages", "from", box=None, pad_edge=False)
    table.add_column("title", ratio=1, overflow="fold")
    table.add_column("session", no_wrap=True, min_width=ID_CHARS, style="dim")  # whole, to be copied for `chats export`
    for chat in chats:
        last = f"{chat.last.astimezone():%Y-%m-%d}"
        names = (chat.source or "", one_line(chat.title), visible(chat.session))
        table.add_row(last, str(chat.messages), *map(Text, names))
    out.print(table)


@app.command("export")
def export_(
    context: typer.Context,
    session: Annotated[str, typer.Argument(help="A conversation, as `chats list` names it.")],
    format_: Annotated[Format, typer.Option("--format", "-f", help="What to write.")] = Format.MARKDOWN,
    namespace: Namespace = None,
) -> None:
    """Write a conversation to stdout: for a chat API, one message a line, or to read."""
    from gemma_cli.commands.output import visible
    from gemma_cli.integrations.chat_exports import read_chat

    found = _session(context, namespace).ask(lambda backend: read_chat(backend, session), require_model=False)
    if found is None:
        typer.echo(f"there is no conversation {session}", err=True)
        raise typer.Exit(ExitCode.NOTHING_FOUND)
    written = _written(found, format_)
    typer.echo(visible(written) if sys.stdout.isatty() else written, nl=False)


def _written(conversation: "Conversation", format_: Format) -> str:
    import json

    from gemma_cli.integrations.chat_exports import as_json_lines, as_markdown, as_openai

    match format_:
        case Format.OPENAI:
            return json.dumps(as_openai(conversation), ensure_ascii=False, indent=2) + "\n"
        case Format.JSONL:
            return as_json_lines(conversation)
        case Format.MARKDOWN:
            return as_markdown(conversation)


def _session(context: typer.Context, namespace: str | None) -> CliSession:
    session: CliSession = context.obj
    return session if namespace is None else replace(session, namespace=namespace)
