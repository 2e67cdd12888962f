"""The city whose checkout is broken: shops with tills, vouchers to use, a finance office; its stores are wired.

Claims go the ordinary way, past the wires: they are not what is broken here, and the audit counts them.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import aiohttp
import asyncpg

import sql
from issuer.campaign.load import NotLoaded, load, load_city
from kernel.clock import FileClock, SystemClock, business_day
from kernel.signing import Algorithm, Signer
from redemption.settlement.expire import EXPIRY_GRACE
from redemption.settlement.refusals import Refused
from redemption.settlement.settle import approve, close_day, propose
from stack.data_folder import DataFolder
from stack.enrol import NewMerchant, enrol_merchants, enrol_partner
from stack.errors import StackError
from stack.faults.campaign import PARTNER, make_campaign, stocks_of
from stack.faults.field import (
    READY_WITHIN_S,
    RECOVERED_WITHIN_S,
    Size,
    Wired,
    by_wire,
    code_book,
    refuse_stores_of_others,
    serves,
    write_told,
)
from stack.faults.tills import Tills
from stack.faults.wire import wire_to
from stack.faults.witness import Witness
from stack.running import Stack
from stack.services import Service
from stack.stores import administrator

ROLE = "hanquan_redemption"
SHOPS = 12
CLAIMED_AT_ONCE = 1_000
FRESH_MIN = 4_000
"""Vouchers that the tills of a round can use; far more than they will."""
FLEETING = 200
OPEN_FOR = timedelta(hours=1)
"""The campaign has been open for so long, so that a clock that jumps back stays within it."""
ENDS_AFTER, AFTERWARDS = timedelta(seconds=2.5), timedelta(seconds=0.3)
"""Every worker has read by then when a stock ends; and so long tills are at work with vouchers that ended."""
FINANCE = "hanquan_finance"
PROPOSER, APPROVER = "Li Na", "Wang Wei"

_queries = sql.load("faults")
_settlement = sql.load("settlement")


class Buyers(Witness):
    """The platform whose people claim the vouchers."""

    def __init__(self, session: aiohttp.ClientSession, signer: Signer, address: str, seed: int) -> None:
        super().__init__(session, SystemClock(), [address])
        self._signer = signer
        self._seed = seed
        self._people = 0

    async def claim(self, stock_id: str, count: int) -> list[str]:
        """The codes of so many new people's vouchers, less those there are no more of."""
        codes: list[str] = []
        for done in range(0, count, CLAIMED_AT_ONCE):
            claims = [self._claim(stock_id) for _ in range(min(CLAIMED_AT_ONCE, count - done))]
            heard = await self._post(
                self._signer, self.next_address(), "/v1/claims:batch", {"claims": claims}, stock_id
            )
            if heard.status != 200:
                raise StackError(f"claims were refused: {heard.body['code']}")
            codes += [item["claim"]["voucher_code"] for item in heard.body["results"] if item["status"] == 200]
        return codes

    def _claim(self, stock_id: str) -> dict[str, str]:
        self._people += 1
        person = sha256(b"%d %d" % (self._seed, self._people)).hexdigest()[:32]
        return {"out_request_no": f"grab-{self._people:08}", "stock_id": stock_id, "person_token": person}


class Founded(NamedTuple):
    """What the city got before any service ran."""

    campaign_no: int
    partner: Signer
    shops: Sequence[Signer]


@dataclass(frozen=True, kw_only=True)
class Town(Wired):
    """A running city. `clock` is that of tills and finance; `clocks` are the workers', each its own."""

    tills: Tills
    buyers: Buyers
    clock: FileClock
    clocks: dict[str, FileClock]
    campaign_no: int
    expired: set[str]
    """Stocks whose time was up."""

    async def begin(self, turn: int) -> None:
        """A round with new vouchers, all of them in the books. StackError when they do not get there."""
        large, small = stocks_of(turn)
        self.tills.begin((large, small))
        missing = FRESH_MIN - len(self.tills.fresh)
        if missing > 0:
            self.tills.fresh += await self.buyers.claim(large, missing)
        self.tills.fleeting = [] if small in self.expired else await self.buyers.claim(small, FLEETING)
        if not await self.caught_up():
            raise StackError(f"the vouchers did not get into the books; see {self.stack.folder.logs}")

    async def recovered(self, since: float) -> float:
        """Seconds from `since` (monotonic) until every worker redeemed a new voucher. RECOVERED_WITHIN_S when it
        takes longer."""
        try:
            async with asyncio.timeout(RECOVERED_WITHIN_S):
                await asyncio.gather(*(serves(self.tills.probe, address) for address in self.tills.addresses))
        except TimeoutError:
            return RECOVERED_WITHIN_S
        return round(monotonic() - since, 3)

    def time_passes(self, passing: timedelta) -> None:
        """For everybody at the tills at once."""
        now = self.clock.now() + passing
        for clock in (self.clock, *self.clocks.values()):
            clock.move_to(now)

    # ------------------------------------------------------------ finance

    @asynccontextmanager
    async def finance(self) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
        """A seat of finance at the database, not by way of the wire."""
        conn = await asyncpg.connect(self.stack.dsn(FINANCE), timeout=5, command_timeout=20)
        try:
            yield conn
        finally:
            conn.terminate()

    async def close_next_day(self) -> None:
        """Closes the first open day, from the day after: what tills book from now on is of a later day."""
        async with self.finance() as conn:
            day = await self._next_day(conn)
            await close_day(conn, day, _noon_after(day))

    async def settle_next_day(self) -> None:
        """Closes the first open day and pays it: one proposes, another approves."""
        async with self.finance() as conn:
            day = await self._next_day(conn)
            if (left := await conn.fetchval(_queries["undecided_batch"])) is not None:
                await approve(conn, left, APPROVER, _noon_after(day))
            batch = await propose(conn, self.campaign_no, day, PROPOSER, _noon_after(day))
            if not isinstance(batch, Refused):
                await approve(conn, batch.batch_no, APPROVER, _noon_after(day))

    async def expire(self, stock_id: str) -> None:
        """The time of a stock's vouchers ends in a moment; then finance takes back what they would have cost.

        Finance waits for the hour of grace, by its own clock: tills whose clocks lag must be done by then.
        """
        valid_until = self.clock.now() + ENDS_AFTER
        async with administrator(self.stack.dsn()) as admin:
            await admin.execute(_queries["end_validity"], stock_id, valid_until)
        self.expired.add(stock_id)
        await asyncio.sleep((ENDS_AFTER + AFTERWARDS).total_seconds())
        async with self.finance() as conn:
            for row in await conn.fetch(_queries["buckets_of_stock"], stock_id):
                at = valid_until + EXPIRY_GRACE
                await conn.fetchval(_settlement["expire_stock"], row["bucket"], row["stock_no"], at)

    async def _next_day(self, conn: "asyncpg.Connection[asyncpg.Record]") -> date:
        found: date | None = await conn.fetchval(_queries["next_day"])
        return found or business_day(self.clock.now())


def _noon_after(day: date) -> datetime:
    return datetime.combine(day + timedelta(days=1), time(4), UTC)


@asynccontextmanager
async def open_town(folder: Path, size: Size) -> AsyncIterator[Town]:
    """A city of its own in `folder`: a campaign that is open, shops, and `size.workers` of the checkout.

    Raises StackError, also where the environment names stores that are not ours to break.
    """
    refuse_stores_of_others()
    data = DataFolder(folder / "data")
    founded = await _found(data, size)
    workers = [f"redemption-{n}" for n in range(1, size.workers + 1)]
    files = {name: folder / f"clock-{name}" for name in workers}
    async with AsyncExitStack() as exits:
        valkey = await exits.enter_async_context(wire_to(lambda: stack.valkey_url))
        postgres = await exits.enter_async_context(wire_to(lambda: stack.dsn(ROLE)))
        wired = by_wire(data.secrets(), ROLE, valkey, postgres)
        clock = FileClock(folder / "clock")
        clocks = {name: FileClock(file) for name, file in files.items()}
        own = {name: wired | {"HANQUAN_CLOCK_FILE": str(file)} for name, file in files.items()}
        stack = Stack(data.path, services=_services(workers), settings_of=own)
        await exits.enter_async_context(stack)
        session = await exits.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        log = folder / "told.jsonl"
        lines = exits.enter_context(log.open("wb", buffering=1 << 16))
        town = Town(
            stack=stack,
            valkey=valkey,
            postgres=postgres,
            role=ROLE,
            codes=code_book(data.secrets()),
            workers=workers,
            log=log,
            lines=lines,
            tills=Tills(
                session,
                founded.shops,
                clock,
                [stack.addresses[name] for name in workers],
                seed=size.seed,
                write=partial(write_told, lines),
            ),
            buyers=Buyers(session, founded.partner, stack.addresses["issuer"], size.seed),
            clock=clock,
            clocks=clocks,
            campaign_no=founded.campaign_no,
            expired=set(),
        )
        await _wait_known(town)
        yield town


async def _found(data: DataFolder, size: Size) -> Founded:
    """Makes the schema, the city, its campaign and its shops before any service reads them."""
    async with Stack(data.path, services=()) as stack:
        conn = await asyncpg.connect(stack.dsn("hanquan_operator"), timeout=10)
        try:
            now, master_key = SystemClock().now(), bytes.fromhex(stack.secrets.master_key)
            await load_city(conn, buckets=2, shards=1)
            campaign = make_campaign(now - OPEN_FOR, size.rounds, FLEETING)
            loaded = await load(conn, campaign, "made by `hanquan faults`", now=now)
            if isinstance(loaded, NotLoaded):
                raise StackError(loaded.detail)
            partner = await enrol_partner(conn, master_key, PARTNER, Algorithm.HMAC, now)
            shops = await enrol_merchants(conn, master_key, [_shop(n) for n in range(SHOPS)], now)
            return Founded(loaded.campaign_no, partner, shops)
        finally:
            await conn.close(timeout=5)


def _shop(number: int) -> NewMerchant:
    return NewMerchant(
        merchant_id=f"M{number:06}",
        name=f"Shop {number}",
        category="dining",
        district="Jiang'an",
        payee_name=f"Shop {number} Ltd",
        payee_account=f"{62_000_000_000_000 + number}",
        payee_bank="Bank of Hankou",
    )


def _services(workers: Sequence[str]) -> tuple[Service, ...]:
    return (
        Service("drain", "issuer.drain", "hanquan_issuer", 0),
        Service("issuer", "issuer", "hanquan_issuer", 1),
        *(Service(name, "redemption", ROLE, 2 + place) for place, name in enumerate(workers)),
    )


async def _wait_known(town: Town) -> None:
    deadline = monotonic() + READY_WITHIN_S
    while True:
        try:
            await town.begin(0)
            break
        except (StackError, aiohttp.ClientError) as error:
            if monotonic() > deadline:
                raise StackError(f"the city did not open: {error}; see {town.stack.folder.logs}") from error
            await asyncio.sleep(0.2)
    if await town.recovered(monotonic()) > READY_WITHIN_S:
        raise StackError(f"no till redeemed a voucher in {READY_WITHIN_S:g} s; see {town.stack.folder.logs}")
