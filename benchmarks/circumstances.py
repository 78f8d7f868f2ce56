"""What a measurement was made on and with; every benchmark saves it beside its numbers."""

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LINUX_CPU, LINUX_MEMORY = Path("/proc/cpuinfo"), Path("/proc/meminfo")
USUAL_PACKAGES = ("gemma-rag", "numpy")


def circumstances(packages: Iterable[str] = ()) -> dict[str, Any]:
    """Processor, cores that this process may use, memory in GiB, load average (more than the benchmark's
    own threads means company, and then no figure is to be trusted), system, Python, versions of `packages` (None: not
    installed), the commit, whether the working tree differs from it, and the time in UTC."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "os": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in dict.fromkeys((*USUAL_PACKAGES, *packages))},
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def save(path: Path, figures: Mapping[str, Any], packages: Iterable[str] = (), **facts: Any) -> None:
    """Writes figures, their circumstances and further facts as JSON, prints the figures, and says where they are."""
    report = {**facts, "circumstances": circumstances(packages), "figures": figures}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))
    print(f"saved to {path}")


def _cpu() -> str:
    if LINUX_CPU.exists():
        fields = dict(line.partition(":")[::2] for line in LINUX_CPU.read_text().splitlines() if ":" in line)
        facts = {key.strip(): value.strip() for key, value in fields.items()}
        wide = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16") if flag in facts.get("flags", "")]
        model = facts.get("model name", platform.machine())
        return f"{model}, family {facts.get('cpu family')} model {facts.get('model')} ({', '.join(wide) or 'no AVX2'})"
    if platform.system() == "Darwin":
        return _run(["sysctl", "-n", "machdep.cpu.brand_string"]) or platform.processor()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    if LINUX_MEMORY.exists():
        total = next(line for line in LINUX_MEMORY.read_text().splitlines() if line.startswith("MemTotal"))
        return round(int(total.split()[1]) / 2**20, 1)
    size = _run(["sysctl", "-n", "hw.memsize"])
    return round(int(size) / 2**30, 1) if size else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    return _run(["git", "-C", str(ROOT), *arguments])


def _run(command: list[str]) -> str | None:
    """The output of a command, or None where it does not exist or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
