"""Whether a text says nothing but what a memory says already. Pure functions over closed tables.

Missing a restatement stores a fact twice; a false alarm loses what somebody said. So a text must come through all of
this:

- Each of its clauses is one of the memory's, and clauses of one sentence follow each other there too. What the memory
  has besides may be other clauses and sentences, and of "in Berlin with Mia" either part.
- Within a clause all words are the same, in the same order: names, numbers, negation, tense and prepositions with them.
  Only persons change as they do from one speaker to another ("I live" for "you live" and "the user lives"), and phrases
  such as "you mentioned that" fall off.
- Nothing around the clause takes it back: the rest of its sentence has no "if", "not", "maybe", "said" and the like. A
  question is no statement.
- It does not hang on what stands elsewhere: "she" and "that" without a subject before, and "today", "again" or "Friday"
  on another day, may mean something else.
- What happened may happen again. Only an assistant that says what somebody else said needs no date for it.

English; in other languages, the same sentences word for word.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import pairwise, product
from typing import Final, NamedTuple

from gemma_cli.rag.actors import USER
from gemma_cli.rag.statements import (
    ELSEWHERE,
    HUMAN,
    LITERAL,
    ONE_PERSON,
    Clause,
    Roles,
    Sentence,
    has_pictures,
    is_subject,
    persons,
    sentences,
)
from gemma_cli.rag.words import tokens

ASSISTANTS: Final = frozenset("assistant ai agent bot chatbot gemma model".split())
"""Actors that speak for no person: the roles of chat formats and their synonyms."""

FEWEST_WORDS: Final = 3
"""Shorter texts ("Good night!", "I agree.") say what they say by when they are said."""

MOST_CHARS: Final = 4_000
"""A longer text is not looked at: it is a document, not a remark."""


class Said(NamedTuple):
    """A text, who said it (None: not known) and when it holds."""

    text: str
    actor: str | None
    when: datetime


_OWNERS: Final = frozenset("his her their its".split())
_SUSPENDS: Final = frozenset(
    "not no never nobody noone none nothing neither nor cannot without except unless if whether or maybe perhaps "
    "probably possibly hopefully ideally apparently reportedly may might can could would should must will shall "
    "hardly barely rarely seldom almost nearly only until till instead unlike than used 'd think thought believe "
    "believed guess hope hoped wish wished want wanted plan planned try tried pretend pretended dream dreamt "
    "dreamed imagine imagined doubt suppose seem seemed claim claimed say said says tell told ask asked stopped "
    "quit refused failed denied joke joking kidding lie lied wrong false supposedly allegedly rumour rumor gonna "
    'anymore longer previously formerly wrote writes shouted answered replied texted according : "'.split()
)
"""Words that leave open, or deny, whether what stands beside them is so."""

_OPEN: Final = _SUSPENDS - {"not", "no", "never", "nobody", "nothing"}
"""Those after which nothing is said to be so or not to be so."""

_DEICTIC: Final = frozenset(
    "today tonight yesterday tomorrow now currently nowadays ago recently lately soon just again later earlier "
    "before already yet still last next pm noon midnight o'clock morning afternoon evening week month weekend "
    "monday tuesday wednesday thursday friday saturday sunday".split()
)
"""What they mean depends on the day they are said."""

_MONTHS: Final = frozenset(
    "january february march april may june july august september october november december jan feb mar apr jun jul "
    "aug sep sept oct nov dec".split()
)
_LASTING: Final = frozenset(
    "live lives work works own owns prefer prefers love loves like likes hate hates dislike dislikes speak speaks "
    "study studies belong belongs name named favourite favorite birthday allergic vegetarian vegan married born "
    "nickname surname address".split()
)
"""Words of what stays so: saying it again is no news."""
_NOT_LASTING: Final = frozenset("to feel feels look looks sound sounds seem seems".split())
"""Before one of those: "to work", "it looks like"."""

_PAST: Final = frozenset(
    "was did had went came got took made gave saw ran ate drank met left sent paid bought brought taught caught "
    "lost won fell broke felt began sold built spent found kept held heard wrote drove flew slept woke rode sang "
    "swam threw wore chose froze spoke stole grew knew drew blew shook stood understood sat became hid bit beat hit "
    "cut hurt quit finished done gone been seen taken given eaten".split()
)
_ARTICLES: Final = frozenset(("a", "an"))


class _Reading(NamedTuple):
    """One way to read two texts beside each other."""

    new: Roles
    old: Roles
    one_person: bool = False
    """Only where each of the texts speaks of one person."""


class _Relation(NamedTuple):
    readings: tuple[_Reading, ...]
    proof: str
    """What must show that nothing has happened anew: a key of `_PROOFS`."""


_SAME: Final = _Reading(LITERAL, LITERAL)
_NOTES: Final = (_SAME, _Reading(ONE_PERSON, ONE_PERSON, one_person=True))
_HEARD: Final = Roles(HUMAN, "@their you", HUMAN)
_RETOLD: Final = Roles("@new i", HUMAN, HUMAN)
_BY_AGENT: Final = Roles("@agent", HUMAN, HUMAN)


def _relation(new: str | None, old: str | None) -> _Relation | None:
    """How the actor of a text may say again what that of a memory said; None: it would be a statement of its own."""
    new, old = _folded(new), _folded(old)
    said_by_agent, kept_from_agent = new in ASSISTANTS, old in ASSISTANTS
    if new == old:
        return _Relation(_NOTES, "note") if new is None else _Relation((_SAME,), "own")
    if old is None:
        if said_by_agent:
            return _Relation((_Reading(_BY_AGENT, _HEARD),), "note")
        return _Relation(_NOTES, "own") if new == USER else None
    if kept_from_agent:
        return _Relation((_Reading(_RETOLD, _BY_AGENT),), "note") if new is None else None
    heard = Roles(HUMAN, "@agent" if old == USER else "@their you", HUMAN, old)
    if said_by_agent:
        return _Relation((_Reading(_BY_AGENT._replace(name=old), heard),), "retold")
    return (
        _Relation((_Reading(_RETOLD._replace(name=old), heard), _Reading(heard, heard)), "note")
        if new is None
        else None
    )


def _folded(actor: str | None) -> str | None:
    return None if actor is None else actor.strip().casefold()


def restates(new: Said, old: Said) -> bool:
    """Whether `new` brings nothing that `old` does not say already (see the module)."""
    relation = _relation(new.actor, old.actor)
    if relation is None or max(len(new.text), len(old.text)) > MOST_CHARS:
        return False
    pictures, own, proves = has_pictures(new.text), relation.proof == "own", _PROOFS[relation.proof]
    noted = _folded(old.actor) in (None, *ASSISTANTS)
    for reading, again in product(relation.readings, (None, own)):
        said = sentences(new.text, reading.new, pictures=pictures, again=again)
        if not said or not _stands_alone(said, new.when, old.when) or not all(map(proves, said)):
            continue
        if reading.one_person and max(persons(new.text), persons(old.text)) > 1:
            continue
        if _all_there(said, sentences(old.text, reading.old, pictures=pictures, again=again if noted else None)):
            return True
    return False


def _all_there(said: Sequence[Sentence], kept: Sequence[Sentence]) -> bool:
    """Whether each sentence is, in order, a part of one."""
    rest = iter(kept)
    return all(any(_part_of(sentence, other) for other in rest) for sentence in said)


def _part_of(said: Sentence, kept: Sentence) -> bool:
    if said.asks != kept.asks:
        return False
    many = len(said.clauses)
    return any(
        all(map(_covered, said.clauses, run))
        and not _SUSPENDS.intersection((Counter(kept.words) - Counter(said.words)).elements())
        for run in (kept.clauses[start : start + many] for start in range(len(kept.clauses) - many + 1))
    )


def _covered(said: Clause, kept: Clause) -> bool:
    """The same head, and no phrase that the other has not. The first phrase often belongs to the verb or to "is"; it
    may be left out only where the head has an object. Phrases move only where no two have the same preposition."""
    if said == kept:
        return True
    prepositions = [phrase[0] for phrase in kept.phrases]
    if said.head != kept.head or len(set(prepositions)) < len(prepositions) or not kept.phrases:
        return False
    complete = len(kept.head) > FEWEST_WORDS and "be" not in kept.head
    return set(said.phrases) <= set(kept.phrases) and (complete or kept.phrases[0] in said.phrases)


def _stands_alone(said: Sequence[Sentence], new: datetime, old: datetime) -> bool:
    """Whether a text means the same wherever it stands. "My sister loves her dog" does: it names whose dog it is."""
    words = [word for sentence in said for word in sentence.words]
    deictic = not _DEICTIC.isdisjoint(words) or any(":" in word for word in words)
    many = sum(max(len(tokens(word)), 1) for word in words)  # a sentence in Chinese is one stretch of letters
    if many < FEWEST_WORDS or (deictic and new.date() != old.date()):
        return False
    elsewhere = ELSEWHERE.intersection(words)
    named = not is_subject(words[0]) and words[0] not in ELSEWHERE
    first = ELSEWHERE.intersection(said[0].clauses[0].words)
    return not elsewhere or (named and first <= _OWNERS)


def _dated(words: Sequence[str]) -> bool:
    """A year, or a month beside a day."""
    return any(len(word) == 4 and word.isdigit() and "1900" <= word <= "2100" for word in words) or any(
        bool(_MONTHS.intersection(pair)) and any(word.isdigit() for word in pair) for pair in pairwise(words)
    )


def _lasts(sentence: Sentence) -> bool:
    words = sentence.words
    if _dated(words):
        return True
    lasting = any(
        (word in _LASTING and before not in _NOT_LASTING) or (before == "be" and word in _ARTICLES)
        for before, word in pairwise(["", *words])
    )
    return lasting and _OPEN.isdisjoint(words) and "bit" not in words


def _no_event(sentence: Sentence) -> bool:
    words = sentence.words
    doing = any(pair[0] == "be" and pair[1].endswith("ing") for pair in pairwise(words))
    happened = doing or not _PAST.isdisjoint(words) or any(word.endswith("ed") and len(word) > 4 for word in words)
    return not happened or _lasts(sentence)


_PROOFS: Final[Mapping[str, Callable[[Sentence], bool]]] = {
    "retold": lambda _: True,
    "note": _no_event,
    "own": _lasts,
}
"""An assistant was not there when it happened. A note without a speaker may be of a new event. What somebody says
himself may be that, or that he is hungry again."""
