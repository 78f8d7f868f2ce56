"""What arguments may hold, in every door. Bounds that need no backend are here; the rest is the backend's to check."""

from typing import Annotated, Final

from pydantic import BeforeValidator, Field

SOME_TEXT: Final = r"\S"

Content = Annotated[str, Field(min_length=1, max_length=100_000, pattern=SOME_TEXT)]
Id = Annotated[str, Field(min_length=1, max_length=512, pattern=SOME_TEXT)]
After = Annotated[str, Field(min_length=1, max_length=600, pattern=SOME_TEXT, description="`next` of the page before.")]
Label = Annotated[str, Field(min_length=1, max_length=512, pattern=SOME_TEXT)]
Labels = Annotated[list[Label], Field(max_length=50)]
Query = Annotated[str, Field(min_length=1, max_length=4_000, pattern=SOME_TEXT)]
Share = Annotated[float, Field(ge=0, le=1)]
When = Annotated[str, Field(min_length=1, max_length=64, description="ISO 8601; UTC unless it says otherwise.")]


def _whole(value: object) -> object:
    """JSON has one kind of number: 5.0 is the whole number 5."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE: Final = BeforeValidator(_whole)
Budget = Annotated[int, Field(ge=1, le=100_000, description="Answer with one text of at most so many tokens."), WHOLE]
RECALL_LIMIT: Final = "At most so many, 5 unless given. With max_tokens: how many the text is chosen from."
