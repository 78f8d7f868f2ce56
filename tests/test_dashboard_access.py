"""The dashboard for everybody: by keyboard, for screen readers, in both colour schemes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsers import ask, live, remember, tab, until
from http_servers import TOKEN, server
from playwright.sync_api import Browser, Page, expect

pytest_plugins = ["browser_fixtures"]

GRAVE: Final = {"serious", "critical"}
WIDE: Final = {"width": 1440, "height": 900}
NARROW: Final = {"width": 360, "height": 780}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server over a store with something in each tier, which the tests of this module share."""
    folder: Path = tmp_path_factory.mktemp("store")
    with server(f"sqlite:///{folder / 'memory.db'}") as (url, _):
        for tier in ("working", "short_term", "episodic", "long_term", "semantic"):
            remember(url, f"Mara drinks oat milk, says {tier}", f"The train of {tier} leaves", tier=tier, actor="Mara")
        yield url


def recall(page: Page) -> None:
    page.get_by_role("searchbox", name="Question").fill("What does Mara drink?")
    page.keyboard.press("Enter")
    expect(page.locator("#results > li").first).to_be_visible()


def explain(page: Page) -> None:
    recall(page)
    page.locator("#results .score").first.focus()
    expect(page.get_by_role("tooltip")).to_be_visible()


def browse(page: Page) -> None:
    page.locator('.vessel[data-tier="episodic"]').click()
    expect(page.locator("#browse-list > li").first).to_be_visible()


def look(page: Page) -> None:
    browse(page)
    page.locator("#browse-list .content").first.click()
    expect(page.locator("#detail")).to_be_visible()


def forget(page: Page) -> None:
    [memory] = remember(page.url.rstrip("/"), "Something to be forgotten", tier="semantic")
    page.locator('.vessel[data-tier="semantic"]').click()
    page.locator(f'[data-memory="{memory}"]').get_by_role("button", name="Forget").click()
    expect(page.get_by_role("button", name="Undo")).to_be_visible()


def tables(page: Page) -> None:
    for button in page.get_by_role("button", name="Table: ").all():
        button.click()
    page.get_by_text("Something missing").click()


def grave(page: Page) -> list[str]:
    """What axe-core finds serious or critical, and where."""
    return [
        f"{rule['id']}: {node['html'][:200]}"
        for rule in Axe().run(page).response["violations"]
        if rule["impact"] in GRAVE
        for node in rule["nodes"]
    ]


STATES: Final[dict[str, Callable[[Page], None]]] = {
    "explained": explain,
    "list": browse,
    "memory": look,
    "toast": forget,
    "tables": tables,
}


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_nothing_grave_stands_in_the_way(browser: Browser, address: str, colours: str, size: dict[str, int]) -> None:
    """axe-core finds nothing serious or critical, whatever is open."""
    with live(browser, address, viewport=size, color_scheme=colours, reduced_motion="reduce") as page:
        for name, reach in STATES.items():
            page.reload()
            expect(page.locator("#connection")).to_have_text("Live")
            reach(page)
            assert (name, grave(page)) == (name, [])


def test_signing_in_is_open_to_all(browser: Browser, tmp_path: Path) -> None:
    """axe-core finds nothing grave in the dialog that asks for a token."""
    url = f"sqlite:///{tmp_path / 'memory.db'}"
    with (
        server(url, "--token", TOKEN) as (guarded, _),
        tab(browser, guarded, allowed=("401",), reduced_motion="reduce") as page,
    ):
        expect(page.locator("#sign-in")).to_be_visible()
        assert grave(page) == []


def test_all_can_be_done_by_keyboard(browser: Browser, address: str) -> None:
    """Without a mouse: skip to the content, recall, open a memory, close it, forget it, take that back; the focus is
    never lost."""
    [memory] = remember(address, "The cellar key hangs behind the blue door", tier="long_term")

    def focused() -> str:
        text: str = page.evaluate("document.activeElement.textContent + (document.activeElement.id || '')")
        return text

    def reach(wanted: str, most: int = 60) -> None:
        for _ in range(most):
            if wanted in focused():
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"{wanted!r} was not reached, but {focused()!r}")

    with live(browser, address) as page:
        page.keyboard.press("Tab")
        assert "Skip" in focused()
        page.keyboard.press("Enter")
        reach("question")
        page.keyboard.type("Where does the cellar key hang?")
        page.keyboard.press("Enter")
        expect(page.locator("#results > li").first).to_contain_text("cellar key")
        reach("The cellar key hangs")
        page.keyboard.press("Enter")
        expect(page.locator("#detail")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#detail")).to_be_hidden()
        until(page, "document.activeElement.textContent.includes('The cellar key hangs')")
        reach("Forget")
        page.keyboard.press("Enter")
        until(page, "document.activeElement.textContent === 'Undo'")
        item = page.locator(f'#results [data-memory="{memory}"]')
        expect(item).to_be_hidden()
        page.keyboard.press("Enter")
        expect(item).to_be_visible()
        until(page, "document.activeElement !== document.body")
        assert ask(address, f"/api/v1/memories/{memory}")["content"].startswith("The cellar key")


def test_the_last_thing_is_taken_back_by_keys(browser: Browser, address: str) -> None:
    """Control Z undoes the forgetting, in a list that is open as well, but not while somebody writes."""
    with live(browser, address) as page:
        forget(page)
        page.keyboard.press("Escape")
        expect(page.get_by_role("button", name="Undo")).to_be_visible()
        page.get_by_role("searchbox", name="Question").focus()
        page.keyboard.press("Control+z")
        expect(page.get_by_role("button", name="Undo")).to_be_visible()
        page.get_by_role("radio", name="Auto").focus()
        page.keyboard.press("Control+z")
        expect(page.locator("#toast-list")).to_contain_text("remembered again")


def test_targets_are_large_enough(browser: Browser, address: str) -> None:
    """Whatever can be pressed is at least 24 pixels high and wide (WCAG 2.2, 2.5.8)."""
    small = """[...document.querySelectorAll("button, select, a[href], input, summary")]
      .filter((node) => node.checkVisibility() && !node.closest(".skip"))
      .map((node) => [node.outerHTML.slice(0, 80), node.getBoundingClientRect()])
      .filter(([, box]) => box.width < 24 || box.height < 24)
      .map(([html, box]) => `${html} ${box.width}x${box.height}`)"""
    with live(browser, address, viewport=NARROW) as page:
        recall(page)
        tables(page)
        assert page.evaluate(small) == []


def test_the_page_has_landmarks_and_headings(browser: Browser, address: str) -> None:
    """One main heading, sections that are named, a language, and a status that is spoken."""
    with live(browser, address) as page:
        assert page.evaluate("document.documentElement.lang") == "en"
        assert page.get_by_role("heading", level=1).count() == 1
        for name in ("Latest", "Recall", "Forgetting forecast", "The last 15 minutes"):
            expect(page.get_by_role("region", name=name)).to_be_visible()
        expect(page.get_by_role("status").filter(has_text="Live")).to_be_visible()
        assert page.get_by_role("main").count() == page.get_by_role("banner").count() == 1
