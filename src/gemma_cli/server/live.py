"""What happens, as it happens: one task looks at the store and the process each second, and every viewer is told.

Server-sent events; the data of each is one line of JSON, times in ISO 8601, UTC.

- `hello`, first, and again where the store or its model changes or a viewer could not keep up: `time`,
  `uptime_seconds`, `version`, `interval_seconds`, `store` (`url`, `namespace`, `model`, `engine`; null while not
  known), `tiers` (`name`, `capacity`, `ttl_seconds`, `promotes_to`; none while the store has not been opened),
  `history` and `activity`: samples and events so far, oldest first.
- `sample`, each second: `time`, `tiers` (by name `count` and, since the sample before, `arrived` and `left`),
  `operations` (by verb, since the sample before: `count`, `errors`, `p50_ms`, `p95_ms`, `p99_ms`, `max_ms`), `caches`
  (`answers`, `embeddings`: `hits`, `misses`, `size`, `capacity`), `embedder` (`batches`, `texts`, `queue_length`, or
  null), `store` (`size_bytes`, `index_bytes`), `process` (`rss_mb`, `cpu_percent` of one core), `viewers`, and `error`
  while the store can't be read; its figures are the last known then. Caches and embedder count from the start.
- `activity`, where something has happened: `events`, oldest first, and how many `more` there were before them. An
  event: `time`, `kind` (see `activity.EventKind`), `id`, `tier`, `importance`; `from_tier` of a move; mostly `text`,
  but no words in a `hello` that their memory does not hold any more because it was forgotten or changed.
"""

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from gemma_cli.edge.failures import reason
from gemma_cli.rag._version import __version__
from gemma_cli.server.live_samples import ProcessMeter, Sampler, drop_old_words, event_json, iso, tiers_json
from gemma_cli.server.live_viewers import STILL_THERE, Frame, Viewers, frame
from gemma_cli.server.looks import Looks

if TYPE_CHECKING:
    from gemma_cli.edge.opening import Opening
    from gemma_cli.rag.activity import Activity

logger = logging.getLogger("gemma_cli.server.live")

HISTORY: Final = 900
"""Samples kept for viewers who come later: 15 minutes."""
EVENTS_KEPT: Final = 200
EVENTS_TOGETHER: Final = 50
"""Events in one frame; of more, the latest, and how many there were besides."""
HEARTBEAT: Final = 15.0
"""Seconds after which a comment is sent where nothing else was."""
PATIENCE: Final = 0.5
"""Part of an interval that a sample waits for the store."""
SILENCE: Final = 10.0
"""Seconds without an answer of the store from which samples say so; its own time limits are shorter, and the first look
reads everything."""
LAST_LOOK: Final = 2.0
"""Seconds that a look under way is given at the end: one that is opening the store would leave it half open."""
_UNKNOWN: Final[dict[str, Any]] = {"operations": {}, "caches": {}, "embedder": None, "store": {}}
"""The parts of a sample that a backend has to tell, before there is one."""


def encoded(value: Any) -> bytes:
    """One line of JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


class Live:
    """Samples between `async with` and its end, watched or not.

    opening: whose backend; it is opened by the first look.
    interval: seconds between two samples.
    clock: seconds since the epoch, for what is shown. Intervals go by the event loop's clock.
    """

    def __init__(self, opening: "Opening", *, interval: float = 1.0, clock: Callable[[], float] = time.time) -> None:
        self._opening = opening
        self._interval = interval
        self._clock = clock
        self._began = time.monotonic()
        self._viewers = Viewers(self._greeting)
        self._samples: deque[bytes] = deque(maxlen=HISTORY)
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS_KEPT)
        self._about: dict[str, Any] = {"store": dict.fromkeys(("url", "namespace", "model", "engine")), "tiers": []}
        self._hello: Frame | None = None
        self._sampler: Sampler | None = None
        self._process = ProcessMeter()
        self._tiers: dict[str, Any] = {}
        self._task: asyncio.Task[None] | None = None
        self._looks = Looks(self._look, "gemma-rag-live-look")

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="gemma-rag-live")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._looks.close(LAST_LOOK)

    def end(self) -> None:
        """Ends every stream at once, without waiting. Call it when the server is told to end: it waits for its
        connections first, and these would stay open."""
        self._viewers.end()

    @property
    def viewers(self) -> int:
        return len(self._viewers)

    def hello(self) -> dict[str, Any]:
        """The data of a `hello`."""
        found: dict[str, Any] = json.loads(self.hello_json())
        return found

    def hello_json(self) -> bytes:
        """The same, encoded."""
        head = encoded(
            {
                "time": iso(self._clock()),
                "uptime_seconds": round(time.monotonic() - self._began, 3),
                "version": __version__,
                "interval_seconds": self._interval,
                **self._about,
            }
        )
        return b'%s,"history":[%s],"activity":%s}' % (head[:-1], b",".join(self._samples), encoded(list(self._events)))

    def watch(self) -> AbstractAsyncContextManager[AsyncIterator[Frame]]:
        """The frames for one viewer, from a `hello` on, until it leaves or the server ends."""
        return self._viewers.watch()

    def _greeting(self) -> Frame:
        """One for all who come between two samples."""
        if self._hello is None:
            self._hello = frame("hello", self.hello_json())
        return self._hello

    def _send(self, sent: Frame) -> None:
        self._hello = None
        self._viewers.send(sent)

    # Sampling

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            await self._sample()
            due = max(due + self._interval, loop.time())
            while (pause := due - loop.time()) > HEARTBEAT:
                await asyncio.sleep(HEARTBEAT)
                self._viewers.send(STILL_THERE)
            await asyncio.sleep(pause)

    async def _sample(self) -> None:
        try:
            activity, error = await self._looked()
            if self._sampler is not None or error is not None:
                self._tell(activity, error)
        except Exception as unforeseen:  # one bad sample must not end all later ones
            logger.exception("live_sample_failed", exc_info=unforeseen)

    async def _looked(self) -> "tuple[Activity | None, str | None]":
        """What the store has told in time, or why it has not."""
        looked = await self._looks.within(PATIENCE * self._interval)
        if looked is None:
            waited = self._looks.waited
            return None, f"the store has not answered for {waited:.0f} s" if waited > SILENCE else None
        if (problem := looked.exception()) is None:
            return looked.result(), None
        return None, reason(problem, logger, "live_look_failed")

    async def _look(self) -> "Activity":
        if self._sampler is None:
            self._sampler = Sampler(await self._opening.backend())
        activity = await self._sampler.look()
        if self._sampler.about != self._about:  # opened just now, or the model has been loaded
            self._about = self._sampler.about
            self._hello = None
            self._viewers.greet()
        return activity

    def _tell(self, activity: "Activity | None", error: str | None) -> None:
        """One sample, and what happened before it."""
        if activity is not None:
            self._tiers = tiers_json(activity)
        else:
            self._tiers = {name: {**tier, "arrived": 0, "left": 0} for name, tier in self._tiers.items()}
        sample = {
            "time": iso(self._clock()),
            "tiers": self._tiers,
            **(_UNKNOWN if self._sampler is None else self._sampler.facts()),
            "process": self._process.read(),
            "viewers": self.viewers,
            **({} if error is None else {"error": error}),
        }
        data = encoded(sample)
        self._samples.append(data)
        self._send(frame("sample", data))
        if activity is not None and activity.events:
            told = {event["id"] for event in self._events}
            drop_old_words(self._events, (event_json(event) for event in activity.events if event.id in told))
            shown = [event_json(event) for event in activity.events[-EVENTS_KEPT:]]
            self._events.extend(shown)
            last = shown[-EVENTS_TOGETHER:]
            more = len(activity.events) - len(last)
            self._send(frame("activity", encoded({"events": last, "more": more})))
