"""English text -> sentences, clauses and words that can be compared, with persons as roles. Pure functions over closed
tables.

Only what differs between two people who say the same is evened out: who "I" and "you" are, the "s" of a verb, short
forms, figures for numbers up to twelve, letters' case, and phrases that lead up to it ("you mentioned that"). Tense,
negation, articles, prepositions and order stay.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

HUMAN: Final = "@human"
"""The role of who is spoken with, and whose words an assistant says again. All roles begin with this sign, and no word
does."""


class Roles(NamedTuple):
    """What "I", "you", "the user" and a name stand for in a text. Equal roles in two texts are the same person."""

    first: str
    second: str
    user: str
    name: str | None = None
    """Folded; stands for `user`."""


LITERAL: Final = Roles("@i", "@you", "@user")
"""Everybody for himself."""

ONE_PERSON: Final = Roles(HUMAN, HUMAN, HUMAN)
"""For a text that speaks of one person only."""


@dataclass(frozen=True, slots=True)
class Clause:
    """The words up to the first preposition of place, time or company, and a phrase for each of those."""

    head: tuple[str, ...]
    phrases: tuple[tuple[str, ...], ...]

    @property
    def words(self) -> tuple[str, ...]:
        return sum(self.phrases, self.head)


@dataclass(frozen=True, slots=True)
class Sentence:
    clauses: tuple[Clause, ...]
    asks: bool

    @property
    def words(self) -> list[str]:
        return [word for clause in self.clauses for word in clause.words]


# Tables. Words are folded, and short forms taken apart, before they are looked up.

_SPELT: Final = {
    **dict.fromkeys("am is are 'm 're".split(), "be"),
    "were": "was",
    **dict.fromkeys("has 've".split(), "have"),
    **dict.fromkeys("does".split(), "do"),
    "'ll": "will",
    "&": "and",
    **{
        word: str(n)
        for n, word in enumerate("one two three four five six seven eight nine ten eleven twelve".split(), 1)
    },
}
_NEGATED: Final = {"ca": "can", "wo": "will", "sha": "shall"}
_SHORT_IS: Final = frozenset("he she it that there who what here".split())
"""Words after which "'s" is a verb."""

_FIRST: Final = {"i": "", "me": "", "my": "'s", "mine": "'s", "myself": "self"}
_PLURAL: Final = {"we": "", "us": "", "our": "'s", "ours": "'s", "ourselves": "self"}
_SECOND: Final = {"you": "", "your": "'s", "yours": "'s", "yourself": "self"}
_THIRD: Final = {
    "he": {"he": "", "him": "", "his": "'s", "himself": "self"},
    "she": {"she": "", "her": "'s", "hers": "'s", "herself": "self"},
    "they": {"they": "", "them": "", "their": "'s", "theirs": "'s", "themselves": "self"},
}
ELSEWHERE: Final = frozenset(
    "he she they him her them his hers their theirs himself herself themselves it its itself this that these those "
    "there here who which former latter other others another same such ones".split()
)
"""What they stand for is said elsewhere."""

_PREPOSITIONS: Final = frozenset("in on at near with for from during".split())
_BREAKS: Final = frozenset((",", ";", "(", ")", "–", "—", "and"))
_SILENT: Final = frozenset("'`*_[].!?…。！？¿¡-")
_QUOTES: Final = frozenset('"“”„«»')
_ENDS: Final = " \"'.!?…”)]*。！？"
_PICTURES: Final = frozenset(("So", "Sk", "Mn", "Cf"))
"""Categories of characters that emoji are made of."""

_ABBREVIATIONS: Final = frozenset("mr mrs ms dr st prof vs no e.g i.e etc approx jr sr".split())

_SAYS: Final = r"(?:said|mentioned|told me|stated|shared|explained|wrote|noted)"
_ONCE: Final = r"(?:(?:just|also|already|previously|earlier|before|once|have|had)\s+)*"
_SINCE: Final = r"(?:\s+(?:earlier|before|previously))?"
_AGREED: Final = (
    r"(?:(?:yes|yeah|yep|ok|okay|right|sure|oh|ah|well|so|indeed|noted|great|got it|of course|i see|understood|exactly)"
    r"(?:\s*[,.!:–—-]+\s*|$))*"
)
_OPENINGS: Final = {
    False: rf"(?:(?:as|like)\s+)?(?P<who>you|the user|user)\s+{_ONCE}{_SAYS}{_SINCE}"
    r"|i\s+(?:remember|recall|know|understand)"
    r"|(?:from|based on)\s+(?:what\s+you\s+(?:said|told me|mentioned)|our\s+(?:earlier|previous|last)\s+conversation)"
    r"|according\s+to\s+(?:you|the\s+user|my\s+notes|my\s+memory)",
    True: rf"(?P<who>)(?:as|like)\s+i\s+(?:said|mentioned|told you){_SINCE}",
}
_OPENING: Final = {
    own: re.compile(rf"{_AGREED}(?:(?:{opening})\b[\s,:]*(?:that\b\s*)?)?", re.IGNORECASE)
    for own, opening in _OPENINGS.items()
}
"""What may stand before something that is said again; by whether by the one who had said it."""

_CLOSING: Final = re.compile(
    rf"[\s,–—-](?:as|like)\s+(?:you\s+{_ONCE}{_SAYS}|i\s+said){_SINCE}$",
    re.IGNORECASE,
)
_SENTENCE_END: Final = re.compile(r"(?<=[.!?…])[\"'”)\]]*\s+|(?<=[。！？])|\n+")
_TOKEN: Final = re.compile(r"\d+(?:[.,:/-]\d+)*|'(?:m|re|ve|ll|d|s)\b|[^\W\d_]+(?:'[^\W\d_]+)*|\S")
_MINUS: Final = re.compile(r"(?:^|[^\w])-\d")
_SHORT: Final = re.compile(r"(.+?)(n't|'(?:m|re|ve|ll|d))$")
_APOSTROPHES: Final = str.maketrans({"\u2019": "'", "\u02bc": "'", "\u2018": "'"})


def has_pictures(text: str) -> bool:
    """Whether there are emoji in it."""
    return not text.isascii() and any(unicodedata.category(char) == "So" for char in text)


def sentences(text: str, roles: Roles, *, pictures: bool = True, again: bool | None = None) -> list[Sentence]:
    """The sentences that have words. `pictures`: emoji are words. `again`: leave out what leads up to something that is
    said again, by the one who had said it (True: "as I said") or by another (False: "you said that")."""
    found = []
    for sentence in _split(unicodedata.normalize("NFKC", text).translate(_APOSTROPHES)):
        bare, of_user = sentence.rstrip(_ENDS), False
        if again is not None:
            opening = _OPENING[again].match(bare)
            of_user = opening is not None and (opening["who"] or "").casefold().endswith("user")
            bare = _CLOSING.sub("", bare[opening.end() :] if opening else bare)
        words = [word for word in _words(bare) if pictures or unicodedata.category(word[0]) not in _PICTURES]
        clauses = tuple(_clauses(_with_roles(words, roles, of_user)))
        if clauses:
            found.append(Sentence(clauses, sentence.rstrip(" \"'”)]*").endswith(("?", "？"))))
    return found


def is_subject(word: str) -> bool:
    """Whether it is a person, and not what is the person's."""
    return word.startswith("@") and not word.endswith("'s")


def persons(text: str) -> int:
    """How many of "I", "we", "you" and "the user" a text speaks of."""
    words = {word for sentence in sentences(text, LITERAL, again=False) for word in sentence.words}
    return len({word.removesuffix("'s").removesuffix("self") for word in words if word.startswith("@")})


def probes(text: str) -> list[str]:
    """Beginnings of words that stand, folded, in every text that says all of this one: a quick test before another."""
    ways = [{word for part in sentences(text, LITERAL, again=again) for word in part.words} for again in (False, True)]
    kept = ways[0] & ways[1] - ELSEWHERE - set(_SPELT.values())
    return [word[:-2] for word in kept if len(word) > 4 and word.isascii() and word.isalpha()]


def _split(text: str) -> Iterator[str]:
    """Not after "Dr." and the like."""
    begun = ""
    for part in _SENTENCE_END.split(text):
        begun = f"{begun} {part}" if begun else part
        last = begun.rstrip(".").split()[-1:] if begun.endswith(".") else []
        if last and (last[0].casefold() in _ABBREVIATIONS or (len(last[0]) == 1 and last[0].isalpha())):
            continue
        if begun.strip():
            yield begun.strip()
        begun = ""
    if begun.strip():
        yield begun.strip()


def _words(sentence: str) -> Iterator[str]:
    """Folded, contractions taken apart, figures for numbers up to twelve."""
    before = ""
    for found in _TOKEN.finditer(sentence):
        word, folded = found[0], found[0].casefold()
        counted, before = before[:1].isdigit(), word
        if word in _SILENT:
            if word == "-" and _MINUS.match(sentence, max(found.start() - 1, 0)):
                yield "minus"
            continue
        if match := _SHORT.match(folded):
            stem, ending = match.groups()
            folded, more = (_NEGATED.get(stem, stem), "not") if ending == "n't" else (stem, ending)
            yield _SPELT.get(folded, folded)
            yield _SPELT.get(more, more)
        elif folded.endswith("'s") and folded[:-2] in _SHORT_IS:
            yield from (folded[:-2], "be")
        elif folded == "cannot":
            yield from ("can", "not")
        elif folded == "am" and counted:
            yield "o'clock"
        elif folded in _QUOTES:
            yield '"'
        else:
            yield _SPELT.get(folded, folded)


def _with_roles(words: Sequence[str], roles: Roles, of_user: bool) -> list[str]:
    """Persons as roles; the verb after one without its "s". `of_user`: "the user said that" stood before, so that "he"
    is the user where the text begins with it, and so is "his" then. "Their" is the user's after "the user"."""
    family = next((table for table in _THIRD.values() if words and words[0] in table), {}) if of_user else {}
    if list(words[:2]) == ["the", "user"]:
        family = _THIRD["they"]
    found: list[str] = []
    for at, word in enumerate(words):
        owner, owned = (word[:-2], "'s") if word.endswith("'s") else (word, "")
        if word in _FIRST:
            role = roles.first + _FIRST[word]
        elif word in _PLURAL:
            role = ("" if roles.first == HUMAN else "@we of ") + roles.first + _PLURAL[word]
        elif word in _SECOND:
            role = roles.second + _SECOND[word]
        elif owner == "user" or (roles.name is not None and owner == roles.name):
            role = roles.user + owned
            if owner == "user" and found[-1:] == ["the"]:
                found.pop()
        elif word in family and (at == 0 or family[word] == "'s"):
            role = roles.user + family[word]
        else:
            role = _without_s(word) if _is_verb(found, roles) else word
        found.append(role)
    return found


def _is_verb(before: Sequence[str], roles: Roles) -> bool:
    """Whether a word stands where the verb of a person's does: after the person, or after "and" where a sentence began
    with one and persons change ("the user lives here and works there")."""
    if not before:
        return False
    return is_subject(before[-1]) or (before[-1] == "and" and roles is not LITERAL and is_subject(before[0]))


def _without_s(word: str) -> str:
    """A verb as it is after "I"."""
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("ches", "shes", "xes", "sses", "oes")) else word[:-1]


def _clauses(words: Sequence[str]) -> Iterator[Clause]:
    clause: list[list[str]] = [[]]
    for before, word in pairwise(["", *words, ","]):
        if word in _BREAKS or (word == "but" and before == ","):
            if any(clause):
                yield Clause(tuple(clause[0]), tuple(map(tuple, clause[1:])))
            clause = [[]]
        elif word in _PREPOSITIONS:
            clause.append([word])
        else:
            clause[-1].append(word)
