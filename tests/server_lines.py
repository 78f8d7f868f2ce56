"""A line to a server: enough of RESP 2 to set servers up without the client that is under test."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, Final

HOST: Final = "127.0.0.1"
PATIENCE: Final = 60.0
"""Seconds that any of the waits here may take before it counts as failed."""


class ServerError(Exception):
    """A server answered with an error, did not start or did not come to the state that was waited for."""


def wait_until(what: str, holds: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Returns once `holds()` is true; an answer that is an error or none at all counts as not yet."""
    end = time.monotonic() + seconds
    last: Exception | None = None
    while time.monotonic() < end:
        try:
            if holds():
                return
        except (OSError, ServerError) as error:
            last = error
        time.sleep(0.01)
    raise ServerError(f"waited {seconds:g} s in vain: {what}") from last


def encoded(words: Sequence[str | bytes | int]) -> bytes:
    parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def read_reply(file: BinaryIO) -> Any:
    """bytes, int, None or a list of these; an error is raised, but within a list it is a ServerError in its place."""
    line = file.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionResetError("the server closed the connection")
    kind, rest = line[:1], line[1:-2]
    match kind:
        case b"+":
            return rest
        case b":":
            return int(rest)
        case b"-":
            raise ServerError(rest.decode())
        case b"$":
            return None if rest == b"-1" else file.read(int(rest) + 2)[:-2]
        case b"*":
            return [_element(file) for _ in range(int(rest))]
        case _:
            raise ServerError(f"not RESP 2: {line!r}")


def _element(file: BinaryIO) -> Any:
    try:
        return read_reply(file)
    except ServerError as error:
        return error


@contextlib.contextmanager
def line_to(port: int, seconds: float = PATIENCE / 2) -> Iterator[Callable[..., Any]]:
    """`ask(*words)` on one connection. Raises OSError (TimeoutError if nothing comes in time)."""
    with socket.create_connection((HOST, port), seconds) as link, link.makefile("rb") as file:

        def ask(*words: str | bytes | int) -> Any:
            link.sendall(encoded(words))
            return read_reply(file)

        yield ask
