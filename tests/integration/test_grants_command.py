"""./hanquan campaign grant: a list against a running stack, run twice, and a bad list."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from kernel.clock import SystemClock
from stack.commands.campaign import app
from stack.console import exit_status
from stack.running import Stack
from stack.services import SERVICES
from tests.city_plan import person
from tests.small_campaign import small

ROOT = Path(__file__).parents[2]
OFFER = "small-2020_r1_wechat_dining"
IN_THE_BOOKS_WITHIN_S = 60

pytestmark = pytest.mark.asyncio(loop_scope="module")


def campaign_open_now() -> str:
    """The small campaign: its first round has opened, and wechat's ten vouchers are granted."""
    now = SystemClock().now()
    changes = [
        ("opening_time: 12:00", f"opening_time: {now:%R}"),
        ("2020-04-23 12:00, closes: 2020-04-23", f"{now:%F %R}, closes: {now + timedelta(days=1):%F}"),
        (
            "2020-04-30 12:00, closes: 2020-04-30 18:30",
            f"{now + timedelta(days=7):%F %R}, closes: {now + timedelta(days=8):%F}",
        ),
        ("face: 20, quantity: 10}", "face: 20, quantity: 10, granted: yes}"),
    ]
    return small(*changes)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    services = [service for service in SERVICES if service.name in ("issuer", "drain")]
    async with Stack(tmp_path_factory.mktemp("grants") / "data", services=services) as running:
        yield running


async def hanquan(stack: Stack, *words: str) -> tuple[int, str, str]:
    """Status, answer and remarks of a command."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stack", "campaign", *words, "--data", str(stack.folder.path)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    answer, remarks = await process.communicate()
    assert process.returncode is not None
    return process.returncode, answer.decode(), remarks.decode()


async def test_a_list_is_granted_and_again(stack: Stack, tmp_path: Path) -> None:
    campaign, people = tmp_path / "now.yaml", tmp_path / "people.csv"
    campaign.write_text(campaign_open_now(), encoding="utf-8")
    people.write_text("person_token\n" + "".join(f"{person(n)}\n" for n in (1, 2, 3, 2)), encoding="utf-8")
    status, said, _ = await hanquan(stack, "load", str(campaign), "--by", "Li Na")
    assert (status, "2 rounds, 4 stocks" in said) == (0, True)
    assert (await hanquan(stack, "approve", "small-2020", "--by", "Wang Wei"))[0] == 0

    status, said, remarks = await hanquan(stack, "grant", OFFER, str(people), "--by", "Li Wei")
    for _ in range(20):
        if "not published" not in said:  # the claim service looks once a second
            break
        await asyncio.sleep(0.3)
        status, said, remarks = await hanquan(stack, "grant", OFFER, str(people), "--by", "Li Wei")
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert lines[1:] == ["people", "granted 3", "on the list 3 1 lines were repeats"], said
    assert (status, f"granting {OFFER}" in remarks) == (0, True)

    status, said, _ = await hanquan(stack, "grant", OFFER, str(people), "--by", "Li Wei", "--json")
    report = json.loads(said)
    assert (status, report["results"], report["stopped"]) == (0, {"HAD_IT": 3}, None)
    assert await in_the_books(stack, 3)


async def test_a_campaign_waits_for_another_persons_approval(stack: Stack) -> None:
    status, said, _ = await hanquan(stack, "load", "city-tour", "--by", "Li Na")
    assert (status, "3 rounds, 18 stocks, 6 packs" in said) == (0, True)
    conn = await asyncpg.connect(stack.dsn("hanquan_auditor"))
    try:
        states = await conn.fetch("SELECT DISTINCT state::text FROM stock WHERE stock_id LIKE 'city-tour%'")
    finally:
        await conn.close()
    assert [row["state"] for row in states] == ["DRAFT"]


async def in_the_books(stack: Stack, vouchers: int) -> bool:
    conn = await asyncpg.connect(stack.dsn("hanquan_auditor"))
    try:
        async with asyncio.timeout(IN_THE_BOOKS_WITHIN_S):
            while await conn.fetchval("SELECT count(*) FROM voucher") < vouchers:
                await asyncio.sleep(0.05)
        count: int = await conn.fetchval("SELECT count(*) FROM voucher")
        return count == vouchers
    finally:
        await conn.close()


async def test_a_bad_list_grants_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(f"{person(1)}\n张三\n{person(2)[:-1]}\n", encoding="utf-8")
    words = ("grant", OFFER, str(path), "--by", "Li Wei", "--data", str(tmp_path / "none"))
    assert exit_status(lambda: app(words, result_action="return_value")) == 1
    printed = capsys.readouterr().out
    assert "nobody was granted anything; 2 bad lines" in printed
    assert "   2  '张三' is no person token" in printed
    assert "   3  " in printed
    assert "has 31 digits; a token has 32" in printed


async def test_no_file_and_no_stack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("grant", OFFER, str(tmp_path / "none.csv"), "--by", "Li Wei", "--data", str(tmp_path / "none"))
    assert exit_status(lambda: app(words, result_action="return_value")) == 1
    assert "none.csv: No such file or directory" in capsys.readouterr().err
    (tmp_path / "none.csv").write_text(f"{person(1)}\n")
    assert exit_status(lambda: app(words, result_action="return_value")) == 1
    assert "no stack runs in" in capsys.readouterr().err
