"""The worker of layer B: reads signals, judges them, writes what was found, then moves on.

At least once and idempotent: the position moves in the transaction of the cases found up to it. After
a start, the windows are filled again from what the stream still holds before that position, without
acting, for all of it was acted on before. What the stream has dropped by then is lost to the windows,
so a slow pattern may be found later than without the restart, or by layer C only.
"""

import asyncio
from collections.abc import Sequence
from time import monotonic
from typing import NamedTuple

import asyncpg
import structlog
from prometheus_client import Gauge
from redis.asyncio import Redis
from redis.exceptions import RedisError

from antifraud.casebook import Casebook, Refused
from antifraud.gate import BLOCK, block_person, digest_person, shard_tag
from antifraud.judge import Cases, Judge
from antifraud.reader import START, Position, SignalReader
from kernel.clock import Clock

RETRY_S = 0.5
SAVE_S = 0.25
"""How often a position with nothing found on the way is written."""
COPY_S = 300.0
"""How often the block list is copied whole, in case Valkey lost it."""

AWAY = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, RedisError, TimeoutError)
"""What a store raises that does not answer; it is waited for."""

_lag = Gauge("hanquan_signal_lag_seconds", "Age of the newest signal batch when it was dealt with")
log = structlog.get_logger()


class _Found(NamedTuple):
    """What was heard and is not written yet."""

    cases: Cases
    last: Position


class Worker:
    """One is enough; a second one finds the same and changes nothing."""

    def __init__(self, reader: SignalReader, judge: Judge, casebook: Casebook, valkey: Redis, clock: Clock) -> None:
        self._reader = reader
        self._judge = judge
        self._casebook = casebook
        self._valkey = valkey
        self._clock = clock
        self._position: Position | None = None
        self._found: _Found | None = None
        self._saved = START
        self._saved_at = 0.0
        self._copied_at: float | None = None

    async def run(self) -> None:
        """Works for ever; a store that is away is waited for, and what was heard is kept meanwhile."""
        while True:
            try:
                if self._position is None:
                    self._position = await self._resume()
                while True:
                    await self._copy_blocks_when_due()
                    await self._step(self._position)
            except AWAY as error:
                self._copied_at = None  # a block may be written down and not yet be in Valkey
                log.warning("antifraud_waits", error=f"{type(error).__name__}: {error}")
            except Exception:
                log.exception("antifraud_fault")  # readiness goes off; see app.is_working
                raise
            await asyncio.sleep(RETRY_S)

    async def _resume(self) -> Position:
        position = await self._casebook.position()
        if position > START:
            first = Position(max(0, position.ms - self._judge.reach_s * 1000), 0)
            async for page in self._reader.between(first, position):
                self._judge.hear(page.signals)
                await asyncio.sleep(0)
        log.info("antifraud_resumes", position=str(position))
        return position

    async def _step(self, position: Position) -> None:
        if self._found is None:
            page = await self._reader.after(position)
            self._found = _Found(self._judge.hear(page.signals), page.last)
        cases, last = self._found
        if cases or (last > self._saved and monotonic() - self._saved_at > SAVE_S):
            refused = await self._casebook.record(cases, last)
            self._saved, self._saved_at = last, monotonic()
            await self._refuse(refused)
        if last > position:
            self._position = last
            _lag.set((self._clock.now_ms() - self._clock.offset_ms() - last.ms) / 1000)
        self._found = None

    async def _copy_blocks_when_due(self) -> None:
        if self._copied_at is None or monotonic() - self._copied_at > COPY_S:
            async with self._casebook.in_force() as refused:
                await self._refuse(refused)
            self._copied_at = monotonic()

    async def _refuse(self, refused: Sequence[Refused]) -> None:
        """Writes people to the block list of every shard: which one a person claims on is not known here."""
        shards = await self._casebook.shards() if refused else 0
        pipe = self._valkey.pipeline(transaction=False)
        for one in refused:
            digest = digest_person(bytes.fromhex(one.person))
            for shard in range(shards):
                await block_person(pipe, shard_tag(shard), digest, BLOCK, one.until_ms)
        await pipe.execute()
