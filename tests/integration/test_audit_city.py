"""The audit beside the real claim path: Valkey, the claim desk and the drain, then the command itself."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from antifraud.gate import GateLimits, SignalWriter
from issuer.claim import ClaimDesk, ClaimRequest, Told
from issuer.drain import Drain
from issuer.publish import Publisher
from issuer.stock import StockStore
from kernel.clock import ManualClock
from kernel.codes import CodeBook
from kernel.partitions import partition_of, shard_of
from stack.audit import AuditReport, ClaimTold, Verdict, audit_city, check_client_log
from stack.audit.claim_store import read_log_ends, read_stock_wins
from tests import stores
from tests.integration import audit_world as world

CODES = CodeBook({1: b"sixteen  bytes  "})
PEOPLE = 18
QUANTITY = 15


class Office:
    """A claim service and its drain, in this process."""

    def __init__(self, database: stores.Database, valkey: stores.Valkey, shards: int) -> None:
        self.database, self.valkey = database, valkey
        clock = ManualClock(world.at(19, 4, 5))
        store = StockStore(valkey.client, GateLimits())
        signals = SignalWriter(valkey.client)
        self.desk = ClaimDesk(store, CODES, clock, signals, shards)
        self.publisher = Publisher(database.pool, store, self.desk, clock)
        self.drains = [Drain(database.pool, valkey.client, signals, clock, shard) for shard in range(shards)]

    async def claim(self, number: int, claim_no: str = "") -> ClaimTold:
        """A person claims from stock one; what they were told."""
        request = ClaimRequest(claim_no or f"claim-{number}", "stock-1", world.person(number).hex())
        answer = await self.desk.claim(1, request)
        return ClaimTold(
            outcome="GRANTED" if isinstance(answer, Told) else answer.code,
            partner_id="pay-a",
            person_token=request.person_token,
            stock_id=request.stock_id,
            out_request_no=request.out_request_no,
            voucher_code=answer.answer.voucher_code if isinstance(answer, Told) else None,
        )

    async def drain_all(self) -> None:
        """Carry everything that waits into PostgreSQL."""
        async with self.database.connection("hanquan_issuer") as connection:
            for drain in self.drains:
                while await drain.drain_once(connection):
                    pass

    async def audit(self, drain_within_s: float = 0) -> AuditReport:
        """The audit with the claim store's side of it."""
        async with self.database.connection("hanquan_auditor") as connection:
            return await audit_city(connection, self.valkey.client, drain_within_s=drain_within_s)


@asynccontextmanager
async def opened(database: stores.Database, valkey: stores.Valkey, shards: int) -> AsyncIterator[Office]:
    """An office over an empty city whose first round is open."""
    async with database.connection() as connection:
        await world.found(connection, shards)
    office = Office(database, valkey, shards)
    await office.publisher.refresh()
    yield office
    await office.desk.drained()


@pytest.fixture
async def office(database: stores.Database, valkey: stores.Valkey) -> AsyncIterator[Office]:
    async with opened(database, valkey, shards=1) as made:
        yield made


async def test_wins_not_drained_are_told(office: Office) -> None:
    await asyncio.gather(*(office.claim(number) for number in range(PEOPLE)))
    before = await office.audit()
    assert before.broken == ("A1a", "A1c")
    await office.drain_all()
    after = await office.audit()
    compared = after.statements[0].examined
    left_out = after.statements[0].remark_en
    assert (after.broken, compared >= 3) == ((), True)
    assert (left_out is None) == (compared == len(world.STOCKS))


async def test_audit_waits_for_the_drain(office: Office) -> None:
    await office.claim(1)
    report, _ = await asyncio.gather(office.audit(drain_within_s=20), office.drain_all())
    assert report.broken == ()


async def test_clients_log_of_the_real_path(office: Office) -> None:
    log = await asyncio.gather(*(office.claim(number) for number in range(PEOPLE)))
    assert [told.outcome for told in log].count("GRANTED") == QUANTITY
    await office.drain_all()
    async with office.database.connection("hanquan_auditor") as connection:
        report = await check_client_log(connection, log, CODES)
    assert (report.shown, report.acknowledged, report.refused) == ([], QUANTITY, PEOPLE - QUANTITY)


async def test_shards_hold_too(database: stores.Database, valkey: stores.Valkey) -> None:
    """Two shards; one claim number is used for two people of different shards, which the drain writes down."""
    left, right = (
        next(n for n in range(99) if shard_of(partition_of(world.person(n)), 2) == shard) for shard in (0, 1)
    )
    async with opened(database, valkey, shards=2) as office:
        told = [await office.claim(left, "one-number"), await office.claim(right, "one-number")]
        told += [await office.claim(number) for number in range(100, 108)]
        await office.drain_all()
        report = await office.audit()
    assert [one.outcome for one in told] == ["GRANTED"] * 10
    assert (report.broken, [one.id for one in report.statements if one.verdict is Verdict.SKIPPED]) == ((), ["A1g"])


async def test_win_that_valkey_forgot_is_seen(office: Office) -> None:
    """An early acknowledgement: the win was told and counted, and its log entry lost."""
    told = await office.claim(1)
    await office.valkey.client.xtrim("{s0}:log", maxlen=0)
    await office.claim(2)
    await office.drain_all()
    report = await office.audit()
    assert report.broken == ("A1a",)
    async with office.database.connection("hanquan_auditor") as connection:
        log = await check_client_log(connection, [told], CODES)
    assert log.shown == ["claim claim-1 of partner pay-a, stock stock-1, told GRANTED: not there"]


async def test_rounds_gone_from_the_claim_store_are_skipped(office: Office) -> None:
    await office.claim(1)
    await office.drain_all()
    await office.valkey.client.flushall()
    async with office.database.connection("hanquan_auditor") as connection:
        assert await read_stock_wins(connection, office.valkey.client) == {}
        assert await read_log_ends(connection, office.valkey.client) == {0: "0-0"}
    report = await office.audit()
    assert report.broken == ()
    assert report.statements[0].remark_en == "the claim store holds no round"


async def test_command_starts_the_stores_and_stops_them(tmp_path: Path) -> None:
    """Beside a stack that does not run; twice, so that the second finds data."""
    for _ in range(2):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", RUN, str(tmp_path / "data")),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
        told = json.loads(output)
        assert (told["holds"], told["client_log"]) == (True, None)
    assert not (tmp_path / "data" / "run.json").exists()


RUN = """
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from stack.commands.audit import audit
sys.exit(audit(data=Path(sys.argv[1]), json=True))
"""
