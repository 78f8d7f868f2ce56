"""A browser for the tests of the dashboard. A test module asks for it with

    pytest_plugins = ["browser_fixtures"]

Playwright's sync interface keeps a loop running in its thread while a browser is open: a module that uses it holds no
async tests, and runs commands in processes of their own.
"""

import shutil
from collections.abc import Iterator
from typing import Final

import pytest
from browsers import PATIENCE
from command_runs import TIMEOUT
from playwright.sync_api import Browser, expect, sync_playwright

NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ARGUMENTS: Final = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium or Chrome from the PATH."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser; install one of {', '.join(NAMES)}")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=ARGUMENTS, timeout=1_000 * TIMEOUT)
        expect.set_options(timeout=PATIENCE)
        yield opened
        opened.close()
