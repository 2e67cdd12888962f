"""What tills ask in the worlds of the money model, and what they are told. Numbers are those of the merchant."""

from datetime import datetime
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """DONE or REPLAYED with facts, or the name of a refusal."""

    outcome: str
    facts: tuple[Any, ...] = ()

    @property
    def is_done(self) -> bool:
        return self.outcome in ("DONE", "REPLAYED")


class Redeem(NamedTuple):
    """`taken_at`: when an offline till took it; None: now."""

    shop: int
    number: str
    voucher_id: int
    order: str
    bill_fen: int
    taken_at: datetime | None = None


class Lock(NamedTuple):
    """A hold."""

    shop: int
    number: str
    voucher_id: int
    order: str
    bill_fen: int
    ttl_s: int


class Confirm(NamedTuple):
    shop: int
    number: str
    hold_number: str


class Cancel(NamedTuple):
    shop: int
    number: str
    hold_number: str


class Refund(NamedTuple):
    shop: int
    number: str
    use_number: str
    cash_fen: int


Request = Redeem | Lock | Confirm | Cancel | Refund
