"""What `./hanquan faults checkout` prints, and the status it ends with."""

import json
from pathlib import Path

import pytest

from stack.commands import faults as command
from stack.faults import checkout
from stack.faults.field import Size
from stack.faults.report import Report

FIELDS = {
    "faults", "acknowledged", "lost", "doubled", "recovery_s_p50", "recovery_s_max", "violations", "seed", "rounds",
    "elapsed_s",
}  # fmt: skip


@pytest.mark.parametrize(("lost", "status"), [(0, 0), (1, 1)])
def test_json_is_one_object_and_nothing_else(
    lost: int, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run_checkout(folder: Path, size: Size, seconds: float, advance: object) -> Report:
        return Report(acknowledged=5, lost=lost).over(size.seed, size.rounds, 1.23)

    monkeypatch.setattr(checkout, "run_checkout", run_checkout)
    assert command.checkout(rounds=7, seed=3, json=True) == status
    told = json.loads(capsys.readouterr().out)
    assert told.keys() >= FIELDS
    assert (told["rounds"], told["seed"], told["lost"]) == (7, 3, lost)
