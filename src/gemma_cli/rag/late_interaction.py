"""Late interaction: the tokens of a question against those of a memory, by signs.

    max_sim = sum over the question's tokens t of weight_t * max over the memory's tokens j of SCALE * q_t . s_j

q_t has length 1; so has s_j, the signs (1 or -1) of the memory's token over sqrt(dimension); the weights add up to 1.
The form is that of ColBERT (Khattab & Zaharia, 2020), with a binary code on one side only. Here signs rank as well as
float32 does, at a thirty-second of the size: 48 bytes a token. Pure functions over arrays.
"""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numkong
import numpy as np
from numpy.typing import NDArray

from gemma_cli.rag.embedders.base import Passage, TokenVectors
from gemma_cli.rag.quantize import quantize
from gemma_cli.rag.words import STOP_WORDS, tokens, word_terms

CONTEXT: Final = 3
"""Memories before one in its session whose words its tokens are encoded with. On the development half of LoCoMo, codes
with context find three points more in the top 10, codes without it none; more than three memories add nothing."""

SCALE: Final = 1.3
"""Gives products with signs the spread that cosines have: |x| of a standard normal x is .8 in the mean."""

PUNCTUATION: Final = 0
STOP_WORD: Final = 1
"""Terms of tokens that are part of no word, and of words that the index leaves out."""

PUNCTUATION_WEIGHT: Final = 0.5
STOP_WORD_WEIGHT: Final = 1.5
"""Beside inverse document frequencies, which go from 0.5 to ln(2N). Left out, both lose recall: their vectors stand for
the whole question."""

FEWEST_CHARACTERS: Final = 1.5
"""Characters a token from which tokens are more than letters. MiniLM has 1.0 for Chinese and Japanese, where its tokens
cost eight points of nDCG, and about 4 for English; a multilingual model has more than 1.5 for these scripts too."""

TOKENS: Final = 64
MEMORIES: Final = 256
"""Tokens of a question and memories compared at a time, so that neither a question of a thousand words nor a recall of
thousands needs much memory: 256 memories of 64 tokens are 6 MB of bits and 4 MB of products."""

# Accents and vowel signs that stand alone belong to the word before them, but not to \w.
_MARKS: Final = "".join(chr(c) for c in range(0x300, 0x2000) if unicodedata.category(chr(c)) in ("Mn", "Mc"))
_WORD: Final = re.compile(rf"(?:[^\W_]|[{_MARKS}])+(?:['\u2019\uff07](?:[^\W_]|[{_MARKS}])+)*")


@dataclass(frozen=True, slots=True, eq=False)
class QueryTokens:
    """A question's tokens: int8 codes [n, dimension] with a scale each, and the term of the word that each is part of
    (or `PUNCTUATION`, `STOP_WORD`), by which they are weighted."""

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    terms: NDArray[np.uint64]


def query_tokens(text: str, found: TokenVectors) -> QueryTokens | None:
    """A question's tokens; None where the model reads it letter by letter, so that they tell less than the whole."""
    if sum(end - start for start, end in found.spans) < FEWEST_CHARACTERS * len(found.spans):
        return None
    quantised = quantize(found.vectors)
    words = [(match.start(), match.end(), _term(match.group())) for match in _WORD.finditer(text)]
    firsts = [first for first, _, _ in words]
    terms = []
    for start, _ in found.spans:
        place = bisect_right(firsts, start) - 1
        within = place >= 0 and start < words[place][1]
        terms.append(words[place][2] if within else PUNCTUATION)
    return QueryTokens(quantised.codes, quantised.scales, np.array(terms, np.uint64))


def _term(word: str) -> int:
    found = tokens(word)
    return STOP_WORD if not found or found[0] in STOP_WORDS else word_terms(word)[0]


def passage(content: str, actor: str | None, before: Sequence[tuple[str | None, str]]) -> Passage:
    """A memory as it is encoded: who said it, and who said what before it (oldest first), are context."""
    said = [f"{name}: {text}" if name else text for name, text in before]
    return Passage(content, (*said, *([f"{actor}:"] if actor else [])))


def encode_signs(content: str, found: TokenVectors) -> bytes:
    """The signs of a memory's tokens, packed, one token after the other; those without a letter or digit left out."""
    telling = [any(map(str.isalnum, content[start:end])) for start, end in found.spans]
    return np.packbits(found.vectors[telling] > 0, axis=1).tobytes()


def token_weights(terms: NDArray[np.uint64], rarity: dict[int, float]) -> NDArray[np.float32]:
    """The weights of a question's tokens, 1 in all: how rare its word is (`rarity` by term, inverse document
    frequencies), shared out among the tokens of nothing else."""
    fixed = {PUNCTUATION: PUNCTUATION_WEIGHT, STOP_WORD: STOP_WORD_WEIGHT}
    weights = np.array([fixed.get(term) or rarity[term] for term in terms.tolist()], np.float32)
    return np.asarray(weights / weights.sum(), np.float32)


def max_sims(query: QueryTokens, weights: NDArray[np.float32], codes: Sequence[bytes]) -> NDArray[np.float32]:
    """`max_sim` for each memory, float32 [len(codes)]; NaN for one without a token."""
    parts = [_max_sims(query, weights, codes[first : first + MEMORIES]) for first in range(0, len(codes), MEMORIES)]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def _max_sims(query: QueryTokens, weights: NDArray[np.float32], codes: Sequence[bytes]) -> NDArray[np.float32]:
    dimension = query.codes.shape[1]
    width = (dimension + 7) // 8
    sizes = np.fromiter(map(len, codes), np.int64, len(codes)) // width
    result = np.full(len(codes), np.nan, np.float32)
    if not len(query.codes) or not sizes.any():
        return result
    packed = np.frombuffer(b"".join(codes), np.uint8).reshape(-1, width)
    bits = np.unpackbits(packed, axis=1, count=dimension).view(np.int8)
    filled = np.flatnonzero(sizes)
    starts = (np.cumsum(sizes) - sizes)[filled]
    result[filled] = 0.0
    for first in range(0, len(query.codes), TOKENS):
        part = slice(first, first + TOKENS)
        asked = query.codes[part]
        products = np.asarray(numkong.dots_packed(bits, numkong.dots_pack(asked)))
        nearest = np.maximum.reduceat(products, starts, axis=0)
        # q . sign = 2 q . bit - sum(q), whose scale and weight are positive: the maximum may be taken before them.
        sums = asked.sum(axis=1, dtype=np.int32)
        result[filled] += (2 * nearest - sums) @ (weights[part] * query.scales[part] * SCALE / np.sqrt(dimension))
    return result
