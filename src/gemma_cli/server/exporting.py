"""All memories as one file, streamed."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from starlette.responses import Response, StreamingResponse

if TYPE_CHECKING:
    from gemma_cli.rag import PythonRAGBackend

CHUNK: Final = 1 << 16
NAME: Final = "memories.jsonl"


async def exported(backend: "PythonRAGBackend") -> Response:
    """What `export_memories` writes. It is written to a file first, so that an error comes before the answer begins;
    the file has no name any more when it is sent, so that nothing of it stays."""
    with tempfile.TemporaryDirectory(prefix="gemma-rag-") as folder:
        path = Path(folder) / NAME
        await backend.export_memories(path)
        file = path.open("rb")
        size = path.stat().st_size
    headers = {
        "Content-Length": str(size),
        "Content-Disposition": f'attachment; filename="{NAME}"',
        "Cache-Control": "no-store",
    }
    return StreamingResponse(_parts(file), headers=headers, media_type="application/x-ndjson")


async def _parts(file: IO[bytes]) -> AsyncIterator[bytes]:
    with file:
        while part := await asyncio.to_thread(file.read, CHUNK):
            yield part
