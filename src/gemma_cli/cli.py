"""The command `gemma-rag`: a thin edge over `PythonRAGBackend`. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 nothing
found, 4 store unreachable."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import typer

from gemma_cli.commands import chats, config, documents, mcp, memories, moving, serve, top, upkeep
from gemma_cli.commands.session import CliSession, exit_code, log_to_stderr

app = typer.Typer(
    name="gemma-rag",
    help="Memory for LLM agents, on this machine: five tiers in one file, recalled by meaning and by words.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Show or check the configuration.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(mcp.app, name="mcp")
app.add_typer(chats.app, name="chats")


def main() -> None:
    """Entry point; the one place where an error becomes a message and an exit code."""
    try:
        app(prog_name="gemma-rag")  # also as `python -m gemma_cli`: completion is made for that name
    except Exception as error:  # `exit_code` lets through what is not ours; its import costs nothing until here
        code = exit_code(error)
        if code is None:
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        from gemma_cli.rag._version import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    url: Annotated[
        str | None, typer.Option(help="Store, e.g. sqlite:///memory.db; default: the configured one.")
    ] = None,
    namespace: Annotated[str | None, typer.Option(help="Memories of one namespace are not seen from another.")] = None,
    config: Annotated[Path | None, typer.Option(help="Configuration file to use before the others.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what happens, on stderr.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    log_to_stderr(verbose)
    context.obj = CliSession(url, namespace, config)


@app.command()
def demo() -> None:
    """Show all of it on real text, in a store of its own that is removed afterwards."""
    from gemma_cli.commands.demo import run_demo

    run_demo()


COMMANDS: Final[tuple[tuple[str, Callable[..., None]], ...]] = (
    ("remember", memories.remember),
    ("recall", memories.recall),
    ("search", memories.search),
    ("ingest", documents.ingest),
    ("list", memories.list_),
    ("get", memories.get),
    ("forget", memories.forget),
    ("promote", memories.promote),
    ("consolidate", upkeep.consolidate),
    ("stats", upkeep.stats),
    ("serve", serve.serve),
    ("export", documents.export_),
    ("import", documents.import_),
    ("migrate", moving.migrate),
    ("reembed", upkeep.reembed),
    ("doctor", upkeep.doctor),
    ("tune", upkeep.tune),
    ("top", top.top),
)
for _name, _command in COMMANDS:
    app.command(_name)(_command)
for _command in (config.show, config.path, config.validate):
    config_app.command()(_command)
