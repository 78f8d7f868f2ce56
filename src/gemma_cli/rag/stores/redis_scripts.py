"""The Lua scripts by which a Redis server does each step of the store at once, one file each in `lua/`."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

_FOLDER: Final = Path(__file__).parent / "lua"


@dataclass(frozen=True)
class Script:
    """`lua/<name>.lua` with what it needs before it. planning: it changes memories."""

    name: str
    planning: bool = True

    @cached_property
    def text(self) -> bytes:
        needed = ("common", "plan", "order", "carrying_out") if self.planning else ("common",)
        return b"".join((_FOLDER / f"{part}.lua").read_bytes() + b"\n" for part in (*needed, self.name))

    @cached_property
    def sha(self) -> str:
        """The name that the server gives it."""
        return hashlib.sha1(self.text, usedforsecurity=False).hexdigest()


ADOPT: Final = Script("adopt")
CACHE: Final = Script("cache")
COUNTS: Final = Script("counts")
DELETE: Final = Script("delete")
DESERVING: Final = Script("deserving")
LINK: Final = Script("link")
LINKS: Final = Script("links", planning=False)
MOVE: Final = Script("move")
OPEN: Final = Script("open")
PROMOTE: Final = Script("promote")
PUT: Final = Script("put")
READ: Final = Script("read", planning=False)
REEMBED: Final = Script("reembed")
SWEEP: Final = Script("sweep")
TOKENS: Final = Script("tokens")
TOUCH: Final = Script("touch")
UPDATE: Final = Script("update")
VERIFY: Final = Script("verify")
