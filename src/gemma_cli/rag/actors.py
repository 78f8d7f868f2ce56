"""Who said something, and whom a question is about."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.words import tokens, word_terms

NOBODY: Final = 0
"""The number of a memory without an actor, and of a question that names nobody, or several."""

FIRST_PERSON_SHARE: Final = 0.5
"""What "I" counts beside a name: who speaks of himself may ask for what he was told as well as for what he said."""

USER: Final = "user"
"""The actor that "I" and "my" in a question stand for: the role of the human in every chat format."""

FIRST_PERSON: Final = frozenset("i i'm i've i'd i'll me my mine myself".split())


@dataclass(frozen=True, slots=True)
class KnownTerms:
    """Of a question's terms, those that are words of the names of `actors` with a living memory, and those that are
    `frequent`: held by many of the memories."""

    actors: frozenset[int] = frozenset()
    frequent: frozenset[int] = frozenset()


def first_person(query: str) -> bool:
    """Whether a question speaks of the one who asks."""
    return not FIRST_PERSON.isdisjoint(tokens(query))


def meant(named: Mapping[int, set[int]]) -> set[int]:
    """Of the bearers of a question's terms (`Actors.named`), those of whom it says most: "Ann Lee" is neither "Ann" nor
    "Lee Park"."""
    said: dict[int, set[int]] = {}
    for term, bearers in named.items():
        for actor in bearers:
            said.setdefault(actor, set()).add(term)
    kinds = {frozenset(own) for own in said.values()}
    fullest = {kind for kind in kinds if not any(kind < other for other in kinds)}
    return {actor for actor, own in said.items() if frozenset(own) in fullest}


class Actors:
    """The actors of one namespace, numbered from 1 in the order in which they appear."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._by_term: dict[int, set[int]] = {}

    def numbers(self, names: Iterable[str | None]) -> NDArray[np.int32]:
        """The number of each name; `NOBODY` for None."""
        return np.array([NOBODY if name is None else self._number(name) for name in names], np.int32)

    def _number(self, name: str) -> int:
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = len(self._numbers) + 1
            for term in word_terms(name):
                self._by_term.setdefault(term, set()).add(number)
        return number

    def __len__(self) -> int:
        return len(self._numbers)

    def keep(self, living: Collection[int]) -> NDArray[np.int32]:
        """Forgets all others and numbers these anew: what was n is the n-th of what is returned."""
        kept = [(number, name) for name, number in self._numbers.items() if number in living]
        numbers = np.zeros(len(self._numbers) + 1, np.int32)
        self._numbers.clear()
        self._by_term.clear()
        for number, name in kept:
            numbers[number] = self._number(name)
        return numbers

    def named(self, terms: NDArray[np.uint64], living: Collection[int]) -> dict[int, set[int]]:
        """Those of a question's terms that are words of actors' names, and whose; only `living` actors count, those of
        whom there is a memory."""
        found = {}
        for term in terms.tolist():
            bearers = {number for number in self._by_term.get(term, ()) if number in living}
            if bearers:
                found[term] = bearers
        return found

    def user(self, living: Collection[int]) -> set[int]:
        """The actors whom "I" stands for."""
        return {number for name, number in self._numbers.items() if name.casefold() == USER and number in living}
