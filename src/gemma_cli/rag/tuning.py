"""Which values of `[embedding]` are the quickest on this machine: what is tried, in which order, and when a value wins.

One knob is turned at a time, round after round, until a whole turn of all knobs changes nothing: what comes out is
quicker, by a clear margin, than every neighbour that was tried. A second run therefore finds nothing more to change.

A value wins in two steps, because the quickest of several noisy figures is often only the luckiest. All values of a
knob are measured in turn (`SCREENING_ROUNDS` or more); the best of them, if it is quicker by `MARGIN`, meets the value
in use once more, alone, and has to show the same margin in new rounds (`DUEL_ROUNDS` or more), and to be quicker in
`DUEL_SHARE` of them. Rounds are compared pair by pair, so that a machine that is busy for a while slows both.
"""

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from math import sqrt
from statistics import median
from types import MappingProxyType
from typing import Any, Final, Protocol

from gemma_cli.rag.errors import GemmaRagError
from gemma_cli.rag.settings_schema import EmbeddingSettings

MARGIN: Final = 1.05
"""How many times as quick as the value in use a value must be, in the median of the rounds."""

SCREENING_ROUNDS: Final = 3
DUEL_ROUNDS: Final = 7
DUEL_SHARE: Final = 0.9
"""By chance alone, all of seven rounds (nine of ten, and so on) go to one side in less than one case of a hundred."""

MOST_ROUNDS: Final = 15
HOPELESS: Final = 0.8
"""A value that is never quicker than this, in two rounds or more, is not measured any further."""

RANKING_KEPT: Final = 0.985
"""Share of every text's ten nearest, as float32 has them, that a quicker engine must keep."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement: texts a second of a bulk of mixed texts, and the seconds that single short queries took."""

    texts_per_second: float
    query_seconds: tuple[float, ...]


class Machine(Protocol):
    """What runs the model. Any call raises a `GemmaRagError` where the settings can't be run here."""

    def engine(self, settings: EmbeddingSettings) -> str:
        """Engine and precision that the settings lead to, e.g. "openvino bf16"; loads nothing."""

    def measure(self, settings: EmbeddingSettings) -> Sample:
        """Times the work once. The model is loaded and warm before the time counts."""

    def ranking_kept(self, settings: EmbeddingSettings) -> float:
        """Mean share, 0 to 1, of every text's ten nearest that are those of float32 too."""

    def release(self) -> None:
        """Lets go of all that is loaded; what is measured later is loaded again."""


class Verdict(StrEnum):
    """What became of a value that was tried."""

    IN_USE = "in use"
    CHOSEN = "chosen"
    NO_GAIN = "no clear gain"
    UNCONFIRMED = "not confirmed"
    RANKING = "ranking not kept"
    IMPOSSIBLE = "not possible here"
    NO_TIME = "no time left"


@dataclass(frozen=True, slots=True)
class Trial:
    """A value of a knob, and how it did. `gain` is the median over the rounds of how many times as quick as the value
    in use it was; figures are None where nothing was measured. `query_p50` and `query_p95` are seconds."""

    knob: str
    value: str
    verdict: Verdict
    reason: str
    rounds: int = 0
    texts_per_second: float | None = None
    query_p50: float | None = None
    query_p95: float | None = None
    gain: float | None = None
    ranking_kept: float | None = None


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a run found. `changes`: the keys of `[embedding]` whose value should be another, with that value.
    `complete` is False where the time ran out before everything had been tried."""

    trials: tuple[Trial, ...]
    changes: Mapping[str, Any]
    seconds: float
    complete: bool


@dataclass(frozen=True, slots=True)
class Knob:
    """Keys of `[embedding]` that are changed together, and the values that they may take beside those in use."""

    name: str
    keys: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def knobs(cores: int, fixed: Collection[str] = ()) -> list[Knob]:
    """What can be turned on a machine with so many cores; a key that is `fixed` stays out.

    Threads: 0 (as many as cores), half the cores and the powers of two below. Precisions: the engine's own choice,
    which is bf16 where the processor computes in it, and f32."""
    threads = sorted({0, cores // 2, *(2**power for power in range(cores.bit_length()))} - {cores})
    engines = {"provider": ("local", "onnx"), "precision": ("", "f32")}
    free = {key: values for key, values in engines.items() if key not in fixed}
    pairs: list[tuple[Any, ...]] = [()]
    for values in free.values():
        pairs = [(*pair, value) for pair in pairs for value in values]
    all_knobs = [Knob("engine", tuple(free), tuple(pairs))] + [
        Knob(name, (name,), tuple((value,) for value in values))
        for name, values in (("threads", threads), ("batch_tokens", (512, 1_024, 2_048)), ("batch_size", (16, 32, 64)))
        if name not in fixed
    ]
    return [knob for knob in all_knobs if knob.keys]


@dataclass(slots=True)
class _Contestant:
    settings: EmbeddingSettings
    value: str
    samples: dict[int, Sample] = field(default_factory=dict)
    kept: float | None = None
    refusal: str = ""

    def gains(self, base: "_Contestant") -> list[float]:
        """How many times as quick as `base`, round by round: the geometric mean of the bulk's and the query's gain."""
        pairs = [(self.samples[turn], base.samples[turn]) for turn in self.samples if turn in base.samples]
        return [
            sqrt(mine.texts_per_second / its.texts_per_second * median(its.query_seconds) / median(mine.query_seconds))
            for mine, its in pairs
        ]

    def trial(self, knob: str, base: "_Contestant", verdict: Verdict, reason: str) -> Trial:
        found = self.samples.values()
        if not found:
            return Trial(knob, self.value, verdict, reason, ranking_kept=self.kept)
        queries = sorted(seconds for sample in found for seconds in sample.query_seconds)
        gains = self.gains(base)
        return Trial(
            knob,
            self.value,
            verdict,
            reason,
            rounds=len(found),
            texts_per_second=median(sample.texts_per_second for sample in found),
            query_p50=median(queries),
            query_p95=queries[min(len(queries) * 95 // 100, len(queries) - 1)],
            gain=median(gains) if gains else None,
            ranking_kept=self.kept,
        )


class Tuner:
    """Finds the quickest values within about `seconds` of `clock`. A measurement that has begun is finished, and the
    values in use are measured in any case. `progress` hears, after each measurement, how many seconds have passed."""

    def __init__(
        self,
        machine: Machine,
        *,
        seconds: float,
        cores: int,
        clock: Callable[[], float] = time.perf_counter,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        self._machine = machine
        self._seconds = seconds
        self._cores = cores
        self._clock = clock
        self._progress = progress
        self._trials: list[Trial] = []
        self._start = self._deadline = 0.0

    def run(self, current: EmbeddingSettings, fixed: Collection[str] = ()) -> Tuning:
        """`fixed`: keys whose value stays as it is. Raises what the machine raises for `current` itself."""
        self._start = self._clock()
        self._deadline = self._start + self._seconds
        self._trials = []
        best, complete = current, True
        waiting = knobs(self._cores, fixed)
        settled: list[Knob] = []  # in this order they will be turned again, should a later knob change something
        while waiting:
            knob = waiting.pop(0)
            if self._trials and self._over():
                self._trials.append(Trial(knob.name, _shown(best, knob), Verdict.NO_TIME, "not measured"))
                complete = False
                continue
            left = self._deadline - self._clock()
            # Two shares are kept back for knobs that must be turned again.
            chosen = self._turn(knob, best, self._clock() + left / (len(waiting) + 3))
            if chosen != best:
                best = chosen
                waiting, settled = waiting + settled, []
            settled.append(knob)
        complete = complete and not any(trial.verdict is Verdict.NO_TIME for trial in self._trials)
        changes = {
            key: getattr(best, key)
            for knob in knobs(self._cores, fixed)
            for key in knob.keys
            if getattr(best, key) != getattr(current, key)
        }
        return Tuning(tuple(self._trials), MappingProxyType(changes), self._clock() - self._start, complete)

    def _turn(self, knob: Knob, best: EmbeddingSettings, until: float) -> EmbeddingSettings:
        """`best`, or what is clearly quicker with another value of this knob."""
        base, *others = self._contestants(knob, best)
        if not others and any(trial.rounds for trial in self._trials):
            return best
        verdicts: dict[int, tuple[Verdict, str]] = {}
        winner = None
        try:
            if knob.name == "engine":
                for contestant in (base, *others):
                    if not self._machine.engine(contestant.settings).endswith("f32"):
                        self._check_ranking(contestant)
            runners = [other for other in others if not other.refusal and not _ranking_lost(other)]
            self._rounds([base, *runners], self._clock() + (until - self._clock()) / 2, SCREENING_ROUNDS)
            for candidate in self._promising(base, runners):
                if knob.name == "engine" and candidate.kept is None:
                    self._check_ranking(candidate)
                if candidate.refusal or _ranking_lost(candidate):
                    continue
                won, reason = self._duel(base, candidate, until)
                verdicts[id(candidate)] = (Verdict.CHOSEN if won else Verdict.UNCONFIRMED, reason)
                winner = candidate if won else None
                break
        finally:
            self._machine.release()
        in_use = _ranking_lost(base) or ("until now" if winner else "kept")
        self._trials.append(base.trial(knob.name, base, Verdict.IN_USE, in_use))
        for other in others:
            verdict, reason = verdicts.get(id(other)) or _not_better(other, base)
            self._trials.append(other.trial(knob.name, base, verdict, reason))
        return winner.settings if winner else best

    def _check_ranking(self, contestant: _Contestant) -> None:
        try:
            contestant.kept = self._machine.ranking_kept(contestant.settings)
        except GemmaRagError as error:  # of a value in use it is raised again, by its measurement
            contestant.refusal = str(error)

    def _promising(self, base: _Contestant, others: Iterable[_Contestant]) -> list[_Contestant]:
        """Those that were quicker by the margin, the quickest first."""
        gains = [(median(found), other) for other in others if len(found := other.gains(base)) >= SCREENING_ROUNDS]
        return [other for gain, other in sorted(gains, key=lambda pair: -pair[0]) if gain >= MARGIN]

    def _contestants(self, knob: Knob, best: EmbeddingSettings) -> list[_Contestant]:
        """The value in use, then the others that can be run here and are not the same under another name."""
        seen = {self._machine.engine(best)}
        found = [_Contestant(best, _shown(best, knob))]
        for values in knob.values:
            settings = replace(best, **dict(zip(knob.keys, values, strict=True)))
            if settings == best or (best.threads == self._cores and settings.threads == 0):  # all, by two names
                continue
            if knob.name == "engine":
                try:
                    engine = self._machine.engine(settings)
                except GemmaRagError as error:  # says what is missing; the others are tried all the same
                    known = {trial.reason for trial in self._trials}
                    if str(error) not in known:
                        shown = _shown(settings, knob)
                        self._trials.append(Trial(knob.name, shown, Verdict.IMPOSSIBLE, str(error)))
                    continue
                if engine in seen:
                    continue
                seen.add(engine)
            found.append(_Contestant(settings, _shown(settings, knob)))
        if knob.name == "engine":
            for contestant in found:
                contestant.value = f"{contestant.value} ({self._machine.engine(contestant.settings)})"
        return found

    def _rounds(self, contestants: Sequence[_Contestant], until: float, least: int) -> None:
        """Measures all of them in turn: `least` rounds, then on until it is late; none once the time is over."""
        base = contestants[0]
        racing = list(contestants)
        for turn in range(MOST_ROUNDS):
            if turn >= least and self._clock() >= until:
                return
            shift = turn % len(racing)  # nobody is always the first, or always behind the same one
            for contestant in racing[shift:] + racing[:shift]:
                if base.samples and self._over():
                    return
                try:
                    contestant.samples[turn] = self._machine.measure(contestant.settings)
                except GemmaRagError as error:
                    if contestant is base:
                        raise
                    contestant.refusal = str(error)  # an engine may find out only when it loads the model
                if self._progress is not None:
                    self._progress(self._clock() - self._start)
            racing = [base] + [one for one in racing[1:] if not one.refusal and not _hopeless(one.gains(base))]

    def _duel(self, base: _Contestant, candidate: _Contestant, until: float) -> tuple[bool, str]:
        """Whether the candidate is clearly quicker once more, and the sentence that says so."""
        pair = [_Contestant(one.settings, one.value) for one in (base, candidate)]
        self._rounds(pair, until, DUEL_ROUNDS)
        gains = pair[1].gains(pair[0])
        first = _percent(median(candidate.gains(base)))
        if len(gains) < DUEL_ROUNDS:
            return False, f"{first} at first sight; too little time to confirm it"
        wins = sum(gain > 1 for gain in gains)
        again = f"{_percent(median(gains))}, quicker in {wins} of {len(gains)} rounds"
        if median(gains) >= MARGIN and wins >= DUEL_SHARE * len(gains):
            return True, again
        return False, f"{first} at first sight; measured again {again}"

    def _over(self) -> bool:
        return self._clock() >= self._deadline


def _not_better(other: _Contestant, base: _Contestant) -> tuple[Verdict, str]:
    if other.refusal:
        return Verdict.IMPOSSIBLE, other.refusal
    if lost := _ranking_lost(other):
        return Verdict.RANKING, lost
    gains = other.gains(base)
    if len(gains) < SCREENING_ROUNDS and not _hopeless(gains):
        return Verdict.NO_TIME, "too few rounds to tell" if gains else "not measured"
    if median(gains) >= MARGIN:
        return Verdict.NO_GAIN, f"{_percent(median(gains))}, another value was quicker still"
    return Verdict.NO_GAIN, _percent(median(gains))


def _ranking_lost(contestant: _Contestant) -> str:
    """What is wrong with its ranking; empty: nothing that is known."""
    if contestant.kept is None or contestant.kept >= RANKING_KEPT:
        return ""
    return f"keeps {contestant.kept:.3f} of float32's ranking, {RANKING_KEPT} are needed"


def _hopeless(gains: Collection[float]) -> bool:
    return len(gains) >= 2 and max(gains) < HOPELESS


def _percent(gain: float) -> str:
    return f"{100 * (gain - 1):+.0f} %"


def _shown(settings: EmbeddingSettings, knob: Knob) -> str:
    return " ".join(map(partial(_worded, settings), knob.keys)).strip()


def _worded(settings: EmbeddingSettings, key: str) -> str:
    value = getattr(settings, key)
    return "all" if key == "threads" and not value else str(value)
