"""Which files a client may have read: those below the directories that the user named."""

from collections.abc import Sequence
from pathlib import Path

from gemma_cli.edge.failures import NOT_ALLOWED, Refusal


def allowed(path: str, roots: Sequence[Path]) -> Path:
    """The file that `path` names, links followed, below one of `roots` (resolved directories); a relative path begins
    at the first root that has it. Raises `Refusal` for anything else, and for hidden files, whether or not they are
    there."""
    if not roots:
        raise Refusal(NOT_ALLOWED, "path: no directory is open to ingestion; start the server with --root DIRECTORY")
    if "\0" in path:
        raise Refusal(NOT_ALLOWED, "path: holds a zero character")
    try:
        if (found := _found(path, roots)) is not None:
            return found
    except (OSError, RuntimeError):  # a name too long, links in a circle, the home of nobody
        pass
    raise Refusal(
        NOT_ALLOWED,
        f"path: {path!r} is hidden or not below {', '.join(map(str, roots))}; the server's --root opens others",
    )


def _found(path: str, roots: Sequence[Path]) -> Path | None:
    given = Path(path).expanduser() if path.startswith("~") else Path(path)
    places = [given.resolve()] if given.is_absolute() else [(root / given).resolve() for root in roots]
    inside = [place for place in places if any(_visible_below(place, root) for root in roots)]
    return next((place for place in inside if place.exists()), inside[0] if inside else None)


def _visible_below(place: Path, root: Path) -> bool:
    return place.is_relative_to(root) and not any(part.startswith(".") for part in place.relative_to(root).parts)
