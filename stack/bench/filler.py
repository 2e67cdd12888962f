"""Helper: puts vouchers into the books as the drain does, by COPY, without anybody having claimed them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from time import perf_counter

import msgspec

import sql
from issuer.carry import COLUMNS, Load, hash_of, load_of
from issuer.catalogue import Catalogue, Offered
from issuer.record import NO_DEVICE, Win, request_key
from kernel.clock import SystemClock, from_ms
from kernel.partitions import partition_of
from kernel.postgres import Connection, open_pool
from kernel.settings import Settings
from stack.bench.helper import Work, serve
from stack.bench.presign import Ground, person
from stack.bench.sales import out_request_no

CHUNK = 50_000
COMMAND_TIMEOUT_S = 120.0

_drain = sql.load("drain")


class Issue(msgspec.Struct, frozen=True, kw_only=True):
    """Vouchers `first` to `first` + `count` of the ground's stock."""

    ground: Ground
    first: int
    count: int


class Issued(msgspec.Struct, frozen=True, kw_only=True):
    """So many vouchers were stored in so many seconds."""

    vouchers: int
    seconds: float


def win(ground: Ground, offer: Offered, number: int, now_ms: int) -> Win:
    """The n-th voucher as the claim store would have told of it."""
    token, claimed = person(ground, number), out_request_no(ground, number)
    return Win(
        round_no=ground.round_no,
        slot=offer.slot,
        person=token,
        partition=partition_of(token),
        device=NO_DEVICE,
        request_key=request_key(offer.partner_no, claimed),
        parts=((offer.parts[0].stock.stock_no, 1),),
        out_request_no=claimed,
        serial=number + 1,
        claimed_ms=now_ms,
    )


async def fill(conn: Connection, catalogue: Catalogue, job: Issue) -> Issued:
    """Does a job: a transaction a chunk."""
    offer, started = catalogue.offers[job.ground.stock_id], perf_counter()
    end = job.first + job.count
    for first in range(job.first, end, CHUNK):
        now_ms = SystemClock().now_ms()
        wins = [win(job.ground, offer, number, now_ms) for number in range(first, min(first + CHUNK, end))]
        async with conn.transaction():
            await _store(conn, load_of(wins, catalogue), f"bench {job.ground.run_id} {first}")
    return Issued(vouchers=job.count, seconds=perf_counter() - started)


async def _store(conn: Connection, load: Load, reference: str) -> None:
    await conn.copy_to_table("voucher", source=BytesIO(load.rows), columns=COLUMNS, format="binary")
    for (bucket, campaign_no), chunk in sorted(load.chunks.items()):
        await conn.execute(
            _drain["post_issue"],
            bucket,
            campaign_no,
            chunk.amount_fen,
            len(chunk.voucher_ids),
            hash_of(chunk.voucher_ids),
            reference,
            from_ms(chunk.latest_ms),
        )
    stock_nos = sorted(load.issued)
    await conn.execute(_drain["add_issued"], 0, stock_nos, [load.issued[no] for no in stock_nos])


@asynccontextmanager
async def _opened() -> AsyncIterator[Work[Issue]]:
    pool = await open_pool(Settings.from_env().postgres_dsn, size=1, command_timeout_s=COMMAND_TIMEOUT_S, name="bench")

    async def work(job: Issue) -> Issued:
        catalogue = await Catalogue.read(pool)
        async with pool.acquire(timeout=5) as conn:
            return await fill(conn, catalogue, job)

    yield work
    await pool.close()


if __name__ == "__main__":
    serve(Issue, _opened)
