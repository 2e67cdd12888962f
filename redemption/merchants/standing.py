"""Suspend and resume a merchant, one of its stores, or one of its terminals.

The books tell every till's service in the same moment (NOTIFY hanquan_merchant, see the schema). A merchant that is
suspended redeems nothing; it still refunds, reads its statements and sees why it is suspended. A terminal that is
suspended, or whose store is, signs nothing at all.
"""

from datetime import datetime

import msgspec

from kernel.errors import Code, Refusal
from redemption.merchants.book import Numbers
from redemption.merchants.office import Office, conflict, find_merchant, no_such


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What is suspended: the merchant, or one of its stores, or one of its terminals."""

    merchant_id: str
    store_id: str | None = None
    terminal_id: str | None = None

    @property
    def words(self) -> str:
        """Its name."""
        if self.store_id is not None:
            return f"store {self.store_id} of {self.merchant_id}"
        return self.merchant_id if self.terminal_id is None else f"terminal {self.terminal_id} of {self.merchant_id}"


class Stands(msgspec.Struct, frozen=True, kw_only=True):
    """How it stands now. `replayed`: it stood so before. `until`: the suspension ends by itself."""

    what: str
    suspended: bool
    until: datetime | None = None
    replayed: bool = False


async def suspend(office: Office, subject: Subject, why: str, until: datetime | None = None) -> Stands | Refusal:
    """Suspends at once. Again with another end: the end is changed. `until` is for whole merchants only.
    Refused with NO_REASON, or PARAM_ERROR when `until` is over."""
    if not why:
        return conflict("NO_REASON", "say why")
    if until is not None and (until <= office.now or _what(subject) != "merchant"):
        return Refusal(code=Code.PARAM_ERROR, detail="an end lies ahead, and only a whole merchant's has one")
    return await _change(office, subject, True, until, why)


async def resume(office: Office, subject: Subject, why: str = "") -> Stands | Refusal:
    """Ends a suspension at once."""
    return await _change(office, subject, False, None, why)


async def _change(
    office: Office, subject: Subject, suspended: bool, until: datetime | None, why: str
) -> Stands | Refusal:
    what = _what(subject)
    async with office.conn.transaction():
        numbers = await _numbers(office, subject)
        if isinstance(numbers, Refusal):
            return numbers
        number = next(number for number in reversed(numbers) if number is not None)
        if await office.book.lock(what, number) == (suspended, until):
            return Stands(what=subject.words, suspended=suspended, until=until, replayed=True)
        await office.book.set_standing(what, number, suspended, until)
        verb = "SUSPEND" if suspended else "RESUME"
        await office.book.note_change(numbers, verb, until, why, office.by, office.now)
    return Stands(what=subject.words, suspended=suspended, until=until)


async def _numbers(office: Office, subject: Subject) -> Numbers | Refusal:
    merchant_no = await find_merchant(office, subject.merchant_id)
    if isinstance(merchant_no, Refusal):
        return merchant_no
    store_no = terminal_no = None
    if subject.store_id is not None:
        store_no = await office.book.store_no(merchant_no, subject.store_id)
    elif subject.terminal_id is not None:
        terminal_no = await office.book.terminal_no(merchant_no, subject.terminal_id)
    if _what(subject) != "merchant" and store_no is None and terminal_no is None:
        return no_such(subject.words)
    return merchant_no, store_no, terminal_no


def _what(subject: Subject) -> str:
    if subject.store_id is not None:
        return "store"
    return "merchant" if subject.terminal_id is None else "terminal"
