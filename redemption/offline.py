"""Upload of redemptions that a till took while it was offline: the use case behind POST /v1/redemptions:offline.

Each is judged on its own, by the rules as of the moment it was taken, and booked like any other.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from kernel.answers import refusal_of
from kernel.clock import Clock
from kernel.errors import Code, HanquanError, Refusal
from kernel.signing import Caller
from redemption.checkout import Till
from redemption.refusals import SKEW_MAX
from redemption.wire import Done, OfflineRedemption

FROM_FUTURE = Refusal(
    code=Code.RULE_LIMIT,
    rule="OFFLINE_FROM_FUTURE",
    detail="taken_at is later than now; set the till's clock right",
    pointer="taken_at",
)

_decoder = msgspec.json.Decoder(OfflineRedemption)


class OfflineDesk:
    """Judges uploaded redemptions."""

    def __init__(self, till: Till, clock: Clock) -> None:
        self._till = till
        self._clock = clock

    async def upload(self, caller: Caller, items: Sequence[msgspec.Raw]) -> list[Done | Refusal]:
        """The outcome of each, in order; what is done is durable. An item whose outcome is not known is answered
        SYSTEM_BUSY: send it again."""
        return await asyncio.gather(*(self._one(caller, place, item) for place, item in enumerate(items)))

    async def _one(self, caller: Caller, place: int, item: msgspec.Raw) -> Done | Refusal:
        try:
            request = _decoder.decode(item)
        except msgspec.ValidationError as error:
            return Refusal(code=Code.PARAM_ERROR, detail=str(error), pointer=f"redemptions[{place}]")
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return Refusal(code=Code.PARAM_ERROR, detail=f"not JSON: {error}", pointer=f"redemptions[{place}]")
        now = self._clock.now()
        if request.taken_at > now + SKEW_MAX:
            return FROM_FUTURE
        taken: Any = msgspec.structs.replace(request, taken_at=min(request.taken_at, now))
        try:
            return await self._till.redeem_offline(caller, taken)
        except HanquanError as error:
            return refusal_of(error, "POST", "/v1/redemptions:offline")
