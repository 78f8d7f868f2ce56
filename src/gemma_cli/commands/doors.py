"""What `serve` and `mcp` share: options, and how a server begins."""

import gc
import os
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

LOOPBACK: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8765

Roots = Annotated[
    list[Path] | None,
    typer.Option("--root", help="Directory whose documents agents may ingest; may be given more than once."),
]


def directories(roots: list[Path] | None) -> list[Path]:
    for root in roots or ():
        if not root.is_dir():
            raise typer.BadParameter(f"{root} is no directory", param_hint="--root")
    return [root.resolve() for root in roots or ()]


def prepare() -> None:
    """What makes the start shorter, and keeps the SDK's log off the terminal."""
    import logging

    gc.disable()  # until the server stands: nothing that is imported is garbage
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # else it looks through every installed package
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s: %(name)s: %(message)s")


def check_token(token: str | None, *, local: bool, shortest: int) -> None:
    if token is None and not local:
        raise typer.BadParameter("any address but loopback needs a token", param_hint="--host")
    if token is not None and (len(token) < shortest or not token.isascii() or not token.isprintable()):
        raise typer.BadParameter(f"needs at least {shortest} printable ASCII characters", param_hint="--token")
