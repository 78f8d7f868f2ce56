"""docs/http.md is true: its requests give the answers that stand there, its tables name what there is."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import httpx2
import pytest
import typer.main
from command_runs import ROOT, TIMEOUT
from http_servers import TOKEN, server

from gemma_cli.cli import app
from gemma_cli.server.endpoints import ENDPOINTS
from gemma_cli.server.faults import STATUSES

TEXT = (ROOT / "docs/http.md").read_text("utf-8")
ADDRESS = "http://127.0.0.1:8765"
NAMES = r"[0-9a-f]{8}-[0-9a-f-]{27}|(?<=\"undo\":\")[\w-]+"
"""Ids and tokens, which are others in every run."""
CHANGING = re.compile(
    rf'{NAMES}|\d{{4}}-\d\d-\d\dT[\d:.+]+|(?<="confidence":)[\d.]+|(?<="score":)[\d.]+|(?<="similarity":)[\d.]+'
)


def examples() -> list[tuple[str, str]]:
    """Each call of curl and what stands below it."""
    blocks = re.findall(r"^```console\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    calls = [call for block in blocks for call in re.split(r"^\$ ", block, flags=re.MULTILINE)]
    found = [re.fullmatch(r"(curl (?:.*\\\n)*.*)\n((?s:.*))", call) for call in calls]
    return [(one[1], one[2]) for one in found if one]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_the_requests_give_what_is_shown(tmp_path: Path) -> None:
    """Every call of curl, one after the other, prints what stands below it, but for ids, times and scores."""
    assert len(examples()) == 7
    env = {"GEMMA_RAG_EMBEDDING__PROVIDER": "openvino"}
    with server(f"sqlite:///{tmp_path / 'memory.db'}", env=env) as (address, _):
        while httpx2.get(f"{address}/readyz", timeout=TIMEOUT).status_code != 200:
            pass
        known: dict[str, str] = {}
        for line, shown in examples():
            command = line.replace(ADDRESS, address)
            for name, real in known.items():
                command = command.replace(name, real)
            told = subprocess.run(
                ["bash", "-c", command],
                env=os.environ | {"GEMMA_RAG_SERVER_TOKEN": TOKEN},
                capture_output=True,
                text=True,
                check=True,
                timeout=TIMEOUT,
            ).stdout
            if shown:
                assert CHANGING.sub("*", told) == CHANGING.sub("*", shown.strip()), line
                known |= dict(zip(re.findall(NAMES, shown), re.findall(NAMES, told), strict=True))
            else:
                assert told.startswith('{"memories":'), line


def test_every_option_is_told() -> None:
    """The table of options has each of the command's own, and no other."""
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    there = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    told = set(re.findall(r"--[a-z][a-z-]+", TEXT.split("## A memory's life")[0]))
    assert told == there - {"--mcp"}


def test_every_endpoint_is_in_the_table() -> None:
    """The tables name each endpoint with its method and path, and no other."""
    named = set(re.findall(r"^\| (GET|POST|PATCH|DELETE) `(/api/v1[^`]*)`", TEXT, re.MULTILINE))
    there = {(row.method, row.path.replace("memory_id:path", "id")) for row in ENDPOINTS if row.path.startswith("/api")}
    assert named == {row for row in there if not row[1].endswith("/session")} | {("GET", "/api/v1/live/hello")}
    assert all(f"`{method} /api/v1/session`" in TEXT or f"`{method}`" in TEXT for method in ("POST", "DELETE"))


def test_every_code_is_in_the_table() -> None:
    """The table of failures has each code beside its status."""
    rows = re.findall(r"^\| ([\d, ]+) \| (.*) \|$", TEXT, re.MULTILINE)
    named = {code: numbers for numbers, codes in rows for code in re.findall(r"`(\w+)`", codes)}
    assert set(named) == set(STATUSES)
    assert all(str(STATUSES[code]) in numbers for code, numbers in named.items())
