"""Helper: drains the log as the drain does, and copies the same rows as a bare COPY would: the limit."""

import os
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any, Literal

import msgspec
from redis.asyncio import Redis

import sql
from antifraud.gate import SignalWriter
from issuer.drain import Drain
from issuer.keys import log_key
from kernel.clock import SystemClock
from kernel.postgres import Connection, open_pool
from kernel.settings import Settings
from kernel.valkey import open_valkey
from stack.bench.cpu import cpu_s
from stack.bench.helper import Work, serve
from stack.bench.presign import ids_of

COMMAND_TIMEOUT_S = 120.0

_queries = sql.load("bench")


class Carry(msgspec.Struct, frozen=True, kw_only=True):
    """`drain`: carries the log over until it is empty. `copy`: copies the vouchers of `round_no` to its twin."""

    kind: Literal["drain", "copy"]
    round_no: int


class Carried(msgspec.Struct, frozen=True, kw_only=True):
    """What was carried, in what time, and what it cost this process and PostgreSQL's of the connection."""

    vouchers: int
    seconds: float
    cpu_s: float
    postgres_cpu_s: float


class _Hands:
    """One connection that drains and copies in turn."""

    def __init__(self, conn: Connection, drain: Drain, valkey: Redis) -> None:
        self._conn = conn
        self._drain = drain
        self._valkey = valkey
        self._server = conn.get_server_pid()

    async def work(self, job: Carry) -> Carried:
        if job.kind == "drain":
            return await self._timed(self._drain_all())
        return await self._timed(self._copy(await self._twins(job.round_no)))

    async def _drain_all(self) -> int:
        count = 0
        while await self._valkey.xlen(log_key(0)):
            count += await self._drain.drain_once(self._conn)
        return count

    async def _copy(self, rows: Sequence[Mapping[str, Any]]) -> int:
        records = [tuple(row.values()) for row in rows]
        await self._conn.copy_records_to_table("voucher", columns=list(rows[0].keys()), records=records)
        return len(rows)

    async def _twins(self, round_no: int) -> list[Mapping[str, Any]]:
        """The vouchers of a round, renumbered into the round after it."""
        (first, below), (twin, _) = ids_of(round_no), ids_of(round_no + 1)
        rows = await self._conn.fetch(_queries["rows_of_round"], first, below, timeout=COMMAND_TIMEOUT_S)
        return [{**row, "voucher_id": row["voucher_id"] - first + twin} for row in rows]

    async def _timed(self, carrying: Awaitable[int]) -> Carried:
        pids = (os.getpid(), self._server)
        before, started = [cpu_s([pid]) for pid in pids], perf_counter()
        vouchers = await carrying
        seconds = perf_counter() - started
        cost = [cpu_s([pid]) - was for pid, was in zip(pids, before, strict=True)]
        return Carried(vouchers=vouchers, seconds=seconds, cpu_s=cost[0], postgres_cpu_s=cost[1])


@asynccontextmanager
async def _opened() -> AsyncIterator[Work[Carry]]:
    settings = Settings.from_env()
    pool = await open_pool(settings.postgres_dsn, size=2, command_timeout_s=COMMAND_TIMEOUT_S, name="bench")
    valkey = open_valkey(settings.valkey_url)
    signals = SignalWriter(valkey)
    async with signals, pool.acquire(timeout=5) as conn:
        yield _Hands(conn, Drain(pool, valkey, signals, SystemClock(), 0), valkey).work
    await pool.close()
    await valkey.aclose()


if __name__ == "__main__":
    serve(Carry, _opened)
