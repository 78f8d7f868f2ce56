"""The dashboard in a browser, over a server process: what happens in the store shows, and what is asked is done."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsers import WIDER, ask, live, overflow, remember, tab, until
from command_runs import run_command
from http_servers import HASHING, TOKEN, server
from playwright.sync_api import Browser, Page, Route, expect

import gemma_cli.server

pytest_plugins = ["browser_fixtures"]

FOLDER = Path(gemma_cli.server.__file__).parent / "page"
OWN = sorted(path for path in FOLDER.iterdir() if path.suffix in {".js", ".html", ".css", ".svg"})
LONGEST = 400
PARSED = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser|setHTML|srcdoc|javascript:"
)
FOREIGN = re.compile(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)[\w.-]+\.\w{2,}")
HOSTILE = (
    '<img src=x onerror="window.hacked=1">',
    "</script><script>window.hacked=1</script>",
    "\u202eright to left\u202c \u05e9\u05dc\u05d5\u05dd",
    "unbroken" * 60,
    "{{7*7}} ${7*7} &lt;b&gt; %00 \u0000x".replace("\u0000", ""),
)


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A server over an empty store."""
    with server(store(tmp_path)) as (url, _):
        yield url


def store(folder: Path) -> str:
    return f"sqlite:///{folder / 'memory.db'}"


def vessel(page: Page, tier: str) -> str:
    return page.locator(f'.vessel[data-tier="{tier}"] .count').inner_text()


def counts(page: Page, tier: str, number: int) -> None:
    expect(page.locator(f'.vessel[data-tier="{tier}"] .count')).to_have_text(str(number))


# The files


def test_the_vendored_files_are_the_published_ones() -> None:
    """What is not ours is unchanged: each vendored file has the checksum that is noted for it, and none is unnoted."""
    folder = FOLDER / "vendor"
    packages = json.loads((folder / "vendored.json").read_text("utf-8"))
    noted = {name: file["sha256"] for package in packages for name, file in package["files"].items()}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    assert found.pop("vendored.json")
    assert noted == found


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_the_files_are_short_and_parse_nothing(path: Path) -> None:
    """No file of the page has 400 lines, makes nodes or code from text, or names another host."""
    text = path.read_text("utf-8")
    assert len(text.splitlines()) < LONGEST
    assert PARSED.findall(text) == []
    assert FOREIGN.findall(text) == []
    assert path.suffix != ".html" or not re.search(r"<style|\sstyle=|\son\w+=|<script>", text)


# What happens shows


def test_what_another_process_stores_and_moves_shows(browser: Browser, tmp_path: Path) -> None:
    """A memory stored by the command line appears in its vessel and in the ribbon, and its move up shows."""
    url = store(tmp_path)
    with server(url) as (address, _), live(browser, address) as page:
        expect(page.locator("#beginning")).to_contain_text("Nothing is remembered yet")
        expect(page.locator("#beginning")).to_contain_text("gemma-rag")
        stored = run_command(
            "--url", url, "remember", "Mara drinks oat milk", "-t", "working", cwd=tmp_path, env=HASHING
        )
        assert stored.code == 0, stored.stderr
        counts(page, "working", 1)
        expect(page.locator("#total")).to_have_text("1")
        expect(page.locator("#beginning")).to_be_hidden()
        newest = page.locator("#activity-list > li").first
        expect(newest).to_contain_text("Arrived")
        expect(newest).to_contain_text("Mara drinks oat milk")
        moved = run_command("--url", url, "promote", stored.stdout.strip(), "episodic", cwd=tmp_path, env=HASHING)
        assert moved.code == 0, moved.stderr
        counts(page, "working", 0)
        counts(page, "episodic", 1)
        expect(newest).to_contain_text("Moved up")
        expect(newest).to_contain_text("Working → Episodic")


def test_what_fades_shows(browser: Browser, tmp_path: Path) -> None:
    """A memory whose time is over leaves its vessel, and the ribbon says that it faded."""
    briefly = {"GEMMA_RAG_MEMORY__WORKING_TTL": "5"}
    watch = """
      const number = document.querySelector('.vessel[data-tier="working"] .count');
      window.numbers = [];
      new MutationObserver(() => window.numbers.push(number.textContent))
        .observe(number, { childList: true, subtree: true });
    """
    with server(store(tmp_path), env=briefly) as (address, _), live(browser, address) as page:
        counts(page, "working", 0)
        page.evaluate(watch)
        remember(address, "A passing thought", tier="working")
        until(page, "window.numbers.includes('1')")  # which may have gone when a slow machine looks
        counts(page, "working", 0)
        faded = page.locator("#activity-list > li").filter(has_text="A passing thought").first
        expect(faded).to_contain_text("Faded")
        expect(page.locator('.vessel[data-tier="working"] .went')).to_have_text("−1")


def test_drops_fly_unless_motion_is_unwanted(browser: Browser, address: str) -> None:
    """Arrivals are shown by what flies through the air; who wants reduced motion sees none of it, and no animation but
    the soft flash of a number."""
    watch = """
      window.flown = 0; window.flashed = 0; window.moved = new Set();
      new MutationObserver((changes) => {
        for (const change of changes) {
          for (const node of change.addedNodes) window.flown += node.classList?.contains("flying") ? 1 : 0;
          if (change.target.classList?.contains("flash")) window.flashed += 1;
        }
        for (const each of document.getAnimations()) window.moved.add(each.animationName ?? each.constructor.name);
      }).observe(document.body, { childList: true, subtree: true, attributeFilter: ["class"] });
    """
    with (
        live(browser, address, reduced_motion="no-preference") as lively,
        live(browser, address, reduced_motion="reduce") as quiet,
    ):
        for page in (lively, quiet):
            counts(page, "working", 0)
            page.evaluate(watch)
        remember(address, "first", tier="working")
        until(lively, "window.flown > 0")
        counts(quiet, "working", 1)
        until(quiet, "window.flashed > 0")
        assert quiet.evaluate("window.flown") == 0
        assert set(quiet.evaluate("[...window.moved]")) <= {"flash"}


def test_the_charts_tell_what_ran(browser: Browser, address: str) -> None:
    """A recall shows in the latency chart: as a picture, in its caption, in its key and in the table on demand."""
    remember(address, "Mara drinks oat milk")
    with live(browser, address) as page:
        ask(address, "/api/v1/recall", {"query": "What does Mara drink?", "touch": False})
        figure = page.locator("#latency")
        figure.scroll_into_view_if_needed()
        expect(figure.locator("select")).to_have_value("recall_memories")
        expect(figure.locator("canvas")).to_be_visible()
        expect(figure.locator("figcaption")).to_contain_text("half within")
        expect(figure.locator(".key li").first).to_contain_text("ms")
        figure.get_by_role("button", name="Table: Latency").click()
        expect(figure.get_by_role("region", name="Latency, as a table").locator("tbody tr").first).to_contain_text("ms")


def test_the_charts_share_a_cursor(browser: Browser, address: str) -> None:
    """Pointing at a moment in one chart points at the same moment in all of them."""
    remember(address, "Mara drinks oat milk")
    ask(address, "/api/v1/recall", {"query": "What does Mara drink?", "touch": False})
    with live(browser, address, viewport={"width": 1440, "height": 1800}) as page:
        page.locator("#latency canvas").wait_for()
        page.locator("#sizes canvas").wait_for()
        cursors = page.locator("#sizes .u-cursor-x")
        expect(page.locator("#sizes .key b").first).to_contain_text("MB")
        at = "(id) => new DOMMatrix(getComputedStyle(document.querySelector(`#${id} .u-cursor-x`)).transform).e"
        share = f"(id) => ({at})(id) / document.querySelector(`#${{id}} .u-over`).clientWidth"
        for _ in range(60):  # a sample may come in between, and charts that grow move
            box = page.locator("#latency .u-over").bounding_box()
            assert box is not None
            page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
            page.mouse.move(box["x"] + box["width"] - 2, box["y"] + 40)
            shown = "u-off" not in (cursors.get_attribute("class") or "")
            own, other = (page.evaluate(share, name) for name in ("latency", "sizes"))
            if shown and own == pytest.approx(other, abs=0.02):
                break
            page.wait_for_timeout(300)
        assert shown
        assert own == pytest.approx(other, abs=0.02)
        assert own > 0.9


# What is asked is done


def test_a_recall_tells_its_parts_and_how_sure_it_is(browser: Browser, address: str) -> None:
    """An answer has a gauge in words and a bar for each score, whose parts are explained where the focus is; looking
    does not count as an access; what is not among the answers is told why."""
    ids = remember(address, "Mara drinks oat milk", "The train leaves at eight", tier="long_term")
    with live(browser, address) as page:
        page.get_by_role("searchbox", name="Question").fill("What does Mara drink?")
        page.get_by_role("button", name="Recall").click()
        expect(page.locator("#results > li").first).to_contain_text("Mara drinks oat milk")
        expect(page.locator(".gauge")).to_contain_text("not known with this model")  # hashing is not calibrated
        bar = page.locator("#results .score").first
        bar.focus()
        expect(page.get_by_role("tooltip")).to_contain_text("Words")
        expect(page.get_by_role("tooltip")).to_contain_text("BM25")
        page.keyboard.press("Escape")
        expect(page.get_by_role("tooltip")).to_be_hidden()
        page.get_by_text("Something missing").click()
        page.get_by_label("Id of the memory").fill(ids[0])
        page.get_by_role("button", name="Why not?").click()
        expect(page.locator("#why-answer")).to_contain_text("It is among the answers")
        page.get_by_role("radio", name="Semantic").check()
        expect(page.locator("#answer")).to_contain_text("Nothing was found in semantic")
        assert "access_count" not in ask(address, f"/api/v1/memories/{ids[0]}")


def test_a_memory_is_pinned_moved_forgotten_and_brought_back(browser: Browser, address: str) -> None:
    """From the list of a tier a memory can be pinned, moved and forgotten; undoing that brings back the same."""
    [memory] = remember(address, "Mara drinks oat milk", importance=0.7)
    with live(browser, address) as page:
        page.locator('.vessel[data-tier="short_term"]').click()
        item = page.locator("#browse-list > li")
        item.get_by_role("button", name="Pin").click()
        expect(item.get_by_role("button", name="Pinned")).to_have_attribute("aria-pressed", "true")
        item.get_by_label("Move to a tier").select_option("semantic")
        expect(item).to_contain_text("Semantic")
        counts(page, "semantic", 1)
        before = ask(address, f"/api/v1/memories/{memory}")
        assert (before["tier"], before["pinned"]) == ("semantic", True)
        item.get_by_role("button", name="Forget").click()
        expect(item).to_be_hidden()
        counts(page, "semantic", 0)
        page.get_by_role("button", name="Undo").click()
        expect(item).to_be_visible()
        counts(page, "semantic", 1)
        assert ask(address, f"/api/v1/memories/{memory}") == before


def test_a_long_list_comes_in_pages(browser: Browser, address: str) -> None:
    """A tier of more than fifty memories is listed in parts, newest first, to the last."""
    remember(address, *(f"memory {number:03d}" for number in range(60)), tier="episodic")
    with live(browser, address) as page:
        page.locator('.vessel[data-tier="episodic"]').click()
        items = page.locator("#browse-list > li")
        expect(items).to_have_count(50)
        page.locator("#browse-more").click()
        expect(items).to_have_count(60)
        expect(items.first).to_contain_text("memory 059")
        expect(items.last).to_contain_text("memory 000")
        expect(page.locator("#browse-more")).to_be_hidden()


def test_what_will_leave_can_be_kept(browser: Browser, address: str) -> None:
    """The forecast lists what leaves first; "Keep" pins it."""
    [memory] = remember(address, "The invoice is due on Friday", tier="working")
    with live(browser, address) as page:
        expect(page.locator("#forecast-words")).to_contain_text("1 memory will fade")
        page.locator("#losses > li").get_by_role("button", name="Keep").click()
        expect(page.locator("#toast-list")).to_contain_text("Kept")
        assert ask(address, f"/api/v1/memories/{memory}")["pinned"] is True
        page.evaluate("document.activeElement.blur()")
        expect(page.locator("#forecast-words")).to_contain_text("Nothing will fade")


# Who looks, and from where


def test_hostile_content_stays_text(browser: Browser, address: str) -> None:
    """Markup, directions and very long words in a memory are shown as they are, wherever it is shown, and break
    nothing."""
    remember(address, *HOSTILE, tier="working", actor=HOSTILE[0], tags=[HOSTILE[1]], metadata={HOSTILE[0]: HOSTILE[1]})
    with live(browser, address, viewport={"width": 360, "height": 780}) as page:
        page.get_by_role("button", name="Show more").first.click()
        for text in HOSTILE[:2]:
            expect(page.locator("#activity-list")).to_contain_text(text)
        page.get_by_role("searchbox", name="Question").fill(f"{HOSTILE[0]} unbroken right left")
        page.keyboard.press("Enter")
        expect(page.locator("#results")).to_contain_text(HOSTILE[0])
        assert overflow(page) == 0
        page.locator('.vessel[data-tier="working"]').click()
        expect(page.locator("#browse-list")).to_contain_text(HOSTILE[1])
        for position in range(len(HOSTILE)):
            page.locator("#browse-list .content").nth(position).click()
            expect(page.locator("#detail dl")).to_contain_text(HOSTILE[1])
            assert page.evaluate(
                "document.querySelector('#detail').scrollWidth <= document.querySelector('#detail').clientWidth"
            )
            page.keyboard.press("Escape")
        assert overflow(page) == 0
        assert page.locator("img, script:not([src])").count() == 0
        assert page.evaluate("window.hacked") is None


def test_the_page_stands_trusted_types(browser: Browser, address: str) -> None:
    """Nothing on the page, not even the charts, makes nodes or code from text: it runs where that is forbidden."""

    def stricter(route: Route) -> None:
        response = route.fetch()
        policy = response.headers["content-security-policy"]
        wanted = "require-trusted-types-for 'script'"
        headers = response.headers | {"content-security-policy": policy if wanted in policy else f"{policy}; {wanted}"}
        route.fulfill(response=response, headers=headers)

    remember(address, "Mara drinks oat milk")
    with tab(browser, "about:blank") as blank:
        page = blank.context.new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.route(f"{address}/", stricter)
        page.goto(address)
        expect(page.locator("#connection")).to_have_text("Live")
        page.locator("#sizes").scroll_into_view_if_needed()
        expect(page.locator("#sizes canvas")).to_be_visible()
        assert page.evaluate("(() => { try { document.createElement('p').innerHTML = 'x' } catch { return true } })()")
        assert [line for line in said if "TrustedHTML" not in line] == []


def test_a_token_is_asked_for(browser: Browser, tmp_path: Path) -> None:
    """Where the server has a token the page shows nothing until it is given, says when it is wrong, and keeps the
    browser signed in until it signs out."""
    with server(store(tmp_path), "--token", TOKEN) as (address, _), tab(browser, address, allowed=("401",)) as page:
        expect(page.locator("#connection")).to_have_text("Needs a token")
        field = page.get_by_role("textbox", name="Token")
        expect(field).to_be_focused()
        field.fill("not the token at all")
        page.keyboard.press("Enter")
        expect(page.locator("#sign-in-error")).to_have_text("That is not the token.")
        field.fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator("#connection")).to_have_text("Live")
        expect(page.locator("#sign-in")).to_be_hidden()
        assert TOKEN not in page.evaluate("JSON.stringify([{ ...localStorage }, document.cookie, location.href])")
        page.reload()
        expect(page.locator("#connection")).to_have_text("Live")
        page.get_by_role("button", name="Sign out").click()
        expect(page.locator("#connection")).to_have_text("Needs a token")


def test_the_page_comes_back_with_its_server(browser: Browser, tmp_path: Path) -> None:
    """While the server is away the page says so and keeps what it knows; when it is back, what it missed shows."""
    url = store(tmp_path)
    with server(url) as (address, _):
        port = address.rpartition(":")[2]
        remember(address, "before")
        opened = live(browser, address, allowed=("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE", "ERR_EMPTY_RESPONSE"))
        page = opened.__enter__()
        counts(page, "short_term", 1)
    expect(page.locator("#connection")).to_have_text("Reconnecting")
    assert vessel(page, "short_term") == "1"
    with server(url, "--port", port) as (address, _):
        remember(address, "after")
        expect(page.locator("#connection")).to_have_text("Live")
        counts(page, "short_term", 2)
        opened.__exit__(None, None, None)


def test_a_page_that_nobody_sees_rests(browser: Browser, address: str) -> None:
    """A tab in the background gives its stream back after a minute, and is live again once it is looked at."""
    hide = """(hidden) => {
      Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    with tab(browser, "about:blank") as blank:
        page = blank.context.new_page()
        page.clock.install()
        page.goto(address)
        expect(page.locator("#connection")).to_have_text("Live")
        page.evaluate(hide, True)
        page.clock.fast_forward(61_000)
        expect(page.locator("#connection")).to_have_text("Reconnecting")
        while ask(address, "/api/v1/live/hello")["history"][-1]["viewers"]:
            page.wait_for_timeout(100)
        remember(address, "While nobody looked")
        page.evaluate(hide, False)
        expect(page.locator("#connection")).to_have_text("Live")
        counts(page, "short_term", 1)


def test_no_width_needs_sideways_scrolling(browser: Browser, address: str) -> None:
    """From a phone to a wide screen, with an answer open, the page is as wide as its window, also while something is in
    the air."""
    hold = """() => {
      const animate = Element.prototype.animate;
      Element.prototype.animate = function (...given) {
        const animation = animate.apply(this, given);
        if (this.classList.contains("flying")) {
          animation.currentTime = 500;
          animation.pause();
        }
        return animation;
      };
    }"""
    remember(address, "Mara drinks oat milk", "The train leaves at eight", "unbroken" * 40)
    with live(browser, address) as page:
        page.get_by_role("searchbox", name="Question").fill("What does Mara drink?")
        page.keyboard.press("Enter")
        expect(page.locator("#results > li").first).to_be_visible()
        expect(page.locator("#losses > li").first).to_be_visible()
        page.evaluate(hold)
        remember(address, "One that flies while the window shrinks", tier="semantic")
        until(page, "document.querySelector('.flying') !== null")
        for width in (320, 360, 600, 768, 1024, 1440, 2560):
            page.set_viewport_size({"width": width, "height": 800})
            page.wait_for_timeout(200)  # the charts follow the width a frame later
            until(page, f"innerWidth === {width} && {WIDER} === 0")


def test_the_colours_are_chosen_and_kept(browser: Browser, address: str) -> None:
    """The page follows the system's colours until others are chosen, and keeps the choice."""
    ground = "getComputedStyle(document.body).backgroundColor"
    with live(browser, address, color_scheme="light") as page:
        light = page.evaluate(ground)
        page.emulate_media(color_scheme="dark")
        dark = page.evaluate(ground)
        assert dark != light
        page.get_by_role("radio", name="Light").check()
        assert page.evaluate(ground) == light
        page.reload()
        expect(page.locator("#connection")).to_have_text("Live")
        assert page.evaluate(ground) == light
        expect(page.get_by_role("radio", name="Light")).to_be_checked()
