"""Where MCP clients keep their servers, and how an entry gets in there. Paths and the names of keys are those of the
clients' own documentation."""

import difflib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gemma_cli.rag import InvalidInputError
from gemma_cli.rag.replacing import replaced_file

BACKUP_SUFFIX: Final = ".before-gemma-rag"


def _application_data() -> Path:
    """Where desktop applications keep a user's settings."""
    if sys.platform == "darwin":
        return Path.home() / "Library/Application Support"
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA") or Path.home() / "AppData/Roaming")
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")


@dataclass(frozen=True, slots=True)
class Client:
    """`file` is its configuration, `key` the member that holds the servers, `extra` what an entry has beside command
    and arguments."""

    file: Callable[[], Path]
    key: str = "mcpServers"
    extra: Mapping[str, str] | None = None


CLIENTS: Final[dict[str, Client]] = {
    "claude": Client(lambda: _application_data() / "Claude/claude_desktop_config.json"),
    "claude-code": Client(lambda: Path.cwd() / ".mcp.json", extra={"type": "stdio"}),
    "cursor": Client(lambda: Path.home() / ".cursor/mcp.json"),
    "gemini": Client(lambda: Path.home() / ".gemini/settings.json"),
    "vscode": Client(lambda: _application_data() / "Code/User/mcp.json", "servers", {"type": "stdio"}),
    "windsurf": Client(lambda: Path.home() / ".codeium/windsurf/mcp_config.json"),
}
"""`claude` is Claude Desktop; `claude-code` is asked for the project in the current directory."""


@dataclass(frozen=True, slots=True)
class Change:
    """A client's configuration file as it is and as it would be; `before` is None where there is none."""

    path: Path
    before: str | None
    after: str

    @property
    def needed(self) -> bool:
        before = (self.before or "").strip()
        return not before or json.loads(before) != json.loads(self.after)

    def shown(self) -> str:
        """As a unified diff."""
        old = (self.before or "").splitlines(keepends=True)
        new = self.after.splitlines(keepends=True)
        names = ("/dev/null" if self.before is None else str(self.path), str(self.path))
        return "".join(line if line.endswith("\n") else f"{line}\n" for line in difflib.unified_diff(old, new, *names))

    def write(self) -> Path | None:
        """Replaces the file in one step and returns where the one before it is kept; None if there was none. Raises
        OSError."""
        target = self.path.resolve()  # a link stays one
        target.parent.mkdir(parents=True, exist_ok=True)
        kept = None
        if self.before is not None:
            kept = _unused(target)
            shutil.copy2(target, kept)
        with replaced_file(target, keep_mode=True) as file:
            file.write(self.after.encode())
        return kept


def change(client: Client, name: str, arguments: list[str], path: Path | None = None) -> Change:
    """What has to change so that the client starts this Python's `gemma-rag` with these arguments under this name.
    Everything else stays. Raises `InvalidInputError` for a file that is not a JSON object: JSON with comments is left
    to its owner."""
    path = client.file() if path is None else path
    try:
        before = path.read_text("utf-8-sig")
    except FileNotFoundError:
        before = None
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is not text in UTF-8, and is left as it is ({error})") from error
    entry = {**(client.extra or {}), "command": sys.executable, "args": ["-m", "gemma_cli", *arguments]}
    whole = _object(path, before, f"{client.key}.{name}", entry)
    servers = whole.setdefault(client.key, {})
    if not isinstance(servers, dict):
        raise InvalidInputError(f"{path}: {client.key} is not an object; mend it, then run this again")
    servers[name] = entry
    return Change(path, before, json.dumps(whole, ensure_ascii=False, indent=_indent(before)) + "\n")


def _object(path: Path, text: str | None, place: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    if text is None or not text.strip():
        return {}
    try:
        whole = json.loads(text)
    except ValueError as error:
        raise InvalidInputError(
            f"{path} is no plain JSON ({error}), and is left as it is. Add this as {place} yourself: "
            f"{json.dumps(entry)}"
        ) from error
    if not isinstance(whole, dict):
        raise InvalidInputError(f"{path} holds no JSON object; is it the right file?")
    return whole


def _indent(text: str | None) -> str | int:
    """The indentation that the file has."""
    found = re.search(r"^([ \t]+)\S", text or "", re.MULTILINE)
    return found.group(1) if found else 2


def _unused(path: Path) -> Path:
    """A name for the backup that no earlier backup has."""
    number = 1
    kept = path.with_name(path.name + BACKUP_SUFFIX)
    while kept.exists():
        number += 1
        kept = path.with_name(f"{path.name}{BACKUP_SUFFIX}-{number}")
    return kept
