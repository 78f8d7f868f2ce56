"""How the tests meet the dashboard: pages in a browser that must behave."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.request import Request, urlopen

from command_runs import TIMEOUT
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Error, Page, expect

PATIENCE: Final = 60_000
"""Milliseconds that something on the page may take to show; nothing takes a tenth of it on an idle machine."""
WIDER: Final = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
VIOLATIONS: Final = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""


@contextmanager
def tab(browser: Browser, address: str, *, allowed: tuple[str, ...] = (), **options: Any) -> Iterator[Page]:
    """The dashboard, live, in a context of its own. At the end: no error in its console beside those that hold one of
    `allowed`, nothing that its security policy had to stop, no request to another host."""
    said: list[str] = []
    asked: set[str] = set()

    def hear(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            said.append(message.text)

    def answer(dialog: Dialog) -> None:
        said.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
    context.set_default_timeout(PATIENCE)
    context.add_init_script(VIOLATIONS)
    page = context.new_page()
    page.on("console", hear)
    page.on("dialog", answer)
    page.on("pageerror", lambda error: said.append(f"uncaught: {error}"))
    page.on("request", lambda request: asked.add(request.url))
    try:
        page.goto(address)
        yield page
        assert page.evaluate("window.violations") == []
        assert [line for line in said if not any(text in line for text in allowed)] == []
        assert {url for url in asked if not url.startswith((address, "data:", "blob:"))} == set()
    finally:
        context.close()


@contextmanager
def live(browser: Browser, address: str, **options: Any) -> Iterator[Page]:
    """The same, once the stream runs."""
    with tab(browser, address, **options) as page:
        expect(page.locator("#connection")).to_have_text("Live")
        yield page


def ask(address: str, path: str, body: Any = None, method: str | None = None) -> Any:
    """What the server's API answers, from outside of the browser."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(address + path, data, {"Content-Type": "application/json"}, method=method)
    with urlopen(request, timeout=TIMEOUT) as response:
        content = response.read()
    return json.loads(content) if content else None


def remember(address: str, *contents: str, tier: str = "short_term", **fields: Any) -> list[str]:
    """Stores memories; their ids."""
    memories = [{"content": content, "tier": tier, **fields} for content in contents]
    ids: list[str] = ask(address, "/api/v1/memories/batch", {"memories": memories})["ids"]
    return ids


def overflow(page: Page) -> int:
    """By how many pixels the page is wider than its window."""
    wider: int = page.evaluate(WIDER)
    return wider


def until(page: Page, expression: str) -> None:
    """Waits until a JavaScript expression is true. The page's policy forbids the evaluation of texts that Playwright's
    own waiting needs."""
    for _ in range(PATIENCE // 50):
        try:
            if page.evaluate(expression):
                return
        except Error as error:  # between two documents there is nothing to ask
            if "Execution context was destroyed" not in error.message:
                raise
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {expression}")
