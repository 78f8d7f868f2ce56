"""Lights the lamp."""

import math
from typing import final

DUSK = 18


# The lamp itself.
@final
class Lamp:
    """It has def in its docstring:
def not_a_function(): pass
    """

    def light(self) -> float:
        return math.pi


async def watch() -> None:
    await Lamp().light()


if __name__ == "__main__":
    watch()
