"""How commands go over the line, with hiredis and without."""

import subprocess
import sys
from typing import Any

import hiredis
from hypothesis import given
from hypothesis import strategies as st
from servers import Server

from gemma_cli.rag.stores.redis_node import pack

pytest_plugins = ["server_fixtures"]

WORD = st.binary() | st.text(st.characters(exclude_categories=["Cs"])) | st.integers() | st.floats()


@given(st.lists(WORD, min_size=1).map(tuple))
def test_packing_is_that_of_hiredis(words: tuple[Any, ...]) -> None:
    """Bytes, texts and numbers are packed byte for byte as hiredis packs them."""
    assert pack(words) == hiredis.pack_command(words)


def test_a_store_needs_no_hiredis(redis_server: Server) -> None:
    """With redis-py alone a memory is stored in Redis and found again."""
    code = """
import asyncio, sys
sys.modules["hiredis"] = None
import numpy as np
from gemma_cli.rag import PythonRAGBackend
class Embedder:
    def encode(self, texts):
        return np.eye(8, dtype=np.float32)[[len(text) % 8 for text in texts]]
async def main():
    async with PythonRAGBackend(url=sys.argv[1], namespace="without", embedder=Embedder()) as backend:
        await backend.store_memory("Der Schlüssel ist bei Ada.", "semantic", 0.25, metadata={"n": 1.5})
        [found] = await backend.recall_memories("Schlüssel")
        print(found.content, found.importance, found.metadata)
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, redis_server.url], capture_output=True, text=True, encoding="utf-8", timeout=120
    )
    assert done.stdout == "Der Schlüssel ist bei Ada. 0.25 {'n': 1.5}\n", done.stderr
