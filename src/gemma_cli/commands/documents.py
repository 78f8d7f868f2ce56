"""Commands for many memories at once: ingest, export, import."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma_cli.commands.options import Json, Tags, Tier
from gemma_cli.commands.session import ExitCode

if TYPE_CHECKING:
    from gemma_cli.rag import PythonRAGBackend


def ingest(
    context: typer.Context,
    paths: Annotated[list[Path], typer.Argument(help="Files, or directories that are searched through.")],
    tier: Tier = "long_term",
    chunk_size: Annotated[int | None, typer.Option(help="Tokens of a chunk; default: the model's window.")] = None,
    chunk_overlap: Annotated[int | None, typer.Option(help="Tokens that neighbouring chunks share.")] = None,
    importance: Annotated[float, typer.Option("--importance", "-i", help="From 0 to 1.")] = 0.5,
    tag: Tags = None,
    as_json: Json = False,
) -> None:
    """Store documents as chunks. The same document again adds nothing; a changed one is brought up to date.

    Tier, tags and importance are those of chunks that are new; the others stay as they are."""
    from gemma_cli.commands.output import print_json, progress_bar
    from gemma_cli.rag.errors import CapacityError, DocumentError, MissingExtraError
    from gemma_cli.rag.ingestion import documents_in

    async def store(backend: "PythonRAGBackend") -> tuple[dict[str, int], dict[str, str]]:
        stored: dict[str, int] = {}
        failed: dict[str, str] = {}
        for path in documents_in(paths):
            with progress_bar(path.name) as progress:
                try:
                    stored[str(path)] = await backend.ingest_document(
                        path,
                        "long_term" if tier is None else tier,
                        chunk_size=chunk_size,
                        chunk_overlap=chunk_overlap,
                        importance=importance,
                        tags=tag,
                        progress=progress,
                    )
                except (CapacityError, DocumentError, MissingExtraError) as error:
                    failed[str(path)] = str(error)  # the other files are as good as they were
        return stored, failed

    stored, failed = context.obj.ask(store)
    if as_json:
        print_json({"stored": stored, "failed": failed})
    else:
        for name, chunks in stored.items():
            typer.echo(f"{chunks}\t{name}")
    for message in failed.values():
        typer.echo(f"error: {message}", err=True)
    if failed:
        raise typer.Exit(ExitCode.FAILED)
    if not stored:
        typer.echo("no documents found", err=True)
        raise typer.Exit(ExitCode.NOTHING_FOUND)


def export_(context: typer.Context, path: Path) -> None:
    """Write every memory to a JSON Lines file, vectors included."""
    count = context.obj.ask(lambda backend: backend.export_memories(path), require_model=False)
    typer.echo(f"{count} memories written to {path}", err=True)


def import_(context: typer.Context, path: Path) -> None:
    """Store the memories of an exported file; those that are there already are left as they are."""
    from gemma_cli.commands.output import progress_bar

    async def store(backend: "PythonRAGBackend") -> int:
        with progress_bar(path.name) as progress:
            return await backend.import_memories(path, progress=progress)

    typer.echo(f"{context.obj.ask(store)} memories imported from {path}", err=True)
