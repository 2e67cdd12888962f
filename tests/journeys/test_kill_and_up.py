"""Any process of `./hanquan up` is killed in the middle of work; `up` again, and the audit is clean."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kernel.clock import SystemClock
from kernel.tokens import make_token
from stack.data_folder import DataFolder
from stack.demo.client import Client, Reply, each, open_session
from stack.examples import PARTNER, SHOP, STOCK
from stack.keystore import KeyStore
from stack.reach import Reach
from tests.effort import FULL

ROOT = Path(__file__).parents[2]
SERVICES = ("postgres", "valkey", "issuer", "drain", "redemption", "antifraud")
ONE_BY_ONE = [(name,) for name in ("supervisor", *SERVICES)]
VICTIMS = ONE_BY_ONE if FULL else [("supervisor",), SERVICES]
"""Who is killed in one run. Usually one run bears all but the supervisor, whose end is the end of the run."""
CITIZENS = 300


@asynccontextmanager
async def up(folder: Path) -> AsyncIterator[Reach]:
    """`./hanquan up` in a process of its own, ready; stopped at the end if it still runs."""
    command = [sys.executable, "-m", "stack", "up", "--data", str(folder), "--port", "0"]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        while b"Ctrl-C stops it" not in (line := await process.stdout.readline()):
            assert line, "up ended before it was ready"
        yield Reach(DataFolder(folder))
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        try:
            await asyncio.wait_for(process.wait(), 60)
        except TimeoutError:
            process.kill()
            raise


class Work:
    """Citizens claim and shops redeem; remembers what each was told."""

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self._keys = KeyStore(reach.folder.path)
        self.won: dict[int, str] = {}
        self.used: set[int] = set()

    async def do(self) -> None:
        async with open_session() as session:
            clock = SystemClock()
            issuer = Client(session, self._reach.addresses["issuer"], clock, seed=1)
            till = Client(session, self._reach.addresses["redemption"], clock, seed=2)

            async def citizen(i: int) -> None:
                reply = await self._claim(issuer, i)
                if reply.status == 200:
                    assert self.won.setdefault(i, reply.body["voucher_code"]) == reply.body["voucher_code"]
                    reply = await self._use(till, i)
                    if reply.status == 200:
                        self.used.add(i)

            await each(range(CITIZENS), citizen, 8)

    async def _claim(self, client: Client, i: int) -> Reply:
        person = make_token(bytes(32), f"citizen {i}")
        body = {"out_request_no": f"grab-{i:05}", "stock_id": STOCK, "person_token": person}
        return await client.post(self._keys.get(PARTNER), "/v1/claims", body)

    async def _use(self, client: Client, i: int) -> Reply:
        body = {
            "use_request_no": f"use-{i:05}",
            "voucher_code": self.won[i],
            "order_no": f"order-{i:05}",
            "bill_fen": 8000,
        }
        return await client.post(self._keys.get(SHOP), "/v1/redemptions", body)


def pid_of(reach: Reach, name: str) -> int:
    processes = [reach.run.supervisor, *reach.run.processes]
    return next(process.pid for process in processes if process.name == name)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("victims", VICTIMS, ids="-".join)
async def test_whoever_is_killed_up_again_and_the_audit_is_clean(victims: Sequence[str], tmp_path: Path) -> None:
    folder = tmp_path / "data"
    async with up(folder) as reach:
        work = Work(reach)
        working = asyncio.create_task(work.do())
        for victim in victims:
            await asyncio.sleep(0.3)
            os.kill(pid_of(reach, victim), signal.SIGKILL)
        await working
    async with up(folder) as reach:
        again = Work(reach)
        again.won = dict(work.won)
        await again.do()  # the same numbers: every win told before must be told again, and be usable
        assert len(again.won) == CITIZENS
        assert len(again.used) == CITIZENS
        audit = [sys.executable, "-m", "stack", "audit", "--data", str(folder), "--json"]
        done = await asyncio.to_thread(subprocess.run, audit, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
