"""Signals: what the services tell the worker about claims and tills.

A signal is a hint, not money. Losing one can make a detector a little later or blinder; it can
never lose, add or move a fen, and no answer to a caller waits for one. So the writer may drop them
when the store is slow, and says how many it dropped.

Events carry the campaign's time, not the time of writing, and may arrive a little out of order.
"""

import asyncio
import contextlib
import secrets
from collections import deque
from types import TracebackType
from typing import Annotated, Self

import msgspec
import structlog
from prometheus_client import Counter
from redis.asyncio import Redis
from redis.exceptions import RedisError

from kernel.tasks import end

STREAM = "af:signal"

Token = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
Fen = Annotated[int, msgspec.Meta(ge=0, le=10**12)]
Ms = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 31) - 1)]
VoucherId = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]

log = structlog.get_logger()

_dropped = Counter("hanquan_signals_dropped", "Signals that no room or no store could be found for")
_written = Counter("hanquan_signals_written", "Signals written to the stream")


class ClaimSignal(msgspec.Struct, frozen=True, array_like=True, tag="claim"):
    """Somebody tried to claim. `outcome` is what was answered: GRANTED or a refusal's code."""

    at_ms: Ms
    person: Token
    device: Digest | None
    partner_no: Number
    stock_no: Number
    outcome: str


class RedeemSignal(msgspec.Struct, frozen=True, array_like=True, tag="redeem"):
    """A voucher was used at a till. `minimum_fen` is the bill from which it may be used."""

    at_ms: Ms
    voucher_id: VoucherId
    person: Token
    merchant_no: Number
    terminal_no: Number
    bill_fen: Fen
    subsidy_fen: Fen
    minimum_fen: Fen


class RefundSignal(msgspec.Struct, frozen=True, array_like=True, tag="refund"):
    """A redemption was refunded."""

    at_ms: Ms
    voucher_id: VoucherId
    person: Token
    merchant_no: Number
    subsidy_fen: Fen


Signal = ClaimSignal | RedeemSignal | RefundSignal

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Signal])


def encode(signals: list[Signal]) -> bytes:
    """A batch as it stands in one entry of the stream."""
    return _encoder.encode(signals)


def decode(blob: bytes) -> list[Signal]:
    """A batch read from the stream. Raises msgspec.MsgspecError when it is none of ours."""
    return _decoder.decode(blob)


class SignalWriter:
    """Writes signals behind the caller's back. Use as an async context manager; `offer` in between.

        async with SignalWriter(valkey) as signals:
            signals.offer(ClaimSignal(...))

    Many signals share one XADD, trimmed to about `stream_length_max` entries: with full batches
    that bounds the stream at some 350 MB. A batch carries its own number, so that sending it again
    after a lost reply is harmless. Uses one connection of `valkey` at a time.
    """

    RETRY_S = 1.0
    STOP_S = 2.0

    def __init__(
        self,
        valkey: Redis,
        *,
        queue_max: int = 20_000,
        batch_max: int = 200,
        linger_s: float = 0.2,
        stream_length_max: int = 20_000,
    ) -> None:
        self._valkey = valkey
        self._queue: deque[Signal] = deque()
        self._queue_max = queue_max
        self._batch_max = batch_max
        self._linger_s = linger_s
        self._stream_length_max = stream_length_max
        self._full = asyncio.Event()
        self._stopping = False
        self._name = secrets.token_hex(6)
        self._batches = 0
        self._task: asyncio.Task[None] | None = None
        self.dropped = 0
        self.written = 0

    def offer(self, signal: Signal) -> None:
        """Queues a signal. Never waits, never raises: what finds no room is dropped and counted."""
        if len(self._queue) >= self._queue_max or self._stopping:
            self._drop(1)
            return
        self._queue.append(signal)
        if len(self._queue) >= self._batch_max:
            self._full.set()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="signal-writer")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Writes what is queued, for STOP_S at most; what is left then is dropped and counted."""
        self._stopping = True
        self._full.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=self.STOP_S)
            await end(self._task)
        self._drop(len(self._queue))
        self._queue.clear()

    async def _run(self) -> None:
        while self._queue or not self._stopping:
            if len(self._queue) < self._batch_max:
                await self._linger()
            if self._queue:
                await self._write_batch()

    async def _linger(self) -> None:
        self._full.clear()
        if not self._stopping:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._full.wait(), self._linger_s)

    async def _write_batch(self) -> None:
        batch = [self._queue.popleft() for _ in range(min(len(self._queue), self._batch_max))]
        self._batches += 1
        try:
            await self._add_until_done(encode(batch), f"{self._name}-{self._batches}")
        except Exception:
            self._drop(len(batch))
            log.exception("signals_lost", count=len(batch))
        except asyncio.CancelledError:
            self._drop(len(batch))
            raise
        else:
            self.written += len(batch)
            _written.inc(len(batch))

    async def _add_until_done(self, blob: bytes, number: str) -> None:
        while True:
            try:
                await self._valkey.xadd(
                    STREAM,
                    {b"n": number, b"b": blob},
                    maxlen=self._stream_length_max,
                    approximate=True,
                )
            except (RedisError, OSError) as error:
                log.warning("signals_wait", error=type(error).__name__, queued=len(self._queue))
                await asyncio.sleep(self.RETRY_S)
            else:
                return

    def _drop(self, count: int) -> None:
        self.dropped += count
        _dropped.inc(count)
