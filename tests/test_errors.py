"""The error tree: what the docstring draws is what the code has, and each error can be caught as what it also is."""

import inspect
import re

import pytest

import gemma_cli.rag
from gemma_cli.rag import errors

LINE = re.compile(r"^(?P<indent>[ │├└─]*)(?P<name>[A-Z]\w+Error)(?:\s+(?P<words>.*))?$")


def drawn() -> dict[str, tuple[str | None, str | None]]:
    """Each error of the docstring's tree: its parent there, and the built-in that it "also" is."""
    found: dict[str, tuple[str | None, str | None]] = {}
    open_branches: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = LINE.match(line)
        if match is None:
            continue
        depth = len(match["indent"])
        while open_branches and open_branches[-1][0] >= depth:
            open_branches.pop()
        also = re.search(r"also (\w+)\)", match["words"] or "")
        found[match["name"]] = (open_branches[-1][1] if open_branches else None, also and also[1])
        open_branches.append((depth, match["name"]))
    return found


def real() -> dict[str, type[Exception]]:
    return {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)}


def test_the_docstring_draws_every_error_and_no_other() -> None:
    """The names of the tree are the module's classes."""
    assert set(drawn()) == set(real())
    assert len(drawn()) > 15


@pytest.mark.parametrize("name", sorted(real()))
def test_an_error_derives_from_what_the_tree_says(name: str) -> None:
    """Its own parent, the built-in in the brackets, and nothing else; and it has a docstring."""
    parent, also = drawn()[name]
    kind = real()[name]
    bases = [base.__name__ for base in kind.__bases__]
    assert bases == [parent or "Exception", *([also] if also else [])]
    assert issubclass(kind, errors.GemmaRagError)
    assert kind.__doc__


@pytest.mark.parametrize("name", sorted(real()))
def test_an_error_is_importable_from_the_front_door(name: str) -> None:
    """Callers catch errors by what `gemma_cli.rag` exports."""
    assert getattr(gemma_cli.rag, name) is real()[name]
    assert name in gemma_cli.rag.__all__


@pytest.mark.parametrize("name", sorted(real()))
def test_an_error_keeps_its_message(name: str) -> None:
    """Whatever built-in it also is (an OSError treats arguments in its own way), its text is the message alone."""
    assert str(real()[name]("content: is empty; pass some text")) == "content: is empty; pass some text"
