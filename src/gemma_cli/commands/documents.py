"""Commands for many memories at once: ingest, export, import."""

import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Final

import typer

from gemma_cli.commands.options import Json, Tags, Tier
from gemma_cli.commands.session import ExitCode

if TYPE_CHECKING:
    from gemma_cli.rag import PythonRAGBackend


STANDARD: Final = Path("-")


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

    Of a directory, hidden files, exported memories and files of other types than documents are left out.

    Tier, tags and importance are those of chunks that are new; the others stay as they are."""
    from gemma_cli.commands.output import counted, print_json, progress_bar, shown_time
    from gemma_cli.rag.errors import CapacityError, DocumentError, MissingExtraError
    from gemma_cli.rag.ingestion import files_in
    from gemma_cli.rag.memory import MemoryTier, utc

    target = "long_term" if tier is None else tier
    passed: set[str] = set()

    async def store(backend: "PythonRAGBackend") -> tuple[dict[str, int], dict[str, str], float | None]:
        stored: dict[str, int] = {}
        failed: dict[str, str] = {}
        for path, document in files_in(paths):
            if not document:
                passed.add(str(path))
                continue
            with progress_bar(path.name) as progress:
                try:
                    stored[str(path)] = await backend.ingest_document(
                        path,
                        target,
                        chunk_size=chunk_size,
                        chunk_overlap=chunk_overlap,
                        importance=importance,
                        tags=tag,
                        progress=progress,
                    )
                except (CapacityError, DocumentError, MissingExtraError) as error:
                    failed[str(path)] = str(error)  # the other files are as good as they were
        return stored, failed, backend.rules.policies[MemoryTier(target)].expiry(backend.now())

    stored, failed, expiry = context.obj.ask(store, creates=True)
    left_out = len(passed - stored.keys() - failed.keys())
    if as_json:
        print_json({"stored": stored, "failed": failed, "left_out": left_out})
    else:
        for name, chunks in stored.items():
            typer.echo(f"{chunks}\t{name}")
        if left_out:
            typer.echo(f"{counted(left_out, 'file')} left out: hidden, exports or no documents", err=True)
        if expiry is not None and any(stored.values()):
            kept = f"kept until {shown_time(utc(expiry))} unless they move up or are pinned"
            typer.echo(f"{kept}; --tier semantic keeps them for good", err=True)
    for message in failed.values():
        typer.echo(f"error: {message}", err=True)
    if failed:
        raise typer.Exit(ExitCode.FAILED)
    if not stored:
        typer.echo("no documents found", err=True)
        raise typer.Exit(ExitCode.NOTHING_FOUND)


def export_(context: typer.Context, path: Annotated[Path, typer.Argument(help="File to write; - is stdout.")]) -> None:
    """Write every memory to a JSON Lines file, vectors included."""
    from gemma_cli.commands.output import counted

    with ExitStack() as stack:
        file = path
        if path == STANDARD:  # what is written is whole or not there, on stdout too
            file = Path(stack.enter_context(TemporaryDirectory(prefix="gemma-rag-"))) / "stdout"
        count = context.obj.ask(lambda backend: backend.export_memories(file), require_model=False)
        if path == STANDARD:
            with file.open("rb") as written:
                shutil.copyfileobj(written, sys.stdout.buffer)
            sys.stdout.buffer.flush()
    typer.echo(f"{counted(count, 'memory', 'memories')} written to {'stdout' if path == STANDARD else path}", err=True)


def import_(
    context: typer.Context, path: Annotated[Path, typer.Argument(help="An exported file; - is stdin.")]
) -> None:
    """Store the memories of an exported file; those that are there already are left as they are."""
    from gemma_cli.commands.output import counted, progress_bar
    from gemma_cli.rag import DocumentError

    async def store(backend: "PythonRAGBackend") -> int:
        with progress_bar(file.name) as progress:
            return await backend.import_memories(file, progress=progress)

    with ExitStack() as stack:
        file = path
        if path == STANDARD:  # it is read twice: once for its faults
            file = Path(stack.enter_context(TemporaryDirectory(prefix="gemma-rag-"))) / "stdin"
            with file.open("wb") as given:
                shutil.copyfileobj(sys.stdin.buffer, given)
        try:
            count = context.obj.ask(store, creates=True)
        except DocumentError as error:
            if path != STANDARD:
                raise
            raise type(error)(str(error).replace(str(file), "stdin")) from error
    typer.echo(
        f"{counted(count, 'memory', 'memories')} imported from {file.name if path == STANDARD else path}", err=True
    )
