"""What may stand between a client and its server: TLS, or a line that is slow, silent or cut."""

import asyncio
import contextlib
import ssl
import tempfile
import threading
from collections.abc import Coroutine
from enum import Enum
from pathlib import Path
from typing import Any, Final, Self

import trustme
from server_lines import HOST, PATIENCE
from servers import Server

CHUNK: Final = 65_536


class Line(Enum):
    """What the front does with bytes. Those on the way when this changes may still go the old way."""

    OPEN = "open"
    """Passes them on."""
    STALLED = "stalled"
    """Holds them in both directions until the line is another; the connections stay."""
    HELD = "held"
    """The server gets everything; its answers wait until the line is another."""
    MUTE = "mute"
    """The server gets everything, the client nothing: its answers are thrown away."""
    CUT = "cut"
    """The server gets everything; where it answers, the connection is closed instead, so that the client can't know
    what happened."""
    REFUSED = "refused"
    """Every connection is closed at once, open ones and new ones."""


class Front:
    """A port that passes everything on to a server's. It lives in a thread of its own, so it serves every event loop.

    `line`, `delay` (seconds before each piece of an answer) and `spared` (answers that a CUT line still lets through)
    may be set at any time.
    """

    def __init__(self, server: Server, *, delay: float = 0.0, context: ssl.SSLContext | None = None) -> None:
        self.server = server
        self.delay = delay
        self.spared = 0
        self.port = 0
        self._context = context
        self._line = Line.OPEN
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._listener: asyncio.Server | None = None

    host: Final = HOST

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    @property
    def line(self) -> Line:
        return self._line

    @line.setter
    def line(self, line: Line) -> None:
        self._call(self._set(line))

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    # In the front's own loop

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._accept, HOST, 0, ssl=self._context)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        await self._disconnect()

    async def _set(self, line: Line) -> None:
        self._line = line
        self._changed.set()
        self._changed = asyncio.Event()
        if line is Line.REFUSED:
            await self._disconnect()

    async def _disconnect(self) -> None:
        connections = list(self._connections)
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            if self._line is Line.REFUSED:
                return
            back, forth = await asyncio.open_connection(HOST, self.server.port)
            writers.append(forth)
            tasks = [asyncio.ensure_future(self._ask(reader, forth)), asyncio.ensure_future(self._answer(back, writer))]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        except OSError:
            pass  # the server is not there: the client sees its connection closed
        finally:
            for one in writers:
                one.transport.abort()

    async def _ask(self, reader: asyncio.StreamReader, forth: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(CHUNK):
                await self._while(Line.STALLED)
                forth.write(piece)
                await forth.drain()

    async def _answer(self, back: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await back.read(CHUNK):
                await asyncio.sleep(self.delay)
                await self._while(Line.STALLED, Line.HELD)
                if self._line is Line.CUT:
                    if not self.spared:
                        return
                    self.spared -= 1
                if self._line is not Line.MUTE:
                    writer.write(piece)
                    await writer.drain()

    async def _while(self, *lines: Line) -> None:
        while self._line in lines:
            await self._changed.wait()


class SlowFront(Front):
    """A server that takes `delay` seconds for each piece of an answer."""

    def __init__(self, server: Server, delay: float) -> None:
        super().__init__(server, delay=delay)


class TlsFront(Front):
    """TLS before a server, with a certificate for 127.0.0.1 and localhost from an authority made for this run.

    ca_file: the authority's certificate. name: the host that the certificate is for; another than HOST and localhost
    makes one that a client must refuse.
    """

    def __init__(self, server: Server, name: str = "") -> None:
        authority = trustme.CA()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(*([name] if name else [HOST, "localhost"])).configure_cert(context)
        super().__init__(server, context=context)
        self._folder = tempfile.TemporaryDirectory(prefix="gemma-rag-ca-")
        self.ca_file = Path(self._folder.name) / "ca.pem"
        authority.cert_pem.write_to_path(str(self.ca_file))

    @property
    def url(self) -> str:
        """`rediss://` without the authority, so a client that checks refuses it."""
        return f"rediss://{HOST}:{self.port}/0"

    @property
    def trusted_url(self) -> str:
        """`rediss://` that names the authority's file in redis-py's way."""
        return f"{self.url}?ssl_ca_certs={self.ca_file}"

    def __exit__(self, *args: object) -> None:
        super().__exit__(*args)
        self._folder.cleanup()
