"""Sets a market up: shops with keys, a table full of vouchers, and sales dealt out so that none comes twice."""

import asyncio
from collections.abc import Iterator, Sequence

import msgspec

import sql
from kernel.clock import SystemClock
from kernel.signing import Signer
from stack.bench.crowd import signers
from stack.bench.filler import Issue, Issued
from stack.bench.helper import Helper
from stack.bench.presign import Ground, Key, Written
from stack.bench.sales import Market, Sales, Shop
from stack.bench.tills import Selling
from stack.bench.world import World
from stack.enrol import NewMerchant, enrol_merchants
from stack.errors import StackError

FILLERS = 2

_queries = sql.load("bench")


async def found_market(world: World, ground: Ground, shops: int) -> Market:
    """Enrols so many shops of the category that the ground's vouchers are for."""
    async with world.connection() as conn:
        stock = await conn.fetchrow(_queries["market"], ground.stock_id)
        assert stock is not None
        merchants = [_merchant(ground, n, stock["category"]) for n in range(shops)]
        master_key = bytes.fromhex(world.stack.secrets.master_key)
        keys = await enrol_merchants(conn, master_key, merchants, SystemClock().now())
        rows = await conn.fetch(_queries["shops"], [merchant.merchant_id for merchant in merchants])
    places = {row["merchant_id"]: (row["merchant_no"], row["terminal_no"]) for row in rows}
    file = world.folder / f"shops-{ground.run_id}"
    file.touch(mode=0o600)  # it holds the tills' secrets
    file.write_bytes(msgspec.json.encode([_shop(key, *places[key.holder_id]) for key in keys]))
    return Market(
        ground=ground,
        stock_no=stock["stock_no"],
        vouchers=ground.quantity,
        buckets=world.buckets,
        bill_fen=stock["transaction_minimum_fen"] + 1_234,
        subsidy_fen=stock["funded_fen"],
        shops_file=str(file),
        shops=shops,
    )


async def fill_market(world: World, market: Market) -> Issued:
    """Puts all its vouchers into the books, with all processors; then nothing is left for PostgreSQL to tidy up."""
    helpers = [await world.helper("filler", f"filler-{n}", role="hanquan_issuer") for n in range(FILLERS)]
    share = -(-market.vouchers // FILLERS)
    jobs = [
        Issue(ground=market.ground, first=first, count=min(share, market.vouchers - first))
        for first in range(0, market.vouchers, share)
    ]
    asked = (helper.ask(job, Issued) for helper, job in zip(helpers, jobs, strict=False))
    seconds = max(filled.seconds for filled in await asyncio.gather(*asked))
    await settle_down(world)
    return Issued(vouchers=market.vouchers, seconds=seconds)


async def settle_down(world: World) -> None:
    """Vacuums and writes a checkpoint."""
    async with world.connection() as conn:
        await conn.execute(_queries["settle_down"], timeout=600)
        await conn.execute(_queries["checkpoint"], timeout=600)


class Till:
    """Deals sales out, each once, and has them signed. Files are written over by the next."""

    def __init__(self, world: World, market: Market, helpers: Sequence[Helper]) -> None:
        self._world = world
        self._market = market
        self._helpers = helpers
        self._next = 0

    def take(self, count: int, *, skewed: bool = False) -> Sales:
        """So many sales that nobody had yet. StackError when there are not enough vouchers."""
        first, self._next = self._next, self._next + count
        if self._next > self._market.vouchers:
            raise StackError(f"{self._market.vouchers:,} vouchers are too few for this run; say --vouchers with more")
        return Sales(market=self._market, first=first, count=count, skewed=skewed)

    def all(self, step: int) -> Iterator[tuple[Sales, bool]]:
        """One sale of each voucher, so many at a time; and whether some of them were dealt out before."""
        vouchers = self._market.vouchers
        for first in range(0, vouchers, step):
            yield Sales(market=self._market, first=first, count=min(step, vouchers - first)), first < self._next

    async def sign(self, count: int, *, skewed: bool = False) -> list[str]:
        """Files with the requests of so many sales."""
        share = -(-count // len(self._helpers))
        now_s = int(SystemClock().now().timestamp())
        jobs = [
            Selling(
                sales=self.take(min(share, count - done), skewed=skewed),
                timestamp_s=now_s,
                file=str(self._world.folder / f"sales-{place}"),
            )
            for place, done in enumerate(range(0, count, share))
        ]
        asked = (helper.ask(job, Written) for helper, job in zip(self._helpers, jobs, strict=False))
        await asyncio.gather(*asked)
        return [job.file for job in jobs]


async def open_till(world: World, market: Market) -> Till:
    """A till with a signing helper a processor."""
    return Till(world, market, await signers(world, "tills", role="hanquan_redemption"))


def _shop(key: Signer, merchant_no: int, terminal_no: int) -> Shop:
    return Shop(merchant_no=merchant_no, terminal_no=terminal_no, key=Key.of(key))


def _merchant(ground: Ground, number: int, category: str) -> NewMerchant:
    return NewMerchant(
        merchant_id=f"m-{ground.run_id}-{number:06}",
        name=f"商户 {number}",
        category=category,
        district="江岸区",
        payee_name=f"商户 {number}",
        payee_account=f"{62_000_000_000_000 + number}",
        payee_bank="测试银行",
    )
