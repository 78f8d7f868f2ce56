"""Two agents with one memory on a Redis server: what one of them reads and hears, the other finds at once.

python examples/redis_example.py                  on localhost:6380, where docker-compose.yml puts its server
python examples/redis_example.py redis://HOST:PORT/DB

It works in a namespace of its own, whose keys it removes at the end.
"""

import argparse
import asyncio
import sys
import tempfile
import time
import uuid
from pathlib import Path
from statistics import median
from textwrap import shorten

from gemma_cli.commands.demo import CONVERSATION, HANDBOOK, questions, shipped
from gemma_cli.rag import MemoryConsolidator, PythonRAGBackend


async def main(url: str) -> None:
    namespace = f"example-{uuid.uuid4().hex}"
    first, second = (PythonRAGBackend(url=url, namespace=namespace) for _ in range(2))
    if not await first.initialize():
        sys.exit("No Redis server there: try `docker compose up --detach --wait`, or give the address of another.")
    try:
        async with first, second:
            await remember(first)
            await ask(second)
            promoted = await MemoryConsolidator(first).run_consolidation()
            info = await second.get_info()
        print(f"\nThe first agent promoted {promoted}. The second one sees:")
        print("  " + ", ".join(f"{tier} {count}" for tier, count in info.memories.items()))
        print(f"They take {info.size_bytes / 1024:.0f} KiB of {info.versions['server']} {info.versions['version']}.")
    finally:
        await remove(url, namespace)


async def remember(backend: PythonRAGBackend) -> None:
    """The handbook of a lighthouse and a short conversation."""
    with tempfile.TemporaryDirectory() as directory:
        document = Path(directory) / HANDBOOK
        document.write_text(shipped(HANDBOOK), "utf-8")
        chunks = await backend.ingest_document(document)
    ids = await backend.store_memories(CONVERSATION)
    print(f"The first agent stored {chunks} chunks of a handbook and {len(ids)} memories of a conversation.")


async def ask(backend: PythonRAGBackend) -> None:
    """Questions none of which shares a word with its answer, and the best two that each finds."""
    times = []
    for question in questions():
        start = time.perf_counter()
        hits = await backend.recall_memories(question.text, limit=2)
        times.append(time.perf_counter() - start)
        print(f"\n{question.text}")
        for hit in hits:
            found = "✓" if question.answer in hit.content else " "
            print(f"  {found} {hit.score:.3f} {excerpt(hit.content, question.answer)}")
    print(f"\nOne recall by the second agent, question embedded (median): {1e3 * median(times):.1f} ms")


def excerpt(text: str, around: str) -> str:
    """Some words of a text, and the answer among them where it is there."""
    text = " ".join(text.split())
    start = text.rfind(" ", 0, max(text.find(around) - 40, 0) + 1) + 1
    return ("… " if start else "") + shorten(text[start:], 90, placeholder=" …")


async def remove(url: str, namespace: str) -> None:
    """All keys of a namespace that nobody uses any more, and of no other."""
    from redis.asyncio import Redis

    async with Redis.from_url(url) as server:
        async for key in server.scan_iter(match=f"gemma-rag:{{{namespace}}}:*", count=1000):
            await server.unlink(key)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", default="redis://localhost:6380/0", help="default: %(default)s")
    asyncio.run(main(parser.parse_args().url))
