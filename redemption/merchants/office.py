"""Whoever works on merchants: a connection, a name, a time; and how a no is told."""

from datetime import datetime

import msgspec

from kernel.errors import Code, Refusal
from kernel.postgres import Connection
from redemption.merchants.book import MerchantBook

WHY_LENGTH_MAX = 500


class Office(msgspec.Struct, frozen=True, kw_only=True):
    """One operator at the books. `by` is the name that will stand there."""

    conn: Connection
    by: str
    now: datetime

    @property
    def book(self) -> MerchantBook:
        """The books on this connection."""
        return MerchantBook(self.conn)


def no_such(what: str) -> Refusal:
    """Nothing is there."""
    return Refusal(code=Code.RESOURCE_NOT_EXISTS, detail=f"there is no {what}")


def conflict(rule: str, detail: str) -> Refusal:
    """It cannot be done as things stand."""
    return Refusal(code=Code.STATE_CONFLICT, rule=rule, detail=detail)


def is_same_person(one: str, other: str) -> bool:
    """Whether two names in the books are one person's; the schema says the same."""
    return one.lower() == other.lower()


async def find_merchant(office: Office, merchant_id: str) -> int | Refusal:
    """The number of an enrolled merchant."""
    number = await office.book.merchant_no(merchant_id)
    return no_such(f"merchant {merchant_id}") if number is None else number
