"""Reading files: what becomes a section, how bytes become text, and an error with advice for everything unreadable."""

import builtins
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from document_files import write_docx, write_pdf
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_cli.rag.documents import Document, DocumentKind, Section
from gemma_cli.rag.errors import (
    DocumentError,
    DocumentNotFoundError,
    InvalidInputError,
    InvalidTypeError,
    MissingExtraError,
)
from gemma_cli.rag.readers import SUPPORTED_SUFFIXES, read_document

FILES = Path(__file__).parent / "data" / "documents"


def read(folder: Path, name: str, content: bytes | str) -> Document:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_document(path)


# --- kinds ---


def test_markdown_is_cut_along_its_headings() -> None:
    """Front matter, both styles of heading, code fences and empty sections come out as CommonMark means them."""
    document = read_document(FILES / "station.md")
    assert document.path == (FILES / "station.md").resolve()
    assert (document.kind, document.title) == (DocumentKind.MARKDOWN, "The Keeper's Notes")
    assert document.sections == (
        Section('---\ntitle: "The Keeper\'s Notes"\nauthor: I. Solvang\n---'),
        Section("Read these notes before the first watch."),
        Section("Trim the wick at dusk.\n\n```sh\n# not a heading\nlight --at dusk\n```", "Lamp"),
        Section("| item | stock |\n|------|-------|\n| wick | 14    |", "Lamp > Oil and wicks"),
        Section("", "Lamp > Empty for now"),
        Section("A heading that ends in a hash sign.", "C#"),
    )


def test_html_is_read_as_a_visitor_sees_it() -> None:
    """Scripts, styles and navigation are out; headings, lists, tables, listings and alternative texts are in."""
    document = read_document(FILES / "station.html")
    assert (document.kind, document.title) == (DocumentKind.HTML, "Skarvholm & its light")
    assert document.sections == (
        Section("The outermost rock of the Varne skerries.", "Skarvholm & its light"),
        Section(
            "Walk on the chain side.\nMind the weed.\n\n- rope\n- boat hook",
            "Landing",
        ),
        Section(
            "| part | limit |\n| wire | 500 kg |\n\n```\nlift   slowly\n  never people\n```\n\nAsk for the brass key .",
            "Landing > Crane",
        ),
    )


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("<p>seen<script>var hidden = 1;", "hidden"),
        ("<nav><p>only a menu</p></nav>", "only a menu"),
        ("<p>one <![ odd > two</p>", "two"),
        ("<title>never closed<p>body text</p>", "body text"),
        ("<svg/><p>after a drawing</p>", "after a drawing"),
        ("<!-- never closed <p>the rest</p>", "the rest"),
        ("<p>seen</p><a href=half a link", "half a link"),
    ],
)
def test_bad_markup_loses_no_text(tmp_path: Path, source: str, text: str) -> None:
    """Blocks that are never closed, odd declarations and pages of navigation only still yield their words."""
    assert text in " ".join(section.text for section in read(tmp_path, "page.html", source).sections)


@settings(max_examples=150)
@given(
    st.lists(
        st.sampled_from(
            "<p> </p> <h2> </h2> <li> <td> <tr> <pre> </pre> <nav> </nav> <script> </script> <![ "
            "&amp; <br> word <table> </table> <title> </title> < <!-- <a".split()
        ),
        max_size=30,
    )
)
def test_no_markup_makes_the_html_reader_lose_text(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    """Whatever heap of tags goes before it, the last paragraph is read."""
    document = read(tmp_path_factory.mktemp("html"), "page.html", " ".join([*parts, "<p>last"]))
    assert "last" in f"{document.sections[-1].text} {document.sections[-1].heading}"


def test_python_is_cut_into_its_top_level_definitions() -> None:
    """A definition takes its decorators and comment along; a `def` within a docstring is none."""
    document = read_document(FILES / "lamp.py")
    assert (document.kind, document.title) == (DocumentKind.CODE, "lamp")
    assert [section.heading for section in document.sections] == [None, "class Lamp", "async def watch", None]
    texts = [section.text for section in document.sections]
    assert texts[1].startswith("# The lamp itself.\n@final\nclass Lamp:")
    assert texts[1].endswith("        return math.pi")
    assert texts[3].startswith("if __name__")
    assert "".join("".join(texts).split()) == "".join((FILES / "lamp.py").read_text().split())


def test_records_are_one_section_of_lines() -> None:
    """A CSV file is one section, its lines as they are."""
    document = read_document(FILES / "log.csv")
    assert document.kind is DocumentKind.LINES
    assert document.sections == (Section((FILES / "log.csv").read_text().rstrip()),)


def test_pdf_has_a_section_for_each_page_with_text(tmp_path: Path) -> None:
    """Pages are headed by their number, blank ones are left out, the title comes from the file's own metadata."""
    document = read_document(write_pdf(tmp_path / "a.pdf", ["Light the lamp.\nAt dusk.", "", "Sleep."], title="Rules"))
    assert (document.kind, document.title) == (DocumentKind.PDF, "Rules")
    assert document.sections == (Section("Light the lamp.\nAt dusk.", "page 1"), Section("Sleep.", "page 3"))


def test_docx_is_cut_along_its_headings(tmp_path: Path) -> None:
    """Lists, tables and inserted text stand where they belong; text deleted under review is gone."""
    document = read_document(write_docx(tmp_path / "a.docx"))
    assert (document.kind, document.title) == (DocumentKind.DOCX, "Handbook")
    assert document.sections == (
        Section("Read it on the crossing.", "Handbook"),
        Section("- rope\n- boat hook\n\n| part | limit |\n| wire | 500 kg |", "Handbook > Boats"),
        Section("Walk on the chain side, always.", "Handbook > Boats > Landing"),
    )


def test_docx_properties_name_the_document(tmp_path: Path) -> None:
    """The title among the file's properties goes before its first heading."""
    assert read_document(write_docx(tmp_path / "a.docx", title="Station rules")).title == "Station rules"


@pytest.mark.parametrize("name", ["README", "notes.xyz", "NOTES.TXT", ".env"])
def test_an_unknown_suffix_that_holds_text_is_read_as_text(tmp_path: Path, name: str) -> None:
    """The table of suffixes says how to read a file, not whether to."""
    document = read(tmp_path, name, "  Trim\nthe wick.\n\n")
    assert document.kind is DocumentKind.TEXT
    assert document.sections == (Section("  Trim\nthe wick."),)


def test_the_name_given_decides_and_not_what_it_links_to(tmp_path: Path) -> None:
    """A link `notes.md` to a file named by its digest is Markdown; the path is the one of the real file."""
    (tmp_path / "0a1b2c").write_text("# Lamp\n\nTrim it.")
    (tmp_path / "notes.md").symlink_to("0a1b2c")
    document = read_document(tmp_path / "notes.md")
    assert (document.kind, document.title) == (DocumentKind.MARKDOWN, "Lamp")
    assert document.path == (tmp_path / "0a1b2c").resolve()


def test_supported_suffixes_are_lower_case_suffixes() -> None:
    """What a walk through a directory compares with is a set of suffixes as `Path.suffix.lower()` gives them."""
    assert {".md", ".txt", ".py", ".html", ".pdf", ".docx", ".csv"} <= SUPPORTED_SUFFIXES
    assert all(suffix == Path(f"name{suffix}").suffix.lower() for suffix in SUPPORTED_SUFFIXES)


# --- encodings ---


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_encodings_are_recognised(tmp_path: Path, encoding: str, caplog: pytest.LogCaptureFixture) -> None:
    """UTF-8, whatever has a byte order mark, and western text in Windows-1252 are read; only the guess is logged."""
    text = "Café at the lighthouse: Ångström’s tide table, für alle Wärter gültig."
    assert read(tmp_path, "a.txt", text.encode(encoding)).sections == (Section(text),)
    guessed = [record.getMessage() for record in caplog.records]
    assert guessed == (["document_encoding_guessed"] if encoding == "cp1252" else [])


def test_html_says_its_own_encoding(tmp_path: Path) -> None:
    """A page that declares a legacy encoding is decoded by it."""
    page = '<meta charset="koi8-r"><p>Маяк горит</p>'.encode("koi8-r")
    assert read(tmp_path, "page.html", page).sections == (Section("Маяк горит"),)


def test_line_ends_become_newlines(tmp_path: Path) -> None:
    """Windows and old Mac line ends read the same as Unix ones."""
    assert read(tmp_path, "a.txt", b"one\r\ntwo\rthree").sections == (Section("one\ntwo\nthree"),)


# --- what can't be read ---


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.md", b" \n\t\n", "holds no text"),
        ("a.html", b"<p> </p>", "holds no text"),
        ("a.txt", b"\x7fELF\x02\x01\x00\x00\x00", "is a binary file"),
        ("a.bin", bytes(range(1, 27)) * 9, "is a binary file"),
        ("a.txt", "Смотритель маяка зажигал лампу".encode("cp1251"), "is not a text in UTF-8"),
        ("a.txt", "灯塔 é à ü ".encode() * 9 + b"\xe7", "1 damaged character"),
        ("a.txt", b"\xff\xfea", "begins with the mark of utf-16"),
        ("a.pdf", b"%PDF-1.7 and then nothing", "is not a readable PDF"),
        ("a.docx", b"PK\x03\x04 torn", "is not a readable docx"),
        ("a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "old .doc or locked"),
    ],
)
def test_files_without_readable_text_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """Empty, binary, damaged and wrongly encoded files raise an error with the path, the fault and the remedy."""
    with pytest.raises(DocumentError, match=message) as caught:
        read(tmp_path, name, content)
    assert str(caught.value).startswith(f"{(tmp_path / name).resolve()}: ")


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    """A path that leads nowhere is also a FileNotFoundError, even through a file as if it were a directory."""
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "none.txt", tmp_path / "file" / "inner.txt"):
        with pytest.raises(DocumentNotFoundError, match="no such file") as caught:
            read_document(path)
        assert isinstance(caught.value, FileNotFoundError)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    """A directory is named as what it is."""
    with pytest.raises(DocumentError, match="is a directory"):
        read_document(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    """A named pipe that nobody writes to does not block the reader for ever."""
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DocumentError, match="is not a regular file"):
        read_document(tmp_path / "pipe.txt")


def test_a_file_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal by the system is told as one, with its cause (raised here by hand: root may read everything)."""
    path = tmp_path / "secret.txt"
    path.write_text("x")
    denied = PermissionError(13, "Permission denied")

    def refuse(*_: object, **__: object) -> Any:
        raise denied

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DocumentError, match="no permission") as caught:
        read_document(path)
    assert caught.value.__cause__ is denied


def test_a_file_above_the_limit_is_refused(tmp_path: Path) -> None:
    """`max_bytes` bytes are read, one more is too many."""
    (tmp_path / "a.txt").write_text("12345678")
    assert read_document(tmp_path / "a.txt", max_bytes=8).sections[0].text == "12345678"
    with pytest.raises(DocumentError, match="larger than 7 bytes"):
        read_document(tmp_path / "a.txt", max_bytes=7)


@pytest.mark.parametrize(
    ("path", "error"),
    [(7, InvalidTypeError), (b"a.txt", InvalidTypeError), ("", InvalidInputError), ("a\0b", InvalidInputError)],
)
def test_what_names_no_file_is_bad_input(path: Any, error: type[Exception]) -> None:
    """Arguments that can't be a path raise an error that begins with the argument's name."""
    with pytest.raises(error, match=r"^path: "):
        read_document(path)


def test_a_name_that_can_t_be_kept_is_the_files_fault(tmp_path: Path) -> None:
    """A name that is not UTF-8, a link of such a name, and a path of more than 512 characters are refused as `path`,
    not as what they would have been kept as."""
    inner = tmp_path.joinpath(*("d" * 150 for _ in range(4)))
    inner.mkdir(parents=True)
    (tmp_path / "good.txt").write_text("words")
    bad = [inner / "long.txt", tmp_path / "caf\udce9.txt", tmp_path / "link\udce9.txt"]
    try:
        bad[0].write_text("words")
        bad[1].write_text("words")
        bad[2].symlink_to(tmp_path / "good.txt")
    except (OSError, UnicodeEncodeError):
        pytest.skip("this system refuses such names itself")
    for path in bad:
        with pytest.raises(DocumentError, match=r"^path: .*; rename or move '") as caught:
            read_document(path)
        str(caught.value).encode()


def test_an_encrypted_pdf_is_refused(tmp_path: Path) -> None:
    """A password that is not known is said to be the reason."""
    with pytest.raises(DocumentError, match="is encrypted"):
        read_document(write_pdf(tmp_path / "a.pdf", ["Secret."], user_password="lamp"))
    with pytest.raises(DocumentError, match="is encrypted"):  # AES-256, with or without the library that it takes
        read_document(FILES / "locked-aes.pdf")


def test_a_pdf_with_an_empty_password_is_read(tmp_path: Path) -> None:
    """A file encrypted only to forbid printing opens as in any program."""
    document = read_document(write_pdf(tmp_path / "a.pdf", ["Not secret."], user_password=""))
    assert document.sections == (Section("Not secret.", "page 1"),)


def test_a_pdf_of_images_is_refused(tmp_path: Path) -> None:
    """A scan without a text layer says what is missing and how to add it."""
    with pytest.raises(DocumentError, match="no text layer"):
        read_document(write_pdf(tmp_path / "a.pdf", ["", ""]))


@pytest.mark.parametrize("name", ["a.pdf", "a.docx"])
def test_a_torn_file_is_refused(tmp_path: Path, name: str) -> None:
    """Wherever a PDF or docx was cut off, the answer is a document or a DocumentError, nothing else."""
    path = write_pdf(tmp_path / name, ["One.", "Two."]) if name == "a.pdf" else write_docx(tmp_path / name)
    whole = path.read_bytes()
    for part in range(1, 20):
        path.write_bytes(whole[: len(whole) * part // 20])
        try:
            assert read_document(path).sections
        except DocumentError as error:
            assert str(path) in str(error)  # noqa: PT017 - either outcome is right


def test_a_docx_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    """A small file that claims to hold more than 256 MiB is not unpacked."""
    with zipfile.ZipFile(tmp_path / "a.docx", "w", zipfile.ZIP_DEFLATED) as package:
        package.writestr("word/document.xml", bytes(257 * 1024 * 1024), compresslevel=1)
    with pytest.raises(DocumentError, match="unpacks to"):
        read_document(tmp_path / "a.docx")


# --- the extra ---


@pytest.mark.parametrize(("name", "module"), [("a.pdf", "pypdf"), ("a.docx", "docx")])
def test_a_missing_library_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    """Without pypdf or python-docx the error is an ImportError that says what to install."""
    imported: Callable[..., Any] = builtins.__import__

    def without(wanted: str, *args: Any, **kwargs: Any) -> Any:
        if wanted.split(".")[0] == module:
            raise ModuleNotFoundError(f"No module named {wanted!r}", name=wanted)
        return imported(wanted, *args, **kwargs)

    (tmp_path / name).write_bytes(b"anything")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'gemma-rag\[docs\]'") as caught:
        read_document(tmp_path / name)
    assert isinstance(caught.value, ImportError)


def test_importing_the_readers_imports_no_extra() -> None:
    """The libraries for PDF and docx are loaded by the first file that needs them."""
    code = "import sys, gemma_cli.rag.readers; print(sorted({'pypdf', 'docx', 'lxml'} & sys.modules.keys()))"
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == "[]"
