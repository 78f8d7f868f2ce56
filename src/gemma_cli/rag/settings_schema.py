"""Which settings there are: the sections of `config.toml`, their keys, defaults, units and limits. No I/O."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from types import MappingProxyType
from typing import Any, ClassVar, Final, TypeVar
from urllib.parse import quote

from gemma_cli.rag import validation as check
from gemma_cli.rag.errors import InvalidInputError, SettingsError
from gemma_cli.rag.memory import DEFAULT_DECAY, DEFAULT_PROMOTION_THRESHOLD, TIER_POLICIES, MemoryTier, TierRules

T = TypeVar("T", bool, int, float, str)

REDIS_SCHEMES: Final = tuple("redis rediss unix redis+cluster rediss+cluster redis+sentinel rediss+sentinel".split())
STORE_SCHEMES: Final = ("sqlite", *REDIS_SCHEMES, "memory")
HIDDEN: Final = "***"
BATCH_TOKENS: Final = 1_024
"""Rows times longest row of a batch. Between 512 and 2,048 no difference could be measured; a smaller batch is padded
less, and a short question waits for one batch of a long job at most."""
CENTURY: Final = 100 * 365.25 * 86_400
"""Seconds. The longest time to live: stamps far beyond it would leave the years that a datetime can hold."""


@dataclass(frozen=True, slots=True)
class Key:
    """What one key may hold. `low` and `high` are inclusive, `filled` text is never empty, a secret is neither shown
    in a repr nor written out, and `also` is one more check of a text that is not empty."""

    doc: str
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    filled: bool = False
    secret: bool = False
    also: Callable[[str, str], object] | None = None

    def checked(self, name: str, value: object, kind: type) -> Any:
        """`value` as a `kind`; raises SettingsError, whose message begins with `name`."""
        try:
            return _CHECKS[kind](self, name, value)
        except InvalidInputError as error:
            raise SettingsError(str(error)) from error


def _checked_text(key: Key, name: str, value: object) -> str:
    if value == "" and not key.filled:
        return ""
    result = check.text(name, value)
    if key.choices and result not in key.choices:
        raise InvalidInputError(f"{name}: {result!r} is none of {', '.join(map(repr, key.choices))}")
    if key.also is not None:
        key.also(name, result)
    return result


def masked_url(url: str) -> str:
    """`url` without what may be secret in it: the login and a `password=` of the query. For messages and logs."""
    if not url.startswith("sqlite:"):  # a path may hold an @; a mistyped scheme may stand before a password
        url = re.sub(r"://.*@", "://***@", url, flags=re.DOTALL)  # to the last @: a password may be badly encoded
    return re.sub(r"(?<=password=)[^&]*", "***", url, flags=re.IGNORECASE)


def _check_url(name: str, url: str) -> None:
    """Refuses what no store answers to; the URL itself may hold a password and is not repeated."""
    scheme, separator, _ = url.partition("://")
    if url == "redis" or (separator and scheme in STORE_SCHEMES):
        return
    if not separator:
        raise InvalidInputError(f"{name}: is no URL; for a file write sqlite:///path/to/memory.db")
    known = ", ".join(f"{scheme}://" for scheme in STORE_SCHEMES)
    raise InvalidInputError(f"{name}: there is no store for {scheme}://; use one of {known}")


_CHECKS: Final[Mapping[type, Callable[[Key, str, object], Any]]] = {
    bool: lambda _, name, value: check.flag(name, value),
    int: lambda key, name, value: check.whole(name, value, int(key.low), int(key.high)),
    float: lambda key, name, value: check.number(name, value, key.low, key.high),
    str: _checked_text,
}


def key_field(
    default: T,
    doc: str,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    choices: tuple[str, ...] = (),
    filled: bool = False,
    secret: bool = False,
    also: Callable[[str, str], object] | None = None,
) -> T:
    """A dataclass field whose metadata says what it may hold."""
    return field(default=default, metadata={"key": Key(doc, low, high, choices, filled, secret, also)})


@dataclass(frozen=True, repr=False)
class Section:
    """A table of the file. Constructing one checks every value, so `dataclasses.replace` can't make a wrong one."""

    NAME: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for f in fields(self):
            name = f"{self.NAME}.{f.name}"
            checked = f.metadata["key"].checked(name, getattr(self, f.name), type(f.default))
            object.__setattr__(self, f.name, checked)

    def __repr__(self) -> str:
        shown = (f"{name}={HIDDEN if hidden else repr(value)}" for name, value, hidden in self.shown())
        return f"{type(self).__name__}({', '.join(shown)})"

    def shown(self) -> Iterator[tuple[str, Any, bool]]:
        """Each key, its value and whether that value must stay hidden."""
        for f in fields(self):
            value = getattr(self, f.name)
            yield f.name, value, f.metadata["key"].secret and bool(value)


@dataclass(frozen=True, repr=False)
class StoreSettings(Section):
    """`[store]`: where the memories are kept."""

    NAME: ClassVar[str] = "store"

    url: str = key_field(
        "",
        "Empty: one SQLite file in the user's data directory. Or sqlite:///..., redis://..., rediss://..., "
        'unix://..., redis+sentinel://..., redis+cluster://..., memory://, or "redis": the server of [redis].',
        also=_check_url,
    )
    namespace: str = key_field(
        "default", "Memories of one namespace are never seen from another.", filled=True, also=check.label
    )
    durability: str = key_field(
        "normal",
        '"normal": a stored memory survives the death of the process; "full": a power cut too (slower writes).',
        choices=("normal", "full"),
    )

    def shown(self) -> Iterator[tuple[str, Any, bool]]:
        for name, value, hidden in super().shown():
            yield name, value, hidden or (name == "url" and masked_url(self.url) != self.url)


def _ttl(tier: MemoryTier) -> float:
    ttl = TIER_POLICIES[tier].ttl
    return key_field(
        ttl.total_seconds() if ttl else 0.0, f"Seconds that a memory lives in {tier}; 0 = for ever.", 0.0, CENTURY
    )


def _capacity(tier: MemoryTier) -> int:
    return key_field(TIER_POLICIES[tier].capacity, f"Memories that the {tier} tier holds.", 1, 10_000_000)


@dataclass(frozen=True, repr=False)
class MemorySettings(Section):
    """`[memory]`: tiers, promotion, limits, the cache of answers."""

    NAME: ClassVar[str] = "memory"

    consolidation_threshold: float = key_field(
        DEFAULT_PROMOTION_THRESHOLD, "Relevance from which a memory moves up a tier.", 0.0, 1.0
    )
    importance_decay_rate: float = key_field(
        DEFAULT_DECAY, "Decay of relevance per day of age: exp(-rate * days).", 0.0, 1_000.0
    )
    cleanup_interval: float = key_field(300.0, "Seconds between two runs of the background tasks.", 0.01, CENTURY)
    enable_background_tasks: bool = key_field(True, "Let an application's `BackgroundTasks` clean up and consolidate.")
    auto_consolidate: bool = key_field(
        True, "Let those background tasks promote memories, not only remove expired ones."
    )
    working_ttl: float = _ttl(MemoryTier.WORKING)
    working_capacity: int = _capacity(MemoryTier.WORKING)
    short_term_ttl: float = _ttl(MemoryTier.SHORT_TERM)
    short_term_capacity: int = _capacity(MemoryTier.SHORT_TERM)
    episodic_ttl: float = _ttl(MemoryTier.EPISODIC)
    episodic_capacity: int = _capacity(MemoryTier.EPISODIC)
    long_term_ttl: float = _ttl(MemoryTier.LONG_TERM)
    long_term_capacity: int = _capacity(MemoryTier.LONG_TERM)
    semantic_ttl: float = _ttl(MemoryTier.SEMANTIC)
    semantic_capacity: int = _capacity(MemoryTier.SEMANTIC)
    max_content_chars: int = key_field(100_000, "Characters of the longest single memory.", 1, 1_000_000_000)
    chunk_size: int = key_field(0, "Tokens of a document's chunk; 0 = the model's window.", 0, 1_000_000)
    chunk_overlap: int = key_field(
        -1, "Tokens that neighbouring chunks share; -1 = chosen to suit chunk_size, 0 = none.", -1, 1_000_000
    )
    late_interaction: bool = key_field(
        True, "Keep signs of the vectors of each memory's tokens, and order the best answers by them too."
    )
    query_cache_ttl: float = key_field(
        300.0, "Seconds that a recalled answer is kept for the same question.", 0.0, CENTURY
    )
    query_cache_size: int = key_field(1_000, "Answers kept at once.", 1, 10_000_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk_size and self.chunk_overlap >= self.chunk_size:
            raise SettingsError(
                f"memory.chunk_overlap: {self.chunk_overlap} is not less than memory.chunk_size, {self.chunk_size}; "
                "a chunk must bring something new"
            )

    def tier_rules(self) -> TierRules:
        """The policies of the five tiers, the decay per day and the threshold of promotion."""
        policies = {}
        for tier, policy in TIER_POLICIES.items():
            seconds: float = getattr(self, f"{tier}_ttl")
            ttl = timedelta(seconds=seconds) if seconds else None
            policies[tier] = replace(policy, capacity=getattr(self, f"{tier}_capacity"), ttl=ttl)
        return TierRules(MappingProxyType(policies), self.importance_decay_rate, self.consolidation_threshold)


@dataclass(frozen=True, repr=False)
class EmbeddingSettings(Section):
    """`[embedding]`: the model that turns texts into vectors."""

    NAME: ClassVar[str] = "embedding"

    provider: str = key_field("local", 'Engine of the model; "local" = the best one installed.', filled=True)
    model: str = key_field("all-MiniLM-L6-v2", "Name of the model.", filled=True)
    dimension: int = key_field(384, "Numbers in a vector.", 1, 65_536)
    batch_size: int = key_field(32, "Texts embedded at once, at most.", 1, 65_536)
    batch_tokens: int = key_field(
        BATCH_TOKENS,
        "Tokens in one pass of the model, at most, padding counted; a longer text goes alone.",
        1,
        1_000_000,
    )
    cache_embeddings: bool = key_field(True, "Keep vectors of recent texts in memory.")
    cache_size: int = key_field(1_000, "Vectors kept at once.", 1, 10_000_000)
    stored_cache_size: int = key_field(
        0, "Vectors of texts that are kept in the store as well, and survive a restart; 0 = none.", 0, 10_000_000
    )
    model_dir: str = key_field("", "Directory with model.safetensors and tokenizer.json; empty = looked up.")
    device: str = key_field("", 'Where the model runs, e.g. "cpu" or "cuda"; empty = the engine\'s choice.')
    threads: int = key_field(0, "Threads of the model; 0 = as many as there are cores.", 0, 4_096)
    precision: str = key_field("", 'Arithmetic of the model, e.g. "bf16" or "f32"; empty = the best the processor has.')


@dataclass(frozen=True, repr=False)
class RedisSettings(Section):
    """`[redis]`: the server. Used only where `[store] url` asks for Redis or `redis_host=` is passed in code."""

    NAME: ClassVar[str] = "redis"

    host: str = key_field("localhost", "Name or address of the server.", filled=True)
    port: int = key_field(6380, "TCP port.", 1, 65_535)
    db: int = key_field(0, "Number of the database; a cluster has only 0.", 0, 1_000_000)
    pool_size: int = key_field(
        10, "Connections to a server, at most; who finds none free waits within the time limit.", 1, 100_000
    )
    connection_timeout: float = key_field(
        5.0, "Seconds to wait for a connection; never longer than timeout.", 0.01, 3_600.0
    )
    timeout: float = key_field(
        4.0, "Seconds that one operation may take; waiting, reconnecting and trying again are included.", 0.01, 3_600.0
    )
    replicas: int = key_field(
        0, "Replicas that must have confirmed a write before it counts (WAIT); 0 = the master's word is enough.", 0, 100
    )
    index_memory: int = key_field(
        512, "MiB that the indexes of all namespaces in a process take together; the least used leave.", 1, 1_048_576
    )
    username: str = key_field("", "User of the server's access list; empty = the default user.")
    password: str = key_field("", "Better given as GEMMA_RAG_REDIS__PASSWORD than in a file.", secret=True)
    tls: bool = key_field(False, "Encrypt the connection.")
    cluster: bool = key_field(False, "The server is a node of a Redis Cluster.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cluster and self.db:
            raise SettingsError(f"redis.db: {self.db}, but a cluster (redis.cluster = true) has only database 0")

    def redis_url(self) -> str:
        """`redis://`, `rediss://` (TLS), `redis+cluster://` or `rediss+cluster://`, parts percent-encoded. It holds
        the password: show `masked_url` of it."""
        scheme = ("rediss" if self.tls else "redis") + ("+cluster" if self.cluster else "")
        user, password = quote(self.username, safe=""), quote(self.password, safe="")
        login = (user + (f":{password}" if password else "") + "@") if user or password else ""
        host = f"[{self.host.strip('[]')}]" if ":" in self.host else quote(self.host, safe="")
        return f"{scheme}://{login}{host}:{self.port}" + ("" if self.cluster else f"/{self.db}")


@dataclass(frozen=True, repr=False)
class MonitoringSettings(Section):
    """`[monitoring]`: what is measured while the library works."""

    NAME: ClassVar[str] = "monitoring"

    enabled: bool = key_field(True, "Measure at all.")
    track_latency: bool = key_field(True, "Measure how long operations take.")
    track_memory: bool = key_field(True, "Record the memory that the process uses.")
    track_token_usage: bool = key_field(True, "Count the tokens that are embedded.")
    report_interval: float = key_field(60.0, "Seconds between two reports in the log.", 0.01, CENTURY)
    tracing: bool = key_field(False, "Wrap each operation in a span of OpenTelemetry (gemma-rag[otel]).")
