"""Places for memories. `create_store` finds the one that a URL names; what a store must do is in `stores.base`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from gemma_cli.rag.errors import InvalidInputError
from gemma_cli.rag.settings import Settings, default_store_path, masked_url
from gemma_cli.rag.settings_schema import REDIS_SCHEMES
from gemma_cli.rag.stores.base import Store


def create_store(url: str, namespace: str, settings: Settings) -> Store:
    """The store behind a URL, not yet open; an empty URL is the SQLite file in the user's data directory.

    Raises `InvalidInputError` for a URL that no store answers to."""
    url = url or f"sqlite:///{default_store_path()}"
    scheme, separator, _ = url.partition("://")
    maker = _STORES.get(scheme) if separator else None
    if maker is None:
        known = ", ".join(f"{name}://" for name in _STORES)
        raise InvalidInputError(f"url: there is no store for {masked_url(url)!r}; use one of {known}")
    return maker(url, namespace, settings)


def sqlite_path(url: str) -> Path | None:
    """The file that a URL stands for; None where it stands for no file. Raises `InvalidInputError` where the file has
    no name."""
    if not url.startswith("sqlite://"):
        return None
    # sqlite:///relative.db, sqlite:////absolute.db and sqlite:///C:/… as in SQLAlchemy; ~ is the home directory.
    rest = url.removeprefix("sqlite://")
    name = rest.removeprefix("/")
    if not rest.startswith("/") or not name or "\0" in name:
        raise InvalidInputError(f"url: {url!r} names no file; write sqlite:///path/to/memory.db")
    return Path(name).expanduser().absolute()


def _sqlite(url: str, namespace: str, settings: Settings) -> Store:
    from gemma_cli.rag.stores.sqlite import SqliteStore
    from gemma_cli.rag.stores.sqlite_schema import Durability

    return SqliteStore(sqlite_path(url), namespace, Durability(settings.store.durability))


def _memory(url: str, namespace: str, settings: Settings) -> Store:
    from gemma_cli.rag.stores.sqlite import SqliteStore

    if url != "memory://":
        raise InvalidInputError(f"url: a store in memory has no name; write memory:// instead of {url!r}")
    return SqliteStore(None, namespace)


def _redis(url: str, namespace: str, settings: Settings) -> Store:
    from gemma_cli.rag.stores.redis import RedisStore

    return RedisStore(url, masked_url(url), namespace, settings.redis)


_STORES: Final[Mapping[str, Callable[[str, str, Settings], Store]]] = MappingProxyType(
    {"sqlite": _sqlite, "memory": _memory} | dict.fromkeys(REDIS_SCHEMES, _redis)
)
