"""Settings as values: the rules, URLs and paths that they become, what is shown and what stays hidden."""

import dataclasses
import math
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_cli.rag.memory import TIER_POLICIES, MemoryTier
from gemma_cli.rag.settings import (
    MemorySettings,
    RedisSettings,
    Settings,
    StoreSettings,
    default_store_path,
    load_settings,
    masked_url,
    user_config_file,
)
from gemma_cli.rag.settings_schema import Key


def load(where: Path, text: str | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of a directory whose `--config` file has this text, without the process's environment."""
    config = None
    if text is not None:
        config = where / "given.toml"
        config.write_text(text, encoding="utf-8")
    return load_settings(config=config, environ=environ or {}, cwd=where)


@pytest.fixture(autouse=True)
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """User directories of this test's own, on every system."""
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# What the values become


def test_tier_rules_are_the_table_unless_changed() -> None:
    """The default policies, decay and threshold are memory.py's own; a changed key changes its tier alone."""
    rules = MemorySettings().tier_rules()
    assert dict(rules.policies) == dict(TIER_POLICIES)
    assert (rules.decay, rules.threshold) == (0.1, 0.75)
    changed = MemorySettings(
        working_ttl=0.5,
        semantic_ttl=86_400,
        long_term_ttl=0,
        episodic_capacity=7,
        importance_decay_rate=0.2,
        consolidation_threshold=0.9,
    ).tier_rules()
    assert changed.policies[MemoryTier.WORKING].ttl == timedelta(milliseconds=500)
    assert changed.policies[MemoryTier.SEMANTIC].ttl == timedelta(days=1)
    assert changed.policies[MemoryTier.LONG_TERM].ttl is None
    assert changed.policies[MemoryTier.EPISODIC].capacity == 7
    assert changed.policies[MemoryTier.SHORT_TERM] == TIER_POLICIES[MemoryTier.SHORT_TERM]
    assert changed.policies[MemoryTier.EPISODIC].promotes_to is MemoryTier.LONG_TERM
    assert (changed.decay, changed.threshold) == (0.2, 0.9)


def test_the_longest_ttl_stays_within_the_years_of_a_datetime() -> None:
    """The upper limit of a TTL can be added to today's date."""
    longest = MemorySettings(working_ttl=100 * 365.25 * 86_400).tier_rules().policies[MemoryTier.WORKING]
    assert longest.expiry(1_767_225_600.0) == 1_767_225_600.0 + 100 * 365.25 * 86_400


@pytest.mark.parametrize(
    ("redis", "url"),
    [
        (RedisSettings(), "redis://localhost:6380/0"),
        (RedisSettings(db=3, tls=True), "rediss://localhost:6380/3"),
        (RedisSettings(cluster=True), "redis+cluster://localhost:6380"),
        (RedisSettings(cluster=True, tls=True), "rediss+cluster://localhost:6380"),
        (RedisSettings(password="p@ss/w:rd"), "redis://:p%40ss%2Fw%3Ard@localhost:6380/0"),
        (RedisSettings(username="me", password="pw"), "redis://me:pw@localhost:6380/0"),
        (RedisSettings(username="me"), "redis://me@localhost:6380/0"),
        (RedisSettings(host="::1"), "redis://[::1]:6380/0"),
        (RedisSettings(host="[::1]"), "redis://[::1]:6380/0"),
    ],
)
def test_redis_url(redis: RedisSettings, url: str) -> None:
    """The [redis] section becomes the URL that its keys describe, with every part encoded."""
    assert redis.redis_url() == url


@given(st.text(min_size=1).filter(str.strip), st.text(min_size=1).filter(str.strip))
def test_any_login_survives_the_url(username: str, password: str) -> None:
    """User name and password come out of the URL as they went in, and never move its host."""
    parts = urlsplit(RedisSettings(username=username, password=password).redis_url())
    assert (unquote(parts.username or ""), unquote(parts.password or "")) == (username, password)
    assert (parts.hostname, parts.port) == ("localhost", 6380)


def test_redis_is_asked_only_where_the_store_says_so(tmp_path: Path) -> None:
    """A [redis] section alone chooses no store; `url = "redis"` is the server it describes."""
    assert load(tmp_path, "[redis]\nhost = 'h'").store_url() == ""
    assert load(tmp_path, "[store]\nurl = 'redis'\n[redis]\nhost = 'h'").store_url() == "redis://h:6380/0"


def test_user_paths_lie_in_the_users_directories(tmp_path: Path) -> None:
    """The default store and file lie below the user's directories, under the project's name, and are not created."""
    for path, name in ((default_store_path(), "memory.db"), (user_config_file(), "config.toml")):
        assert path.name == name
        assert path.parent.name == "gemma-rag"
        assert path.is_relative_to(tmp_path / "home")
        assert not path.exists()


# What is shown


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://h:1/0", "redis://h:1/0"),
        ("redis://me:geheim@h:1/0", "redis://***@h:1/0"),
        ("rediss+cluster://:geheim@h", "rediss+cluster://***@h"),
        ("redis://:ge#he@im/geheim@h", "redis://***@h"),
        ("redis://h?db=1&password=geheim&x=1", "redis://h?db=1&password=***&x=1"),
        ("sqlite:///home/me@work/memory.db", "sqlite:///home/me@work/memory.db"),
    ],
)
def test_masked_url(url: str, masked: str) -> None:
    """A login and a password in the query are masked, however badly encoded; a path with an @ is not."""
    assert masked_url(url) == masked


@pytest.mark.parametrize(
    "settings",
    [
        Settings(redis=RedisSettings(password="geheim")),
        Settings(store=StoreSettings(url="redis://me:geheim@h:1/0")),
    ],
)
def test_a_secret_is_never_shown(settings: Settings, tmp_path: Path) -> None:
    """A password appears neither in a repr nor in the file written, which still loads and keeps the rest."""
    assert "geheim" not in repr(settings)
    assert "***" in repr(settings)
    text = settings.to_toml(origins=True)
    assert "geheim" not in text
    assert "is set, and not shown" in text
    assert load(tmp_path, text) == Settings()


def test_origins_stand_beside_the_values(tmp_path: Path) -> None:
    """With origins each line names its source, in a file that still loads, even where a path has a line break."""
    config = write(tmp_path / "a\nb/c.toml", "[redis]\nport = 7000")
    settings = load_settings(config=config, environ={"GEMMA_RAG_REDIS__DB": "1"}, cwd=tmp_path)
    text = settings.to_toml(origins=True)
    assert re.search(r"^port = 7000  # file .*a\?b.c\.toml$", text, re.MULTILINE)
    assert "\ndb = 1  # environment GEMMA_RAG_REDIS__DB\n" in text
    assert '\nhost = "localhost"  # default\n' in text
    assert load(tmp_path, text) == settings
    assert "\nport = 6380  # code\n" in Settings().to_toml(origins=True)


def values_of(spec: Key, default: object) -> st.SearchStrategy[object]:
    """Any legal value of a key."""
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, int):
        return st.integers(int(spec.low), int(spec.high))
    if isinstance(default, float):
        assert math.isfinite(spec.low)
        assert math.isfinite(spec.high)
        return st.floats(spec.low, spec.high)
    if spec.choices:
        return st.sampled_from(spec.choices)
    if spec.also and not spec.filled:
        return st.sampled_from(["", "redis", "memory://", "sqlite:///a b/ü.db", "redis://h/0", 'sqlite:///"\\\x7f\n'])
    if spec.secret:
        return st.just("")
    filled = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(str.strip)
    return filled if spec.filled else st.just("") | filled


@st.composite
def any_settings(draw: st.DrawFn) -> Settings:
    sections = {}
    for section in dataclasses.fields(Settings):
        if section.name == "origins":
            continue
        made = type(getattr(Settings(), section.name))
        drawn: dict[str, Any] = {
            f.name: draw(values_of(f.metadata["key"], f.default)) for f in dataclasses.fields(made)
        }
        if drawn.get("cluster"):
            drawn["db"] = 0
        if drawn.get("chunk_size", 0):
            drawn["chunk_overlap"] = min(drawn["chunk_overlap"], drawn["chunk_size"] - 1)
        sections[section.name] = made(**drawn)
    return Settings(**sections)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("settings")


@given(settings=any_settings(), origins=st.booleans())
def test_what_is_written_reads_back_the_same(settings: Settings, origins: bool, directory: Path) -> None:
    """to_toml and load_settings are inverse for every legal value of every key that is no secret."""
    assert load(directory, settings.to_toml(origins=origins)) == settings
