"""From texts to tokens, windows and batches."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from gemma_cli.rag.embedders.base import Passage
from gemma_cli.rag.embedders.weights import TOKENIZER, ModelFiles
from gemma_cli.rag.errors import InvalidInputError, InvalidTypeError, ModelDamagedError
from gemma_cli.rag.settings_schema import BATCH_TOKENS


def check_texts(texts: object, name: str = "texts") -> list[str]:
    """The texts as a list of strings that a tokenizer can read. Raises InvalidTypeError and InvalidInputError, which
    name the argument."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise InvalidTypeError(f"{name}: expected a list of strings, got {type(texts).__name__}")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidTypeError(f"{name}: item {position} is {type(text).__name__}, not a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInputError(
                f"{name}: item {position} holds half of a surrogate pair at character {error.start}"
            ) from error
    return list(texts)


def check_passages(passages: object) -> list[Passage]:
    """The passages as a list, each with texts that a tokenizer can read. Raises as `check_texts` does."""
    if not isinstance(passages, Sequence) or isinstance(passages, str):
        raise InvalidTypeError(f"passages: expected a list of Passage, got {type(passages).__name__}")
    for position, passage in enumerate(passages):
        if not isinstance(passage, Passage):
            raise InvalidTypeError(f"passages: item {position} is {type(passage).__name__}, not a Passage")
        check_texts(passage.context, f"passages[{position}].context")
    check_texts([passage.text for passage in passages], "passages.text")
    return list(passages)


class TextTokenizer:
    """A model's own tokenizer, without the truncation and the padding that its file switches on.

    max_tokens: tokens that one pass of the model may hold, special ones counted.
    """

    def __init__(self, files: ModelFiles) -> None:
        from tokenizers import Tokenizer

        path = files.directory / TOKENIZER
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for whatever is wrong with the file
            raise ModelDamagedError(f"{path}: can't be read as a tokenizer: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        framed = self._tokenizer.encode("a")
        content = framed.special_tokens_mask.index(0)
        self._before = framed.ids[:content]
        self._after = [
            token
            for token, special in zip(framed.ids[content:], framed.special_tokens_mask[content:], strict=True)
            if special
        ]
        self.lead = len(self._before)  # special tokens before a window's content
        self.specials = len(self._before) + len(self._after)
        self.window = files.max_tokens - self.specials

    def ids(self, texts: list[str]) -> list[list[int]]:
        """The tokens of each text, without special ones."""
        return [row.ids for row in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def with_spans(self, texts: list[str]) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
        """The tokens of each text, without special ones; and start and end of each, in characters."""
        rows = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [row.ids for row in rows], [row.offsets for row in rows]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Start and end, in characters, of each token of the whole text."""
        offsets: list[tuple[int, int]] = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return offsets

    def framed(self, content: list[int]) -> list[int]:
        """One window's tokens with the special ones around them."""
        return [*self._before, *content, *self._after]


def cut(tokens: list[int], window: int) -> list[list[int]]:
    """The tokens in as few pieces of at most `window` as it takes, of nearly equal length, so that none is a stub."""
    count = max(1, -(-len(tokens) // window))
    edges = [len(tokens) * i // count for i in range(count + 1)]
    return [tokens[start:end] for start, end in pairwise(edges)]


def batches(lengths: Sequence[int], limit: int = BATCH_TOKENS) -> Iterator[list[int]]:
    """The positions of `lengths`, shortest first, in groups whose size times longest member stays within `limit`."""
    group: list[int] = []
    for position in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and (len(group) + 1) * lengths[position] > limit:
            yield group
            group = []
        group.append(position)
    if group:
        yield group
