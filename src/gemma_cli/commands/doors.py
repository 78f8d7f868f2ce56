"""What `serve` and `mcp` share: options, and how a server begins."""

import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

LOOPBACK: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8765
TOLD: Final = ("gemma_cli.edge", "gemma_cli.server", "gemma_cli.mcp_server", "gemma_cli.rag.stores")
"""The loggers whose warnings a server shows: it answers clients, and nobody else would tell who started it."""

Roots = Annotated[
    list[Path] | None,
    typer.Option("--root", help="Directory whose documents agents may ingest; may be given more than once."),
]
AllowedHosts = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-host",
        metavar="NAME",
        help="Another name that clients know the server by, without a port; may be given more than once.",
    ),
]


def directories(roots: list[Path] | None) -> list[Path]:
    for root in roots or ():
        if not root.is_dir():
            raise typer.BadParameter(f"{root} is no directory", param_hint="--root")
    return [root.resolve() for root in roots or ()]


def prepare() -> None:
    """What makes the start shorter, and keeps the SDK's log off the terminal."""
    gc.disable()  # until the server stands: nothing that is imported is garbage
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # else it looks through every installed package
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s: %(name)s: %(message)s")


@contextmanager
def needing(extra: str, what: str) -> Iterator[None]:
    """Around imports: `MissingExtraError` where a library of the extra is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("gemma_cli"):
            raise
        from gemma_cli.rag import MissingExtraError

        raise MissingExtraError(
            f'{what} needs {error.name}; install it with: pip install "gemma-rag[{extra}]"'
        ) from error


def show_warnings() -> None:
    """A command shows errors alone; a server says as well that its store or its model is not to be had."""
    for logger in map(logging.getLogger, TOLD):
        if logger.getEffectiveLevel() > logging.WARNING:
            logger.setLevel(logging.WARNING)


def check_token(token: str | None, *, local: bool, shortest: int) -> None:
    if token is None and not local:
        raise typer.BadParameter("any address but loopback needs a token", param_hint="--host")
    if token is not None and (len(token) < shortest or not token.isascii() or not token.isprintable()):
        raise typer.BadParameter(f"needs at least {shortest} printable ASCII characters", param_hint="--token")
