"""./hanquan settle and ./hanquan reconcile on a running stack: a day's work of the finance office."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from redemption.settlement.answer_csv import AnswerRow, write_answer
from stack.finance import write_with_sidecar
from stack.running import Stack
from tests.town import DAY, Town, assert_books, build, later

ROOT = Path(__file__).parents[2]
PAYER = {"HANQUAN_PAYER_NAME": "武汉市商务局", "HANQUAN_PAYER_ACCOUNT": "4200186500", "HANQUAN_PAYER_BANK": "汉口银行"}


class Office:
    """A stack with a town in it, and the commands."""

    def __init__(self, stack: Stack, town: Town) -> None:
        self.stack, self.town = stack, town

    async def __call__(self, *arguments: str, status: int = 0) -> str:
        """What a command prints, after checking its exit status."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "stack", *arguments, "--data", str(self.stack.folder.path)),
            cwd=ROOT,
            env={"PATH": "", "COLUMNS": "40", "PYTHONPATH": str(ROOT), **PAYER},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, complained = (text.decode() for text in await process.communicate())
        assert process.returncode == status, said + complained
        return said or complained

    async def json(self, *arguments: str, status: int = 0) -> Any:
        return msgspec.json.decode(await self(*arguments, "--json", status=status))


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    """A stack in which two merchants sold on DAY and a third is held."""
    async with Stack(tmp_path / "data", services=()) as stack:
        conn = await asyncpg.connect(stack.dsn())
        town = await build(conn)
        for merchant in town.merchants:
            await town.sell(merchant, DAY, merchant)
        await town.hold(3, "[many] refunds")
        yield Office(stack, town)
        await assert_books(conn)
        await conn.close()


async def test_a_day_from_proposal_to_reconciliation(office: Office, tmp_path: Path) -> None:
    batch = await office.json("settle", "propose", "wuhan-2020", str(DAY), "--by", "li.wei")
    assert (batch["state"], batch["amount_fen"], batch["held_fen"]) == ("PROPOSED", 6_000, 6_000)
    refused = await office("settle", "approve", "1", "--by", "Li.Wei", status=1)
    assert refused.startswith("hanquan: SAME_PERSON: li.wei proposed batch 1")
    assert "APPROVED" in await office("settle", "approve", "1", "--by", "zhang.min")

    order = await office.json("settle", "export", "1", "--by", "li.wei", "--to", str(tmp_path))
    assert (order["file_name"], order["line_count"]) == ("HQS0000000001.xml", 2)
    assert (tmp_path / "HQS0000000001.xml.sha256").read_text().startswith(order["sha256"])

    rows = [
        AnswerRow(1, 1, "62220200000001", 2_000, "PAID", later(1), "B1", ""),
        AnswerRow(2, 2, "62220200000002", 4_000, "REJECTED", later(1), "B2", "account closed"),
    ]
    bank = tmp_path / "bank.csv"
    write_with_sidecar(bank, write_answer("HQS0000000001", bytes.fromhex(order["sha256"]), rows))
    answered = await office.json("settle", "answer", "1", str(bank), "--by", "li.wei")
    assert (answered["paid_fen"], answered["rejected_fen"], answered["replayed"]) == (2_000, 4_000, False)
    assert "nothing was booked again" in await office("settle", "answer", "1", str(bank), "--by", "li.wei")

    await office("reconcile", "flow", "wuhan-2020", "wepay", str(DAY), "--to", str(tmp_path))
    flow = tmp_path / f"flow-wepay-wuhan-2020-{DAY}.csv"
    run = ("reconcile", "run", "wuhan-2020", str(DAY), "--flow", str(flow), "--bank", str(bank), "--by", "li.wei")
    made = await office.json(*run)
    assert (made["totals"], made["missing_files"], made["repeated"]) == ([], [], False)
    assert (await office.json(*run))["repeated"]


async def test_tables_show_every_amount_whatever_the_window(office: Office) -> None:
    await office("settle", "propose", "wuhan-2020", str(DAY), "--by", "li.wei")
    shown = await office("settle", "show", "1")
    lines = shown.splitlines()
    assert "batch 1 (HQS0000000001), 2020-04-20, PROPOSED: 2 lines, 60.00 yuan; 1 held, 60.00 yuan" in lines[0]
    for column in ("opening", "sent back", "carried", "redeemed", "refunded", "amount", "state", "remark"):
        assert column in lines[1]
    assert "TEST [many] refunds" in lines[-1]
    assert "…" not in shown
    assert (await office("settle", "list", "wuhan-2020")).splitlines()[-1].split()[:3] == [
        "1",
        "2020-04-20",
        "PROPOSED",
    ]
    assert "REJECTED" in await office("settle", "reject", "1", "--by", "li.wei", "--why", "wrong day")


async def test_breaks_are_listed_and_closed(office: Office, tmp_path: Path) -> None:
    await office("settle", "propose", "wuhan-2020", str(DAY), "--by", "li.wei")
    await office(
        "reconcile", "flow", "wuhan-2020", "wepay", str(DAY), "--format", "csv-spreadsheet", "--to", str(tmp_path)
    )
    flow = tmp_path / f"flow-wepay-wuhan-2020-{DAY}.csv"
    run = ("reconcile", "run", "wuhan-2020", str(DAY), "--by", "li.wei")
    assert "no file from wepay" in await office(*run, status=1)
    honest = flow.read_bytes()
    flow.write_bytes(honest.replace(b",6800,2000,", b",6800,1500,", 1))
    assert "WRONG_HASH" in await office(*run, "--flow", str(flow), status=1)
    flow.write_bytes(honest.replace(b"2000", b"1500", 1).replace(b"TRAILER,6,12000", b"TRAILER,6,11500"))
    flow.with_name(flow.name + ".sha256").unlink()
    assert "AMOUNT" in await office(*run, "--flow", str(flow), status=1)
    (found,) = await office.json("reconcile", "breaks", "wuhan-2020")
    assert (found["kind"], found["ours_fen"], found["theirs_fen"], found["owner"]) == ("AMOUNT", 2_000, 1_500, "CITY")
    close = ("reconcile", "close", str(found["break_no"]), "--why", "agreed with wepay", "--by", "li.wei")
    await office(*close)
    assert "ALREADY_CLOSED" in await office(*close, status=1)
    assert await office.json("reconcile", "breaks", "wuhan-2020") == []
    assert "agreed with wepay" in await office("reconcile", "breaks", "wuhan-2020", "--all")


async def test_unused_money_is_taken_back_and_returned(office: Office, tmp_path: Path) -> None:
    await office.town.issue(4)
    assert "RESTORE-1" in await office("settle", "expire")
    back = ("settle", "return", "wuhan-2020", "80.00", "CITY_FUND", "--reference", "end of April", "--by", "li.wei")
    assert "80.00" in await office(*back)
    assert "booked before" in await office(*back)
    refused = await office(
        "settle", "return", "wuhan-2020", "0.01", "BUDGET", "--reference", "x", "--by", "y", status=1
    )
    assert "NOT_ENOUGH" in refused
    assert "is not an amount" in await office(*back[:3], "8,000", *back[4:], status=1)
    assert "UNKNOWN_CAMPAIGN" in await office("settle", "list", "nowhere", status=1)
    await office("reconcile", "flow", "wuhan-2020", "wepay", str(DAY), "--format", "xlsx", "--to", str(tmp_path))
    assert (tmp_path / f"flow-wepay-wuhan-2020-{DAY}.xlsx").read_bytes().startswith(b"PK")
