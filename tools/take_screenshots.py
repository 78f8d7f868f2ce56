"""Takes the pictures of the dashboard for docs/images, of a server of its own with the real model.

    python tools/take_screenshots.py [--minutes 15] [--folder docs/images]

Fills a store in a temporary directory with made-up memories, serves it, uses it as an assistant would for so many
minutes (the charts show fifteen), and looks. Needs a Chromium or Chrome on the PATH, and Pillow.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.request import Request, urlopen

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from sample_life import QUESTIONS, memories, sample, start

NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ARGUMENTS: Final = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
LARGEST: Final = 300_000
"""Bytes of a picture at most."""
PICTURES: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("light", {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"}),
    ("dark", {"viewport": {"width": 1280, "height": 1500}, "color_scheme": "dark"}),
    ("narrow", {"viewport": {"width": 390, "height": 1500}, "color_scheme": "light"}),
)


def ask(address: str, path: str, body: object) -> Any:
    request = Request(address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310
    with urlopen(request, timeout=60) as response:  # noqa: S310 - our own server
        return json.load(response)


@contextmanager
def serving(folder: Path, chance: random.Random) -> Iterator[str]:
    """A server over the sample store: its address."""
    command = [sys.executable, "-m", "gemma_cli", "--url", f"sqlite:///{folder / 'mara.db'}"]
    lines = folder / "memories.jsonl"
    lines.write_text("".join(json.dumps(memory) + "\n" for memory in memories(start(), chance)), "utf-8")
    subprocess.run([*command, "import", lines], check=True)  # noqa: S603 - all from here
    with subprocess.Popen([*command, "serve", "--port", "0"], stderr=subprocess.PIPE, text=True) as server:  # noqa: S603
        assert server.stderr is not None
        try:
            yield server.stderr.readline().split()[-1]
        finally:
            server.terminate()


def live_through(address: str, seconds: float, chance: random.Random) -> None:
    """Stores, asks and promotes as somebody's assistant does: in spells, with rests between them."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(chance.randint(2, 9)):
            match chance.choices(("recall", "store", "list", "search", "promote"), (8, 3, 2, 2, 1))[0]:
                case "recall":
                    ask(address, "/api/v1/recall", {"query": chance.choice(QUESTIONS), "limit": chance.randint(3, 8)})
                case "store":
                    tier = chance.choices(("working", "short_term", "episodic"), (1, 3, 5))[0]
                    body = {"content": sample(chance, tier), "tier": tier, "importance": chance.uniform(0.2, 0.7)}
                    ask(address, "/api/v1/memories", body)
                case "search":
                    ask(address, "/api/v1/search", {"query": chance.choice(QUESTIONS)})
                case "list":
                    with urlopen(f"{address}/api/v1/memories?limit=20", timeout=60) as response:  # noqa: S310
                        response.read()
                case "promote":
                    promote(address, chance)
            time.sleep(chance.uniform(0.1, 1.2))
        time.sleep(min(chance.uniform(1, 12), max(end - time.monotonic(), 0)))


def promote(address: str, chance: random.Random) -> None:
    way = chance.choice((("working", "short_term"), ("episodic", "long_term"), ("long_term", "semantic")))
    with urlopen(f"{address}/api/v1/memories?limit=20&tier={way[0]}", timeout=60) as response:  # noqa: S310
        held = json.load(response)["memories"]
    if held:
        ask(address, f"/api/v1/memories/{chance.choice(held)['id']}/promote", {"to_tier": way[1]})


def look(browser: Browser, address: str, options: dict[str, Any], picture: Path) -> None:
    context = browser.new_context(**options)
    page = context.new_page()
    page.goto(address)
    page.locator("#connection[data-state=live]").wait_for()
    page.get_by_role("searchbox", name="Question").fill("What milk does Mara take in her coffee?")
    page.keyboard.press("Enter")
    page.locator("#results > li").first.wait_for()
    page.evaluate("document.activeElement.blur()")
    for chart in page.locator(".figures .instrument").all():
        chart.scroll_into_view_if_needed()
        page.wait_for_timeout(400)
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(2_500)
    shoot(page, picture, full="light" in picture.name)
    context.close()


def shoot(page: Page, picture: Path, full: bool) -> None:
    page.screenshot(path=picture, full_page=full)
    with Image.open(picture) as shot:  # 256 colours are enough for flat surfaces, and a third of the bytes
        palette = shot.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    palette.save(picture, optimize=True)
    size = picture.stat().st_size
    print(f"{picture} {size:,} bytes")
    if size > LARGEST:
        raise SystemExit(f"{picture} is larger than {LARGEST:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0, help="how long the memory is used before the pictures")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent.parent / "docs" / "images")
    asked = parser.parse_args()
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        raise SystemExit(f"no browser; install one of {', '.join(NAMES)}")
    asked.folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(7)  # noqa: S311 - the same life each time
    os.environ.pop("GEMMA_RAG_EMBEDDING__PROVIDER", None)
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), chance) as address:
        live_through(address, 60 * asked.minutes, chance)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
            for name, options in PICTURES:
                look(browser, address, options, asked.folder / f"dashboard-{name}.png")
            browser.close()


if __name__ == "__main__":
    main()
