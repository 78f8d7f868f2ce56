"""Text to terms: folding, stemming, scripts without spaces, stop words, facets, and their packed form."""

import sys
import unicodedata
from collections import Counter
from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_cli.rag.words import (
    ASKS,
    STOP_WORDS,
    TERM_DTYPE,
    WORDS_VERSION,
    encode_terms,
    facet,
    query_terms,
    tokens,
    unnamed,
    without,
    word_terms,
)

any_text = st.text(st.characters(), max_size=60)


def found_by(query: str, content: str) -> bool:
    """Whether every term of the query is a term of the content."""
    terms = set(query_terms(query).tolist())
    return bool(terms) and terms <= set(word_terms(content, singles=True))


def counts(packed: bytes) -> dict[int, int]:
    records = np.frombuffer(packed, TERM_DTYPE)
    return dict(zip(records["term"].tolist(), records["count"].tolist(), strict=True))


# Folding and stemming


@pytest.mark.parametrize(
    ("query", "content"),
    [
        ("CAFE", "the café"),
        ("cafe\u0301", "CAFÉ"),
        ("Strasse", "die Straße"),
        ("ISTANBUL", "İstanbul"),
        ("fine", "\ufb01ne"),  # the ligature fi
        ("hello", "ＨＥＬＬＯ"),  # full width
        ("hello", "𝐇𝐞𝐥𝐥𝐨"),  # mathematical bold: has a case only once it is decomposed
        ("naïve", "NAIVE"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),  # final sigma
        ("елка", "Ёлка"),
        ("running", "she runs"),
        ("memories", "one memory"),
        ("don\u2019t panic", "DON'T PANIC"),
        ("rock'n'roll", "Rock\uff07n\u02bcRoll"),
        ("snake case", "snake_case"),
        ("x86 64", "x86-64"),
        ("²", "2"),
        ("हिन्दी", "मैं हिन्दी बोलता हूँ"),
        ("தமிழ்", "தமிழ் மொழி"),
        ("한국", "한국 사람"),
        ("한국", unicodedata.normalize("NFD", "한국")),
        ("über", "u\u0308ber"),
    ],
)
def test_a_word_is_found_however_it_is_written(query: str, content: str) -> None:
    """Case, accents, width, ligatures, inflection and the kind of apostrophe make no difference, either way round."""
    assert found_by(query, content)
    assert set(word_terms(query)) & set(word_terms(content))


@pytest.mark.parametrize(
    ("query", "content"),
    [("hindi", "हिन्दी"), ("हद", "हिन्दी"), ("ह", "हिन्दी"), ("か", "が"), ("cat", "category"), ("café", "caff")],
)
def test_another_word_is_not_found(query: str, content: str) -> None:
    """A part of a word, or one whose vowel signs differ, is another word: marks of other scripts stay."""
    assert not found_by(query, content)


def test_ascii_takes_a_short_way_to_the_same_words() -> None:
    """The quick path for ASCII gives what the full one gives for the same words beside a foreign one."""
    text = "Don't stop: the x86-64's SNAKE_case costs 12,50 -- o'clock's ''quoted'' words"
    assert tokens(f"{text} Ω") == [*tokens(text), "ω"]


@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_ascii_and_full_folding_agree_on_any_ascii(text: str) -> None:
    """Whatever the punctuation, the two paths cut an ASCII text alike."""
    assert tokens(f"{text} Ω") == [*tokens(text), "ω"]


# Scripts without spaces


@pytest.mark.parametrize(
    ("query", "content"),
    [
        ("東京", "私は東京に住んでいます"),
        ("住んで", "私は東京に住んでいます"),
        ("机器学习", "我喜欢机器学习和音乐"),
        ("ﾃﾞｰﾀ", "データ分析"),  # half width
        ("ไทย", "ภาษาไทยสวย"),
        ("မြန်မာ", "မြန်မာစာ"),
        ("ລາວ", "ພາສາລາວ"),
        ("ខ្មែរ", "ភាសាខ្មែរ"),
        ("tower", "東京Tower展望台"),
        ("東京", "Tokyo東京2020"),
        ("𠮷野", "𠮷野家"),
        ("猫", "猫 です"),
        ("猫", "ユーザーは猫が好き"),
    ],
)
def test_words_are_found_in_scripts_without_spaces(query: str, content: str) -> None:
    """Pairs of characters, and single ones, make any stretch findable in a longer one, beside Latin too."""
    assert found_by(query, content)


def test_a_run_of_unspaced_script_becomes_overlapping_pairs() -> None:
    """Pairs as Lucene's CJK analyser makes them; a character that stands alone is a term of its own."""
    assert tokens("机器学习") == ["机器", "器学", "学习"]
    assert tokens("猫 abc 東京") == ["猫", "abc", "東京"]


def test_a_memory_keeps_the_single_characters_too() -> None:
    """A question of one character finds a memory that has it in a longer run; a longer question goes by pairs alone."""
    assert tokens("猫 abc 東京", singles=True) == ["猫", "abc", "東京", "東", "京"]
    assert found_by("京", "東京")
    assert not found_by("京東", "東京")


# Stop words


def test_stop_words_go_where_something_else_is_there() -> None:
    """They are neither indexed nor asked for beside a telling word, capitals or not."""
    assert word_terms("The cat and THE dog, isn't it?") == word_terms("cat dog")


def test_stop_words_stay_where_a_text_has_nothing_else() -> None:
    """ "To be or not to be" keeps what it has, and can be found by any of it."""
    assert len(word_terms("to be or to be")) == 5
    assert found_by("who", "The Who")
    assert not found_by("who", "the who concert")  # beside a telling word it is dropped


def test_every_stop_word_can_be_met() -> None:
    """Each is in the folded form that texts are cut into, so that none stands in the table in vain."""
    assert [word for word in STOP_WORDS if tokens(word) != [word]] == []


# Facets


@given(st.sampled_from(["tag", "actor", "session"]), any_text.map(lambda t: t.encode("utf-8", "replace").decode()))
def test_a_facet_is_never_a_word(kind: str, value: str) -> None:
    """A tag, an actor or a session never equals the term of the same word, nor a facet of another kind."""
    term = facet(kind, value)
    assert term not in word_terms(value)
    assert term not in word_terms(f"{kind} {value}")
    assert len({facet(k, value) for k in ("tag", "actor", "session", "word")}) == 4
    assert 0 <= term < 2**64


def test_facets_are_compared_as_they_are() -> None:
    """Filters are exact: no folding, no stemming, and no value can pass for another kind's."""
    assert facet("tag", "Cats") != facet("tag", "cats")
    assert facet("tag", "café") != facet("tag", "cafe\u0301")
    assert facet("tag", "a\0b") != facet("tag\0a", "b\0")


# The packed form


def test_terms_are_packed_with_their_counts() -> None:
    """Nine bytes a term: words in order of their first occurrence with counts, then facets with 0."""
    tag = facet("tag", "x")
    packed = encode_terms("blue cat, blue dog, blue sky", [tag, tag])
    records = np.frombuffer(packed, TERM_DTYPE)
    assert TERM_DTYPE.itemsize == 9
    blue, cat, dog, sky = word_terms("blue cat dog sky")
    assert records["term"].tolist() == [blue, cat, dog, sky, tag]
    assert records["count"].tolist() == [3, 1, 1, 1, 0]


@given(any_text, st.sets(st.integers(0, 2**64 - 1), max_size=4))
def test_decoding_gives_back_what_was_encoded(text: str, facets: set[int]) -> None:
    """Every distinct term once, its count beside it, and each facet that is no word with 0 (`ASKS` among them)."""
    expected: dict[int, int] = dict(Counter(word_terms(text, singles=True)))
    packed = encode_terms(text, facets)
    facets = facets | ({ASKS} if ASKS in counts(packed) else set())
    assert counts(packed) == expected | {f: 0 for f in facets if f not in expected}
    assert len(packed) == 9 * len(counts(packed))


def test_what_ends_with_a_question_mark_asks() -> None:
    """In any script, and whatever blanks come after it; a question mark elsewhere is none."""
    assert all(
        counts(encode_terms(text)).get(ASKS) == 0 for text in ("red?", "red? \n", "\u7ea2\uff1f", "\u0623\u061f", "?")
    )
    assert all(ASKS not in counts(encode_terms(text)) for text in ("red", "red? blue", "", "?red"))


def test_a_count_stops_at_what_a_byte_holds() -> None:
    """255 repetitions and more are all 255."""
    [blue] = set(word_terms("blue"))
    assert counts(encode_terms("blue " * 255)) == counts(encode_terms("blue " * 10_000)) == {blue: 255}


def test_a_text_without_words_has_no_terms() -> None:
    """Punctuation, emoji and nothing at all give no terms, and a query of them asks for none."""
    for text in ("", "  ", "?!... --", "🙂👍", "___", "\ud800", "'"):
        assert encode_terms(text) == b""
        assert query_terms(text).tolist() == []
        assert query_terms(text).dtype == np.uint64


def test_a_query_asks_for_each_term_once() -> None:
    """Repeated words of a query count once, in the order of their first occurrence."""
    assert query_terms("cat dog cats DOG bird").tolist() == list(dict.fromkeys(word_terms("cat dog bird")))


# Hostile text


@given(any_text)
@settings(max_examples=300)
def test_any_text_can_be_cut(text: str) -> None:
    """Lone surrogates, controls, marks and unassigned characters included, nothing raises, and a text finds itself."""
    terms = word_terms(text)
    assert all(0 <= term < 2**64 for term in terms)
    assert set(query_terms(text).tolist()) == set(terms)
    assert all(tokens(token) == [token] for token in tokens(text) if token.isascii())


@pytest.mark.parametrize(
    "text",
    [
        "'" * 100_000,
        "a'" * 50_000,
        "a" * 100_000,
        "\u0301" * 100_000,
        "का" * 50_000,
        "\x00" * 1000,
        '" OR 1=1 --',
        "猫" * 100_000,
    ],
    ids=["apostrophes", "alternating", "one word", "accents", "marks", "zeros", "syntax", "one character"],
)
def test_a_hostile_text_takes_no_longer_than_its_length_asks(text: str) -> None:
    """Patterns that make careless expressions backtrack are cut in one pass (the test would hang otherwise)."""
    assert len(encode_terms(text)) <= 9 * len(text)


def test_every_character_alone_is_harmless() -> None:
    """All of Unicode, one character at a time, gives at most a handful of tokens without white space."""
    for code in range(0, sys.maxunicode + 1, 7):
        for token in tokens(f"{chr(code)}é"):
            assert token == token.strip()
            assert token


def test_terms_are_the_same_for_ever() -> None:
    """Stores hold these numbers: where one changes, `WORDS_VERSION` must be raised so that rows are cut anew."""
    assert WORDS_VERSION == 2
    mixed = "Running cafés don\u2019t stop: x86-64, Straße, 東京タワー, हिन्दी, ไทย"
    assert blake2b(encode_terms(mixed, [facet("tag", "x")]), digest_size=8).hexdigest() == "50c557a2ea1217cd"


def test_a_term_is_the_documented_digest() -> None:
    """The first eight bytes, little-endian, of BLAKE2b over the kind, a zero and the stemmed, folded word."""
    for term, text in ((word_terms("Running")[0], "word\0run"), (facet("tag", "x"), "tag\0x")):
        assert term == int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def test_a_name_leaves_and_takes_nothing_with_it() -> None:
    """What is left out are the words with a term, not the stretch between blanks that they stand in."""
    mia, tanaka = set(word_terms("Mia")), set(word_terms("\u7530\u4e2d"))
    assert without("When does Mia's ferry leave, Mia?", mia) == "When does ferry leave,"
    assert without("Tell me: cats/dogs/Mia/boats please", mia) == "Tell me: cats/dogs/Mia/boats please"
    sentence = "\u7530\u4e2d\u3055\u3093\u306f\u4f1a\u8b70 \u6559\u3048\u3066"
    assert without(sentence, tanaka) == sentence
    assert without("Mia", mia) == "Mia"
    assert without("boats \n are  late", mia) == "boats \n are  late"


@pytest.mark.parametrize(
    ("question", "left"),
    [
        ("What did Mia say about the boat?", "What did say about the boat?"),
        ("Which of Anne-Marie's boats did Li\u2019s and James' crew like?", "Which of boats did and crew like?"),
        (
            "\u0415\u0441\u0442\u044c \u043b\u0438 \u041c\u0438\u0448\u0430 \u0442\u0443\u0442?",
            "\u0415\u0441\u0442\u044c \u043b\u0438 \u0442\u0443\u0442?",
        ),
        ("What did I tell (Mia) when I'm away from the Sea, Tom?", "What did I tell when I'm away from the"),
    ],
)
def test_a_question_without_its_names(question: str, left: str) -> None:
    """What has a capital first and nowhere else, within a sentence, leaves, its possessive and punctuation too."""
    assert unnamed(question) == left


@pytest.mark.parametrize(
    "question",
    [
        "Is the API of numpy's MaskedArray in NASA's iPhone app?",  # no names by their look
        "Mia found which boat?",  # the first word has a capital anyway
        "They sailed home. Where is the boat now? Really now?",
        "Where Is The Boat Of Mia?",  # in a title every word has one
        "WHERE IS THE BOAT OF MIA?",
        "\u7530\u4e2d\u3055\u3093\u306f Tanaka \u3067\u3059\u304b\uff1f",
        "Who is Mia?",  # nothing that tells would be left
        "What did Mia say about the boat",  # maybe a memory's own words
        "They said that Mia sold the boat.",
        "and so on " * 22 + "with Mia?",
        "",
    ],
)
def test_a_question_that_stays_as_it_is(question: str) -> None:
    """Where capitals don't tell names, or nothing would be left, and in long texts and statements, nothing leaves."""
    assert unnamed(question) == question
