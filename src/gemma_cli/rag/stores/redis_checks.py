"""What a Redis server must be, asked when it is opened. The questions are few and allowed to almost any user."""

import hashlib
from collections.abc import Sequence
from typing import Any, Final

from gemma_cli.rag.errors import InvalidInputError, StoreUnavailableError, StoreVersionError
from gemma_cli.rag.stores.redis_errors import Again, again, explained
from gemma_cli.rag.stores.redis_node import fields
from gemma_cli.rag.stores.redis_url import Kind, Target

OLDEST: Final = (6, 2)
"""The store's scripts and commands are tried from this version on."""

_NOTHING: Final = b"return 1"

CHECKS: Final[Sequence[Sequence[bytes | str | int]]] = (
    ("HELLO",),  # needs no permission
    ("EVAL", _NOTHING, 0),
    ("EVALSHA", hashlib.sha1(_NOTHING, usedforsecurity=False).hexdigest(), 0),
    ("INFO",),  # CONFIG GET is forbidden in most hosted services
)


def checked(replies: Sequence[Any], target: Target, where: str) -> dict[str, str]:
    """The facts, from the answers to CHECKS. where: the server that gave them.

    Raises `StoreVersionError`, `InvalidInputError` (the URL's scheme is for another kind of server),
    `StoreUnavailableError` (a replica, or no permission for scripts)."""
    greeting, *scripts, info = replies
    told = _info(info)
    hello = fields(greeting) if isinstance(greeting, list) else {}
    version = hello.get("version") or told.get("redis_version", "")
    if isinstance(greeting, Exception) and again(greeting) is Again.NEVER and "unknown command" not in str(greeting):
        raise explained(greeting, where, "HELLO")
    if not hello or _numbers(version) < OLDEST:
        found = version or "one before 6.0, which does not know HELLO"
        raise StoreVersionError(
            f"Redis server {where} is of version {found}; the store needs {'.'.join(map(str, OLDEST))} or newer"
        )
    _check_mode(hello.get("mode", ""), target, where)
    if target.kind is not Kind.CLUSTER and hello.get("role", "master") != "master":
        raise StoreUnavailableError(
            f"Redis server {where} is a read-only replica; give the address of its master, or redis+sentinel://"
        )
    for reply in scripts:
        if isinstance(reply, Exception) and again(reply) is not Again.RELOADED:
            raise explained(reply, where, "scripts") from None
    return {
        "server": hello.get("server", "redis"),
        "version": version,
        "mode": target.kind.value,
        "policy": told.get("maxmemory_policy", ""),
        "address": str(target),
    }


def _check_mode(mode: str, target: Target, where: str) -> None:
    wanted = "cluster" if target.kind is Kind.CLUSTER else "standalone"
    if mode and mode != wanted:
        fits = {
            "cluster": "a node of a cluster; write redis+cluster://",
            "sentinel": "a Sentinel; write redis+sentinel://",
        }
        plain = "a single server; write redis://"
        raise InvalidInputError(f"url: {where} is {fits.get(mode, plain)} instead (rediss… for TLS)")


def _info(reply: Any) -> dict[str, str]:
    """The fields of INFO; none if it may not be asked."""
    if not isinstance(reply, bytes):
        return {}
    lines = reply.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isascii() and part.isdigit())
