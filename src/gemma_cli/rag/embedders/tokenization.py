"""From texts to tokens, windows and batches."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from gemma_cli.rag.embedders.weights import TOKENIZER, ModelFiles
from gemma_cli.rag.errors import InvalidInputError, InvalidTypeError, ModelDamagedError
from gemma_cli.rag.settings_schema import BATCH_TOKENS


def check_texts(texts: object) -> list[str]:
    """The texts as a list of strings that a tokenizer can read. Raises InvalidTypeError and InvalidInputError."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise InvalidTypeError(f"texts: expected a list of strings, got {type(texts).__name__}")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidTypeError(f"texts: item {position} is {type(text).__name__}, not a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInputError(
                f"texts: item {position} holds half of a surrogate pair at character {error.start}"
            ) from error
    return list(texts)


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
        self.window = files.max_tokens - len(self._before) - len(self._after)

    def ids(self, texts: list[str]) -> list[list[int]]:
        """The tokens of each text, without special ones."""
        return [row.ids for row in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

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
