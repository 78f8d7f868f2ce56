"""What stands before the HTTP API: names, tokens, cookies, limits, headers, and the page's files."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from conftest import Clock
from http_servers import ADDRESS, BEARER, MEMORIES, TOKEN, client_of, in_process, refused, running, told
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware

from gemma_cli.commands.session import CliSession
from gemma_cli.edge.opening import Opening
from gemma_cli.rag import InvalidInputError
from gemma_cli.server import endpoint, page_files, rates
from gemma_cli.server.access import CODE_SECONDS, MOST, SESSION_SECONDS, Access
from gemma_cli.server.bodies import Body
from gemma_cli.server.desk import Desk
from gemma_cli.server.endpoint import LARGE_BODY, LONG, SMALL_BODY, Call, Endpoint
from gemma_cli.server.endpoints import ENDPOINTS, routes
from gemma_cli.server.gate import SECURITY, Gate
from gemma_cli.server.names import names
from gemma_cli.server.readiness import Readiness
from gemma_cli.server.told import Health
from gemma_cli.server.undo import Undo

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("hashing")]

JSON = {"Content-Type": "application/json"}


# Names


@pytest.mark.parametrize(
    ("listens", "host", "known"),
    [
        ("127.0.0.1", "127.0.0.1:8765", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "LocalHost:1", True),
        ("127.0.0.1", "localhost.:8765", True),
        ("127.0.0.1", "[::1]:8765", True),
        ("127.0.0.1", "127.8.8.8", True),
        ("127.0.0.1", "memory.example:8765", True),
        ("127.0.0.1", "evil.example:8765", False),
        ("127.0.0.1", "evil.localhost", False),
        ("127.0.0.1", "localhost.evil.example", False),
        ("127.0.0.1", "127.0.0.1.evil.example", False),
        ("127.0.0.1", "127.0.0.1@evil.example", False),
        ("127.0.0.1", "192.168.0.7", False),
        ("127.0.0.1", "2130706433", False),
        ("127.0.0.1", "", False),
        ("127.0.0.1", "[::1", False),
        ("127.0.0.1", "localhost:8765:1", False),
        ("0.0.0.0", "192.168.0.7:8765", True),
        ("0.0.0.0", "[2001:db8::1]", True),
        ("0.0.0.0", "evil.example", False),
        ("box.example", "box.example:80", True),
        ("box.example", "evil.example", False),
    ],
)
def test_which_hosts_are_known(listens: str, host: str, known: bool) -> None:
    """Only loopback's names, the one it listens on and those that were allowed; other addresses where others can reach
    it. What a page's own name resolves to is never among them."""
    refusal = names(listens, ["memory.example"]).refusal(Headers({"host": host}))
    assert (refusal is None) == known


@pytest.mark.parametrize("name", ["foo:8080", "http://bar", "bar/", "*.example", "a b", "", "bücher.example"])
def test_a_name_that_no_request_can_bear_is_refused(name: str) -> None:
    """What would never match is told at the start, and not by every request that it was meant for."""
    with pytest.raises(InvalidInputError, match=r"allow_host: .* is no name of a host"):
        names("127.0.0.1", [name])


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("Memory.Example.", "memory.example:8765"),
        ("[2001:DB8::1]", "[2001:db8:0::1]:8765"),
        ("192.168.0.7", "192.168.0.7"),
        ("my_box", "MY_BOX"),
    ],
)
def test_a_name_is_known_in_any_form(name: str, host: str) -> None:
    """Capitals, a last dot and the ways to write an address make no other name."""
    assert names("127.0.0.1", [name]).refusal(Headers({"host": host})) is None


@pytest.mark.parametrize(
    ("origin", "same"),
    [
        ("http://127.0.0.1:8765", True),
        ("https://127.0.0.1:8765", True),
        ("http://127.0.0.1:3000", False),
        ("http://localhost:8765", False),
        ("http://evil.example", False),
        ("http://127.0.0.1:8765.evil.example", False),
        ("null", False),
        ("", False),
        ("file://127.0.0.1:8765", False),
        ("http://[", False),
    ],
)
def test_which_pages_may_ask(origin: str, same: bool) -> None:
    """Only pages of the very host and port that are asked."""
    refusal = names("127.0.0.1", []).refusal(Headers({"host": "127.0.0.1:8765", "origin": origin}))
    assert (refusal is None) == same


@pytest.mark.parametrize(
    "path", ["/", "/page/x.js", "/healthz", "/metrics", "/api/v1/stats", "/nothing", "/openapi.json"]
)
async def test_another_site_gets_nothing(path: str, url: str) -> None:
    """A page whose name was resolved to this machine, or that asks from elsewhere, is refused on every path, with the
    token too."""
    async with in_process(url, token=TOKEN) as web:
        for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
            error = refused(await web.get(path, headers={**BEARER, **headers}), 403)
            assert error["code"] == "not_allowed"
            assert "127.0.0.1" not in error["message"]


async def test_an_image_of_another_site_starts_no_export(url: str) -> None:
    """What a browser asks for another site without an Origin is refused, but for the page, which a link may lead to."""
    async with in_process(url) as web:
        for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
            assert (await web.get("/api/v1/export", headers={"Sec-Fetch-Site": site})).status_code == status
        assert (await web.get("/", headers={"Sec-Fetch-Site": "cross-site"})).status_code in (200, 404)


async def test_two_hosts_are_none(url: str) -> None:
    """A request with two Host headers is refused, whichever comes first."""
    for headers in ([("Host", "localhost"), ("Host", "evil.example")], []):
        assert names("127.0.0.1", []).refusal(Headers(raw=[(k.lower().encode(), v.encode()) for k, v in headers]))


# Who may ask


@pytest.mark.parametrize("row", ENDPOINTS, ids=lambda row: f"{row.method} {row.path}")
async def test_without_the_token_nothing_is_told(row: Endpoint, url: str) -> None:
    """Every endpoint but the public ones asks for the token before it looks at anything else."""
    async with in_process(url, token=TOKEN) as web:
        path = row.path.replace("{memory_id:path}", "x").replace("{token}", "x")
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": TOKEN},
            {"Cookie": "gemma-rag-8765=x"},
        ):
            response = await web.request(row.method, path, headers=headers)
            if row.public:
                assert response.status_code in (200, 204, 415)
            else:
                assert refused(response, 401)["code"] == "unauthorized"
                assert response.headers["www-authenticate"] == "Bearer"


async def test_beside_the_table_the_token_is_asked_too(url: str) -> None:
    """The stream, the metrics, the description and what is not there need it; the page does not."""
    async with in_process(url, token=TOKEN) as web:
        for path in ("/api/v1/live", "/api/v1/live/hello", "/metrics", "/openapi.json", "/mcp", "/nothing", "/api/v1"):
            refused(await web.get(path), 401)
        for path in ("/", "/page/nothing.js"):
            assert (await web.get(path)).status_code in (200, 404)
        assert (await web.get("/metrics", headers=BEARER)).status_code == 200


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer "])
async def test_the_scheme_has_no_case(scheme: str, url: str) -> None:
    """`Bearer` may be written in any case (RFC 9110, 11.1)."""
    async with in_process(url, token=TOKEN) as web:
        told(await web.get("/api/v1/stats", headers={"Authorization": f"{scheme} {TOKEN}"}))
        refused(await web.get("/api/v1/stats", headers={"Authorization": f"{scheme} {TOKEN}x"}), 401)


async def test_a_browser_signs_in_and_out(url: str, clock: Clock) -> None:
    """The cookie of a session stands for the token, for its time, until it is ended; no script can read it and no
    other site can have it sent."""
    async with in_process(url, token=TOKEN, clock=clock) as web:
        assert refused(await web.post("/api/v1/session", json={"token": "wrong"}), 401)["code"] == "unauthorized"
        assert "set-cookie" not in (await web.post("/api/v1/session", json={"token": "é"})).headers
        signed = await web.post("/api/v1/session", json={"token": TOKEN})
        cookie = signed.headers["set-cookie"]
        assert (signed.status_code, TOKEN in cookie) == (204, False)
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
        told(await web.get("/api/v1/stats"))
        refused(await web.get("/api/v1/stats", headers={"Authorization": "Bearer wrong"}), 401)
        kept = dict(web.cookies)
        assert (await web.delete("/api/v1/session")).status_code == 204
        assert dict(web.cookies) == {}
        web.cookies.update(kept)
        refused(await web.get("/api/v1/stats"), 401)
        await web.post("/api/v1/session", json={"token": TOKEN})
        clock.tick(SESSION_SECONDS - 1)
        told(await web.get("/api/v1/stats"))
        clock.tick(1)
        refused(await web.get("/api/v1/stats"), 401)


async def test_behind_tls_the_cookie_stays_there(url: str) -> None:
    """A cookie that was given over https is never sent without."""
    async with running(url, token=TOKEN) as app, client_of(app, ADDRESS.replace("http:", "https:")) as web:
        signed = await web.post("/api/v1/session", json={"token": TOKEN})
        assert "Secure" in signed.headers["set-cookie"].split("; ")


async def test_without_a_token_anybody_may_ask(url: str) -> None:
    """Without a token no cookie is set, and signing in does no harm."""
    async with in_process(url) as web:
        signed = await web.post("/api/v1/session", json={"token": "any"})
        assert (signed.status_code, "set-cookie" in signed.headers) == (204, False)
        told(await web.get("/api/v1/stats"))


async def test_a_code_lets_one_browser_in(url: str, clock: Clock) -> None:
    """The code of --open serves once and soon; the browser is sent on to an address without it either way."""
    async with running(url, token=TOKEN, clock=clock) as app:
        code = app.state.access.new_code()
        late = app.state.access.new_code()
        for given, status in ((code, 200), (code, 401), ("guessed", 401)):
            async with client_of(app) as web:
                await web.head("/", params={"code": given})
                response = await web.get("/", params={"code": given})
                assert (response.status_code, response.headers["location"]) == (303, "/")
                assert (await web.get("/api/v1/stats")).status_code == status
        clock.tick(CODE_SECONDS)
        async with client_of(app) as web:
            await web.get("/", params={"code": late})
            refused(await web.get("/api/v1/stats"), 401)


def test_sessions_do_not_pile_up(clock: Clock) -> None:
    """Of more sessions than are kept, the oldest ends."""
    access = Access(TOKEN, clock)
    codes = [access.new_code() for _ in range(MOST + 1)]
    assert [access.redeem(code) for code in (codes[0], codes[1], codes[-1])] == [False, True, True]


# Limits


async def test_too_many_requests_are_told_when_to_come_again(url: str, clock: Clock) -> None:
    """Each address has its own measure, which fills again with time; wrong tokens count too."""
    async with running(url, token=TOKEN, rate=2, clock=clock) as app:
        async with client_of(app) as web:
            for _ in range(4):
                refused(await web.get("/api/v1/stats"), 401)
            response = await web.get("/api/v1/stats", headers=BEARER)
            assert refused(response, 429)["code"] == "too_many_requests"
            assert response.headers["retry-after"] == "1"
            clock.tick(0.5)
            told(await web.get("/api/v1/stats", headers=BEARER))
            refused(await web.get("/healthz"), 429)
        other = httpx2.ASGITransport(app=app, client=("10.0.0.2", 1))
        async with httpx2.AsyncClient(transport=other, base_url=ADDRESS) as web:
            told(await web.get("/healthz"))


@pytest.mark.parametrize(
    ("host", "rate", "limited"), [("127.0.0.1", None, False), ("0.0.0.0", None, True), ("0.0.0.0", 0, False)]
)
async def test_only_other_machines_are_measured(host: str, rate: float | None, limited: bool, url: str) -> None:
    """On loopback, and with --rate 0, any number of requests is answered; else 100 at once by default."""
    async with in_process(url, host=host, token=TOKEN, rate=rate, clock=Clock()) as web:
        statuses = [(await web.get("/healthz")).status_code for _ in range(102)]
    assert statuses == [200] * 100 + [429 if limited else 200] * 2


def test_addresses_do_not_pile_up(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more addresses than are remembered, those that asked last are."""
    monkeypatch.setattr(rates, "CLIENTS", 2)
    rate = rates.Rate(1, 1, clock)
    asked = [rate.refusal(client) is None for client in ("a", "b", "a", "c", "a", "b")]
    assert asked == [True, True, False, True, False, True]


async def parts(size: int) -> AsyncIterator[bytes]:
    for _ in range(size >> 16):
        yield b" " * (1 << 16)
    yield b" "


@pytest.mark.parametrize(("path", "most"), [(MEMORIES, SMALL_BODY), (f"{MEMORIES}/batch", LARGE_BODY)])
async def test_a_body_has_a_limit(path: str, most: int, url: str) -> None:
    """A body above the limit is refused, whether it tells its length or comes in pieces; one at the limit is read."""
    async with in_process(url) as web:
        for content in (b" " * (most + 1), parts(most)):
            error = refused(await web.post(path, content=content, headers=JSON), 413)
            assert error["code"] == "too_large"
        huge = JSON | {"Content-Length": "9" * 5_000}
        refused(await web.post(path, content=b"{}", headers=huge), 413)
        assert refused(await web.post(path, content=b" " * most, headers=JSON), 422)["code"] == "invalid_input"


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/json5"])
async def test_a_body_has_to_be_json(kind: str | None, url: str) -> None:
    """A form of another page could send other types without asking first."""
    async with in_process(url) as web:
        headers = {} if kind is None else {"Content-Type": kind}
        error = refused(await web.post(MEMORIES, content=b'{"content":"x"}', headers=headers), 415)
        assert error["code"] == "not_json"
        good = {"Content-Type": "Application/JSON; charset=utf-8"}
        told(await web.post(MEMORIES, content=b'{"content":"x"}', headers=good), 201)


class Nothing(Body):
    pass


async def wait(call: Call, *_: Any) -> Health:
    await asyncio.sleep(60)
    return Health(status="late")


async def store_timeout(call: Call) -> Health:
    raise TimeoutError("of something else")


def app_of(table: tuple[Endpoint, ...]) -> Starlette:
    """An application with other endpoints, behind the same gate."""
    opening, access = Opening(CliSession("memory://")), Access(None, Clock())
    desk = Desk(opening, (), access, Undo(), Readiness(opening))
    gate = Middleware(Gate, names("127.0.0.1", []), access, None, frozenset(), asyncio.Event())
    return Starlette(routes=routes(desk, table), middleware=[gate])


async def test_a_request_has_its_time() -> None:
    """A request that takes too long, or whose body does, is given up with an answer; another's time limit within it is
    an error of its own."""
    table = (
        Endpoint("GET", "/slow", "", wait, Health, seconds=0.01),
        Endpoint("POST", "/body", "", wait, Health, body=Nothing, seconds=0.01),
        Endpoint("GET", "/other", "", store_timeout, Health, seconds=60),
    )

    async def slowly() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)

    async with client_of(app_of(table)) as web:
        for response in (await web.get("/slow"), await web.post("/body", content=slowly(), headers=JSON)):
            error = refused(response, 503)
            assert (error["code"], error["retryable"]) == ("timed_out", True)
        assert refused(await web.get("/other"), 500)["code"] == "internal"


def test_what_may_take_long() -> None:
    """Only reading and writing much has more than the usual time, and only a batch more than the usual body."""
    long = {row.run.__name__ for row in ENDPOINTS if row.seconds == LONG}
    assert long == {"ingest", "forget", "consolidate", "export"}
    assert {row.seconds for row in ENDPOINTS} == {endpoint.SECONDS, LONG}
    assert {row.run.__name__ for row in ENDPOINTS if row.max_body == LARGE_BODY} == {"store_memories"}


# Answers


async def test_every_answer_has_the_headers(url: str) -> None:
    """Whatever is answered, error or not, forbids what a browser could do with it, and data are kept nowhere."""
    async with in_process(url) as web:
        for method, path, status in (
            ("GET", "/api/v1/stats", 200),
            ("POST", MEMORIES, 415),
            ("GET", "/nothing", 404),
            ("GET", "/api/v1/stats/", 404),
            ("PUT", MEMORIES, 405),
            ("DELETE", "/api/v1/session", 204),
            ("HEAD", "/api/v1/stats", 200),
        ):
            response = await web.request(method, path)
            assert response.status_code == status
            assert {name: response.headers.get(name) for name in SECURITY} == SECURITY
            assert response.headers["cache-control"] == "no-store"
            assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    ("path", "methods"),
    [(MEMORIES, "GET HEAD POST"), (f"{MEMORIES}/x", "DELETE GET HEAD PATCH"), ("/api/v1/live", "GET HEAD")],
)
async def test_another_method_is_told_which_there_are(path: str, methods: str, url: str) -> None:
    """A method that an address does not take is refused with those that it does, all of them."""
    async with in_process(url) as web:
        response = await web.put(path)
        assert refused(response, 405)["code"] == "wrong_method"
        assert sorted(response.headers["allow"].split(", ")) == methods.split()


def test_the_pages_files(tmp_path: Path) -> None:
    """Files have the types that browsers insist on, and a tag that follows their content."""
    (tmp_path / "vendor").mkdir()
    for name in ("index.html", "a.js", "vendor/b.mjs", "c.css", "d.svg", "e.woff2", "f.py"):
        (tmp_path / name).write_text(name)
    files = page_files.read(tmp_path)
    assert {name: file.media_type for name, file in files.items()} == {
        "index.html": "text/html",
        "a.js": "text/javascript",
        "vendor/b.mjs": "text/javascript",
        "c.css": "text/css",
        "d.svg": "image/svg+xml",
        "e.woff2": "font/woff2",
    }
    assert len({file.etag for file in files.values()}) == 6


async def test_the_page_is_not_sent_twice(tmp_path: Path) -> None:
    """A browser that has a file gets none of it again; what is not there is not found, nor anything outside."""
    (tmp_path / "page").mkdir()
    (tmp_path / "page/index.html").write_text("<p>page")
    (tmp_path / "secret.js").write_text("secret")
    app = Starlette(routes=page_files.routes(page_files.read(tmp_path / "page"), Access(None, Clock())))
    async with client_of(app) as web:
        page = await web.get("/")
        assert (page.text, page.headers["content-type"]) == ("<p>page", "text/html; charset=utf-8")
        assert page.headers["cache-control"] == "no-cache"
        again = await web.get("/page/index.html", headers={"If-None-Match": f'"x", {page.headers["etag"]}'})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", page.headers["etag"])
        for path in ("/page/%2e%2e/secret.js", "/page/..%2fsecret.js", "/page/", "/page//index.html"):
            assert (await web.get(path)).status_code == 404
