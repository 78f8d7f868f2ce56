"""One namespace on a Redis server while it is open: calls, refusals, and accesses that wait to be counted."""

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from gemma_cli.rag.errors import (
    BackendStateError,
    CapacityError,
    GemmaRagError,
    InvalidInputError,
    ModelMismatchError,
    StoreError,
    StoreLostError,
    StoreUnavailableError,
    StoreVersionError,
)
from gemma_cli.rag.memory import TIERS, MemoryEntry
from gemma_cli.rag.settings_schema import RedisSettings
from gemma_cli.rag.stores import redis_scripts as scripts
from gemma_cli.rag.stores.base import REPLACED, StoredModel
from gemma_cli.rag.stores.redis_keys import Keys
from gemma_cli.rag.stores.redis_link import Call, Command, RedisLink, ScriptRefusal, Word
from gemma_cli.rag.stores.redis_mirror import Mirror
from gemma_cli.rag.stores.redis_reading import OF_A_MODEL, Values, reading, values_read
from gemma_cli.rag.stores.redis_rows import READ_ENTRY, Numbers, decode, expired
from gemma_cli.rag.stores.redis_scripts import Script
from gemma_cli.rag.stores.rows import model_columns, same_model, terms_of, to_model
from gemma_cli.rag.words import WORDS_VERSION

T = TypeVar("T")

logger = logging.getLogger("gemma_cli.rag.stores.redis")

FORMAT: Final = 1
"""Version of the keys and fields."""

AGAIN: Final = b"+"
"""Behind the nonce of a request that may have been carried out: the script looks for it (`repeated`)."""

TOUCHES_WAITING: Final = 100_000
"""Accesses, by memory, that may wait to be counted."""

COUNTS_WAIT: Final = 0.25
"""Seconds that a read waits for accesses that are still to be counted."""

REFRESHED_TOGETHER: Final = 256
LISTED_TOGETHER: Final = 500
"""Memories looked at in one round trip."""


@dataclass(slots=True)
class _State:
    """What exists between `open` and `close`. `generation`: "<epoch of the namespace>.<number of its model>"."""

    link: RedisLink
    mirror: Mirror
    generation: str
    model: StoredModel | None


class RedisSession:
    """Opens, closes and calls. `where` names the server in messages, without secrets."""

    def __init__(self, url: str, where: str, namespace: str, settings: RedisSettings) -> None:
        self._url = url
        self._where = where
        self._keys = Keys(namespace)
        self._settings = settings
        self._state: _State | None = None
        self._lost = False
        self._reopening = asyncio.Lock()
        self._going_over = asyncio.Lock()
        """Held while this process has the model of the namespace changed, until its answer is there."""
        self._touched: Counter[str] = Counter()
        self._touched_at = 0.0
        self._touching: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # Opening and closing

    async def open(self) -> StoredModel | None:
        link = RedisLink.acquire(self._url, self._settings)
        try:
            await link.open()
            generation, model = await self._enter(link)
            budget = self._settings.index_memory << 20
            mirror = Mirror(link, self._keys, lambda: self._session().generation, budget)
            self._state = _State(link, mirror, generation, model)
            occupied = bool(await self._command("EXISTS", self._keys.of("created")))
        except BaseException:
            self._state = None
            await link.release()
            raise
        return model if occupied else None

    async def _enter(self, link: RedisLink) -> tuple[str, StoredModel | None]:
        """The generation and the model of the namespace, which is made where it is not there yet."""
        args = (os.urandom(8).hex(), os.urandom(8), FORMAT, WORDS_VERSION)
        found = await self._write(link, scripts.OPEN, args)
        form, words, generation, _, model, probe = found
        if int(form) > FORMAT or int(words) > WORDS_VERSION:
            raise StoreVersionError(f"{self._where} was written by a newer version of gemma-rag; upgrade this one")
        if int(words) < WORDS_VERSION:
            await self._refresh_words(link, generation.decode())
        return generation.decode(), to_model(model, probe)

    async def _refresh_words(self, link: RedisLink, generation: str) -> None:
        """Cuts the words of every memory anew if an older version of this package cut them."""
        [ids] = await link.commands(self._keys.slot, [("ZRANGE", self._keys.of("created"), 0, -1)])
        head = (generation, os.urandom(8), 0.0, "words", WORDS_VERSION)
        for start in range(0, len(ids), REFRESHED_TOGETHER):
            part = ids[start : start + REFRESHED_TOGETHER]
            found = await link.script(scripts.READ, self._keys.fixed, (len(READ_ENTRY), *READ_ENTRY, *part))
            args: list[Word] = []
            for memory_id, values in zip(part, found, strict=True):
                if (entry := decode(memory_id.decode(), values)) is not None:
                    args += (memory_id, Numbers.unpack(values[0]).sequence, terms_of(entry))
            if args:
                await self._write(link, scripts.REEMBED, (*head, *args))
        await self._write(link, scripts.REEMBED, head)

    async def close(self) -> None:
        if self._state is None:
            return
        try:
            await self._counted(None)  # each try to count them ends within the link's time limit
            if self._tasks:
                await asyncio.wait(self._tasks)
        finally:
            state, self._state = self._state, None
            await state.mirror.close()
            await state.link.release()

    def _session(self) -> _State:
        if self._state is None:
            raise BackendStateError("the store is not open")
        return self._state

    # Calling

    async def _call(self, script: Script, *args: Word, write: bool = False) -> Any:
        """The answer of a script. A write begins with the generation and a nonce, by which a repeated one is known."""
        if not write:
            [found] = await self._ask(Call(script, self._keys.fixed, args))
            return found
        return await self._settled(lambda state: self._change(state, script, *args))

    async def _change(self, state: _State, script: Script, *args: Word) -> Any:
        """The answer of a script that changes something, by the generation that is known now."""
        nonce = os.urandom(8)
        words, again = (state.generation, nonce, *args), (state.generation, nonce + AGAIN, *args)
        answer = await self._write(state.link, script, words, again)
        state.mirror.saw()
        return answer

    async def _settled(self, work: Callable[[_State], Awaitable[T]]) -> T:
        """What `work` gives; begun anew where it was refused only because this process itself has gone over to another
        model meanwhile."""
        while True:
            state = await self._ready()
            generation = state.generation
            try:
                return await work(state)
            except ModelMismatchError:
                async with self._going_over:
                    if state.generation == generation:
                        raise

    async def _write(
        self, link: RedisLink, script: Script, words: Sequence[Word], again: Sequence[Word] | None = None
    ) -> Any:
        """The answer of a script that changes something, its refusals as errors of ours."""
        try:
            return await link.script(script, self._keys.fixed, words, write=True, idempotent=True, again=again)
        except ScriptRefusal as refusal:
            raise self._meant(refusal) from None

    async def _ask(self, *commands: Command) -> list[Any]:
        """The answers to reading commands."""
        return (await self._asked(*commands))[1]

    async def _asked(self, *commands: Command) -> tuple[str, list[Any]]:
        """The generation that the server has, and its answers to reading commands. A namespace that is not the one
        which was opened has none to give."""
        state = await self._ready()
        meta = ("HGET", self._keys.of("meta"), "generation")
        try:
            *answers, found = await state.link.commands(self._keys.slot, [*commands, meta])
        except ScriptRefusal as refusal:
            raise self._meant(refusal) from None
        if found is None or _epoch(found.decode()) != _epoch(state.generation):
            raise self._loss()
        return found.decode(), answers

    async def _command(self, *words: Word) -> Any:
        """The answer to a reading command."""
        [answer] = await self._ask(words)
        return answer

    async def _ready(self) -> _State:
        """The session; after a loss that was reported, that of an empty namespace for the same model."""
        state = self._session()
        if self._lost:
            async with self._reopening:
                if self._lost:
                    generation, model = await self._enter(state.link)
                    if model is None and state.model is not None:
                        model, generation = await self._adopted(state.link, generation, state.model)
                    if state.model is not None and model is not None and not same_model(model, state.model):
                        raise ModelMismatchError(
                            "the store was lost, and begun anew with another model meanwhile; open it again"
                        )
                    state.generation = generation
                    state.mirror.drop()
                    self._lost = False
        return state

    async def _adopted(self, link: RedisLink, generation: str, model: StoredModel) -> tuple[StoredModel, str]:
        """The model of the namespace from now on, and its generation."""
        identity, probe = model_columns(model)
        words = (generation, os.urandom(8), identity, probe or b"")
        kept, kept_probe, adopted = await self._write(link, scripts.ADOPT, words)
        return to_model(kept, kept_probe) or model, adopted.decode()

    def _meant(self, refusal: ScriptRefusal) -> GemmaRagError:
        """What a script's refusal is to the caller."""
        if refusal.code == "LOST":
            return self._loss()
        if refusal.code == "MODEL":
            return ModelMismatchError("the store was re-embedded with another model meanwhile; open it again")
        if refusal.code == "REPLACED":
            return ModelMismatchError(REPLACED)
        if refusal.code == "TAKEN":
            return InvalidInputError(f"id: {refusal.detail!r} is already in the store")
        if refusal.code == "FULL":
            tier, capacity = map(int, refusal.detail.split())
            return CapacityError(
                f"the tier {TIERS[tier].value} holds {capacity:,} memories and too many of them are pinned: take a pin "
                "off, or use another tier"
            )
        if refusal.code == "DENIED":
            return StoreUnavailableError(
                f'{self._where}: the user may not use {refusal.detail}, which the store needs; see "A user of its '
                'own" in docs/redis.md'
            )
        return StoreError(f"{self._where}: {refusal}")

    def _loss(self) -> StoreLostError:
        """The server has forgotten the namespace: said once, loudly; what is called next begins anew."""
        self._lost = True
        logger.error("store_lost", extra={"url": self._where})
        return StoreLostError(
            f"{self._where} has lost this namespace (restarted without its data, or emptied); restore a backup there, "
            "or go on: the next call begins with an empty store"
        )

    async def _from_mirror(self, ask: Callable[[Mirror], Awaitable[T]]) -> T:
        """An answer of the mirror, which may be the first to notice a loss."""

        async def asked(state: _State) -> T:
            try:
                return await ask(state.mirror)
            except StoreLostError:
                raise self._loss() from None

        return await self._settled(asked)

    async def _read(self, fields: Sequence[str], ids: Sequence[str]) -> list[Values]:
        """Fields of memories; what is not there is None."""
        if not ids:
            return []
        generation = (await self._ready()).generation
        seen, answers = await self._asked(*reading(self._keys, generation, fields, ids))
        found = values_read(answers, ids)
        if seen != generation and not OF_A_MODEL.isdisjoint(fields):
            # Another process has gone over to another model; the server knows by what names its fields go.
            [found] = await self._ask(Call(scripts.READ, self._keys.fixed, (len(fields), *fields, *ids)))
        return found

    async def get(self, ids: Sequence[str], now: float) -> list[MemoryEntry | None]:
        await self._counted()
        found = await self._read((*READ_ENTRY, "vector"), ids)
        return [
            None if (entry := decode(memory_id, values, vector)) is None or expired(entry, now) else entry
            for memory_id, (*values, vector) in zip(ids, found, strict=True)
        ]

    # Counting accesses

    def touch(self, ids: Sequence[str], now: float) -> None:
        self._session()
        if len(self._touched) >= TOUCHES_WAITING:
            logger.warning("touch_lost", extra={"url": self._where, "reason": "too many wait"})
            return
        self._touched.update(ids)
        self._touched_at = max(self._touched_at, now)
        if self._touching is None or self._touching.done():
            self._touching = asyncio.get_running_loop().create_task(self._count(), name="gemma-rag-touch")

    async def _count(self) -> None:
        """Counts what waits, until nothing does."""
        while self._touched:
            waiting, self._touched = self._touched, Counter()
            at, self._touched_at = self._touched_at, 0.0
            args = [part for pair in waiting.items() for part in pair]
            state = self._session()
            try:
                words = (state.generation, at, *args)
                await state.link.script(scripts.TOUCH, self._keys.fixed, words, write=True)
            except GemmaRagError as error:  # an answer must not fail for want of its own footnote
                logger.warning("touch_lost", extra={"url": self._where, "reason": str(error)})

    def _behind(self, script: Script, *args: Word) -> None:
        """A write that nobody waits for; a failure is logged."""

        async def write() -> None:
            try:
                state = self._session()
                words = (state.generation, *args)
                await state.link.script(script, self._keys.fixed, words, write=True, idempotent=True)
            except GemmaRagError as error:
                logger.warning("write_lost", extra={"url": self._where, "script": script.name, "reason": str(error)})

        self._session()
        task = asyncio.get_running_loop().create_task(write(), name=f"gemma-rag-{script.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _counted(self, seconds: float | None = COUNTS_WAIT) -> None:
        """Waits for the accesses that are on their way; a read not for long, for the server may be slow to confirm."""
        if self._touching is not None and self._touching.get_loop() is asyncio.get_running_loop():
            await asyncio.wait([self._touching], timeout=seconds)


def _epoch(generation: str) -> str:
    return generation.partition(".")[0]
