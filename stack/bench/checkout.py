"""`bench checkout`: signed redemptions over HTTP beside the ledger's function called one sale a transaction."""

from collections.abc import Sequence
from contextlib import AsyncExitStack

import msgspec

import sql
from kernel.signing import Algorithm
from stack.bench.base import Bench
from stack.bench.counter import Straight
from stack.bench.filler import Issued
from stack.bench.generator import Rush, Told
from stack.bench.helper import Helper
from stack.bench.market import Till, fill_market, found_market, open_till, settle_down
from stack.bench.phases import Phase, Tell, measured
from stack.bench.presign import ids_of
from stack.bench.report import Report, Target, target
from stack.bench.sales import Market
from stack.bench.storage import Life, Sizes, read_sizes, shown
from stack.bench.world import Workers, World
from stack.retention.storage import pack_indexes

RATE_PER_S, RATIO, P99_MS, HOT_RATIO, BYTES = 10_000.0, 3.0, 50.0, 1.3, 300.0
ROUND_TABLES = ("voucher", "redemption")
OPEN_SHARE = 0.6
SPARE = 1.25
"""Requests signed for a stretch, as a multiple of what the stretches before say it may use."""
TRIAL_PER_S = 4_000
FUNCTION_PER_S_MAX = 12_000
TRIAL_CALLS, TRIAL_WITHIN_S = 20, 60.0
"""Each client of the function makes its plans first, which takes it tens of milliseconds where rounds are many."""
INSERTED_MAX = 200_000
REST_STEP = 250_000
REMARKS = {
    "rate_per_s": "signed redemptions, durable when answered; all shops alike",
    "limit_per_s": "redeem_batch called one sale a transaction, same table",
    "ledger_only_per_s": "the same rows by INSERT ... SELECT, 500 a transaction, a connection a bucket",
    "open_rate_per_s": "60 % of the highest rate; latency counts from the scheduled time",
    "hot_ratio": "rate with all shops alike, over the rate with shops by Zipf's law (exponent 1.0)",
    "bytes_per_voucher": "all issued, all redeemed, with all indexes, as `./hanquan retention` leaves a round",
    "bytes_per_voucher_grown": "before its indexes are packed",
}

_queries = sql.load("bench")


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """`pairs` of stretches of so many `seconds`, with so many `vouchers` in the table and so many `shops`.
    `clients` call the function at once. The vouchers are of the middle one of so many weekly `rounds`."""

    vouchers: int = 3_000_000
    rounds: int = 15
    shops: int = 30_000
    seconds: float = 5.0
    connections: int = 256
    pairs: int = 3
    workers: int = 1
    clients: int = 64


async def bench_checkout(world: World, wish: Wish, tell: Tell) -> Report:
    """The whole bench. StackError when something ended over it."""
    return await _Checkout(world, wish, tell).run()


class _Checkout(Bench[Wish]):
    _market: Market
    _till: Till
    _counter: Helper
    _redemption: Workers

    async def run(self) -> Report:
        await self._open()
        self._counter = await self._world.helper("counter", role="hanquan_redemption")
        filled, before, issued = await self._fill()
        async with AsyncExitStack() as exits:
            self._redemption = await exits.enter_async_context(self._world.tills(self._wish.workers))
            each = await self._try_out()
            for pair in range(self._wish.pairs):
                await self._pair(pair, each)
            await self._on_schedule()
        life = await self._live_out(before, issued)
        await self._insert()
        return await self._report(filled, life)

    async def _fill(self) -> tuple[Issued, Sizes, Sizes]:
        wish, world = self._wish, self._world
        self._tell(f"enrolling {wish.shops:,} shops")
        ground = await world.open_round(wish.vouchers, rounds=wish.rounds)
        self._market = await found_market(world, ground, wish.shops)
        self._till = await open_till(world, self._market)
        self._tell(f"filling the table: {wish.vouchers:,} vouchers")
        before = await self._sizes()
        filled = await fill_market(world, self._market)
        return filled, before, await self._sizes()

    async def _try_out(self) -> int:
        """How many requests a stretch may use."""
        self._tell("trying out")
        files = await self._till.sign(max(int(TRIAL_PER_S * self._wish.seconds), 1))
        phase = await self._send("trial", files)
        await self._straight(TRIAL_CALLS * self._wish.clients, "trial of function", seconds=TRIAL_WITHIN_S)
        return max(int(phase.rate_per_s * self._wish.seconds * SPARE), 1)

    async def _pair(self, pair: int, each: int) -> None:
        turns = ["uniform", "zipf", "function"]
        for name in turns if pair % 2 == 0 else reversed(turns):
            self._tell(f"pair {pair + 1} of {self._wish.pairs}: {name}")
            if name == "function":
                await self._straight(each)
            else:
                await self._send(name, await self._till.sign(each, skewed=name == "zipf"))

    async def _on_schedule(self) -> None:
        rate = self._course.rate("uniform") * OPEN_SHARE
        self._tell(f"open schedule at {rate:,.0f} redemptions/s")
        files = await self._till.sign(max(int(rate * self._wish.seconds * 2), 1))
        await self._send("open", files, rate_per_s=rate)

    async def _send(self, name: str, files: Sequence[str], *, rate_per_s: float | None = None) -> Phase:
        wish = self._wish
        seconds = wish.seconds if rate_per_s is None else wish.seconds * 4
        job = Rush(
            port=self._redemption.port,
            files=list(files),
            connections=wish.connections,
            seconds=seconds,
            rate_per_s=rate_per_s,
        )
        pids = self._stores() | {"redemption": self._redemption.pids, "generator": [self._generator.pid]}
        return self._course.add(await measured(name, pids, lambda: self._generator.ask(job, Told)))

    async def _straight(self, each: int, name: str = "function", *, seconds: float | None = None) -> None:
        wish = self._wish
        sales = self._till.take(min(each, int(FUNCTION_PER_S_MAX * wish.seconds)))
        job = Straight(kind="function", sales=sales, clients=wish.clients, seconds=seconds or wish.seconds)
        await self._ask_counter(name, job)

    async def _insert(self) -> None:
        """What was booked, once more, as bare rows in another round's storage."""
        self._tell("inserting the same rows")
        count = min(self._told("uniform", "zipf"), INSERTED_MAX)
        sales = msgspec.structs.replace(self._till.take(0), count=count)
        await self._ask_counter("insert", Straight(kind="insert", sales=sales, clients=self._world.buckets))

    async def _ask_counter(self, name: str, job: Straight) -> None:
        pids = self._stores() | {"client": [self._counter.pid]}
        self._course.add(await measured(name, pids, lambda: self._counter.ask(job, Told)))

    def _stores(self) -> dict[str, Sequence[int]]:
        return {"postgres": [self._world.stack.pid("postgres")], "valkey": self._world.valkey_pids}

    async def _sizes(self) -> Sizes:
        async with self._world.connection() as conn:
            return await read_sizes(conn)

    async def _live_out(self, before: Sizes, issued: Sizes) -> Life:
        """Redeems every voucher that is left, then packs the round as retention does."""
        for sales, seeks in self._till.all(REST_STEP):
            self._tell(f"redeeming the rest: {sales.first / self._wish.vouchers:.0%} of the vouchers")
            clients = 2 * self._world.buckets
            await self._ask_counter("rest", Straight(kind="rest", sales=sales, clients=clients, seeks=seeks))
        self._tell("packing the indexes")
        await settle_down(self._world)
        redeemed = await self._sizes()
        async with self._world.connection() as conn:
            for table in ROUND_TABLES:
                await pack_indexes(conn, f"{table}_r{self._market.ground.round_no}")
        return Life(before, issued, redeemed, await self._sizes())

    def _told(self, *names: str) -> int:
        return sum(phase.items for phase in self._course.phases if phase.name in names)

    async def _wrongs(self) -> list[str]:
        """What does not add up between what tills were told and the rows that are there."""
        told = self._told("trial", "trial of function", "uniform", "zipf", "function", "open", "rest")
        async with self._world.connection() as conn:
            row = await conn.fetchrow(_queries["redeemed"], *ids_of(self._market.ground.round_no), timeout=600)
        assert row is not None
        found = [] if (await self._world.durability()).lasts else ["the stores answer before it lasts"]
        if row["redemptions"] != told:
            found.append(f"{told:,} redemptions were told, {row['redemptions']:,} are there")
        for what in ("vouchers", "numbers"):
            if row[what] != row["redemptions"]:
                found.append(f"{row['redemptions']:,} redemptions are of {row[what]:,} {what}")
        if row["vouchers"] != self._wish.vouchers:
            found.append(f"{self._wish.vouchers:,} vouchers are out, {row['vouchers']:,} were redeemed")
        return self._course.wrong() + found

    async def _report(self, filled: Issued, life: Life) -> Report:
        self._tell("counting redemptions")
        course, wish = self._course, self._wish
        wrong = await self._wrongs()
        rate, limit, hot, times = (
            course.rate("uniform"),
            course.rate("function"),
            course.rate("zipf"),
            course.latency("open"),
        )
        worker, postgres = course.cpu_us("uniform", "redemption"), course.cpu_us("uniform", "postgres")
        stored = life.stored(wish.vouchers)
        bytes_each = round(sum(one.packed for one in stored), 1)
        return Report(
            bench="checkout",
            rate_per_s=rate,
            limit_per_s=limit,
            ratio=round(rate / limit, 3),
            p50_ms=times.p50_ms,
            p99_ms=times.p99_ms,
            cpu_us_per_item=round(worker + postgres, 2),
            cpu_us_redemption=worker,
            cpu_us_postgres=postgres,
            cpu_us_valkey=course.cpu_us("uniform", "valkey"),
            cpu_us_limit=course.cpu_us("function", "postgres"),
            ledger_only_per_s=course.rate("insert"),
            open_rate_per_s=round(rate * OPEN_SHARE, 1),
            hot_rate_per_s=hot,
            hot_ratio=round(rate / hot, 3),
            bytes_per_voucher=bytes_each,
            bytes_per_voucher_grown=round(sum(one.grown for one in stored), 1),
            fill_s=round(filled.seconds, 3),
            storage=shown(stored),
            correct=not wrong,
            wrong=wrong,
            targets=_targets(rate, round(rate / limit, 3), times.p99_ms, round(rate / hot, 3), bytes_each),
            size=await self._size(
                items=self._told("uniform"),
                people=wish.vouchers,
                connections=wish.connections,
                workers=wish.workers,
                keys=Algorithm.HMAC,
            ),
            phases=course.phases,
        )


def _targets(rate: float, ratio: float, p99_ms: float, hot_ratio: float, bytes_each: float) -> list[Target]:
    return [
        target("redemptions/s", "at least", RATE_PER_S, rate),
        target("ratio", "at least", RATIO, ratio),
        target("p99 on an open schedule, ms", "at most", P99_MS, p99_ms),
        target("all shops alike, over hot shops", "at most", HOT_RATIO, hot_ratio),
        target("storage, B a voucher", "at most", BYTES, bytes_each),
    ]
