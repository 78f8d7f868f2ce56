"""What a Redis server's refusals mean: one table from the code word of an error to an error of ours, and to what may
be done at once.

The texts are our own. A server's text may hold the user's name, arguments or what a memory says, so of it nothing is
shown but well-known words, the line of a script and the command that a user may not give.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from gemma_cli.rag.errors import StoreBusyError, StoreError, StoreFullError, StoreUnavailableError


class Again(Enum):
    """What is worth doing after a refusal. All but NEVER stand for commands that have surely not run."""

    NEVER = "never"
    SOON = "soon"
    """The same place, a little later."""
    ELSEWHERE = "elsewhere"
    """A little later, and the place may be another."""
    RELOADED = "reloaded"
    """At once, with the text of the script."""
    MOVED = "moved"
    ASK = "ask"


@dataclass(frozen=True, slots=True)
class Meaning:
    """what: said after the server's address."""

    error: type[StoreError]
    what: str
    again: Again = Again.NEVER


_DOWN: Final = StoreUnavailableError
_MEANINGS: Final[Mapping[str, Meaning]] = {
    "MOVED": Meaning(_DOWN, "names another node for these keys, again and again; is the cluster whole?", Again.MOVED),
    "ASK": Meaning(_DOWN, "sends on to another node, again and again; is the cluster whole?", Again.ASK),
    "TRYAGAIN": Meaning(_DOWN, "is moving these keys to another node; try again", Again.SOON),
    "NONLOCAL": Meaning(_DOWN, "is moving these keys to another node; try again", Again.ELSEWHERE),
    "CLUSTERDOWN": Meaning(
        _DOWN, "says that the cluster is down: no node serves these keys; see CLUSTER INFO", Again.ELSEWHERE
    ),
    "MASTERDOWN": Meaning(_DOWN, "is a replica that has lost its master", Again.ELSEWHERE),
    "READONLY": Meaning(
        _DOWN, "is a read-only replica; give the address of the master, or redis+sentinel://", Again.ELSEWHERE
    ),
    "NOSCRIPT": Meaning(StoreError, "loses scripts as soon as they are loaded", Again.RELOADED),
    "LOADING": Meaning(StoreBusyError, "is still loading its data; try again when it is done", Again.SOON),
    "BUSY": Meaning(StoreBusyError, "is busy with another client's script; wait, or end it: SCRIPT KILL", Again.SOON),
    "OOM": Meaning(StoreFullError, "has reached its maxmemory and takes no more; raise it or forget something"),
    "NOREPLICAS": Meaning(_DOWN, "has fewer replicas than its min-replicas-to-write asks for, and takes no writes"),
    "MISCONF": Meaning(_DOWN, "can't save to its disk and takes no writes (MISCONF); see its log"),
    "NOAUTH": Meaning(_DOWN, "wants a password, and the URL has none"),
    "WRONGPASS": Meaning(_DOWN, "does not accept the user or the password of the URL"),
    "NOPERM": Meaning(_DOWN, "does not let the URL's user do this"),
    "MAXCLIENTS": Meaning(StoreBusyError, "has as many clients as its maxclients allows", Again.SOON),
    "WRONGTYPE": Meaning(StoreError, "holds a value of another kind under a key of this store; who wrote it?"),
    "DB": Meaning(_DOWN, "has no database of that number; see its `databases`"),
}

_BY_CLASS: Final[Mapping[str, str]] = {
    "MovedError": "MOVED",
    "AskError": "ASK",
    "TryAgainError": "TRYAGAIN",
    "ClusterDownError": "CLUSTERDOWN",
    "MasterDownError": "MASTERDOWN",
    "ReadOnlyError": "READONLY",
    "NoScriptError": "NOSCRIPT",
    "BusyLoadingError": "LOADING",
    "OutOfMemoryError": "OOM",
    "NoPermissionError": "NOPERM",
    "AuthenticationError": "WRONGPASS",
    "AuthenticationWrongNumberOfArgsError": "WRONGPASS",
}
"""redis-py takes the code word of these out of the text. By name, so that redis-py need not be there."""

_IN_TEXT: Final = (
    (re.compile(r"Authentication required|HELLO must be called"), "NOAUTH"),
    (re.compile(r"max number of clients"), "MAXCLIENTS"),
    (re.compile(r"DB index|invalid DB|Invalid Database"), "DB"),
    (re.compile(r"non[- ]local key"), "NONLOCAL"),
    (re.compile(r"ACL failure in script|The user executing the script can't"), "NOPERM"),
    (re.compile(r"\A-?([A-Z]+)\b"), ""),
    (re.compile(r"-(OOM|READONLY|NOREPLICAS|MISCONF|NOPERM|CLUSTERDOWN|TRYAGAIN|MASTERDOWN|WRONGTYPE)\b"), ""),
)
"""Where the class says nothing. The last: servers before 7 put the code of a command within a script into the text."""

_SAFE: Final = (
    "unknown command",
    "wrong number of arguments",
    "Error compiling script",
    "Script attempted to access",
    "bad argument",
    "attempt to index",
    "attempt to call",
    "attempt to concatenate",
    "attempt to compare",
    "attempt to perform arithmetic",
    "too many results to unpack",
    "value is not an integer",
    "value is not a valid float",
    "syntax error",
    "Error running script",
)
_LINE: Final = re.compile(r"user_script:(\d+)")
_COMMAND: Final = re.compile(r"the '([a-z|]+)' command")


def code_of(error: Exception) -> str:
    """The code word of a server's error; empty: none that the table knows."""
    text = str(error)
    code = _BY_CLASS.get(type(error).__name__, "")
    if code and code != "WRONGPASS":
        return code
    for pattern, name in _IN_TEXT:
        if (match := pattern.search(text)) and (name or match[1]) in _MEANINGS:
            return name or match[1]
    return code


def again(error: Exception) -> Again:
    """What may be done after this error of a server."""
    meaning = _MEANINGS.get(code_of(error))
    return meaning.again if meaning is not None else Again.NEVER


def explained(error: Exception, where: str, doing: str = "") -> StoreError:
    """Our error for a server's. where: its address; doing: what was asked of it, e.g. "script 'put'"."""
    code = code_of(error)
    prefix = f"Redis server {where}"
    if code == "NOPERM":
        return _DOWN(f"{prefix} {_MEANINGS[code].what}: {_missing(str(error))}; see ACL SETUSER")
    if code:
        return _MEANINGS[code].error(f"{prefix} {_MEANINGS[code].what}")
    return StoreError(f"{prefix} refused {doing or 'a command'}: {_known_words(str(error))}")


def _known_words(text: str) -> str:
    words = next((words for words in _SAFE if words in text), "an error that is not shown, because it may hold data")
    line = _LINE.search(text)
    return f"{words} (line {line[1]})" if line else words


def _missing(text: str) -> str:
    if match := _COMMAND.search(text):
        return f"the command {match[1].upper()} is missing (+{match[1]})"
    if "channel" in text:
        return "a channel is missing"
    if "key" in text:
        return "the store's keys are missing (~gemma-rag:*)"
    return "a command that a script needs is missing (+@read +@write +@scripting +@connection)"


class Lost(Exception):
    """A connection broke or could not be made. It never leaves the connection layer: `reason` does.

    final: trying again would bring the same. refused: nothing listens there, or there is no such place."""

    def __init__(self, reason: StoreError, *, final: bool = False, refused: bool = False) -> None:
        super().__init__(str(reason))
        self.reason = reason
        self.final = final
        self.refused = refused
