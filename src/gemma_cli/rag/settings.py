"""What the user may set: `config.toml` and the environment, read once and checked into frozen values.

Where a value comes from, the first one that has it: an argument in code, the variable `GEMMA_RAG_<SECTION>__<KEY>`
(and `GEMMA_RAG_URL`, short for `GEMMA_RAG_STORE__URL`), the file given with `--config`, `./config/config.toml`,
`config.toml` in the user's configuration directory, the default. Files are merged key by key.
"""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from platformdirs import user_config_path, user_data_path

from gemma_cli.rag.errors import SettingsError
from gemma_cli.rag.settings_schema import (
    EmbeddingSettings,
    Key,
    MemorySettings,
    MonitoringSettings,
    RedisSettings,
    Section,
    StoreSettings,
    masked_url,
)

__all__ = [
    "EmbeddingSettings",
    "MemorySettings",
    "MonitoringSettings",
    "RedisSettings",
    "Settings",
    "StoreSettings",
    "default_store_path",
    "load_settings",
    "masked_url",
    "user_config_file",
]

APP_NAME: Final = "gemma-rag"
LOCAL_CONFIG: Final = Path("config", "config.toml")
ENV_PREFIX: Final = "GEMMA_RAG_"
URL_VARIABLE: Final = ENV_PREFIX + "URL"


def default_store_path() -> Path:
    """The SQLite file that is used where no store is configured; nothing is created."""
    return user_data_path(APP_NAME, appauthor=False) / "memory.db"


def user_config_file() -> Path:
    """`config.toml` in the user's configuration directory, whether it exists or not."""
    return user_config_path(APP_NAME, appauthor=False) / "config.toml"


@dataclass(frozen=True)
class Settings:
    """All sections. `origins` says where each value is from: `"memory.cleanup_interval"` -> `"default"`,
    `"file config/config.toml"` or `"environment GEMMA_RAG_MEMORY__CLEANUP_INTERVAL"`; "code" where it is missing."""

    store: StoreSettings = field(default_factory=StoreSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)
    embedding: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    redis: RedisSettings = field(default_factory=RedisSettings)
    monitoring: MonitoringSettings = field(default_factory=MonitoringSettings)
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def store_url(self) -> str:
        """The URL of the configured store, "redis" resolved; empty: the SQLite file at `default_store_path()`. It may
        hold a password: show `masked_url` of it."""
        return self.redis.redis_url() if self.store.url == "redis" else self.store.url

    def to_toml(self, *, origins: bool = False) -> str:
        """The values as a commented file that `load_settings` reads; with `origins`, each value's source beside it.
        A secret that is set is left out: a comment stands in its place."""
        lines = ["# Settings of gemma-rag; every key is optional."]
        for section in (getattr(self, name) for name in _SECTIONS):
            lines += ["", f"[{section.NAME}]"]
            for f, (name, value, hidden) in zip(fields(section), section.shown(), strict=True):
                line = f"# {name} is set, and not shown" if hidden else f"{name} = {_toml(value)}"
                origin = self.origins.get(f"{section.NAME}.{name}", "code")
                lines += [f"# {f.metadata['key'].doc}", line + (f"  # {_one_line(origin)}" if origins else "")]
        return "\n".join(lines) + "\n"


def _toml(value: bool | int | float | str) -> str:
    if isinstance(value, str):  # TOML's basic strings are JSON's, but for DEL, which must be escaped
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.0f}" if float(value).is_integer() else repr(value)


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


@dataclass(frozen=True, slots=True)
class _Known:
    """A key with its name, "section.key", and the type of its value."""

    name: str
    kind: type
    key: Key


_SECTIONS: Final[Mapping[str, type[Section]]] = {
    section.NAME: section
    for section in (StoreSettings, MemorySettings, EmbeddingSettings, RedisSettings, MonitoringSettings)
}
_KEYS: Final[Mapping[str, _Known]] = {
    name: _Known(name, type(f.default), f.metadata["key"])
    for section in _SECTIONS.values()
    for f in fields(section)
    for name in [f"{section.NAME}.{f.name}"]
}
_VARIABLES: Final[Mapping[str, _Known]] = {
    ENV_PREFIX + name.replace(".", "__").upper(): known for name, known in _KEYS.items()
} | {URL_VARIABLE: _KEYS["store.url"]}
_FLAGS: Final = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)
_FROM_TEXT: Final[Mapping[type, tuple[Callable[[str], Any], str]]] = {
    bool: (lambda text: _FLAGS[text.strip().lower()], "true or false"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    str: (str, "text"),
}


def load_settings(
    *, config: Path | None = None, environ: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Settings:
    """The settings that hold now.

    config: a file that must exist, before the ones that are looked for.
    environ: variables to read instead of the process's own.
    cwd: directory in which `config/config.toml` is looked for; default: the current one.

    Raises SettingsError, naming the file or variable and the key, for whatever is unknown, of the wrong type or out
    of range, in every source, even where a later one overrides it.
    """
    values: dict[str, Any] = {}
    origins = dict.fromkeys(_KEYS, "default")
    local = (cwd or Path()) / LOCAL_CONFIG
    for path in (user_config_file(), local, *([] if config is None else [Path(config)])):
        named = config is not None and path == Path(config)
        read = _from_file(path, required=named, found=path == local and not named)
        values |= read
        origins |= dict.fromkeys(read, f"file {path}")
    for variable, name, value in _from_environment(os.environ if environ is None else environ):
        values[name] = value
        origins[name] = f"environment {variable}"
    sections: dict[str, Any] = {}
    for section, made in _SECTIONS.items():
        mine = {name.partition(".")[2]: value for name, value in values.items() if name.startswith(f"{section}.")}
        try:
            sections[section] = made(**mine)
        except SettingsError as error:  # each value is fine, but not beside the others
            sources = sorted({origins[f"{section}.{key}"] for key in mine})
            raise SettingsError(f"{error} (set in: {', '.join(sources)})") from error
    return Settings(**sections, origins=MappingProxyType(origins))


def _from_file(path: Path, *, required: bool, found: bool) -> dict[str, Any]:
    """The checked value of each "section.key" in the file; none if it is not there and need not be. A file that was
    only `found` and has none of our sections is another program's: the name config/config.toml is not ours alone."""
    try:
        tables = tomllib.loads(path.read_bytes().decode("utf-8-sig"))  # Windows' editors begin files with a mark
    except (FileNotFoundError, NotADirectoryError) as error:
        if required:
            raise SettingsError(f"{path}: there is no such configuration file") from error
        return {}
    except OSError as error:
        raise SettingsError(f"{path}: can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not TOML, or not even UTF-8
        raise SettingsError(f"{path}: is not TOML: {error}") from error
    if found and not tables.keys() & _SECTIONS.keys():
        return {}
    values = {}
    for section, table in tables.items():
        if section not in _SECTIONS:
            raise SettingsError(f"{path}: [{section}]: there is no such section{_hint(section, _SECTIONS)}")
        if not isinstance(table, dict):
            raise SettingsError(f"{path}: {section}: is a section, write [{section}] and its keys below it")
        for key, value in table.items():
            name = f"{section}.{key}"
            known = _KEYS.get(name)
            if known is None:
                raise SettingsError(f"{path}: {name}: there is no such key{_hint(name, _KEYS)}")
            values[name] = known.key.checked(f"{path}: {name}", value, known.kind)
    return values


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, str, Any]]:
    """Variable, "section.key" and checked value; GEMMA_RAG_URL last, so that it wins. Variables that begin with the
    prefix but with no section's name are other parts' business."""
    for variable in sorted(environ, key=lambda name: (name == URL_VARIABLE, name)):
        known = _VARIABLES.get(variable)
        if known is not None:
            where = f"{variable} ({known.name})"
            convert, expected = _FROM_TEXT[known.kind]
            try:
                value = convert(environ[variable])
            except (KeyError, ValueError) as error:
                raise SettingsError(f"{where}: expected {expected}, got {environ[variable]!r}") from error
            yield variable, known.name, known.key.checked(where, value, known.kind)
        elif variable.startswith(ENV_PREFIX):
            rest = variable.removeprefix(ENV_PREFIX)
            if "__" in rest or rest.lower().startswith(tuple(f"{section}_" for section in _SECTIONS)):
                raise SettingsError(f"{variable}: there is no such variable{_hint(variable, _VARIABLES, ENV_PREFIX)}")


def _last(name: str) -> str:
    """The key in "section.key" or GEMMA_RAG_SECTION__KEY."""
    return re.split(r"\.|__", name)[-1]


def _hint(wrong: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of an error's message: the nearest known name, or all there are where none is near. The same key in
    another section is nearer than a similar name; `prefix`, common to all names, is left out of the comparison."""
    wrong, names = wrong.removeprefix(prefix), [name.removeprefix(prefix) for name in known]
    if near := [name for name in names if _last(name) == _last(wrong)] + difflib.get_close_matches(wrong, names, n=1):
        return f"; did you mean {prefix}{near[0]}?"
    if prefix:
        return f"; write {prefix}<SECTION>__<KEY>"
    section = wrong.partition(".")[0]
    return "; there are " + ", ".join([name for name in names if name.startswith(f"{section}.")] or names)
