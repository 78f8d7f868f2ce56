"""A second process on a store. `python store_worker.py MODE URL [ARGUMENT...]`, with the tests' own embedder.

serve URL [SALT]         answers one JSON request a line ({"verb": ..., "args": [...], "kwargs": {...}}), until stdin
                         ends; the first answer says how opening went
write URL PREFIX COUNT   stores COUNT memories, one by one, after a line on stdin says go
forever URL PREFIX       stores memories, one by one and in batches, and prints each id once it is acknowledged,
                         until it is killed
"""

import asyncio
import json
import sys
from itertools import count
from typing import Any

from memory_places import WordEmbedder, settings_with

from gemma_cli.rag import GemmaRagError, MemoryEntry, PythonRAGBackend

SETTINGS = settings_with(working_capacity=10, long_term_capacity=2_000)


def backend_on(url: str, salt: str = "") -> PythonRAGBackend:
    return PythonRAGBackend(url=url, embedder=WordEmbedder(salt=salt), settings=SETTINGS)


def say(answer: Any) -> None:
    print(json.dumps(answer), flush=True)


def plain(result: Any) -> Any:
    """A verb's result as JSON."""
    if isinstance(result, MemoryEntry):
        return {"id": result.id, "content": result.content, "tier": str(result.tier)}
    if isinstance(result, list):
        return [plain(item) for item in result]
    if isinstance(result, dict):
        return {"->".join(key) if isinstance(key, tuple) else str(key): value for key, value in result.items()}
    return result


async def serve(url: str, salt: str = "") -> None:
    backend = backend_on(url, salt)
    loop = asyncio.get_running_loop()
    try:
        say({"result": await backend.initialize()})
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            request = json.loads(line)
            try:
                verb = getattr(backend, request["verb"])
                say({"result": plain(await verb(*request["args"], **request["kwargs"]))})
            except GemmaRagError as error:
                say({"error": type(error).__name__, "message": str(error)})
    finally:
        await backend.close()


async def write(url: str, prefix: str, amount: str) -> None:
    async with backend_on(url) as backend:
        say("ready")
        sys.stdin.readline()
        for i in range(int(amount)):
            await backend.store_memory(f"{prefix} number {i}", "working" if i % 5 == 0 else "long_term")
            if i % 10 == 0:
                await backend.recall_memories(f"{prefix} number {i}", limit=1)
        say("done")


async def forever(url: str, prefix: str) -> None:
    async with backend_on(url) as backend:
        say("ready")
        for i in count():
            if i % 7 == 6:
                batch = [{"content": f"{prefix} {i} batch {k}", "memory_type": "semantic"} for k in range(20)]
                say(await backend.store_memories(batch))
            else:
                say([await backend.store_memory(f"{prefix} {i}", "semantic")])


if __name__ == "__main__":
    asyncio.run({"serve": serve, "write": write, "forever": forever}[sys.argv[1]](*sys.argv[2:]))
