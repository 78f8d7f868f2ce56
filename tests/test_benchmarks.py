"""The benchmark drivers run, and what they save can be compared with what they saved before."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_runs import ROOT, TIMEOUT

FACTS = {"cpu", "cores", "memory_gib", "load_average", "os", "python", "packages", "commit", "dirty", "date"}


def run(driver: str, out: Path, *arguments: str) -> dict[str, Any]:
    """What a driver saves, run in a process of its own as its user would run it."""
    command = [sys.executable, "-W", "error", f"benchmarks/{driver}.py", "--out", str(out), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 0, done.stderr
    saved: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    assert saved["benchmark"] == driver.removeprefix("bench_")
    assert set(saved["circumstances"]) == FACTS
    return saved


def numbers(value: Any) -> Iterator[float]:
    """Every number in a JSON value."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from numbers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers(inner)
    elif isinstance(value, int | float):
        yield value


@pytest.fixture(scope="module")
def promotion(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("promotion") / "promotion.json"
    return run("bench_promotion", out, "--memories", "40", "--seeds", "2", "--variation-seeds", "0")


def test_promotion_is_compared_under_one_number_of_promotions(promotion: dict[str, Any]) -> None:
    """Every policy has every measure, as a share between 0 and 1, and the baselines promoted as many as ours did."""
    policies = promotion["cases"]["base"]["policies"]
    assert set(policies) == {"gemma-rag", "importance only", "recency only"}
    ours = policies["gemma-rag"]
    for rows in policies.values():
        assert set(rows) == set(ours)
        for row in rows.values():
            assert row is None or (0 <= row["mean"] <= 1 and row["seeds"] <= 2)
        for tier in ("long_term", "semantic"):
            assert rows[f"promoted to {tier}, of all"] == ours[f"promoted to {tier}, of all"]
    assert 0 < ours["promoted to long_term, of all"]["mean"] < 1


def test_promotion_names_its_assumptions(promotion: dict[str, Any]) -> None:
    """The saved figures say under which assumptions they hold; how good the guess is follows from the others."""
    assumed = promotion["cases"]["base"]["assumptions"]
    assert assumed["arrives_in"] == "short_term"
    apart = (assumed["guess_of_value"] - assumed["guess_of_noise"]) / assumed["guess_noise"]
    assert assumed["chance_that_the_guess_is_right"] == pytest.approx(0.5 + 0.5 * math.erf(apart / 2), abs=1e-3)


def test_a_simulation_is_the_same_for_the_same_seed(promotion: dict[str, Any], tmp_path: Path) -> None:
    """A second run gives the same figures, so that a difference is one of the code."""
    again = run("bench_promotion", tmp_path / "p.json", "--memories", "40", "--seeds", "2", "--variation-seeds", "0")
    assert again["cases"] == promotion["cases"]


def test_the_query_driver_saves_latencies_rates_and_costs(tmp_path: Path) -> None:
    """Each promise about the cache has its figure; a trace with structure is predicted, and a random one is not."""
    arguments = ("--no-model", "--rounds", "2", "--queries", "500", "--sessions", "100")
    figures = run("bench_queries", tmp_path / "q.json", *arguments)["figures"]
    assert set(figures) == {
        "latency",
        "deduplication",
        "hit rate, Zipf over 1,000 texts",
        "prefetch, sessions of follow-up questions",
        "prefetch, random trace",
        "similar question among 1,000",
    }
    assert all(math.isfinite(number) for number in numbers(figures))
    assert all(figures["latency"][name]["median_us"] > 0 for name in ("hit", "miss", "hit, watching a source"))
    zipf = figures["hit rate, Zipf over 1,000 texts"]
    rates = zipf["cache of 1000"]
    assert rates["QueryOptimizer"] == rates["BatchEmbedder"] == pytest.approx(1 - zipf["distinct"] / 500, abs=1e-3)
    structured = figures["prefetch, sessions of follow-up questions"]
    assert structured["without"]["prefetch_issued"] == 0 < structured["with"]["prefetch_used"]
    assert structured["with"]["hit_rate"] > structured["without"]["hit_rate"]
    assert figures["prefetch, random trace"]["prefetch_issued"] == 0


def test_the_monitoring_driver_saves_times_memory_and_shares(tmp_path: Path) -> None:
    """Report, memory and overhead each have their figure; ten thousand recordings stay within the promised memory."""
    figures = run("bench_monitoring", tmp_path / "m.json", "--no-model", "--rounds", "2")["figures"]
    assert set(figures) == {
        "report, 50 operations",
        "mb_for_10000_operations",
        "recording",
        "share of a recall, cheap embedder",
    }
    assert all(math.isfinite(number) for number in numbers(figures))
    assert all(0 < mb < 10 for mb in figures["mb_for_10000_operations"].values())
    share = figures["share of a recall, cheap embedder"]
    recorded = figures["recording"]["track_operation_us"] / 1e3 / share["recall_ms"]
    assert share["share_by_recording"] == pytest.approx(recorded, rel=0.05, abs=1e-5)


def test_the_server_driver_compares_with_the_backend_alone(tmp_path: Path) -> None:
    """Every call and every viewer is answered, with viewers and without, and the same questions go without HTTP too."""
    options = ["--memories", "50", "--seconds", "1", "--viewers", "3", "--callers", "2"]
    saved = run("bench_server", tmp_path / "server.json", *options)
    calls = {name: row for name, row in saved["figures"].items() if "calls" in row}
    assert len(calls) == 8
    for row in calls.values():
        assert row["calls"] > 0
        assert row["errors"] == 0, row["first_error"]
    viewers = saved["figures"]["viewers"]
    assert (viewers["viewers"], viewers["errors"]) == (3, 0)
    assert viewers["samples_fewest"] > 0
