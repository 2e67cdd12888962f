"""The demonstration, small: a stranger's first command, read as a program reads it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIELDS = {
    "vouchers_offered", "vouchers_issued", "oversold", "undersold", "claims_refused", "claim_p50_ms", "claim_p99_ms",
    "claims_per_s", "redeemed", "refunded", "face_issued_fen", "subsidy_redeemed_fen", "bills_fen", "settled_fen",
    "breaks_planted", "breaks_found", "abusers_planted", "abusers_flagged", "honest_flagged", "audit_violations",
    "elapsed_s",
}  # fmt: skip


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stack", "demo", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.timeout(300)
def test_a_small_thursday_is_exact_to_the_voucher_and_the_fen() -> None:
    done = demo("--vouchers", "2500", "--citizens", "4000", "--seed", "7", "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    told = json.loads(done.stdout)
    assert told.keys() >= FIELDS
    assert told["vouchers_issued"] == told["vouchers_offered"] == 2500
    assert told["oversold"] == told["undersold"] == told["audit_violations"] == 0
    assert told["breaks_found"] == told["breaks_planted"] == 8
    assert told["abusers_flagged"] == told["abusers_planted"]
    assert told["honest_flagged"] == 0
    assert told["settled_fen"] + told["settling_fen"] + told["payable_fen"] == told["subsidy_redeemed_fen"]
    assert told["returned_to_city_fen"] + told["subsidy_redeemed_fen"] == told["face_issued_fen"]
    assert {"SOLD_OUT", "NOT_STARTED", "RULE_LIMIT"} <= told["claims_refused"].keys()


def test_too_small_a_demo_says_so_in_one_line() -> None:
    done = demo("--vouchers", "10")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "2,000 vouchers" in done.stderr
