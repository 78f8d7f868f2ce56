"""`gemma-rag top`: the dashboard's figures in a terminal."""

import json
import math
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from gemma_cli.commands.options import Json
from gemma_cli.commands.session import CliSession

if TYPE_CHECKING:
    from rich.live import Live

USUAL_SERVER: Final = "http://127.0.0.1:8765"
AGAIN: Final = 2.0
"""Seconds before a lost server is asked again."""
FRAME_EARLY: Final = 0.8
"""Part of the interval after which a frame is due: samples that come once an interval are a little early at times."""


def _known_url(value: str | None) -> str | None:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(value or USUAL_SERVER)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port or an address that can't be one
        fits = False
    if not fits:
        raise typer.BadParameter(f"{value!r} is no URL of a server; write {USUAL_SERVER}")
    return value


def _known_token(value: str | None) -> str | None:
    if value and not (value.isascii() and value.isprintable()):
        raise typer.BadParameter("holds characters that can't be sent; a token is of printable ASCII")
    return value


def top(
    context: typer.Context,
    server: Annotated[
        str | None,
        typer.Option(help=f"Server to follow; default: {USUAL_SERVER} where one answers.", callback=_known_url),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="GEMMA_RAG_SERVER_TOKEN",
            help="Token of the server that --server names; better set the variable.",
            callback=_known_token,
        ),
    ] = None,
    interval: Annotated[float, typer.Option(min=0.1, max=3_600, help="Seconds between two frames.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end, as without a terminal.")] = False,
    as_json: Json = False,
) -> None:
    """Watch the memory: tiers, what comes and goes, operations, caches, sizes. Follows a running server (gemma-rag
    serve); where there is none, or a store is named before the command, it opens the store itself."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a terminal is given back as it was
    watching = _Watching(as_json, once or not (as_json or sys.stdout.isatty()), interval)
    try:
        _watch(context.obj, server, token, interval, watching)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # whoever read the lines has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        watching.close()
        signal.signal(signal.SIGTERM, before)


def _watch(session: CliSession, server: str | None, token: str | None, interval: float, watching: "_Watching") -> None:
    """Follows the server that is named, else the usual one, else the store here. A store that is named is not asked of
    a server, which may serve another. The token is for a named server: at the usual place anybody may listen."""
    from gemma_cli.commands.top_stream import follow_here, follow_server
    from gemma_cli.rag import StoreUnavailableError

    here = ""
    if server is not None or session == CliSession():
        place, bearer = (server, token) if server is not None else (USUAL_SERVER, None)
        watching.view.source = f"as told by {place}; Ctrl-C ends"
        try:
            follow_server(place, bearer, watching.take)
        except StoreUnavailableError as error:
            if server is not None:
                raise
            here = f"{error}; "
        else:
            while not watching.done:
                _again(place, bearer, watching)
            return
    watching.view.source = f"{here}opened here: operations and caches are those of this process alone; Ctrl-C ends"
    follow_here(session, interval, watching.take)


def _again(place: str, token: str | None, watching: "_Watching") -> None:
    """One more try to follow a server that was lost."""
    from gemma_cli.commands.top_stream import follow_server
    from gemma_cli.rag import StoreUnavailableError

    watching.lost(f"{place} no longer answers; trying again")
    time.sleep(AGAIN)
    try:
        follow_server(place, token, watching.take)
    except StoreUnavailableError as error:
        watching.lost(f"{error}; trying again")


class _Watching:
    """Shows what comes: as lines of JSON, as one frame, or as frames that replace each other."""

    def __init__(self, as_json: bool, once: bool, interval: float) -> None:
        from gemma_cli.commands.top_view import View

        self.view = View("")
        self.done = False
        self._as_json = as_json
        self._once = once
        self._interval = interval
        self._screen: Live | None = None
        self._drawn = -math.inf

    def take(self, name: str, data: Any) -> bool:
        """One event of the stream; False when there is nothing more to show."""
        self.view.note = ""
        self.view.take(name, data)
        if self._as_json:
            self._print_samples(name, data)
        elif self.view.ready:
            self._frame()
        return not self.done

    def _print_samples(self, name: str, data: Any) -> None:
        """Each sample as it comes; of those that a `hello` brings, the latest where one is all that is wanted."""
        samples = [data] if name == "sample" else data["history"][-1:] if name == "hello" and self._once else []
        for sample in samples:
            typer.echo(json.dumps(sample))
            self.done = self._once

    def _frame(self) -> None:
        from gemma_cli.commands.output import out

        if self._once:
            out.print(self.view)
            self.done = True
        elif time.monotonic() - self._drawn >= FRAME_EARLY * self._interval:
            self._draw()

    def _draw(self) -> None:
        from rich.live import Live

        from gemma_cli.commands.output import out

        if self._screen is None:
            self._screen = Live(self.view, console=out, screen=True, auto_refresh=False)
            self._screen.start()
        self._screen.refresh()
        self._drawn = time.monotonic()

    def lost(self, note: str) -> None:
        """The server is gone: a screen says so and stays, lines end."""
        from gemma_cli.rag import StoreUnavailableError

        if self._as_json or self._once:
            raise StoreUnavailableError(note.partition(";")[0])
        self.view.note = note
        self._draw()

    def close(self) -> None:
        """Gives the terminal back."""
        if self._screen is not None:
            self._screen.stop()
