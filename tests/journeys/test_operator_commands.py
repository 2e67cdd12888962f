"""An operator's first hour: load a campaign, look at it, enrol partners and merchants, sign a call."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from kernel.clock import CITY_ZONE, FileClock
from stack.running import Stack

ROOT = Path(__file__).parents[2]
HEAD = "merchant_id,name,category,district,payee_name,payee_account,payee_bank\n"
SHOP = "M000777,Noodles,dining,Wuchang,Noodles Ltd,6200000000000002,Bank of Hankou\n"

pytestmark = [pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    async with Stack(tmp_path_factory.mktemp("operator") / "data", services=()) as running:
        yield running


def clock_of(stack: Stack) -> Path:
    """The commands live before the campaign, so that it is not over when it is loaded."""
    file = stack.folder.path.parent / "clock"
    if not file.exists():
        FileClock(file).move_to(datetime(2020, 4, 1, tzinfo=CITY_ZONE))
    return file


async def hanquan(stack: Stack, *arguments: str) -> tuple[int, str]:
    """Runs a command on the stack: status, and all it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stack", *arguments, "--data", str(stack.folder.path)),
        cwd=ROOT,
        env=dict(os.environ) | {"HANQUAN_CLOCK_FILE": str(clock_of(stack))},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def test_a_campaign_is_loaded_once_and_listed(stack: Stack) -> None:
    status, said = await hanquan(stack, "campaign", "load", "wuhan-2020", "--by", "Li Na")
    assert (status, "15 rounds, 180 stocks" in said) == (0, True)
    status, said = await hanquan(stack, "campaign", "load", "wuhan-2020", "--by", "Li Na")
    assert (status, "loaded before" in said) == (1, True)
    status, said = await hanquan(stack, "campaign", "approve", "wuhan-2020", "--by", "li na")
    assert (status, "someone else must approve it" in said) == (1, True)
    assert await _count(stack, "SELECT count(*) FROM stock WHERE state = 'AUDIT'") == 180
    status, said = await hanquan(stack, "campaign", "approve", "wuhan-2020", "--by", "Wang Wei")
    assert (status, "180 stocks are SCHEDULED" in said) == (0, True)
    assert await _count(stack, "SELECT count(*) FROM stock WHERE state = 'SCHEDULED'") == 180
    status, said = await hanquan(stack, "campaign", "list")
    assert status == 0
    assert [line.split()[:2] for line in said.splitlines()[1:]] == [["wuhan-2020", f"r{i:02}"] for i in range(1, 16)]


async def test_an_operator_gets_a_key(stack: Stack) -> None:
    status, said = await hanquan(stack, "enrol", "operator", "li", "--name", "Li Na")
    assert (status, "li (Li Na) signs with serial_no" in said) == (0, True)
    status, said = await hanquan(stack, "enrol", "operator", "li", "--name", "Wang Wei")
    assert (status, "li is Li Na already" in said) == (1, True)
    status, said = await hanquan(stack, "enrol", "operator", "li2", "--name", "LI NA")
    assert (status, "nobody was enrolled" in said) == (1, True)
    assert await _count(stack, "SELECT count(*) FROM api_key WHERE holder_kind = 'operator'") == 1


async def test_a_partner_and_a_merchant_get_keys_that_sign(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "shops.csv"
    file.write_text(HEAD + SHOP)
    assert (await hanquan(stack, "enrol", "partner", "alipay"))[0] == 0
    assert (await hanquan(stack, "enrol", "merchants", str(file)))[0] == 0
    status, said = await hanquan(stack, "enrol", "merchants", str(file))
    assert (status, "nothing was enrolled" in said) == (1, True)
    assert await _count(stack, "SELECT count(*) FROM merchant") == 1
    assert await _count(stack, "SELECT count(*) FROM api_key WHERE holder_kind <> 'operator'") == 2
    status, said = await hanquan(stack, "sign", "nobody", "GET", "/v1/statements/2020-04-23")
    assert (status, "there are: M000777, alipay, li" in said) == (1, True)


async def test_a_partner_gets_a_quota_and_loses_it(stack: Stack) -> None:
    quota = "SELECT claims_per_s_max FROM partner WHERE partner_id = 'wechat'"
    for given, kept in (("500", 500), ("0", None)):
        assert (await hanquan(stack, "enrol", "quota", "wechat", given))[0] == 0
        assert await _count(stack, quota) == kept
    status, said = await hanquan(stack, "enrol", "quota", "nobody", "500")
    assert (status, "no campaign names a partner nobody" in said) == (1, True)
    assert (await hanquan(stack, "enrol", "quota", "wechat", "-1"))[0] != 0


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("merchant_id,name\nM1,x\n", "the first line must be"),
        (HEAD + "M000778,Noodles\n", "line 2"),
        (HEAD + SHOP.replace("\n", ",more\n"), "line 2"),
    ],
)
async def test_a_bad_file_of_merchants_enrols_nobody(stack: Stack, tmp_path: Path, text: str, what: str) -> None:
    before = await _count(stack, "SELECT count(*) FROM merchant")
    file = tmp_path / "bad.csv"
    file.write_text(text)
    status, said = await hanquan(stack, "enrol", "merchants", str(file))
    assert status == 1
    assert what in " ".join(said.split())
    assert await _count(stack, "SELECT count(*) FROM merchant") == before


async def _count(stack: Stack, query: str) -> int:
    conn = await asyncpg.connect(stack.dsn())
    try:
        count: int = await conn.fetchval(query)
        return count
    finally:
        await conn.close()
