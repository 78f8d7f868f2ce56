"""Text -> terms: what the word half of the index is made of. Pure functions.

A term is 64 bits: the first eight bytes of the BLAKE2b digest of a kind ("word", "tag", "actor", "session") and a
text, so that neither index nor store needs a vocabulary (among a million terms, a collision has a chance of about 3 in
10^8). Words are folded (NFKC, case, accents), English ones stemmed (Snowball); scripts that put no spaces between words
(Chinese, Japanese, Thai, Lao, Khmer, Burmese) are cut into overlapping pairs of characters, and for a memory into
single ones as well, as Lucene's CJK analyser can do.

A memory's terms are stored as packed records of nine bytes (`TERM_DTYPE`): the term and how often it occurs (up to
255); 0 marks a facet (a tag, an actor, a session), which filters and never scores.
"""

import re
import struct
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from typing import Final

import numpy as np
import Stemmer
from numpy.typing import NDArray

WORDS_VERSION: Final = 2
"""Kept in every store; raised whenever a text would give other terms than before, so that old rows are cut anew."""

TERM_DTYPE: Final = np.dtype([("term", "<u8"), ("count", "u1")])
_RECORD: Final = struct.Struct("<QB")

_ASCII_TOKEN: Final = re.compile(r"[a-z0-9]+(?:'[a-z0-9]+)*")
_UNSPACED: Final = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0003ffff"
)
# Vowel signs and other marks belong to the word that they stand in, but not to \w: without them, Hindi falls apart.
_MARKS: Final = "".join(chr(c) for c in range(0x370, 0x2000) if unicodedata.category(chr(c)) in ("Mn", "Mc"))
_LETTER: Final = rf"(?:(?![{_UNSPACED}_])[\w{_MARKS}])"
_TOKEN: Final = re.compile(rf"[{_UNSPACED}]+|{_LETTER}+(?:'{_LETTER}+)*")
_UNSPACED_CHAR: Final = re.compile(rf"[{_UNSPACED}]")
_APOSTROPHES: Final = str.maketrans({"\u2019": "'", "\u02bc": "'", "\uff07": "'"})

STOP_WORDS: Final = frozenset(
    (
        "a about after all also am an and any are as at be been before being but by can could did do does doing done "
        "for from had has have having he her hers him his how i if in into is it its just may me might my of on or our "
        "ours she should so some such than that the their theirs them then there these they this those to too us was "
        "we were what when where which while who whom whose why will with would you your yours "
        "i'm i've i'd i'll don't didn't doesn't isn't wasn't it's that's what's you're we're they're s t d ll m re ve"
    ).split()
)
"""English function words: left out of the index and of queries, except where a text consists of nothing else."""


def tokens(text: str, *, singles: bool = False) -> list[str]:
    """The folded words of a text, in order, unstemmed; with `singles` also each character of a run that is cut into
    pairs, which a memory needs to be found by one character and a query does not."""
    if text.isascii():
        return _ASCII_TOKEN.findall(text.lower())
    # Decomposed twice: a mathematical bold A becomes an A that has a case, and an İ an i with a dot to be dropped.
    plain = unicodedata.normalize("NFKD", text.translate(_APOSTROPHES)).casefold()
    decomposed = unicodedata.normalize("NFKD", plain)
    folded = unicodedata.normalize("NFKC", "".join(c for c in decomposed if not _is_latin_mark(c)))
    found: list[str] = []
    for word in _TOKEN.findall(folded):
        if _UNSPACED_CHAR.match(word) and len(word) > 1:
            found.extend(word[i : i + 2] for i in range(len(word) - 1))
            found.extend(word if singles else "")
        else:
            found.append(word)
    return found


def _is_latin_mark(char: str) -> bool:
    """Combining accents (U+0300 to U+036F); the marks of other scripts change the word and stay."""
    return "\u0300" <= char <= "\u036f"


@lru_cache(maxsize=200_000)
def _word_term(word: str) -> int:
    return _hash("word", _STEMMER.stemWord(word) if word.isascii() else word)


_STEMMER: Final = Stemmer.Stemmer("english")


_QUESTION_MARKS: Final = ("?", "\uff1f", "\u061f", "\u037e")

_SENTENCE_ENDS: Final = (".", "!", ":", *_QUESTION_MARKS)
_POSSESSIVE: Final = re.compile(r"['\u2019]s?(?=\W*$)")

MOST_WORDS: Final = 64
"""A longer question is seldom about whom it names, and takes the model long enough once."""


def facet(kind: str, value: str) -> int:
    """The term of a tag, an actor or a session; never equal to a word's."""
    return _hash(kind, value)


def _hash(kind: str, text: str) -> int:
    return int.from_bytes(blake2b(f"{kind}\0{text}".encode(), digest_size=8).digest(), "little")


ASKS: Final = facet("form", "question")
"""The facet of a memory that ends with a question mark."""

CHUNK: Final = facet("form", "chunk")
"""The facet of a part of a document that was read."""


def word_terms(text: str, *, singles: bool = False) -> list[int]:
    """The terms of a text's words (`tokens`), in order, repeated as they repeat."""
    words = tokens(text, singles=singles)
    telling = [word for word in words if word not in STOP_WORDS]
    return list(map(_word_term, telling or words))


def encode_terms(content: str, facets: Iterable[int] = ()) -> bytes:
    """A memory's terms as packed `TERM_DTYPE` records, words first, then facets (and `ASKS` where it does)."""
    counts = Counter(word_terms(content, singles=True))
    pack = _RECORD.pack
    records = [pack(term, count if count < 256 else 255) for term, count in counts.items()]
    kept = {*facets, ASKS} if _asks(content) else set(facets)
    records += [pack(term, 0) for term in sorted(kept - counts.keys())]
    return b"".join(records)


def query_terms(query: str) -> NDArray[np.uint64]:
    """The distinct terms that a query is looked up by, in the order in which they first occur."""
    return np.array(list(dict.fromkeys(word_terms(query))), np.uint64)


def without(text: str, terms: Collection[int]) -> str:
    """A text less those of its words that have one of the terms; all of it, as it is, where none or all would go."""
    words = text.split() if terms else []
    kept = [word for word in words if not _all_in(word, terms)]
    left = " ".join(kept)
    return left if len(kept) < len(words) and word_terms(left) else text


def _all_in(word: str, terms: Collection[int]) -> bool:
    """A stretch between blanks may be more than a word: a whole sentence in Chinese."""
    found = word_terms(word)
    return bool(found) and all(term in terms for term in found)


def unnamed(question: str, terms: Collection[int] | None = None) -> str:
    """A question less what looks like names in it: "Mia", "Anne-Marie's", not "API" or "DataFrame"; with `terms`, less
    those names alone whose words all have one of them. All of it where
    capitals don't tell (every word has one), where nothing but stop words would be left, and where it has more than
    `MOST_WORDS`. A text that ends with no question mark is given back as it is, so that a memory which is looked for
    by its own words is as near as can be."""
    words = question.split()
    if not _asks(question) or len(words) > MOST_WORDS or not any(word[:1].islower() for word in words[1:]):
        return question

    def goes(word: str) -> bool:
        return _is_name(word) and (terms is None or _all_in(word, terms))

    kept = [word for before, word in pairwise(words) if before.endswith(_SENTENCE_ENDS) or not goes(word)]
    left = " ".join(words[:1] + kept)
    return question if len(kept) == len(words) - 1 or STOP_WORDS.issuperset(tokens(left)) else left


def _asks(text: str) -> bool:
    return text.rstrip().endswith(_QUESTION_MARKS)


def _is_name(word: str) -> bool:
    """Whether each part of it has a capital first and nowhere else."""
    return _POSSESSIVE.sub("", word).istitle() and not STOP_WORDS.issuperset(tokens(word))
