"""Settings: where values come from, which source wins, and what is refused."""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from gemma_cli.rag.errors import SettingsError
from gemma_cli.rag.settings import (
    MemorySettings,
    Settings,
    load_settings,
    user_config_file,
)

ROOT = Path(__file__).parent.parent

REQUIRED = """
[memory]
consolidation_threshold = 0.75
importance_decay_rate = 0.1
cleanup_interval = 300
enable_background_tasks = true
auto_consolidate = true

[embedding]
provider = "local"
model = "all-MiniLM-L6-v2"
dimension = 384
batch_size = 32
cache_embeddings = true

[redis]
host = "localhost"
port = 6380
db = 0
pool_size = 10
connection_timeout = 5

[monitoring]
enabled = true
track_latency = true
track_memory = true
track_token_usage = true
report_interval = 60
"""

OTHER_VALUES: dict[str, object] = {
    "store.url": "memory://",
    "store.namespace": "work",
    "store.durability": "full",
    "redis.host": "redis.example",
    "redis.port": 7000,
    "memory.consolidation_threshold": 0.5,
    "memory.chunk_overlap": 16,
    "embedding.provider": "onnx",
}
"""A value that is not the default, for the keys whose range is narrower than their type's."""

KEYS = [
    (section.name, key.name, key.default)
    for section in dataclasses.fields(Settings)
    if section.name != "origins"
    for key in dataclasses.fields(getattr(Settings(), section.name))
]


def other(section: str, key: str, default: object) -> object:
    """A legal value of the key that differs from its default."""
    if f"{section}.{key}" in OTHER_VALUES:
        return OTHER_VALUES[f"{section}.{key}"]
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return default + 1
    return default + 1.5 if isinstance(default, float) else "other"


def toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)


def load(where: Path, text: str | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of a directory whose `--config` file has this text, without the process's environment."""
    config = None
    if text is not None:
        config = where / "given.toml"
        config.write_text(text, encoding="utf-8")
    return load_settings(config=config, environ=environ or {}, cwd=where)


def value(settings: Settings, section: str, key: str) -> object:
    return getattr(getattr(settings, section), key)


@pytest.fixture(autouse=True)
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """User directories of this test's own, on every system."""
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# Defaults and files


def test_without_any_source_the_defaults_hold(tmp_path: Path) -> None:
    """Nothing configured gives the defaults, each said to be one."""
    settings = load(tmp_path)
    assert settings == Settings()
    assert set(settings.origins.values()) == {"default"}
    assert set(settings.origins) == {f"{section}.{key}" for section, key, _ in KEYS}


def test_the_required_file_parses_and_is_the_default(tmp_path: Path) -> None:
    """The configuration that the requirements print loads unchanged and says what holds anyway."""
    settings = load(tmp_path, REQUIRED)
    assert settings == Settings()
    assert settings.origins["redis.pool_size"] == f"file {tmp_path / 'given.toml'}"


def test_the_shipped_file_holds_the_required_values() -> None:
    """config/config.toml has the requirements' keys with their values, and loads from the project's directory."""
    assert tomllib.loads((ROOT / "config/config.toml").read_text()) == tomllib.loads(REQUIRED)
    assert load_settings(environ={}, cwd=ROOT) == Settings()


@pytest.mark.parametrize(("section", "key", "default"), KEYS)
def test_each_key_is_read_from_a_file_and_the_environment(
    section: str, key: str, default: object, tmp_path: Path
) -> None:
    """Every key takes another value from a file and from its variable, and only that key changes."""
    wanted = other(section, key, default)
    beside = "[redis]\nusername = 'u'\n" if section != "redis" else ""
    variable = f"GEMMA_RAG_{section}__{key}".upper()
    read = load(tmp_path, f"{beside}[{section}]\n{key} = {toml(wanted)}\n")
    assert value(read, section, key) == wanted
    assert type(value(read, section, key)) is type(default)
    environ = {variable: str(wanted), "PATH": "/bin"}
    settings = load(tmp_path, environ=environ)
    assert value(settings, section, key) == wanted
    assert settings.origins[f"{section}.{key}"] == f"environment {variable}"
    changed = [f"{s}.{k}" for s, k, d in KEYS if value(settings, s, k) != d]
    assert changed == [f"{section}.{key}"]


def test_sources_are_merged_key_by_key_and_the_nearest_wins(tmp_path: Path) -> None:
    """Environment before --config before ./config/config.toml before the user's file, each key for itself."""
    write(user_config_file(), "[memory]\nworking_ttl = 1\nepisodic_ttl = 1\nlong_term_ttl = 1\nshort_term_ttl = 1")
    local = write(tmp_path / "config/config.toml", "[memory]\nworking_ttl = 2\nepisodic_ttl = 2\nlong_term_ttl = 2")
    given_file = write(tmp_path / "given.toml", "[memory]\nworking_ttl = 3\nepisodic_ttl = 3")
    settings = load_settings(config=given_file, environ={"GEMMA_RAG_MEMORY__WORKING_TTL": "4"}, cwd=tmp_path)
    memory = settings.memory
    assert (memory.working_ttl, memory.episodic_ttl, memory.long_term_ttl, memory.short_term_ttl) == (4, 3, 2, 1)
    assert settings.origins["memory.working_ttl"] == "environment GEMMA_RAG_MEMORY__WORKING_TTL"
    assert settings.origins["memory.episodic_ttl"] == f"file {given_file}"
    assert settings.origins["memory.long_term_ttl"] == f"file {local}"
    assert settings.origins["memory.short_term_ttl"] == f"file {user_config_file()}"
    assert settings.origins["memory.semantic_ttl"] == "default"


def test_the_process_environment_and_directory_are_the_default_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without arguments the variables of the process and the file below its directory are read."""
    write(tmp_path / "config/config.toml", "[redis]\nport = 7001")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMMA_RAG_STORE__NAMESPACE", "mine")
    settings = load_settings()
    assert (settings.redis.port, settings.store.namespace) == (7001, "mine")


def test_the_short_url_variable_wins_over_the_long_one(tmp_path: Path) -> None:
    """GEMMA_RAG_URL overrides whatever else names a store, and is named as the source."""
    environ = {"GEMMA_RAG_URL": "memory://", "GEMMA_RAG_STORE__URL": "redis"}
    settings = load(tmp_path, "[store]\nurl = 'sqlite:///x.db'", environ)
    assert settings.store_url() == "memory://"
    assert settings.origins["store.url"] == "environment GEMMA_RAG_URL"


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    """A file saved by a Windows editor, with a mark and carriage returns, is an ordinary file."""
    config = tmp_path / "marked.toml"
    config.write_bytes(b"\xef\xbb\xbf[redis]\r\nport = 7000\r\n")
    assert load_settings(config=config, environ={}, cwd=tmp_path).redis.port == 7000


@pytest.mark.parametrize("word", ["true", "True", "1", "yes", "ON"])
def test_words_for_true_in_a_variable(word: str, tmp_path: Path) -> None:
    """A flag in the environment may be written in the usual ways."""
    assert load(tmp_path, environ={"GEMMA_RAG_REDIS__TLS": word}).redis.tls is True


@pytest.mark.parametrize("word", ["false", "FALSE", "0", "no", "off"])
def test_words_for_false_in_a_variable(word: str, tmp_path: Path) -> None:
    """The words for false turn a flag off, where Python's own bool() would turn it on."""
    assert load(tmp_path, environ={"GEMMA_RAG_MEMORY__AUTO_CONSOLIDATE": word}).memory.auto_consolidate is False


# What is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[memorry]\nworking_ttl = 1", r"\[memorry\]: there is no such section; did you mean memory\?"),
        ("[sqlite]\npath = 1", r"\[sqlite\]: there is no such section; there are store, memory, embedding"),
        ("[memory]\ncleanup_intervall = 1", r"memory\.cleanup_intervall: .*did you mean memory\.cleanup_interval\?"),
        ("[memory]\nbatch_size = 1", r"memory\.batch_size: .*did you mean embedding\.batch_size\?"),
        ("[redis]\nzzzzzzzz = 1", r"redis\.zzzzzzzz: there is no such key; there are redis\.host, redis\.port"),
        ("memory = 5", r"memory: is a section, write \[memory\]"),
        ("[memory]\ncleanup_interval = '300'", r"memory\.cleanup_interval: expected a number, got str"),
        ("[memory]\ncleanup_interval = true", r"memory\.cleanup_interval: expected a number, got bool"),
        ("[memory]\ncleanup_interval = 2024-01-01", r"memory\.cleanup_interval: expected a number, got date"),
        ("[memory]\ncleanup_interval = 0", r"memory\.cleanup_interval: 0\.0 is not in "),
        ("[memory]\ncleanup_interval = nan", r"memory\.cleanup_interval: nan is not in "),
        ("[memory]\ncleanup_interval = inf", r"memory\.cleanup_interval: inf is not in "),
        (f"[memory]\ncleanup_interval = 1{'0' * 400}", r"memory\.cleanup_interval: "),
        ("[memory]\nconsolidation_threshold = 1.01", r"memory\.consolidation_threshold: 1\.01 is not in \[0, 1\]"),
        ("[memory]\nworking_capacity = 0", r"memory\.working_capacity: 0 is not in 1\.\."),
        ("[memory]\nworking_capacity = 1.5", r"memory\.working_capacity: expected a whole number, got float"),
        ("[memory]\nworking_ttl = -1", r"memory\.working_ttl: -1\.0 is not in "),
        ("[memory]\nworking_ttl = 1e12", r"memory\.working_ttl: "),
        ("[memory]\nchunk_overlap = -2", r"memory\.chunk_overlap: -2 is not in -1\.\."),
        ("[memory]\nchunk_size = 64\nchunk_overlap = 64", r"memory\.chunk_overlap: 64 is not less .*\(set in: file "),
        ("[memory]\nauto_consolidate = 1", r"memory\.auto_consolidate: expected True or False, got int"),
        ("[redis]\nport = 65536", r"redis\.port: 65536 is not in 1\.\.65535"),
        ("[redis]\nhost = ''", r"redis\.host: is empty"),
        ("[redis]\ncluster = true\ndb = 1", r"redis\.db: 1, but a cluster .*\(set in: file "),
        ("[embedding]\nmodel = ['a']", r"embedding\.model: expected text, got list"),
        ("[store]\ndurability = 'ful'", r"store\.durability: 'ful' is none of 'normal', 'full'"),
        ("[store]\nnamespace = ''", r"store\.namespace: is empty"),
        (f"[store]\nnamespace = '{'n' * 513}'", r"store\.namespace: 513 characters, more than 512"),
        ("[store]\nurl = '/tmp/memory.db'", r"store\.url: is no URL; for a file write sqlite:///"),
        ("[store]\nurl = 'postgres://u:geheim@h'", r"store\.url: there is no store for postgres://; use one of "),
        ("[memory", r"is not TOML: "),
        (f"a = {'[' * 5000}", r"is not TOML: "),
    ],
)
def test_a_wrong_file_is_named_with_its_key(text: str, message: str, tmp_path: Path) -> None:
    """Each mistake in a file is a SettingsError that names the file, the key and, where there is one, the way out."""
    with pytest.raises(SettingsError, match=message) as caught:
        load(tmp_path, text)
    assert str(tmp_path / "given.toml") in str(caught.value)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("GEMMA_RAG_REDIS__PORT", "abc", r"\(redis\.port\): expected a whole number, got 'abc'"),
        ("GEMMA_RAG_REDIS__PORT", "", r"\(redis\.port\): expected a whole number, got ''"),
        ("GEMMA_RAG_REDIS__PORT", "0", r"\(redis\.port\): 0 is not in 1\.\.65535"),
        ("GEMMA_RAG_REDIS__TLS", "maybe", r"\(redis\.tls\): expected true or false, got 'maybe'"),
        ("GEMMA_RAG_MEMORY__WORKING_TTL", "1 h", r"\(memory\.working_ttl\): expected a number, got '1 h'"),
        ("GEMMA_RAG_MEMORY__WORKING_TTL", "nan", r"\(memory\.working_ttl\): nan is not in "),
        ("GEMMA_RAG_STORE__NAMESPACE", "\udcff", r"\(store\.namespace\): .*can't be stored as UTF-8"),
        ("GEMMA_RAG_URL", "mysql://x", r"\(store\.url\): there is no store for mysql://"),
        ("GEMMA_RAG_REDIS__PROT", "1", r"no such variable; did you mean GEMMA_RAG_REDIS__PORT\?"),
        ("GEMMA_RAG_REDIS_PORT", "1", r"no such variable; did you mean GEMMA_RAG_REDIS__PORT\?"),
        ("GEMMA_RAG_MEMORY__BATCH_SIZE", "1", r"no such variable; did you mean GEMMA_RAG_EMBEDDING__BATCH_SIZE\?"),
        ("GEMMA_RAG_Q__Q", "1", r"no such variable; write GEMMA_RAG_<SECTION>__<KEY>"),
        ("GEMMA_RAG_MEMORY__CHUNK_SIZE", "10", r"chunk_overlap: 20 is not less .*set in: environment GEMMA_RAG_MEM"),
    ],
)
def test_a_wrong_variable_is_named(variable: str, text: str, message: str, tmp_path: Path) -> None:
    """Each mistake in the environment is a SettingsError that names the variable."""
    write(tmp_path / "config/config.toml", "[memory]\nchunk_overlap = 20")
    with pytest.raises(SettingsError, match=message) as caught:
        load(tmp_path, environ={variable: text})
    assert variable in str(caught.value)


def test_a_variable_of_another_part_is_left_alone(tmp_path: Path) -> None:
    """A variable with the prefix but without a section's name is not the settings' business."""
    assert load(tmp_path, environ={"GEMMA_RAG_TOKEN": "x", "GEMMA_RAGS__X": "y"}) == Settings()


def test_a_mistake_counts_even_where_a_nearer_source_overrides_it(tmp_path: Path) -> None:
    """A wrong value is refused in every source, so that removing the override later holds no surprise."""
    with pytest.raises(SettingsError, match=r"redis\.port"):
        load(tmp_path, "[redis]\nport = 0", {"GEMMA_RAG_REDIS__PORT": "7000"})


def test_a_given_file_must_exist_and_a_looked_for_one_must_be_readable(tmp_path: Path) -> None:
    """--config with a missing file is an error; so is a file found at its usual place that can't be read."""
    with pytest.raises(SettingsError, match=r"nowhere\.toml: there is no such configuration file"):
        load_settings(config=tmp_path / "nowhere.toml", environ={}, cwd=tmp_path)
    (tmp_path / "config/config.toml").mkdir(parents=True)
    with pytest.raises(SettingsError, match=r"config\.toml: can't be read: "):
        load(tmp_path)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are named as the file's fault."""
    config = tmp_path / "given.toml"
    config.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match=r"given\.toml: is not TOML"):
        load_settings(config=config, environ={}, cwd=tmp_path)


def test_replacing_a_value_in_code_is_checked_too() -> None:
    """dataclasses.replace, the way to set a value in code, makes no section with a wrong value."""
    memory = dataclasses.replace(MemorySettings(), cleanup_interval=60)
    assert memory.cleanup_interval == 60
    with pytest.raises(SettingsError, match=r"^memory\.cleanup_interval: -1\.0 is not in"):
        dataclasses.replace(memory, cleanup_interval=-1)
