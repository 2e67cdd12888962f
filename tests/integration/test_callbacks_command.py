"""./hanquan callbacks on a running stack: an operator subscribes a partner, sees what is stuck, and mends it."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from stack.running import Stack

ROOT = Path(__file__).parents[2]
PARTNERS = "INSERT INTO partner (partner_id, name_zh, name_en) VALUES ('wechat', 'w', 'w'), ('alipay', 'a', 'a')"
EVENTS = """
INSERT INTO callback_event (bucket, voucher_id, attempt, kind, partner_no, happened_at, tries, next_at, died_at, last_error)
SELECT 0, voucher_id, attempt, kind::callback_kind, 1, now() - ago, tries, CASE WHEN died IS NULL THEN now() END, now() - died, error
  FROM (VALUES (274877906945, 0, 'CLAIMED', '2 days'::interval, 16, '3 hours'::interval, 'HTTP 500 [oops]'),
               (274877906945, 1, 'USED', '1 day', 16, '2 hours', 'HTTP 500'),
               (274877906946, 0, 'CLAIMED', '1 hour', 3, NULL, NULL)) AS e(voucher_id, attempt, kind, ago, tries, died, error)
"""  # noqa: E501
URL = "https://example.com/told"


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """The stores of a stack with two partners."""
    async with Stack(tmp_path_factory.mktemp("callbacks") / "data", services=()) as running:
        conn = await asyncpg.connect(running.dsn())
        await conn.execute("INSERT INTO city (buckets, shards) VALUES (1, 1)")
        await conn.execute(PARTNERS)
        await conn.close()
        yield running


async def callbacks(stack: Stack, *arguments: str, status: int = 0) -> str:
    """Runs the command in a process of its own; all it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stack", "callbacks", *arguments, "--data", str(stack.folder.path)),
        cwd=ROOT,
        env={"PATH": "", "COLUMNS": "80", "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == status, said.decode()
    return said.decode()


async def test_from_a_subscription_to_a_dead_letter_sent_again(stack: Stack) -> None:
    said = await callbacks(stack, "subscribe", "wechat", URL, "--events", "claimed,used")
    assert f"wechat is told of CLAIMED, USED at {URL}" in said
    shown = dict(line.split() for line in said.splitlines()[1:4])
    assert [len(shown[name]) for name in ("serial_no", "signing_key", "encryption_key")] == [20, 64, 64]
    (listed,) = json.loads(await callbacks(stack, "list", "--json"))
    assert (listed["url"], listed["serial_nos"], sum(listed["retry_after_s"])) == (URL, [shown["serial_no"]], 86_640)
    conn = await asyncpg.connect(stack.dsn())
    await conn.execute(EVENTS)
    await conn.close()
    lines = (await callbacks(stack, "dead")).splitlines()
    assert [line.split()[0] for line in lines] == ["event", "004000000001-1-USED", "004000000001-0-CLAIMED"]
    assert lines[2].endswith("16       3 h  HTTP 500 [oops]"), "a partner's words are never taken for markup"
    assert (
        len({len(line[: line.index(word)]) for line, word in zip(lines, ("partner", "wechat", "wechat"), strict=True)})
        == 1
    )
    row = (await callbacks(stack, "status")).splitlines()[1].split()
    assert row[:6] == ["wechat", "active", "1", "1", "60", "min"]
    both = ("004000000001-0-CLAIMED", "004000000009-0-CLAIMED")
    assert "nothing was put back" in await callbacks(stack, "redeliver", *both, status=1)
    again = await callbacks(stack, "redeliver", "--partner", "wechat", "--since", "2020-04-23")
    assert "2 events will be sent again" in again
    (queue,) = json.loads(await callbacks(stack, "status", "--json"))["queues"]
    assert (queue["waiting"], queue["dead"]) == (3, 0)


async def test_keys_change_and_subscriptions_end(stack: Stack) -> None:
    first = json.loads(await callbacks(stack, "subscribe", "alipay", URL, "--json"))["key"]
    second = json.loads(await callbacks(stack, "rotate", "alipay", "--json"))["key"]
    assert {len(value) for value in (*first.values(), *second.values())} == {20, 64}
    assert not set(first.values()) & set(second.values())
    assert "alipay is told nothing more" in await callbacks(stack, "unsubscribe", "alipay")
