"""Blocking work off the event loop, without a thread that stays behind."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of `work` in a thread that ends with it. `asyncio.to_thread` keeps its threads for as long as the
    event loop lives, and nothing of ours may outlive `close`."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="gemma-rag-offload")
    try:
        return await asyncio.get_running_loop().run_in_executor(pool, lambda: work(*args, **kwargs))
    finally:
        pool.shutdown(wait=False)
