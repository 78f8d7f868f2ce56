"""The cache behind the embedder."""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Generic, TypeVar

V = TypeVar("V")


class LruCache(Generic[V]):
    """Values by text, the least recently used first out; safe from several threads."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.values: OrderedDict[str, V] = OrderedDict()
        self.hits = 0
        self.misses = 0
        self.dedup_hits = 0
        self.lock = threading.Lock()

    def get(self, text: str) -> V | None:
        with self.lock:
            value = self.values.get(text)
            if value is None:
                self.misses += 1
            else:
                self.hits += 1
                self.values.move_to_end(text)
            return value

    def get_many(self, texts: Iterable[str]) -> dict[str, V]:
        return {text: value for text in texts if (value := self.get(text)) is not None}

    def peek(self, texts: Iterable[str]) -> dict[str, V]:
        """Those that are there; counts nothing and refreshes nothing."""
        with self.lock:
            return {text: self.values[text] for text in texts if text in self.values}

    def put_many(self, values: dict[str, V]) -> None:
        with self.lock:
            for text, value in values.items():
                self.values[text] = value
                self.values.move_to_end(text)
            while len(self.values) > self.capacity:
                self.values.popitem(last=False)

    def deduplicated(self, count: int) -> None:
        with self.lock:
            self.dedup_hits += count

    def counts(self) -> tuple[int, int, int, int]:
        """Hits, misses, deduplicated misses, size."""
        with self.lock:
            return self.hits, self.misses, self.dedup_hits, len(self.values)
