"""`./hanquan faults issuer`, small; and the same drill over a store that keeps nothing, which must be found out."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from stack import valkey_server
from stack.faults import issuer
from stack.faults.field import Field, Size
from stack.faults.issuer import run_issuer
from stack.faults.kinds import FAULTS, choose, valkey_killed

ROOT = Path(__file__).parents[2]
FIELDS = {
    "faults", "acknowledged", "lost", "doubled", "recovery_s_p50", "recovery_s_max", "violations", "seed", "rounds",
    "elapsed_s",
}  # fmt: skip


def faults(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stack", "faults", "issuer", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False)


def test_three_rounds_lose_and_double_nothing() -> None:
    done = faults("--rounds", "3", "--seed", "7", "--seconds", "0.3", "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    told = json.loads(done.stdout)
    assert told.keys() >= FIELDS
    assert (told["lost"], told["doubled"], told["violations"], told["wrong"]) == (0, 0, 0, [])
    assert told["acknowledged"] > 100
    assert 0 < told["recovery_s_p50"] <= told["recovery_s_max"] <= 30
    assert (told["seed"], told["rounds"]) == (7, 3)
    chosen = Counter(name for kinds in choose(7, 3) for name in kinds)
    assert Counter(told["faults"]) + Counter(told["missed"]) == chosen
    assert sum(told["faults"].values()) >= 3


async def killed_before_the_drain_looks(field: Field, random: Random) -> float | None:
    """Valkey is killed while wins of the last moments are in it alone."""
    drain = field.stack.pid("drain")
    os.kill(drain, signal.SIGSTOP)
    try:
        await asyncio.sleep(0.4)
        return await valkey_killed(field, random)
    finally:
        os.kill(drain, signal.SIGCONT)


async def test_control_a_store_that_keeps_nothing_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Valkey without a log on disk, killed under load: wins are lost, and the drill says so."""
    monkeypatch.setitem(valkey_server.SETTINGS, "appendonly", "no")
    monkeypatch.setitem(FAULTS, "valkey_killed", killed_before_the_drain_looks)
    monkeypatch.setattr(issuer, "choose", lambda seed, rounds: [("valkey_killed",)])
    report = await run_issuer(tmp_path, Size(rounds=1, seed=1, workers=1), 0.5, lambda by: None)
    assert report.lost > 0
    assert report.violations >= report.lost
    assert "not there" in report.wrong[0]
    assert not report.holds


def test_it_leaves_stores_of_ones_own_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANQUAN_VALKEY_URL", "redis://127.0.0.1:1/0")
    done = faults("--rounds", "1")
    assert done.returncode == 1
    assert "HANQUAN_VALKEY_URL must not be set" in done.stderr
