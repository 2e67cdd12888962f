"""Sends what waits in the outbox: one lane a partner, so that nobody waits for another's endpoint.

Several senders may run; each event is leased by one of them at a time.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

import structlog
from prometheus_client import Gauge

from issuer.callbacks.lane import Lane
from issuer.callbacks.outbox import Outbox, Subscription
from kernel.clock import Clock
from kernel.codes import CodeBook
from kernel.errors import Unavailable
from kernel.refreshing import kept_fresh
from kernel.tasks import running

REFRESH_EVERY_S = 1.0
"""A subscription that begins, changes or ends is followed after at most this long, and what is under way."""
UNFOLD_ROWS = 2_000
UNFOLD_POLL_S = 1.0

_overdue = Gauge(
    "hanquan_callbacks_overdue_seconds",
    "How long the longest waiting event of a partner has been due, in seconds",
    ("partner",),
)
log = structlog.get_logger()


class Sender:
    """Keeps a lane for each subscription, and turns booked expiries into events."""

    def __init__(self, outbox: Outbox, codes: CodeBook, clock: Clock) -> None:
        self._outbox = outbox
        self._codes = codes
        self._clock = clock
        self._lanes: dict[int, Lane] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Sends while the block lasts; at its end what is under way is finished and nothing new is begun."""
        try:
            async with (
                running(self._unfold()),
                kept_fresh("callback subscriptions", self.refresh, REFRESH_EVERY_S),
            ):
                yield
        finally:
            await self._follow({})

    async def refresh(self) -> None:
        """Follows the subscriptions as they are now."""
        wanted = {each.partner_no: each for each in await self._outbox.subscriptions()}
        await self._follow(wanted)
        for partner_no, lane in self._lanes.items():
            first_due = await self._outbox.first_due(partner_no)
            overdue_s = 0.0 if first_due is None else (self._clock.now() - first_due).total_seconds()
            _overdue.labels(lane.subscription.partner_id).set(max(0.0, overdue_s))

    async def _follow(self, wanted: Mapping[int, Subscription]) -> None:
        over = [no for no, lane in self._lanes.items() if wanted.get(no) != lane.subscription]
        await asyncio.gather(*(self._lanes.pop(no).stop() for no in over))
        for no in wanted.keys() - self._lanes.keys():
            self._lanes[no] = Lane(self._outbox, wanted[no], self._codes, self._clock)
            self._lanes[no].start()

    async def _unfold(self) -> None:
        while True:
            try:
                while await self._outbox.unfold(UNFOLD_ROWS):
                    pass
            except Unavailable as error:
                log.warning("callbacks_wait", error=str(error))
            except Exception:  # the expiry stays open until it is mended
                log.exception("callbacks_not_unfolded")
            await asyncio.sleep(UNFOLD_POLL_S)
