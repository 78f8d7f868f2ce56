"""Tuning: when a value wins, what is written, and that doing it again changes nothing."""

import importlib.util
import json
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from command_runs import call, run_command
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_cli.commands import tune
from gemma_cli.commands.session import ExitCode
from gemma_cli.commands.tune import EngineBench, edited, mixed, sentences, write_values
from gemma_cli.rag import EmbeddingOptions, InvalidInputError, MissingExtraError, SettingsError, create_embedder
from gemma_cli.rag.embedders.local import LocalEmbedder, Network
from gemma_cli.rag.embedders.weights import ModelFiles, locate
from gemma_cli.rag.errors import ModelError
from gemma_cli.rag.settings import EmbeddingSettings, user_config_file
from gemma_cli.rag.tuning import Sample, Trial, Tuner, Tuning, Verdict, knobs

DEFAULTS = EmbeddingSettings()
Speed = Callable[[EmbeddingSettings], float]


@dataclass
class PretendMachine:
    """Says what the test tells it to, at a second of its own clock for each measurement. `speed` is texts a second in
    the bulk, and queries a second too unless `query_speed` is given; `bf16`: the processor computes in it."""

    speed: Speed
    query_speed: Speed | None = None
    bf16: bool = False
    kept: Mapping[str, float] = field(default_factory=dict)
    without_onnx: bool = False
    broken: str = ""
    now: float = 0.0
    measured: list[EmbeddingSettings] = field(default_factory=list)
    released: int = 0

    def engine(self, settings: EmbeddingSettings) -> str:
        if settings.provider == "onnx":
            if self.without_onnx:
                raise MissingExtraError("onnxruntime is not installed")
            return "onnxruntime f32"
        return f"openvino {settings.precision or ('bf16' if self.bf16 else 'f32')}"

    def measure(self, settings: EmbeddingSettings) -> Sample:
        if self.engine(settings) == self.broken:
            raise ModelError("this engine does not run this model")
        self.now += 1
        self.measured.append(settings)
        query = (self.query_speed or self.speed)(settings)
        return Sample(self.speed(settings), (1 / query,) * 3)

    def ranking_kept(self, settings: EmbeddingSettings) -> float:
        return self.kept.get(self.engine(settings), 1.0)

    def release(self) -> None:
        self.released += 1


def tuned(
    machine: PretendMachine,
    current: EmbeddingSettings = DEFAULTS,
    *,
    fixed: tuple[str, ...] = (),
    seconds: float = 1e9,
    cores: int = 4,
) -> Tuning:
    return Tuner(machine, seconds=seconds, cores=cores, clock=lambda: machine.now).run(current, fixed)


def found(tuning: Tuning, knob: str, value: str) -> Trial:
    """The last trial of a value; an engine's name begins it."""
    return [trial for trial in tuning.trials if trial.knob == knob and trial.value.split(" (")[0] == value][-1]


# When a value wins


def test_a_clearly_quicker_value_is_chosen() -> None:
    """A value that is quicker by more than the margin, in every round, becomes a change; its trial says by how much."""
    tuning = tuned(PretendMachine(lambda s: 120.0 if s.threads == 2 else 100.0))
    assert dict(tuning.changes) == {"threads": 2}
    assert found(tuning, "threads", "2").verdict is Verdict.CHOSEN
    assert found(tuning, "threads", "2").gain == pytest.approx(1.2)
    assert "+20 %, quicker in" in found(tuning, "threads", "2").reason
    assert tuning.complete


def test_a_small_gain_is_none() -> None:
    """Four per cent, however steady, displaces nothing."""
    tuning = tuned(PretendMachine(lambda s: 104.0 if s.threads == 2 else 100.0))
    assert dict(tuning.changes) == {}
    assert (found(tuning, "threads", "2").verdict, found(tuning, "threads", "2").reason) == (Verdict.NO_GAIN, "+4 %")


def test_a_gain_within_the_spread_is_none() -> None:
    """A value that is far quicker in most rounds, and slower in every fourth, is not chosen."""
    rounds: dict[int, int] = {}

    def unsteady(s: EmbeddingSettings) -> float:
        if s.threads != 2:
            return 100.0
        rounds[s.threads] = rounds.get(s.threads, 0) + 1
        return 90.0 if rounds[s.threads] % 4 == 0 else 150.0

    tuning = tuned(PretendMachine(unsteady, query_speed=lambda s: 100.0))
    assert dict(tuning.changes) == {}
    assert found(tuning, "threads", "2").verdict is Verdict.UNCONFIRMED
    assert found(tuning, "threads", "2").gain == pytest.approx(1.5**0.5)


def test_a_value_that_was_only_lucky_is_not_confirmed() -> None:
    """What was quick while all were compared has to be quick once more, alone against the value in use."""
    compared = 15 * 2 + 15 * 3  # rounds of the two engines, and of the three numbers of threads
    machine = PretendMachine(lambda s: 150.0 if s.threads == 2 and machine.now <= compared else 100.0)
    tuning = tuned(machine)
    assert dict(tuning.changes) == {}
    assert found(tuning, "threads", "2").reason.startswith("+50 % at first sight; measured again +0 %")


def test_a_machine_that_slows_down_for_all_decides_nothing() -> None:
    """Load that comes and goes between rounds slows both sides of each pair, and neither hides nor makes a gain."""
    machine = PretendMachine(lambda s: (120.0 if s.batch_size == 16 else 100.0) * (0.3 + 0.7 * (machine.now % 40 < 20)))
    assert dict(tuned(machine).changes) == {"batch_size": 16}


def test_bulk_and_query_count_alike() -> None:
    """A gain in the bulk that a single query pays for in full is no gain."""
    machine = PretendMachine(
        lambda s: 200.0 if s.threads == 2 else 100.0, query_speed=lambda s: 50.0 if s.threads == 2 else 100.0
    )
    tuning = tuned(machine)
    assert dict(tuning.changes) == {}
    assert found(tuning, "threads", "2").gain == pytest.approx(1.0)
    assert found(tuning, "threads", "2").texts_per_second == 200.0
    assert found(tuning, "threads", "2").query_p50 == found(tuning, "threads", "2").query_p95 == 1 / 50


def test_an_engine_that_loses_the_ranking_is_out() -> None:
    """The quickest engine is not taken if it keeps too little of float32's ranking; the next best one is."""
    speeds = {"openvino bf16": 100.0, "openvino f32": 130.0, "onnxruntime f32": 200.0}
    machine = PretendMachine(lambda s: speeds[machine.engine(s)], bf16=True, kept={"onnxruntime f32": 0.98})
    tuning = tuned(machine)
    assert dict(tuning.changes) == {"precision": "f32"}
    assert found(tuning, "engine", "onnx").verdict is Verdict.RANKING
    assert "0.980" in found(tuning, "engine", "onnx").reason


def test_the_ranking_of_every_rounded_arithmetic_is_shown() -> None:
    """bf16 is compared with float32 whether it is in use or not; what is in use and falls short is said to."""
    machine = PretendMachine(lambda s: 100.0, bf16=True, kept={"openvino bf16": 0.95})
    tuning = tuned(machine)
    assert found(tuning, "engine", "local").ranking_kept == 0.95
    assert "keeps 0.950" in found(tuning, "engine", "local").reason
    in_f32 = PretendMachine(
        lambda s: 500.0 if machine.engine(s) == "openvino bf16" else 100.0, bf16=True, kept=machine.kept
    )
    rejected = tuned(in_f32, replace(DEFAULTS, precision="f32"))
    assert dict(rejected.changes) == {}
    assert found(rejected, "engine", "local").verdict is Verdict.RANKING
    assert all(in_f32.engine(s) != "openvino bf16" for s in in_f32.measured)


def test_where_the_processor_has_one_precision_it_is_tried_once() -> None:
    """Without bf16 the engine's own choice is f32, and the same thing is not measured under two names."""
    tuning = tuned(PretendMachine(lambda s: 100.0))
    engines = [trial.value for trial in tuning.trials if trial.knob == "engine"]
    assert engines == ["local (openvino f32)", "onnx (onnxruntime f32)"]
    with_bf16 = tuned(PretendMachine(lambda s: 100.0, bf16=True))
    engines = [trial.value for trial in with_bf16.trials if trial.knob == "engine"]
    assert engines == ["local (openvino bf16)", "local f32 (openvino f32)", "onnx (onnxruntime f32)"]


def test_an_engine_that_is_not_installed_is_named() -> None:
    """A missing extra is one line that says so, and everything else is tried."""
    tuning = tuned(PretendMachine(lambda s: 150.0 if s.threads == 1 else 100.0, without_onnx=True))
    [refused] = [trial for trial in tuning.trials if trial.verdict is Verdict.IMPOSSIBLE]
    assert (refused.value, refused.reason) == ("onnx", "onnxruntime is not installed")
    assert found(tuning, "engine", "local").texts_per_second == 100.0
    assert dict(tuning.changes) == {"threads": 1}


def test_an_engine_that_fails_on_loading_is_out_and_the_one_in_use_raises() -> None:
    """A candidate that can't load the model is a line of the table; where the engine in use can't, the run fails."""
    tuning = tuned(PretendMachine(lambda s: 100.0, broken="onnxruntime f32"))
    assert found(tuning, "engine", "onnx").verdict is Verdict.IMPOSSIBLE
    failing = PretendMachine(lambda s: 100.0, broken="openvino f32")
    with pytest.raises(ModelError, match="does not run"):
        tuned(failing)
    assert failing.released == 1


def test_fixed_keys_are_never_varied() -> None:
    """A key that something else decides keeps its value in every measurement, and is no change."""
    machine = PretendMachine(lambda s: 100.0 + 50 * (s.threads == 1) + 50 * (s.provider == "onnx"))
    tuning = tuned(machine, replace(DEFAULTS, threads=3), fixed=("threads", "provider"))
    assert dict(tuning.changes) == {}
    assert {(s.threads, s.provider) for s in machine.measured} == {(3, "local")}
    assert {trial.knob for trial in tuning.trials} == {"engine", "batch_tokens", "batch_size"}


def test_the_time_is_kept() -> None:
    """No measurement begins after the time is over; what was not tried is listed, and nothing is decided for it."""
    machine = PretendMachine(lambda s: 100.0 if s == DEFAULTS else 900.0)
    tuning = tuned(machine, seconds=3)
    assert machine.now <= 4
    assert dict(tuning.changes) == {}
    assert not tuning.complete
    assert [trial.knob for trial in tuning.trials if not trial.rounds] == ["threads", "batch_tokens", "batch_size"]
    assert tuned(PretendMachine(lambda s: 100.0), seconds=0).trials[0].rounds == 1


def test_too_little_time_to_confirm_changes_nothing() -> None:
    """A value that looks quicker but could not meet the one in use again often enough is not taken."""
    tuning = tuned(PretendMachine(lambda s: 100.0 if s.provider == "local" else 900.0), seconds=12)
    assert dict(tuning.changes) == {}
    assert "too little time to confirm" in found(tuning, "engine", "onnx").reason


def test_hopeless_values_cost_two_rounds() -> None:
    """A value that is far slower is given up after two rounds, so that the time goes to those that matter."""
    machine = PretendMachine(lambda s: 10.0 if s.threads == 1 else 100.0)
    tuning = tuned(machine)
    assert sum(s.threads == 1 for s in machine.measured) == 2
    assert found(tuning, "threads", "1").verdict is Verdict.NO_GAIN


def test_an_earlier_knob_is_turned_again_when_a_later_one_changes_something() -> None:
    """Where the best threads hang on the batch, both end at the pair that is best together."""
    machine = PretendMachine(lambda s: 100.0 + 50 * (s.batch_size == 64) + 80 * (s.batch_size == 64 and s.threads == 1))
    assert dict(tuned(machine).changes) == {"batch_size": 64, "threads": 1}


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(0.02, 0.6), st.booleans(), st.integers(1, 12))
def test_a_second_run_changes_nothing(seed: int, spread: float, bf16: bool, cores: int) -> None:
    """Whatever the speeds of all combinations are: what one run has chosen, the next one keeps."""

    def speed(part: int) -> Speed:
        def of(s: EmbeddingSettings) -> float:
            key = f"{s.provider} {s.precision} {s.threads} {s.batch_tokens} {s.batch_size}"
            numbers = np.random.default_rng([seed, part, *key.encode()])
            return float(100 * np.exp(spread * numbers.standard_normal()))

        return of

    first = tuned(PretendMachine(speed(0), speed(1), bf16), cores=cores)
    second = tuned(PretendMachine(speed(0), speed(1), bf16), replace(DEFAULTS, **first.changes), cores=cores)
    assert first.complete
    assert dict(second.changes) == {}
    assert Verdict.CHOSEN not in {trial.verdict for trial in second.trials}


@pytest.mark.parametrize(
    ("cores", "threads"), [(1, [0]), (2, [0, 1]), (4, [0, 1, 2]), (6, [0, 1, 2, 3, 4]), (16, [0, 1, 2, 4, 8])]
)
def test_threads_that_are_tried(cores: int, threads: list[int]) -> None:
    """All cores (0), half of them and the powers of two below; never the number of cores itself, which 0 is."""
    [knob] = [knob for knob in knobs(cores) if knob.name == "threads"]
    assert [value for (value,) in knob.values] == threads


def test_all_cores_by_number_are_not_compared_with_all_cores() -> None:
    """Threads = 4 on four cores is the same as 0, so 0 is no rival of it."""
    machine = PretendMachine(lambda s: 500.0 if s.threads == 0 else 100.0)
    assert dict(tuned(machine, replace(DEFAULTS, threads=4)).changes) == {}


# The file

HAND_WRITTEN = """\
# my settings

[store]
url = "memory://"  # for now

  [embedding]      # the model
  # four, because the fifth core is for the fans
  threads = 4      # not 8
  model = 'all-MiniLM-L6-v2' # '#' is no comment in here

# about the server
[redis]
threads_of_mine = 1
"""


def test_only_the_values_change() -> None:
    """A known key keeps its place, indentation and comment; a new one follows the last key of the section."""
    text = HAND_WRITTEN.replace("threads_of_mine", "port")
    outcome = edited(text, {"threads": 2, "precision": "f32"})
    expected = text.replace("threads = 4      #", "threads = 2      #").replace(
        "is no comment in here\n", 'is no comment in here\n  precision = "f32"\n'
    )
    assert outcome == expected


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "[embedding]\nthreads = 2\n"),
        ("[embedding]", "[embedding]\nthreads = 2\n"),
        ("[embedding]\n\n\n[redis]\n", "[embedding]\nthreads = 2\n\n\n[redis]\n"),
        ("[redis]\nport = 1", "[redis]\nport = 1\n\n[embedding]\nthreads = 2\n"),
        ("[embedding]\r\nthreads=1\r\n", "[embedding]\r\nthreads=2\r\n"),
        ("[redis]\r\nport = 1\r\n", "[redis]\r\nport = 1\r\n\r\n[embedding]\r\nthreads = 2\r\n"),
        ("\ufeff[embedding]\nthreads = 1 # x\n", "\ufeff[embedding]\nthreads = 2 # x\n"),
        ("[embedding]\nbatch_threads = 1\n", "[embedding]\nbatch_threads = 1\nthreads = 2\n"),
        ("[redis]\nthreads = 1\n[ embedding ]\n", "[redis]\nthreads = 1\n[ embedding ]\nthreads = 2\n"),
        ("[embedding]\nthreads = 'a # b' # c\n", "[embedding]\nthreads = 2 # c\n"),
    ],
)
def test_files_of_every_shape(before: str, after: str) -> None:
    """Empty, without an end of line, with Windows' ends of line or mark, with the key in other places."""
    assert edited(before, {"threads": 2}) == after


@pytest.mark.parametrize(
    "text",
    [
        "embedding.threads = 1\n",
        "embedding = {threads = 1}\n",
        '[embedding]\n"threads" = 1\n',
        '["embedding"]\nthreads = 1\n',
        '[embedding]\nmodel = """\nthreads = 1\n"""\n',
        '[embedding]\nthreads = """1"""\n',
        "[store]\nurl = '''\n[embedding]\n'''\n",
    ],
)
def test_what_can_not_be_edited_safely_is_refused(text: str, tmp_path: Path) -> None:
    """Where a line is not what it looks like, the file stays untouched and the message says what to write by hand."""
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=r"config\.toml: not changed: .* by hand: threads = 2; precision = \"f32\""):
        write_values(file, {"threads": 2, "precision": "f32"})
    assert file.read_text() == text
    assert list(tmp_path.iterdir()) == [file]


PIECES = st.sampled_from(
    [
        "# note",
        "",
        "[store]",
        "[embedding]",
        "[redis] # r",
        "threads = 1",
        "  batch_size = 3 # s",
        'url = "a#b"',
        "x = '''",
        "'''",
    ]
)


@given(st.lists(PIECES, max_size=12), st.sampled_from(["\n", "\r\n"]))
def test_no_other_line_is_lost(lines: list[str], end: str) -> None:
    """Of any file, either nothing is written or every line that sets no tuned key is there afterwards, in order."""
    text = end.join(lines)
    try:
        outcome = edited(text, {"threads": 2, "batch_size": 16})
    except ValueError:
        return
    kept = [
        line for line in outcome.replace("\r\n", "\n").split("\n") if "threads" not in line and "batch_size" not in line
    ]
    before = [line for line in lines if "threads" not in line and "batch_size" not in line]
    rest = iter(kept)
    assert all(line in rest for line in before)
    assert tomllib.loads(outcome)["embedding"] | {"threads": 2, "batch_size": 16} == tomllib.loads(outcome)["embedding"]


def test_mode_and_link_are_kept(tmp_path: Path) -> None:
    """A file that others may read stays readable for them; a link to a file elsewhere stays a link."""
    real = tmp_path / "dotfiles.toml"
    real.write_text("# mine\n")
    real.chmod(0o644)
    link = tmp_path / "config.toml"
    link.symlink_to(real)
    write_values(link, {"threads": 2})
    assert link.is_symlink()
    assert real.read_text() == "# mine\n\n[embedding]\nthreads = 2\n"
    assert stat.S_IMODE(real.stat().st_mode) == 0o644


def test_a_new_file_is_the_owners_alone(tmp_path: Path) -> None:
    """A configuration may hold a password one day; its directory is made too."""
    file = tmp_path / "new" / "config.toml"
    write_values(file, {"threads": 2})
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the new file can't take the old one's place, the old one stays whole and nothing is left beside it."""
    file = tmp_path / "config.toml"
    file.write_text(HAND_WRITTEN)

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(SettingsError, match="No space left"):
        write_values(file, {"threads": 2})
    assert file.read_text() == HAND_WRITTEN
    assert list(tmp_path.iterdir()) == [file]


# The command


class PretendBench(PretendMachine):
    """In the place of the real engines: one thread and batches of 64 are quickest."""

    def __init__(self, current: EmbeddingSettings) -> None:
        super().__init__(lambda s: 100.0 + 30 * (s.threads == 1) + 30 * (s.batch_size == 64))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command with pretended engines on four cores, in a directory and with a user's configuration of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tune, "EngineBench", PretendBench)
    monkeypatch.setattr(tune, "usable_cores", lambda: 4)
    return tmp_path


def test_nothing_is_written_unless_asked_for(pretend: Path) -> None:
    """Without --apply the table and the changes are shown, and there is no file afterwards."""
    outcome = call("tune")
    assert outcome.code == ExitCode.OK, outcome.stderr
    assert "embedding.threads: 0 -> 1" in outcome.stdout
    assert "embedding.batch_size: 32 -> 64" in outcome.stdout
    assert "chosen" in outcome.stdout
    assert f"--apply writes to {user_config_file()}" in outcome.message
    assert "cache_size is left alone" in outcome.message
    assert not user_config_file().exists()


def test_apply_twice_writes_once(pretend: Path) -> None:
    """The first run writes what it found beside what the file holds; the second finds nothing and leaves every byte."""
    file = user_config_file()
    file.parent.mkdir(parents=True)
    file.write_text("# mine\n[embedding]\nthreads = 2 # two\n\n[memory]\ncleanup_interval = 60\n")
    first = call("tune", "--apply", "--json")
    assert first.json()["changes"] == {"threads": 1, "batch_size": 64}
    assert first.json()["written"] == str(file)
    text = "# mine\n[embedding]\nthreads = 1 # two\nbatch_size = 64\n\n[memory]\ncleanup_interval = 60\n"
    assert file.read_text() == text
    second = call("tune", "--apply", "--json")
    assert (second.json()["changes"], second.json()["written"]) == ({}, None)
    assert file.read_text() == text
    assert "nothing found" in call("tune", "--apply").stdout.lower()


def test_the_file_given_before_the_command_is_written(pretend: Path) -> None:
    """With --config that file gets the values, also those that the user's own has, and the user's stays as it is."""
    own = user_config_file()
    own.parent.mkdir(parents=True)
    own.write_text("[embedding]\nthreads = 2\n")
    given_file = pretend / "given.toml"
    given_file.write_text("[store]\nurl = 'memory://'\n")
    assert call("--config", given_file, "tune", "--apply").code == ExitCode.OK
    assert tomllib.loads(given_file.read_text())["embedding"] == {"threads": 1, "batch_size": 64}
    assert own.read_text() == "[embedding]\nthreads = 2\n"


def test_what_the_environment_sets_is_reported_and_left(pretend: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable goes before the file, so its value is measured with, not varied, not written, and named."""
    monkeypatch.setenv("GEMMA_RAG_EMBEDDING__THREADS", "3")
    report = call("tune", "--apply", "--json").json()
    assert report["fixed"] == {"threads": "environment GEMMA_RAG_EMBEDDING__THREADS"}
    assert report["changes"] == {"batch_size": 64}
    assert "threads" not in user_config_file().read_text()
    assert "embedding.threads = 3 comes from environment GEMMA_RAG_EMBEDDING__THREADS" in call("tune").message


def test_what_the_directorys_file_sets_is_reported_and_left(pretend: Path) -> None:
    """./config/config.toml goes before the user's file too."""
    local = pretend / "config" / "config.toml"
    local.parent.mkdir()
    local.write_text("[embedding]\nbatch_size = 8\n")
    report = call("tune", "--json").json()
    assert list(report["fixed"]) == ["batch_size"]
    assert report["changes"] == {"threads": 1}


def test_json_has_every_trial(pretend: Path) -> None:
    """Each value with its figures, its verdict and the reason; a machine can go by it."""
    outcome = call("tune", "--json")
    assert outcome.stderr == ""
    report = outcome.json()
    [chosen] = [trial for trial in report["trials"] if trial["verdict"] == "chosen" and trial["knob"] == "threads"]
    assert (chosen["value"], chosen["texts_per_second"], chosen["query_p50"]) == ("1", 130.0, 1 / 130)
    assert report["complete"] is True
    assert "cache_size" in report["left_alone"]


def test_hashing_has_nothing_to_tune(pretend: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a model the command refuses, and says what to set."""
    monkeypatch.setenv("GEMMA_RAG_EMBEDDING__PROVIDER", "hashing")
    outcome = call("tune")
    assert outcome.code == ExitCode.USAGE
    assert "embedding.provider" in outcome.message
    assert call("tune", "--seconds", "0").code == ExitCode.USAGE


# The real engines


def test_a_quick_run_with_the_real_model(tmp_path: Path) -> None:
    """Three seconds measure the engine in use, write nothing, and stop: what was not tried is listed."""
    home = {"XDG_CONFIG_HOME": str(tmp_path / "home"), "HOME": str(tmp_path / "home")}
    outcome = run_command("tune", "--seconds", "3", "--json", cwd=tmp_path, env=home)
    assert outcome.code == ExitCode.OK, outcome.stderr
    report = json.loads(outcome.stdout)
    [first] = [trial for trial in report["trials"] if trial["knob"] == "engine" and trial["verdict"] == "in use"]
    assert first["value"].startswith("local (openvino ")
    assert first["rounds"] >= 1
    assert first["texts_per_second"] > 0
    assert 0 < first["query_p50"] <= first["query_p95"]
    assert {trial["knob"] for trial in report["trials"]} == {"engine", "threads", "batch_tokens", "batch_size"}
    assert list(tmp_path.iterdir()) == []


def test_the_ranking_is_measured_against_float32() -> None:
    """The real engines keep float32's neighbours of the built-in sentences; an engine of another meaning does not."""
    with EngineBench(DEFAULTS) as bench:
        assert bench.ranking_kept(DEFAULTS) >= 0.985
        if importlib.util.find_spec("onnxruntime") is not None:
            assert bench.ranking_kept(replace(DEFAULTS, provider="onnx")) >= 0.985
        assert bench.ranking_kept(replace(DEFAULTS, provider="hashing")) < 0.8


def test_the_bulk_is_mixed_text() -> None:
    """Every sentence stands in one text, headings in none, and the texts differ in length."""
    parts = sentences("# Title\n\nOne. Two!\nThree?\n\n## Deep\n\nFour. Five. Six. Seven. Eight.")
    assert parts == ["One.", "Two!", "Three?", "Four.", "Five.", "Six.", "Seven.", "Eight."]
    assert mixed(parts) == ["One.", "Two!", "Three? Four.", "Five.", "Six.", "Seven. Eight."]


# [embedding] batch_tokens


class CountingEngine:
    """Remembers the shape of each pass."""

    name = "counting"
    precision = "f32"

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def load(self, files: ModelFiles) -> Network:
        def network(ids: Any, lengths: Any) -> Any:
            self.shapes.append(ids.shape)
            return np.eye(len(ids), files.dimension, dtype=np.float32)

        return network


@pytest.mark.parametrize(("limit", "passes"), [(1, 6), (12, 3), (1_024, 1)])
def test_batch_tokens_bounds_a_pass(limit: int, passes: int) -> None:
    """Six texts of six tokens, special ones counted, go through the model in as few passes as the limit allows."""
    engine = CountingEngine()
    embedder = LocalEmbedder(locate(DEFAULTS.model), engine, limit)
    embedder.encode(["red green blue white"] * 6)
    assert len(engine.shapes) == passes
    assert all(rows * longest <= limit or rows == 1 for rows, longest in engine.shapes)


def test_embedding_settings_become_options() -> None:
    """Every key that an engine hears of reaches it, and an empty one leaves the choice to the engine."""
    own = EmbeddingSettings(
        provider="onnx", threads=2, precision="f32", batch_tokens=512, device="cpu", model_dir="~/m"
    )
    assert EmbeddingOptions.configured(own) == EmbeddingOptions(
        provider="onnx",
        model_dir=Path("~/m").expanduser(),
        dimension=384,
        device="cpu",
        threads=2,
        precision="f32",
        batch_tokens=512,
    )
    assert EmbeddingOptions.configured(DEFAULTS) == EmbeddingOptions(dimension=384)
    with pytest.raises(InvalidInputError, match=r"^batch_tokens: "):
        create_embedder(EmbeddingOptions(batch_tokens=0))
