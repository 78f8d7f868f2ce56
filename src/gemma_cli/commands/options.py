"""Options that several commands share."""

from datetime import datetime
from typing import Annotated, Final

import typer

TIERS: Final = ("working", "short_term", "episodic", "long_term", "semantic")


def complete_tier(incomplete: str) -> list[str]:
    return [tier for tier in TIERS if tier.startswith(incomplete)]


def known_tier(value: str | None) -> str | None:
    """Checked here, so that the message names what the user typed and not the library's argument."""
    if value is not None and value not in TIERS:
        raise typer.BadParameter(f"{value!r} is no tier; use one of {', '.join(TIERS)}")
    return value


def known_time(value: str | None) -> str | None:
    """Likewise."""
    if value is not None:
        try:
            datetime.fromisoformat(value)
        except ValueError:
            raise typer.BadParameter(
                f"{value!r} is no time; write at least the day, as in 2024-05-07 or 2024-05-07T18:30:00Z"
            ) from None
    return value


Tier = Annotated[
    str | None,
    typer.Option("--tier", "-t", help=f"One of {', '.join(TIERS)}.", autocompletion=complete_tier, callback=known_tier),
]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="May be given more than once.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[int, typer.Option("--limit", "-n", help="How many at most.")]
MinImportance = Annotated[float, typer.Option("--min-importance", help="From 0 to 1.")]
Actor = Annotated[str | None, typer.Option("--actor", help="Who said it.")]
Session = Annotated[str | None, typer.Option("--session", help="Which conversation or document.")]
