"""The whole demonstration from an empty folder to the table."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import aiohttp
import asyncpg
import msgspec
from redis.asyncio import Redis

import sql
from antifraud.gate import digest_device
from issuer.campaign.load import LoadedCampaign, NotLoaded, load
from issuer.campaign.model import Campaign
from issuer.campaign.read import Refused, read_campaign
from issuer.campaign.scale import scaled
from issuer.campaign.shipped import shipped_document
from kernel.clock import FileClock, business_day
from kernel.codes import CodeBook
from kernel.postgres import Connection
from kernel.settings import parse_code_keys
from kernel.signing import Algorithm, Signer
from kernel.tokens import make_token
from kernel.valkey import open_valkey
from stack.audit import AuditReport, ClientLogReport, Told, audit, check_client_log
from stack.audit.claim_store import read_log_ends, read_stock_wins, wait_drained
from stack.demo.books import Books, Planted
from stack.demo.client import Client, open_session
from stack.demo.noon import Noon, Platform, Rush
from stack.demo.people import City, make_city
from stack.demo.progress import Progress
from stack.demo.result import DemoResult
from stack.demo.week import DAY_WEIGHTS, Shops, Week
from stack.enrol import enrol_merchants, enrol_partner
from stack.errors import StackError
from stack.new_city import found_city
from stack.running import Stack

CAMPAIGN, ROUND = "wuhan-2020", "r02"
MERCHANTS = 2_000
LEAD_S = 4.0
"""The clock is set so that noon comes this long after the campaign is loaded."""
TAKE_IN_S = 2.5
"""Within this time the services take in new keys and publish the round."""
BATCHING = {"wechat": Algorithm.RSA, "meituan": Algorithm.HMAC}
"""Platforms that send their users' claims in batches; the others send each by itself."""
SETTLE_WAIT_S = 15.0

_queries = sql.load("demo")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a person may choose."""

    vouchers: int
    citizens: int
    seed: int


async def play(folder: Path, options: Options, progress: Progress) -> DemoResult:
    """Plays it all in `folder`. Raises StackError for expected trouble."""
    started = time.perf_counter()
    clock_file = folder / "clock"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    clock = FileClock(clock_file)
    campaign = _campaign(options.vouchers)
    round_ = campaign.rounds[0]
    clock.move_to(round_.opens_at - timedelta(minutes=10))
    with progress.step("Starting PostgreSQL, Valkey and the services"):
        stack = Stack(folder, settings={"HANQUAN_CLOCK_FILE": str(clock_file)})
        await stack.__aenter__()
    try:
        show = _Show(stack, clock, campaign, options, progress)
        result = await show.run()
    finally:
        await stack.__aexit__(None, None, None)
    result.elapsed_s = round(time.perf_counter() - started, 1)
    result.judge()
    return result


class _Show:
    """One demonstration on a running stack."""

    def __init__(
        self, stack: Stack, clock: FileClock, campaign: Campaign, options: Options, progress: Progress
    ) -> None:
        self._stack = stack
        self._clock = clock
        self._campaign = campaign
        self._round = campaign.rounds[0]
        self._options = options
        self._progress = progress
        self._first_day = business_day(self._round.opens_at)

    async def run(self) -> DemoResult:
        with self._progress.step(f"Enrolling {MERCHANTS:,} merchants, loading {self._campaign.title_en}"):
            city = self._city()
            loaded, platforms, tills = await self._set_up(city)
        async with open_session() as session:
            rush = await self._noon(session, city, platforms)
            with self._progress.step("Carrying the vouchers into the ledger"):
                await self._drained()
            async with self._connection("hanquan_finance") as finance:
                books = Books(finance, self._clock, loaded.campaign_no, loaded.campaign_id)
                week = await self._week(session, city, tills, rush, books)
                await self._reconcile(books, week)
                found = await books.found()
        report, log = await self._prove(rush, week, loaded)
        return await self._result(city, loaded, rush, week, books, found, report, log)

    def _city(self) -> City:
        person_key = bytes.fromhex(self._stack.secrets.person_key)
        return make_city(
            self._options.seed,
            self._options.citizens,
            MERCHANTS,
            [partner.partner_id for partner in self._campaign.partners],
            [category.category_id for category in self._campaign.categories],
            lambda identity: make_token(person_key, identity),
        )

    async def _set_up(self, city: City) -> tuple[LoadedCampaign, list[Platform], Mapping[str, Signer]]:
        master_key, now = bytes.fromhex(self._stack.secrets.master_key), self._clock.now()
        async with self._connection("hanquan_operator") as conn:
            await found_city(conn, self._stack.valkey_url)
            signers = await enrol_merchants(conn, master_key, city.merchants, now)
            # A round keeps the clock under which it is published, so the clock is set before that.
            self._clock.move_to(self._round.opens_at - timedelta(seconds=LEAD_S))
            loaded = await load(conn, self._campaign, shipped_document(CAMPAIGN).decode(), now=now)
            if isinstance(loaded, NotLoaded):
                raise StackError(loaded.detail)
            platforms = [
                await self._platform(conn, master_key, partner.partner_id) for partner in self._campaign.partners
            ]
        await asyncio.sleep(TAKE_IN_S)
        return loaded, platforms, {signer.holder_id: signer for signer in signers}

    async def _platform(self, conn: Connection, master_key: bytes, partner_id: str) -> Platform:
        algorithm = BATCHING.get(partner_id, Algorithm.HMAC)
        signer = await enrol_partner(conn, master_key, partner_id, algorithm, self._clock.now())
        stocks = {stock.category_id: stock.stock_id for stock in self._round.stocks if stock.partner_id == partner_id}
        return Platform(partner_id, signer, stocks, partner_id in BATCHING)

    async def _noon(self, session: aiohttp.ClientSession, city: City, platforms: Sequence[Platform]) -> Rush:
        client = Client(session, self._stack.addresses["issuer"], self._clock, self._options.seed)
        when = self._round.opens_at.strftime("%A %d %B %Y, noon")
        with self._progress.bar(f"{when}: the grab", len(city.citizens)) as advance:
            noon = Noon(client, self._clock, self._round.opens_at, self._options.seed, advance)
            return await noon.play(platforms, city.citizens)

    async def _week(
        self, session: aiohttp.ClientSession, city: City, tills: Mapping[str, Signer], rush: Rush, books: Books
    ) -> Week:
        client = Client(session, self._stack.addresses["redemption"], self._clock, self._options.seed)
        with self._progress.bar("A week at the shops, settled each night", 0) as advance:
            shops = Shops(client, self._clock, city, tills, self._options.seed, advance)
            plan = shops.plan(rush.won)
            self._progress.set_total(sum(map(len, plan)))
            for day, sales in enumerate(plan):
                await shops.play_day(day, self._round.opens_at, sales, rush.won)
                await self._signals_read()
                night = self._first_day + timedelta(days=day)
                self._clock.move_to(self._round.opens_at + timedelta(days=day, hours=14))
                await books.settle(night, late=day == 1, unanswered=day == 2)
            return shops.week

    async def _reconcile(self, books: Books, week: Week) -> None:
        days = [self._first_day + timedelta(days=day) for day in range(len(DAY_WEIGHTS))]
        with self._progress.step("Three books against each other, and expiry"):
            await books.reconcile_week(days, week.books)
            self._clock.move_to(self._round.valid_until + timedelta(days=5))
            await books.close_campaign()
            await books.reconcile_again(days[-1])

    async def _prove(self, rush: Rush, week: Week, loaded: LoadedCampaign) -> tuple[AuditReport, ClientLogReport]:
        codes = CodeBook(parse_code_keys(self._stack.secrets.code_keys_setting()))
        demand = {loaded.stock_nos[stock_id]: len(people) for stock_id, people in rush.demand.items()}
        with self._progress.step("The audit"):
            async with self._connection("hanquan_auditor") as conn, self._valkey() as valkey:
                wins, ends = await read_stock_wins(conn, valkey), await read_log_ends(conn, valkey)
                report = await audit(conn, stock_wins=wins, log_ends=ends, demand=demand)
                told: list[Told] = [*rush.told, *week.redeems, *week.refunds]
                return report, await check_client_log(conn, told, codes)

    async def _result(
        self,
        city: City,
        loaded: LoadedCampaign,
        rush: Rush,
        week: Week,
        books: Books,
        found: set[Planted],
        report: AuditReport,
        log: ClientLogReport,
    ) -> DemoResult:
        result = DemoResult(
            round=f"{self._campaign.title_en}, {self._round.opens_at:%A %d %B %Y}",
            seed=self._options.seed,
            citizens=len(city.citizens),
            merchants=len(city.merchants),
            stocks=len(self._round.stocks),
            claims_answered=rush.answered,
            claims_lost=rush.lost,
            claims_refused=dict(rush.refused),
            replays_wrong=rush.replays_wrong,
            claim_p50_ms=percentile(rush.latencies_ms, 50),
            claim_p99_ms=percentile(rush.latencies_ms, 99),
            claims_per_s=round(rush.answered / max(rush.ended_s - rush.started_s, 0.001), 1),
            tills_refused=dict(week.refused),
            till_p50_ms=percentile(week.latencies_ms, 50),
            till_p99_ms=percentile(week.latencies_ms, 99),
            held_lines=books.held_lines,
            breaks_planted=len(books.planted),
            breaks_found=len(found),
            breaks_wrong=len(books.planted ^ found),
            abusers_planted=city.planted,
            audit_violations=report.violations + log.violations,
            audit_broken=[*report.broken, *log.shown],
            audit_examined=report.examined,
            log_records=log.records,
        )
        async with self._connection("hanquan_auditor") as conn:
            await _read_vouchers(conn, loaded.campaign_no, rush, result)
            await _read_money(conn, loaded.campaign_no, result)
            await _read_flags(conn, city, result)
        return result

    async def _drained(self) -> None:
        async with self._connection("hanquan_auditor") as conn, self._valkey() as valkey:
            if not await wait_drained(conn, await read_log_ends(conn, valkey), SETTLE_WAIT_S):
                raise StackError("the drain did not catch up")

    async def _signals_read(self) -> None:
        """Waits until anti-fraud has heard of the day, so that a hold is in time for its settlement."""
        async with self._connection("hanquan_auditor") as conn, self._valkey() as valkey:
            await asyncio.sleep(0.2)  # writers hand over what they still hold
            info = await valkey.xinfo_stream("af:signal")
            last = info["last-generated-id"].decode()
            deadline = time.monotonic() + SETTLE_WAIT_S
            while await conn.fetchval(_queries["signals_read"]) != last:
                if time.monotonic() > deadline:
                    raise StackError("anti-fraud did not catch up")
                await asyncio.sleep(0.05)

    @asynccontextmanager
    async def _connection(self, role: str) -> AsyncIterator[Connection]:
        conn = await asyncpg.connect(self._stack.dsn(role))
        try:
            yield conn
        finally:
            await conn.close()

    @asynccontextmanager
    async def _valkey(self) -> AsyncIterator[Redis]:
        client = open_valkey(self._stack.valkey_url)
        try:
            yield client
        finally:
            await client.aclose()


async def _read_vouchers(conn: Connection, campaign_no: int, rush: Rush, result: DemoResult) -> None:
    for row in await conn.fetch(_queries["stock_numbers"], campaign_no):
        wanted = min(row["quantity"], len(rush.demand.get(row["stock_id"], ())))
        result.vouchers_offered += row["quantity"]
        result.vouchers_issued += row["issued"]
        result.face_issued_fen += row["issued"] * row["face_value_fen"]
        result.oversold += max(0, row["issued"] - row["quantity"])
        result.undersold += max(0, wanted - row["issued"])


async def _read_money(conn: Connection, campaign_no: int, result: DemoResult) -> None:
    sales = await conn.fetchrow(_queries["sales"])
    balances = {row["kind"]: row["balance_fen"] for row in await conn.fetch(_queries["balances"], campaign_no)}
    assert sales is not None
    result.redeemed, result.refunded = sales["redeemed"], sales["refunded"]
    result.subsidy_redeemed_fen, result.bills_fen = sales["subsidy_fen"], sales["bills_fen"]
    result.settled_fen = balances.get("PAID", 0)
    result.payable_fen, result.settling_fen = balances.get("PAYABLE", 0), balances.get("SETTLING", 0)
    result.returned_to_city_fen = await conn.fetchval(_queries["returned_to_city_fen"], campaign_no)


async def _read_flags(conn: Connection, city: City, result: DemoResult) -> None:
    flagged = {(row["subject_kind"], row["subject"]) for row in await conn.fetch(_queries["open_flags"])}
    farms = [{("device", digest_device(bytes.fromhex(farm)).hex())} for farm in city.farms]
    rings = [{("merchant", ring.merchant_id)} for ring in city.rings]
    loops = [{("merchant", one.merchant_id), ("person", _uuid(one.person))} for one in city.loopers]
    result.abusers_flagged = sum(bool(flagged & cheat) for cheat in [*farms, *rings, *loops])
    people = [*city.farmers, *(person for ring in city.rings for person in ring.people)]
    guilty = set().union(*farms, *rings, *loops) | {("person", _uuid(person)) for person in people}
    result.honest_flagged = len(flagged - guilty)


def _uuid(token: str) -> str:
    return f"{token[:8]}-{token[8:12]}-{token[12:16]}-{token[16:20]}-{token[20:]}"


def _campaign(vouchers: int) -> Campaign:
    campaign = read_campaign(shipped_document(CAMPAIGN))
    if isinstance(campaign, Refused):
        raise StackError(f"{CAMPAIGN} does not read: {campaign.complaints[0].message}")
    try:
        return scaled(campaign, ROUND, vouchers)
    except ValueError as error:
        raise StackError(str(error)) from error


def percentile(values: Sequence[float], percent: int) -> float:
    """The value below which so many percent lie; 0 for none."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)], 2) if ordered else 0.0
