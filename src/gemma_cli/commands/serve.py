"""`gemma-rag serve`: the memory over HTTP, with its dashboard."""

import gc
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

ANYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - what a user may ask for
"""Addresses that stand for all of a machine's, and where a browser on it finds them."""


def serve(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Address; any but loopback needs a token.")] = LOOPBACK,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port; 0: a free one.")] = DEFAULT_PORT,
    token: Annotated[
        str | None,
        typer.Option(envvar="GEMMA_RAG_SERVER_TOKEN", help="What clients must bear; better set the variable."),
    ] = None,
    root: Roots = None,
    allow_host: AllowedHosts = None,
    open_: Annotated[bool, typer.Option("--open", help="Open the dashboard in the browser.")] = False,
    mcp: Annotated[bool, typer.Option("--mcp/--no-mcp", help="Serve MCP at /mcp as well.")] = True,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0, help="Requests a second from one address; 0: any number. Default: 50, on loopback any number."
        ),
    ] = None,
) -> None:
    """Serve the memory over HTTP: a JSON API, the dashboard, metrics and MCP, on one port."""
    import asyncio

    prepare()
    with needing("server", "the server"):
        import uvicorn  # noqa: F401 - what listens needs it; its absence is told before anything is opened

        from gemma_cli.edge import listening
        from gemma_cli.edge.opening import Opening
        from gemma_cli.server.app import create_app
    check_token(token, local=listening.is_loopback(host), shortest=listening.SHORTEST_TOKEN)
    session: CliSession = context.obj
    roots = directories(root)
    _check_place(session)

    async def run() -> None:
        app = create_app(
            Opening(session), host=host, token=token, roots=roots, allowed_hosts=allow_host or (), rate=rate, mcp=mcp
        )
        if mcp and not app.state.mcp:
            typer.echo('MCP is not served; install its SDK with: pip install "gemma-rag[mcp]"', err=True)
        gc.freeze()
        gc.enable()

        with listening.bound(host, port) as (place, url):
            typer.echo(f"listening on {url}", err=True)
            show_warnings()
            if open_:
                _browse(local_url(url, host), None if token is None else app.state.access.new_code())
            await listening.serve_app(app, place, app.state.end)

    asyncio.run(run())


def _check_place(session: CliSession) -> None:
    """Raises what is wrong with the configuration, the URL or the namespace. A store that can't be reached may come
    back; with these nothing would ever be served."""
    from gemma_cli.rag import PythonRAGBackend
    from gemma_cli.rag.stores import create_store

    settings = session.settings()
    backend = PythonRAGBackend(url=session.url, namespace=session.namespace, settings=settings)
    create_store(backend.url, backend.namespace, settings)


def local_url(url: str, host: str) -> str:
    """The address for a browser on this machine, where the server may listen on all of its addresses."""
    if host not in ANYWHERE:
        return url
    return f"http://{ANYWHERE[host]}:{url.rpartition(':')[2]}"


def _browse(url: str, code: str | None) -> None:
    """Opens the page. The code serves once and soon; the token itself would stay in the browser's history and in the
    list of processes."""
    import threading
    import webbrowser

    address = f"{url}/" if code is None else f"{url}/?code={code}"

    def show() -> None:
        if not webbrowser.open(address):
            typer.echo(f"no browser was found here; open {url}/ in one", err=True)

    threading.Thread(target=show, daemon=True).start()  # a browser in a terminal holds on
