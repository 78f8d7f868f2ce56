"""What the dashboard keeps and what it lets go: things that can be taken back, words that are no longer true, and the
commands that it shows for a beginning."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsers import ask, live, remember, tab
from command_runs import run_command
from http_servers import HASHING, TOKEN, server
from playwright.sync_api import Browser, Page, expect

pytest_plugins = ["browser_fixtures"]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A server over an empty store."""
    with server(f"sqlite:///{tmp_path / 'memory.db'}") as (url, _):
        yield url


def open_list(page: Page, tier: str, number: int) -> None:
    page.locator(f'.vessel[data-tier="{tier}"]').click()
    expect(page.locator("#browse-list > li")).to_have_count(number)


def forget(page: Page, text: str) -> None:
    item = page.locator("#browse-list > li").filter(has_text=text)
    item.get_by_role("button", name="Forget").click()
    expect(item).to_be_hidden()


def test_every_removal_can_be_taken_back(browser: Browser, address: str) -> None:
    """Neither further removals nor other messages take a removal's undo away: Control Z brings back one after the
    other, the latest first, and the buttons of those that wait come up again."""
    texts = [f"note number {number}" for number in range(7)]
    remember(address, *texts, tier="semantic")
    with live(browser, address) as page:
        open_list(page, "semantic", 7)
        for text in texts[:5]:
            forget(page, text)
        for text in texts[5:]:
            item = page.locator("#browse-list > li").filter(has_text=text)
            item.get_by_label("Move to a tier").select_option("long_term")
            expect(page.locator("#toast-list")).to_contain_text("Moved from semantic")
        buttons = page.get_by_role("button", name="Undo", exact=True)
        expect(page.locator("#toast-list > li:visible")).to_have_count(3)
        expect(buttons).to_have_count(3)  # once the messages about the moves are over
        page.get_by_role("button", name="Dismiss").last.click()
        expect(buttons).to_have_count(3)
        for number in range(4, 0, -1):
            page.keyboard.press("Control+z")
            expect(page.locator("#browse-list > li").filter(has_text=texts[number])).to_be_visible()
        buttons.click()
        expect(page.locator("#browse-list > li:visible")).to_have_count(7)
        assert len(ask(address, "/api/v1/memories")["memories"]) == 7


def test_words_that_are_no_longer_true_leave_the_ribbon(browser: Browser, address: str) -> None:
    """When a memory says something else, its old words leave what the page tells of before, and no others."""
    with live(browser, address) as page:
        ribbon = page.locator("#activity-list")
        remember(address, "The key hangs in the attic")
        [memory] = remember(address, "The gate creaks")
        for text in ("in the attic", "The gate creaks"):
            expect(ribbon).to_contain_text(text)
        ask(address, f"/api/v1/memories/{memory}", {"content": "The gate is oiled"}, "PATCH")
        expect(ribbon).to_contain_text("The gate is oiled")
        expect(ribbon).not_to_contain_text("The gate creaks")
        expect(ribbon).to_contain_text("in the attic")


def commands(page: Page) -> list[str]:
    expect(page.locator("#beginning code")).to_have_count(2)
    return page.locator("#beginning code").all_inner_texts()


def test_the_first_hint_reaches_this_store(browser: Browser, tmp_path: Path) -> None:
    """The command that an empty page shows stores into the very namespace that the page looks at, however the path is
    written, and the request beside it needs no token where none is wanted."""
    folder = tmp_path / "it's here"
    folder.mkdir()
    url = f"sqlite:///{folder / 'memory.db'}"
    with server(url, env={"GEMMA_RAG_STORE__NAMESPACE": "work"}) as (address, _), live(browser, address) as page:
        first, request = commands(page)
        assert "authorization" not in request
        words = shlex.split(first)
        assert words[0] == "gemma-rag"
        assert run_command(*words[1:], cwd=tmp_path, env=HASHING).code == 0
        expect(page.locator("#total")).to_have_text("1")


def test_the_hint_bears_the_token(browser: Browser, tmp_path: Path) -> None:
    """Where the server wants a token, the request that the page shows has a place for it."""
    url = f"sqlite:///{tmp_path / 'memory.db'}"
    with server(url, "--token", TOKEN) as (address, _), tab(browser, address, allowed=("401",)) as page:
        page.locator("#token").fill(TOKEN)
        page.get_by_role("button", name="Sign in").click()
        _, request = commands(page)
    assert '-H "authorization: Bearer $GEMMA_RAG_SERVER_TOKEN"' in request
