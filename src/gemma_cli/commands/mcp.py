"""`gemma-rag mcp`: the memory for agents that speak the Model Context Protocol; `mcp install` enters it at a client."""

import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from gemma_cli.commands.doors import (
    DEFAULT_PORT,
    LOOPBACK,
    AllowedHosts,
    Roots,
    check_token,
    directories,
    needing,
    prepare,
    show_warnings,
)
from gemma_cli.commands.session import CliSession

CLIENTS: Final = ("claude", "claude-code", "cursor", "gemini", "vscode", "windsurf")

app = typer.Typer()


def _complete_client(incomplete: str) -> list[str]:
    return [name for name in CLIENTS if name.startswith(incomplete)]


def _known_client(value: str) -> str:
    if value not in CLIENTS:
        raise typer.BadParameter(f"{value!r} is not known here; use one of {', '.join(CLIENTS)}")
    return value


@app.callback(invoke_without_command=True)
def serve(
    context: typer.Context,
    http: Annotated[bool, typer.Option("--http", help="Serve streamable HTTP at /mcp instead of stdio.")] = False,
    host: Annotated[str, typer.Option(help="Address for --http; any but loopback needs a token.")] = LOOPBACK,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port for --http; 0: a free one.")] = DEFAULT_PORT,
    token: Annotated[
        str | None,
        typer.Option(envvar="GEMMA_RAG_MCP_TOKEN", help="What --http's clients must bear; better set the variable."),
    ] = None,
    allow_host: AllowedHosts = None,
    root: Roots = None,
    connector: Annotated[
        bool, typer.Option("--connector", help="Only the reading pair search and fetch, as ChatGPT's connectors ask.")
    ] = False,
) -> None:
    """Serve the memory to agents over the Model Context Protocol, on stdio unless --http is given."""
    if context.invoked_subcommand is not None:
        if http or root or connector:
            raise typer.BadParameter("options of the server don't stand before another command")
        return
    _run(context.obj, http, host, port, token, allow_host or (), directories(root), connector)


def _run(
    session: CliSession,
    http: bool,
    host: str,
    port: int,
    token: str | None,
    allowed_hosts: Sequence[str],
    roots: list[Path],
    connector: bool,
) -> None:
    import asyncio

    prepare()
    with needing("mcp", "the MCP server"):
        from gemma_cli.edge import listening
        from gemma_cli.edge.opening import Opening
        from gemma_cli.mcp_server import serving
        from gemma_cli.mcp_server.server import MemoryServer
    if http:
        check_token(token, local=listening.is_loopback(host), shortest=listening.SHORTEST_TOKEN)
    elif sys.stdin.isatty():
        typer.echo("an MCP client speaks here on stdin; Ctrl-D ends it", err=True)

    async def run() -> None:
        opening = Opening(session)
        server = MemoryServer(opening, roots, connector=connector)
        gc.freeze()
        gc.enable()
        show_warnings()
        if http:
            await serving.serve_http(
                server,
                opening,
                host,
                port,
                token,
                allowed_hosts,
                lambda url: typer.echo(f"listening on {url}", err=True),
            )
        else:
            await serving.serve_stdio(server, opening)

    asyncio.run(run())


@app.command()
def install(
    context: typer.Context,
    client: Annotated[
        str,
        typer.Option(help=f"One of {', '.join(CLIENTS)}.", autocompletion=_complete_client, callback=_known_client),
    ],
    root: Roots = None,
    name: Annotated[str, typer.Option(help="What the client shall call the server.")] = "gemma-rag",
    file: Annotated[Path | None, typer.Option(help="The client's configuration, if it is elsewhere.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Write the change; a backup is kept beside the file.")] = False,
) -> None:
    """Show the change that enters this memory at a client, with the options before `mcp`; --write makes it."""
    from gemma_cli.mcp_server import clients

    change = clients.change(clients.CLIENTS[client], name, _arguments(context.obj, directories(root)), file)
    if not change.needed:
        typer.echo(f"{change.path} has it already", err=True)
        return
    typer.echo(change.shown(), nl=False)
    if not write:
        typer.echo("nothing was written; --write does it", err=True)
        return
    kept = change.write()
    backup = "" if kept is None else f"; what was there before is in {kept}"
    typer.echo(f"{change.path} is written{backup}. Start the client anew", err=True)


def _arguments(session: CliSession, roots: list[Path]) -> list[str]:
    """The command line of the server: the options that hold here, paths made absolute."""
    from gemma_cli.rag import InvalidInputError
    from gemma_cli.rag.settings import masked_url
    from gemma_cli.rag.stores import sqlite_path

    if session.url is not None and masked_url(session.url) != session.url:
        raise InvalidInputError(
            "url: holds a password, which has no place in a client's configuration; put the URL into your own "
            "(`gemma-rag config path`), and leave --url away"
        )
    file = None if session.url is None else sqlite_path(session.url)
    before = {
        "--url": session.url if file is None else f"sqlite:///{file}",
        "--namespace": session.namespace,
        "--config": session.config and session.config.resolve(),
    }
    given = [(option, str(value)) for option, value in before.items() if value is not None]
    return [
        *(word for pair in given for word in pair),
        "mcp",
        *(word for root in roots for word in ("--root", str(root))),
    ]
