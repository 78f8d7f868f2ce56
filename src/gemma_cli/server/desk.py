"""What the endpoints of one server have in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gemma_cli.edge.opening import Opening
from gemma_cli.server.access import Access
from gemma_cli.server.readiness import Readiness
from gemma_cli.server.undo import Undo


@dataclass(frozen=True, slots=True)
class Desk:
    """roots: resolved directories that documents may be ingested from."""

    opening: Opening
    roots: Sequence[Path]
    access: Access
    undo: Undo
    readiness: Readiness
