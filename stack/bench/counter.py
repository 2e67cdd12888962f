"""Helper: the same sales without HTTP, the limits of the checkout.

function   redeem_batch with one sale a transaction, from many clients at once
rest       redeem_batch with many sales a transaction, until every voucher is redeemed
insert     the rows that were booked, renumbered into the round after and inserted as they are, many a transaction
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from time import perf_counter
from typing import Any, Literal

import msgspec

import sql
from kernel.clock import SystemClock, business_day
from kernel.ids import unpack_voucher_id
from kernel.partitions import bucket_of
from kernel.postgres import Pool, open_pool
from kernel.settings import Settings
from redemption.catalogue import oldest_id
from redemption.ledger import Ledger, Use
from redemption.numbers import Scope, body_hash, number
from stack.bench.generator import Told
from stack.bench.helper import Work, serve
from stack.bench.presign import ids_of
from stack.bench.sales import Market, Sales, read_shops, sales_of
from stack.bench.schedule import latency

PER_TRANSACTION = 500
BOOKED = "DONE"
COMMAND_TIMEOUT_S = 60.0

_queries = sql.load("bench")


class Straight(msgspec.Struct, frozen=True, kw_only=True):
    """These sales; `function` ends after `seconds`, `insert` takes as many rows as there are sales.
    `rest` leaves out those of vouchers that are redeemed already; it looks for such when `seeks` is set."""

    kind: Literal["function", "rest", "insert"]
    sales: Sales
    clients: int
    seconds: float = 3_600.0
    seeks: bool = False


class _Count:
    """What clients were told, and how long each waited."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self._waits: list[float] = []
        self._started = perf_counter()

    async def timed(self, work: Awaitable[list[str]]) -> None:
        """Waits for the outcomes of one transaction."""
        since = perf_counter()
        self.outcomes.update(await work)
        self._waits.append(perf_counter() - since)

    def told(self) -> Told:
        """The sum."""
        seconds = perf_counter() - self._started
        wins = self.outcomes.pop(BOOKED, 0)
        refused = dict(self.outcomes)
        return Told(calls=len(self._waits), wins=wins, refused=refused, seconds=seconds, latency=latency(self._waits))


async def redeem_one_by_one(pool: Pool, job: Straight) -> Told:
    """Each client books one sale after the other."""
    ledger, now = Ledger(pool), SystemClock().now()
    oldest = await oldest_id(pool, now)
    waiting = iter(list(_uses(job.sales, now)))

    async def book(bucket: int, use: Use) -> list[str]:
        return [outcome for outcome, *_ in await ledger.redeem([use], bucket, now, oldest)]

    count = _Count()
    ends = perf_counter() + job.seconds
    await _all(job.clients, waiting, lambda sale: count.timed(book(*sale)), lambda: perf_counter() < ends)
    return count.told()


async def redeem_rest(pool: Pool, job: Straight) -> Told:
    """Books what nobody booked yet, batch after batch, each of one bucket."""
    ledger, now = Ledger(pool), SystemClock().now()
    oldest = await oldest_id(pool, now)
    spent = await _spent(pool, job.sales.market) if job.seeks else frozenset()

    async def book(bucket: int, uses: Sequence[Use]) -> list[str]:
        return [outcome for outcome, *_ in await ledger.redeem(uses, bucket, now, oldest)]

    count = _Count()
    left = ((bucket, use) for bucket, use in _uses(job.sales, now) if use.voucher_id not in spent)
    await _all(job.clients, _by_bucket(left), lambda batch: count.timed(book(*batch)), lambda: True)
    return count.told()


async def _spent(pool: Pool, market: Market) -> frozenset[int]:
    rows = await pool.fetch(_queries["redeemed_vouchers"], *ids_of(market.ground.round_no))
    return frozenset(row[0] for row in rows)


def _by_bucket(uses: Iterable[tuple[int, Use]]) -> Iterator[tuple[int, Sequence[Use]]]:
    buckets: dict[int, list[Use]] = {}
    for bucket, use in uses:
        batch = buckets.setdefault(bucket, [])
        batch.append(use)
        if len(batch) == PER_TRANSACTION:
            yield bucket, buckets.pop(bucket)
    yield from buckets.items()


async def insert_rows(pool: Pool, job: Straight) -> Told:
    """Clients insert batch after batch, each of one bucket. Raises when the rows do not fit the table."""
    waiting = iter(await _twins(pool, job))

    async def insert(batch: Sequence[Any]) -> list[str]:
        async with pool.acquire(timeout=5) as conn:
            await conn.execute(_queries["insert_redemptions"], batch)
        return [BOOKED] * len(batch)

    count = _Count()
    await _all(job.clients, waiting, lambda batch: count.timed(insert(batch)), lambda: True)
    return count.told()


def _uses(sales: Sales, now: datetime) -> Iterator[tuple[int, Use]]:
    """Each sale as the ledger books it, with its bucket."""
    market = sales.market
    shops = read_shops(market.shops_file)
    for sale in sales_of(sales):
        shop, bucket = shops[sale.shop], bucket_of(unpack_voucher_id(sale.voucher_id).partition, market.buckets)
        sent = number(Scope.USE, shop.merchant_no, sale.use_request_no)
        order = number(Scope.ORDER, shop.merchant_no, sale.order_no)
        use = Use(
            voucher_id=sale.voucher_id,
            stock_no=market.stock_no,
            merchant_no=shop.merchant_no,
            terminal_no=shop.terminal_no,
            bill_fen=market.bill_fen,
            subsidy_fen=market.subsidy_fen,
            request_no=sale.use_request_no,
            order_no=sale.order_no,
            expires_at=None,
            request_key=sent.key,
            order_key=order.key,
            body_hash=body_hash(sale.voucher_id, sale.order_no, market.bill_fen),
            is_use_here=sent.home(market.buckets) == bucket,
            is_order_here=order.home(market.buckets) == bucket,
            taken_at=now,
            taken_on=business_day(now),
            is_offline=False,
        )
        yield bucket, use


async def _all(
    clients: int, waiting: Iterator[Any], act: Callable[[Any], Awaitable[None]], goes_on: Callable[[], bool]
) -> None:
    async def client() -> None:
        for item in waiting:
            await act(item)
            if not goes_on():
                return

    await asyncio.gather(*(client() for _ in range(clients)))


async def _twins(pool: Pool, job: Straight) -> list[Sequence[Any]]:
    """Rows that were booked, as tuples of a round that has none yet, in batches of one bucket each."""
    round_no = job.sales.market.ground.round_no
    (first, below), (twin, _) = ids_of(round_no), ids_of(round_no + 1)
    rows = await pool.fetch(_queries["redemptions_of_round"], first, below, job.sales.count)
    buckets: dict[int, list[Any]] = {}
    for row in rows:
        renumbered = {**row, "voucher_id": row["voucher_id"] - first + twin}
        buckets.setdefault(row["bucket"], []).append(tuple(renumbered.values()))
    cut = [
        [all_of[at : at + PER_TRANSACTION] for at in range(0, len(all_of), PER_TRANSACTION)]
        for all_of in buckets.values()
    ]
    return [batch for batches in zip(*cut, strict=False) for batch in batches]


_ACTS = {"function": redeem_one_by_one, "rest": redeem_rest, "insert": insert_rows}


@asynccontextmanager
async def _opened() -> AsyncIterator[Work[Straight]]:
    dsn = Settings.from_env().postgres_dsn
    pools: dict[int, Pool] = {}

    async def work(job: Straight) -> Told:
        if job.clients not in pools:
            pools[job.clients] = await open_pool(
                dsn, size=job.clients, command_timeout_s=COMMAND_TIMEOUT_S, name="bench", by_keys=True
            )
        return await _ACTS[job.kind](pools[job.clients], job)

    yield work
    for pool in pools.values():
        await pool.close()


if __name__ == "__main__":
    serve(Straight, _opened)
