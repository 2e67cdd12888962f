"""./hanquan flags on a running stack: what a clerk sees and decides."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from antifraud.finding import Reason
from antifraud.gate import block_person, digest_person, risk_key, shard_tag
from antifraud.review import BlockView, FlagView, Released
from kernel.valkey import open_valkey
from stack.running import Stack

ROOT = Path(__file__).parents[2]
PERSON = "0123456789abcdef0123456789abcdef"
REASON = Reason(
    code="REPEAT_BURST",
    value=24,
    threshold=12,
    window_s=604_800,
    evidence=("274877906945", "274877906946"),
    zh="7 天内 30 次核销只来自 4 个人。",
    en="30 redemptions within 7 days came from 4 people only.",
    rule_set="0123456789ab",
)


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """The stores of a stack, with a held merchant, a flagged phone and a blocked person."""
    async with Stack(tmp_path / "data", services=()) as running:
        conn = await asyncpg.connect(running.dsn())
        await fill(conn)
        await conn.close()
        client = open_valkey(running.valkey_url)
        await block_person(client, shard_tag(0), digest_person(bytes.fromhex(PERSON)))
        await client.aclose()
        yield running


async def fill(conn: Any) -> None:
    reason = msgspec.json.encode(REASON).decode()
    await conn.execute("INSERT INTO city (buckets, shards) VALUES (1, 1)")
    await conn.execute(
        "INSERT INTO merchant (merchant_id, name, category, district, payee_name, payee_account, payee_bank)"
        " VALUES ('shop-1', '[red] 面馆', 'dining', 'wuchang', 'x', '6222000011', 'b')"
    )
    await conn.execute(
        "INSERT INTO flag (subject_kind, subject, detector, family, points, reason, seen_from, opened_at) VALUES"
        " ('merchant', '1', 'REPEAT_BURST', 'merchant', 40, $1, now(), now()),"
        " ('device', '00ff00ff00ff00ff', 'DEVICE_PACE', 'tempo', 40, $1, now(), now())",
        reason,
    )
    await conn.execute(
        "INSERT INTO merchant_hold (merchant_no, reason_code, reason, placed_at) VALUES (1, 'REPEAT_BURST', 'x', now())"
    )
    await conn.execute(
        "INSERT INTO person_block (person, points, reason, seen_from, placed_at, expires_at)"
        " VALUES ($1, 100, $2, now(), now(), now() + interval '30 days')",
        PERSON,
        f"[{reason}]",
    )


async def flags(stack: Stack, *arguments: str, status: int = 0) -> str:
    """Runs the command in a process of its own, as the script at the root does."""
    code = "import sys; from stack.console import exit_status; from stack.commands.flags import app;"
    code += " sys.exit(exit_status(lambda: app(result_action='return_value')))"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, *arguments, "--data", str(stack.folder.path)),
        cwd=ROOT,
        env={"PATH": "", "COLUMNS": "160", "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    answer, remarks = await process.communicate()
    assert process.returncode == status, remarks.decode()
    return (answer + remarks).decode()


async def test_list_and_show(stack: Stack) -> None:
    listed = await flags(stack, "list")
    assert "merchant shop-1 [red] 面馆" in listed, "a name is never taken for markup"
    assert "open, payment held" in listed
    assert "24 / 12" in listed
    assert "00ff00ff00ff00ff" in listed
    shown = await flags(stack, "show", "1")
    assert REASON.zh in shown
    assert REASON.en in shown
    assert "REPEAT_BURST: 24, threshold 12, within 7 d" in shown
    assert "274877906945, 274877906946" in shown
    assert "no flag 99" in await flags(stack, "show", "99", status=1)


async def test_json_is_for_programs(stack: Stack) -> None:
    listed = msgspec.json.decode(await flags(stack, "list", "--json"), type=list[FlagView])
    assert [(one.flag_id, one.reason) for one in listed] == [(2, REASON), (1, REASON)]
    assert msgspec.json.decode(await flags(stack, "show", "1", "--json"), type=FlagView) == listed[1]
    (block,) = msgspec.json.decode(await flags(stack, "blocks", "--json"), type=list[BlockView])
    assert (block.person.hex, block.points, block.reason) == (PERSON, 100, (REASON,))


async def test_release_says_what_it_undid_and_is_on_record(stack: Stack) -> None:
    decision = ("--by", "li.wei", "--note", "a staff canteen")
    answer = await flags(stack, "release", "shop-1", *decision, "--json")
    assert msgspec.json.decode(answer, type=Released) == Released("shop-1", [1], [1])
    conn = await asyncpg.connect(stack.dsn())
    row = await conn.fetchrow("SELECT released_by, note FROM merchant_hold_release")
    assert row is not None
    assert tuple(row) == ("li.wei", "a staff canteen")
    assert await conn.fetchval("SELECT count(*) FROM merchant_held") == 0
    await conn.close()
    assert "shop-1" not in await flags(stack, "list")
    assert "cleared by li.wei: a staff canteen" in await flags(stack, "list", "--closed", "--merchant", "shop-1")
    assert "0 holds released, 0 flags closed" in await flags(stack, "release", "shop-1", *decision)
    assert "no merchant nobody" in await flags(stack, "release", "nobody", *decision, status=1)


async def test_unblock_lets_a_person_claim_again(stack: Stack) -> None:
    decision = ("--by", "li.wei", "--note", "a mistake")
    assert "may claim again" in await flags(stack, "unblock", PERSON, *decision)
    client = open_valkey(stack.valkey_url)
    digest = digest_person(bytes.fromhex(PERSON))
    assert not await client.hexists(risk_key(shard_tag(0), digest), digest)
    await client.aclose()
    assert "nobody is blocked" in await flags(stack, "blocks")
    assert "nothing stands against" in await flags(stack, "unblock", PERSON, *decision, status=1)
