"""What a partner is told: one event, its name, and its words."""

import re
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

import msgspec

from kernel.clock import rfc3339
from kernel.codes import CodeBook
from kernel.errors import Broken


class Kind(StrEnum):
    """What can happen to a voucher."""

    CLAIMED = "CLAIMED"
    USED = "USED"
    REFUNDED = "REFUNDED"
    EXPIRED = "EXPIRED"


_EVENT_ID = re.compile(r"([0-9A-F]{12})-(\d{1,5})-(CLAIMED|USED|REFUNDED|EXPIRED)(?:-([2-9]|[1-9]\d{1,4}))?")


class EventKey(NamedTuple):
    """Which fact an event tells. `attempt`: which use of the voucher it is about, 0 for none. `part`: which further
    refund of that use, 0 for the first and for all else."""

    voucher_id: int
    attempt: int
    kind: Kind
    part: int = 0

    def __str__(self) -> str:
        """The event's id as partners and operators see it; the same however often it is sent."""
        return f"{self.voucher_id:012X}-{self.attempt}-{self.kind}" + (f"-{self.part + 1}" if self.part else "")


def parse_event_id(text: str) -> EventKey | None:
    """The key behind an id, or None when it is none."""
    match = _EVENT_ID.fullmatch(text)
    if match is None:
        return None
    return EventKey(int(match[1], 16), int(match[2]), Kind(match[3]), int(match[4] or 1) - 1)


class Voucher(msgspec.Struct, frozen=True, kw_only=True):
    """The voucher that an event is about."""

    stock_id: str
    out_request_no: str
    face_value_fen: int
    valid_until: datetime


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """The redemption that an event is about."""

    merchant_id: str
    use_request_no: str
    bill_fen: int
    subsidy_fen: int


class Back(msgspec.Struct, frozen=True, kw_only=True):
    """The refund that an event is about."""

    refund_request_no: str
    refund_fen: int
    credit: str


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One event with the rows it tells of. `tries` counts the attempts, this one included."""

    key: EventKey
    bucket: int
    tries: int
    happened_at: datetime
    voucher: Voucher | None = None
    use: Use | None = None
    back: Back | None = None


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a partner reads once it has decrypted a message; the words of the flow files."""

    voucher_code: str
    voucher_state: str
    stock_id: str
    out_request_no: str
    occurred_at: str
    face_value_fen: int
    valid_until: str
    merchant_id: str | None = None
    use_request_no: str | None = None
    refund_request_no: str | None = None
    bill_fen: int | None = None
    subsidy_fen: int | None = None
    refund_fen: int | None = None


def message(event: Event, codes: CodeBook) -> Message:
    """The words of an event. Broken when the rows it tells of are not there (say, their round was detached)."""
    voucher, use, back = event.voucher, event.use, event.back
    has = (voucher is not None, use is not None, back is not None)
    if voucher is None or has != _NEEDS[event.key.kind]:
        raise Broken(f"the rows that event {event.key} tells of are gone")
    return Message(
        voucher_code=codes.encode(event.key.voucher_id),
        voucher_state=_state(event),
        stock_id=voucher.stock_id,
        out_request_no=voucher.out_request_no,
        occurred_at=rfc3339(event.happened_at),
        face_value_fen=voucher.face_value_fen,
        valid_until=rfc3339(voucher.valid_until),
        merchant_id=use.merchant_id if use else None,
        use_request_no=use.use_request_no if use else None,
        refund_request_no=back.refund_request_no if back else None,
        bill_fen=use.bill_fen if use else None,
        subsidy_fen=use.subsidy_fen if use else None,
        refund_fen=back.refund_fen if back else None,
    )


_NEEDS = {
    Kind.CLAIMED: (True, False, False),
    Kind.USED: (True, True, False),
    Kind.REFUNDED: (True, True, True),
    Kind.EXPIRED: (True, False, False),
}
"""Which rows an event of each kind tells of: voucher, redemption, refund."""


def _state(event: Event) -> str:
    match event.key.kind:
        case Kind.CLAIMED:
            return "EFFECTIVE"
        case Kind.USED:
            return "USED"
        case Kind.REFUNDED:
            return "EFFECTIVE" if event.back and event.back.credit == "ISSUED" else "RETURNED"
        case Kind.EXPIRED:
            return "EXPIRED"
