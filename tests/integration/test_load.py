"""The load test against a real stack: it passes on a sound one, and fails where somebody tampered."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import asyncpg
import msgspec
import pytest
import pytest_asyncio

from stack.errors import StackError
from stack.load.prepare import Prepared, Size, prepared, write_plan
from stack.load.rush import ROOT, environment, run_rush
from stack.load.verdict import judge
from stack.running import Stack
from tests import stores

SMALL = Size(citizens=1_500, vouchers=300, seconds=3, processes=2, lead_s=9, seed=1)
OPTIONS = ("--citizens", "2000", "--vouchers", "400", "--seconds", "3", "--lead", "10", "--json")

pytestmark = [pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    async with Stack(tmp_path_factory.mktemp("load") / "data") as running:
        yield running


@asynccontextmanager
async def superuser(stack: Stack) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
    conn = await asyncpg.connect(stack.dsn())
    try:
        yield conn
    finally:
        await conn.close()


async def run_command(*arguments: str) -> tuple[int, bytes, str]:
    """Runs `./hanquan load noon`: status, standard output, remarks."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stack", "load", "noon", *arguments),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out, err.decode()


async def audit_clients(run: Prepared, logs: Sequence[Path]) -> tuple[int, str]:
    """Runs the clients' own audit: status and output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadtests.audit", "--plan", str(run.plan), *map(str, logs)),
        cwd=ROOT,
        env=environment() | {"COLUMNS": "200"},
        stdout=subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


def tampered(log: Path) -> tuple[Path, str]:
    """A copy of a log in which one winner was told another one's code; and that winner's number."""
    lines = log.read_text().splitlines()
    wins = [(at, json.loads(line)) for at, line in enumerate(lines) if '"GRANTED"' in line]
    (at, first), (_, second) = next(
        pair for pair in pairwise(wins) if pair[0][1]["voucher_code"] != pair[1][1]["voucher_code"]
    )
    lines[at] = json.dumps(first | {"voucher_code": second["voucher_code"]})
    copy = log.with_name("tampered.jsonl")
    copy.write_text("\n".join(lines) + "\n")
    return copy, first["out_request_no"]


async def test_a_small_noon_from_nothing_holds(tmp_path: Path) -> None:
    status, out, remarks = await run_command(*OPTIONS, "--data", str(tmp_path / "none"))
    assert status == 0, remarks
    report = msgspec.json.decode(out)
    figures = report["figures"]
    assert [report[name] for name in ("oversold", "undersold", "missing", "doubled")] == [0, 0, 0, 0]
    assert figures["wins"] == 400 and figures["lost_answers"] == 0
    assert figures["presses"] > 2_000 and figures["calls"] > figures["presses"]
    assert {"SOLD_OUT", "NOT_STARTED", "USER_ALREADY_CLAIMED"} <= figures["refusals"].keys()
    assert figures["repeated_answers"] > 0
    assert 0 < figures["called_ms"]["p50"] <= figures["pressed_ms"]["p99"] <= figures["pressed_ms"]["max"]
    assert "no stack runs in" in remarks
    assert not list(tmp_path.iterdir())
    folder = Path(remarks.partition("starting one in ")[2].partition(" for this run")[0])
    assert folder.name.startswith("hanquan-load-") and not folder.exists()


async def test_two_processes_play_everyone_and_an_altered_answer_is_named(stack: Stack) -> None:
    seen: list[int] = []
    async with prepared(stack, SMALL) as run:
        assert run.plan.stat().st_mode & 0o777 == 0o600
        logs = await run_rush(run, SMALL, stack.folder.logs / "load.log", seen.append)
        verdict = await judge(stack, run, logs)
        assert verdict.holds, verdict.wrong
        assert verdict.figures.wins == SMALL.vouchers
        people = {json.loads(line)["person_token"] for log in logs for line in log.read_text().splitlines()}
        assert len(people) == SMALL.citizens
        assert seen == sorted(seen) and seen[-1] == verdict.figures.calls

        altered, number = tampered(logs[0])
        others = logs[1:]
        status, said = await audit_clients(run, [altered, *others])
        assert status == 1 and number in said and "VIOLATIONS" in said
        verdict = await judge(stack, run, [altered, *others])
        assert not verdict.holds
        assert verdict.missing and verdict.doubled
        assert any(number in what and "not as answered" in what for what in verdict.wrong)
    assert not run.plan.exists()
    async with superuser(stack) as conn:
        assert await conn.fetchval("SELECT count(*) FROM api_key WHERE revoked_at IS NULL") == 0


async def test_answers_lost_in_a_crash_at_noon_cost_nobody_a_voucher(stack: Stack) -> None:
    killed: list[int] = []

    def kill_once(answers: int) -> None:
        if answers > 200 and not killed:
            killed.append(stack.pid("issuer"))
            os.kill(killed[0], signal.SIGKILL)

    async with prepared(stack, SMALL) as run:
        logs = await run_rush(run, SMALL, stack.folder.logs / "load.log", kill_once)
        verdict = await judge(stack, run, logs)
    assert killed and stack.pid("issuer") != killed[0]
    assert verdict.figures.lost_answers > 0
    assert verdict.holds, verdict.wrong
    assert verdict.figures.wins == SMALL.vouchers


async def test_a_server_that_loses_one_voucher_is_found_out(stack: Stack) -> None:
    """A trigger drops the seventh voucher of the round on its way into the ledger."""
    await stores.command(
        stack.dsn(),
        """CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
           CREATE TRIGGER lose BEFORE INSERT ON voucher FOR EACH ROW
           WHEN (NEW.voucher_id & ((1 << 28) - 1) = 7) EXECUTE FUNCTION lose()""",
    )
    try:
        status, out, remarks = await run_command(*OPTIONS, "--data", str(stack.folder.path))
    finally:
        await stores.command(stack.dsn(), "DROP FUNCTION lose CASCADE")
    assert status == 1, remarks
    report = msgspec.json.decode(out)
    assert (report["missing"], report["undersold"], report["oversold"]) == (1, 1, 0)
    assert any("told GRANTED: not there" in what for what in report["wrong"])
    assert "no stack runs" not in remarks
    folder = stack.folder.path / "load" / report["run_id"]
    assert [path.suffix for path in folder.iterdir()] == [".jsonl"]


async def test_a_plan_to_take_along_has_keys_for_a_day(stack: Stack, tmp_path: Path) -> None:
    run = await write_plan(stack, SMALL, tmp_path / "plan.json")
    plan = msgspec.json.decode(run.plan.read_bytes())
    serials = [partner["serial_no"] for partner in plan["partners"]]
    async with superuser(stack) as conn:
        rows = await conn.fetch(
            "SELECT not_after < now() + interval '25 hours' AS short FROM api_key"
            " WHERE serial_no = ANY ($1) AND revoked_at IS NULL",
            serials,
        )
    assert [row["short"] for row in rows] == [True] * 3
    assert {partner["algorithm"] for partner in plan["partners"]} == {"HMAC-SHA256", "RSA-2048-SHA256"}


async def test_fewer_vouchers_than_stocks_are_refused(stack: Stack, tmp_path: Path) -> None:
    few = msgspec.structs.replace(SMALL, vouchers=5)
    with pytest.raises(StackError, match="too few"):
        await write_plan(stack, few, tmp_path / "plan.json")
    assert not (tmp_path / "plan.json").exists()


async def test_locust_that_cannot_start_says_where_to_look(stack: Stack, tmp_path: Path) -> None:
    run = Prepared(run_id="none", plan=tmp_path / "none.json", opens_at=datetime.now(UTC), stock_nos={}, quantities={})
    with pytest.raises(StackError, match="locust failed"):
        await run_rush(run, msgspec.structs.replace(SMALL, processes=1), tmp_path / "load.log", lambda answers: None)
    assert "cannot read the plan" in (tmp_path / "load.log").read_text()
