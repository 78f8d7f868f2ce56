"""The dashboard's files, read once: they are few and small, and hold nothing of anybody."""

import hashlib
import mimetypes
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from gemma_cli.server.access import Access

FOLDER: Final = Path(__file__).parent / "page"
INDEX: Final = "index.html"
TYPES: Final = {".js": "text/javascript", ".mjs": "text/javascript", ".woff2": "font/woff2", ".svg": "image/svg+xml"}
"""Where a system's own table may be wrong or silent."""
SOURCES: Final = frozenset({".py", ".pyc"})


@dataclass(frozen=True, slots=True)
class PageFile:
    content: bytes
    media_type: str
    etag: str


def read(folder: Path = FOLDER) -> dict[str, PageFile]:
    """All files below a folder, by their path in it."""
    return {
        path.relative_to(folder).as_posix(): _read(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in SOURCES
    }


def _read(path: Path) -> PageFile:
    content = path.read_bytes()
    kind = TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return PageFile(content, kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def routes(files: dict[str, PageFile], access: Access) -> list[Route]:
    """`/` is the page, `/page/*` what it loads. `/?code=...` signs the browser in that was opened with it; the answer
    sends it on, so that the page's address holds nothing."""

    async def index(request: Request) -> Response:
        code = request.query_params.get("code")
        if code is None or request.method != "GET":
            return _answer(request, files.get(INDEX))
        response = RedirectResponse("/", 303)
        if access.redeem(code):
            access.begin_session(response, request.scope)
        return response

    async def file(request: Request) -> Response:
        return _answer(request, files.get(request.path_params["path"]))

    return [Route("/", index), Route("/page/{path:path}", file)]


def _answer(request: Request, file: PageFile | None) -> Response:
    if file is None:
        raise HTTPException(404)
    headers = {"ETag": file.etag, "Cache-Control": "no-cache"}
    if file.etag in (tag.strip() for tag in request.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
