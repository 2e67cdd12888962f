"""One partner's way out of the outbox.

At least once: an event is leased, sent, and marked; whoever dies between sending and marking leaves a lease that
runs out, and the event goes out again under the same id. In order for each voucher: an event is leased only when
none before it waits. While an endpoint fails it gets one event at a time, so that an outage of an hour costs a
backlog few of its attempts.
"""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from random import sample

import structlog
from prometheus_client import Counter, Histogram

from issuer.callbacks.endpoint import Endpoint
from issuer.callbacks.envelope import seal_event, signed_headers
from issuer.callbacks.event import Event
from issuer.callbacks.outbox import Outbox, Outcome, Subscription
from issuer.callbacks.retry import next_attempt
from kernel.batching import Coalescer
from kernel.clock import Clock
from kernel.codes import CodeBook
from kernel.errors import Broken, Unavailable

CONNECTIONS = 16
"""Requests under way to one partner from one sender."""
LEASE_S = 30
"""Longer than an attempt with its marking can take."""
POLL_S = 0.25
RETRY_S = 1.0
GATHER_S = 0.005
"""Attempts that end this close together make room for one lease."""
MARK_DEADLINE_S = 10.0

_attempts = Counter("hanquan_callbacks", "Attempts to tell a partner, by what came of them", ("partner", "outcome"))
_seconds = Histogram(
    "hanquan_callback_seconds",
    "Time from sending an event to its answer, in seconds",
    ("partner",),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
log = structlog.get_logger()


class Lane:
    """One partner's way out: `start` it, and `stop` it once."""

    def __init__(self, outbox: Outbox, subscription: Subscription, codes: CodeBook, clock: Clock) -> None:
        self.subscription = subscription
        self._outbox = outbox
        self._codes = codes
        self._clock = clock
        self._sending: set[asyncio.Task[None]] = set()
        self._marks = _marks(outbox)
        self._stopping = asyncio.Event()
        self._is_taking = True
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to send."""
        self._endpoint = Endpoint(
            self.subscription.url, may_be_private=self.subscription.may_be_private, connections=CONNECTIONS
        )
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Takes nothing new, finishes what is under way (an attempt and its marking at most)."""
        self._stopping.set()
        if self._task is not None:
            await self._task
        while self._sending:
            await asyncio.wait(self._sending)
        await self._endpoint.close()

    async def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                pause_s = 0.0 if await self._step() else POLL_S
            except Unavailable as error:
                log.warning("callbacks_wait", partner=self.subscription.partner_id, error=str(error))
                pause_s = RETRY_S
            except Exception:  # the events wait in the outbox until it is mended; a lane that ended would not tell
                log.exception("callbacks_fail", partner=self.subscription.partner_id)
                pause_s = RETRY_S
            if pause_s:
                await self._pause(pause_s)

    async def _step(self) -> bool:
        """Sends what can go now; False when there was nothing, or no room."""
        if not self._room():
            return False
        buckets = await self._outbox.due_buckets(self.subscription.partner_no)
        share = max(1, self._room() // max(1, len(buckets)))
        moved = 0
        for bucket in sample(buckets, len(buckets)):  # in any order, so that no bucket waits for another
            moved += await self._send_from(bucket, min(share, self._room()))
        return moved > 0

    def _room(self) -> int:
        return max(0, (CONNECTIONS if self._is_taking else 1) - len(self._sending))

    async def _send_from(self, bucket: int, room: int) -> int:
        if not room:
            return 0
        until = self._clock.now() + timedelta(seconds=LEASE_S)
        leased = await self._outbox.lease(self.subscription.partner_no, bucket, until, room)
        for event in leased.events:
            task = asyncio.create_task(self._tell(event))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
        return leased.moved

    async def _pause(self, seconds: float) -> None:
        """Until something under way ended, or it is time to look again, or to stop."""
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({stopping, *self._sending}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        await asyncio.sleep(GATHER_S)

    async def _tell(self, event: Event) -> None:
        partner = self.subscription.partner_id
        try:
            outcome = await self._attempt(event)
            name = "delivered" if outcome.delivered_at else "retried" if outcome.next_at else "dead"
            _attempts.labels(partner, name).inc()
            if outcome.error is not None:
                log.info(
                    "callback_failed", partner=partner, event_id=str(event.key), tries=event.tries, error=outcome.error
                )
            await self._marks.submit(outcome)
        except Unavailable as error:  # not marked: it comes due again, and the partner gets it twice
            log.warning("callback_not_marked", partner=partner, event_id=str(event.key), error=str(error))
        except Exception:
            log.exception("callback_fault", partner=partner, event_id=str(event.key))

    async def _attempt(self, event: Event) -> Outcome:
        try:
            body = seal_event(event, self.subscription.key, self._codes)
        except Broken as error:
            return Outcome(event=event, died_at=self._clock.now(), error=str(error))
        headers = signed_headers(body, self.subscription.key, int(self._clock.now().timestamp()))
        with _seconds.labels(self.subscription.partner_id).time():
            error_line = await self._endpoint.post(body, headers)
        self._is_taking = error_line is None
        now = self._clock.now()
        if error_line is None:
            return Outcome(event=event, delivered_at=now)
        again = next_attempt(self.subscription.retry_after_s, event.tries, now)
        return Outcome(event=event, next_at=again, died_at=None if again else now, error=error_line)


def _marks(outbox: Outbox) -> Coalescer[Outcome, None]:
    async def flush(outcomes: Sequence[Outcome]) -> Sequence[None]:
        await outbox.mark(outcomes)
        return [None] * len(outcomes)

    return Coalescer(flush, batch_max=100, queue_max=10_000, deadline_s=MARK_DEADLINE_S)
