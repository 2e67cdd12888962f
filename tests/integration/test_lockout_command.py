"""./hanquan tills on a running stack: who is locked, and how an operator lets a terminal go."""

import asyncio
import sys
from pathlib import Path

import asyncpg
import msgspec
import pytest

from kernel.clock import SystemClock
from kernel.errors import Code
from kernel.signing import Caller
from kernel.valkey import open_valkey
from redemption.lockout import TERMINAL_MAX, Lockout
from stack.commands import tills as command
from stack.commands.tills import Locked
from stack.errors import StackError
from stack.running import Stack

ROOT = Path(__file__).parents[2]


async def tills(stack: Stack, *arguments: str, status: int = 0) -> str:
    """Runs the command in a process of its own, as the script at the root does."""
    code = "import sys; from stack.console import exit_status; from stack.commands.tills import app;"
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


async def test_an_operator_sees_who_is_locked_and_lets_go(tmp_path: Path) -> None:
    async with Stack(tmp_path / "data", services=()) as stack:
        conn = await asyncpg.connect(stack.dsn())
        await conn.execute(
            "INSERT INTO merchant (merchant_id, name, category, district, payee_name, payee_account, payee_bank)"
            " VALUES ('shop-1', '面馆', 'dining', 'wuchang', 'x', '6222000011', 'b')"
        )
        await conn.execute("INSERT INTO terminal (merchant_no, terminal_id) VALUES (1, 'T1')")
        await conn.close()
        async with open_valkey(stack.valkey_url) as valkey:
            worker = Lockout(valkey, SystemClock())
            lost = [Caller(kind="merchant", holder_id="shop-1", holder_no=1, terminal_no=number) for number in (1, 0)]
            for caller in lost * TERMINAL_MAX:
                await worker.failed(caller)
            listed = msgspec.json.decode(await tills(stack, "locked", "--json"), type=list[Locked])
            assert {one.terminal for one in listed} == {"shop-1", "shop-1/T1"}  # locked in one ms, perhaps
            assert "may send codes again" in await tills(stack, "unlock", "shop-1/T1", "--by", "li.na")
            assert await command._unlock(stack.folder.path, "shop-1", "li.na")
            with pytest.raises(StackError, match="no terminal is called shop-1/T9"):
                await command._unlock(stack.folder.path, "shop-1/T9", "li.na")
            await worker.refresh()
            assert [worker.refusal(caller) for caller in lost] == [None, None]
            assert (await worker.failed(lost[0])).code is Code.RESOURCE_NOT_EXISTS
        record = await command._unlocked(stack.folder.path, 10)
        assert {(one.terminal, one.by, one.was_locked) for one in record} == {
            ("shop-1", "li.na", True),
            ("shop-1/T1", "li.na", True),
        }
