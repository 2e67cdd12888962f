"""Applicants for tests: businesses with real check digits, a complete application, an operator's seat."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date, datetime
from hashlib import sha256

import msgspec

from kernel.clock import CITY_ZONE
from redemption.merchants.application import LONG_TERM, Application, Paper, Store
from redemption.merchants.check import Business, Known, Listing
from redemption.merchants.credit_code import check_digit
from redemption.merchants.office import Office
from redemption.merchants.onboarding import Applied, Decided, apply, approve
from tests import stores

NOW = datetime(2026, 5, 1, 12, tzinfo=CITY_ZONE)
TODAY = NOW.date()
LI, WANG = "Li Na", "Wang Wei"


def code(number: int) -> str:
    """The n-th business's credit code."""
    body = f"91420103MA4K{number:05}"
    return body + check_digit(body)


def name(number: int) -> str:
    """Its name."""
    return f"武汉第{number}热干面有限公司"


def business(number: int = 1, **changes: object) -> Business:
    """Its entry in the register."""
    entry = Business(credit_code=code(number), name=name(number), status="ACTIVE", valid_until=date(2038, 4, 30))
    return msgspec.structs.replace(entry, **changes)


def listing(number: int = 1, until: date = date(2027, 2, 28)) -> Listing:
    """Its entry in the public list."""
    return Listing(credit_code=code(number), listed_on=date(2026, 3, 1), listed_until=until, reason="forged permit")


def paper(kind: str, owner: int = 1, **changes: object) -> Paper:
    """One of its papers."""
    made = Paper(
        kind=kind,
        number=code(owner) if kind == "BUSINESS_LICENCE" else f"{kind[0]}{owner:08}",
        holder=name(owner),
        valid_from="2018-05-01",
        valid_until=LONG_TERM if kind == "ACCOUNT_PROOF" else "2038-04-30",
        sha256=sha256(f"{kind} {owner}".encode()).hexdigest(),
    )
    return msgspec.structs.replace(made, **changes)


def store(store_id: str = "S01", *terminals: str, **changes: object) -> Store:
    """A shop with one till or those given."""
    made = Store(
        store_id=store_id,
        name="Jianghan Road",
        district="Jianghan",
        address="118 Jianghan Road",
        category="dining",
        terminals=terminals or ("T1",),
    )
    return msgspec.structs.replace(made, **changes)


def application(number: int = 1, **changes: object) -> Application:
    """A complete application of the n-th business."""
    made = Application(
        merchant_id=f"M{number:06}",
        name=name(number),
        credit_code=code(number),
        category="dining",
        district="Jianghan",
        payee_name=name(number),
        payee_account=f"62220000{number:08}",
        payee_bank="Bank of Hankou",
        papers=tuple(paper(kind, number) for kind in ("BUSINESS_LICENCE", "ACCOUNT_PROOF", "FOOD_PERMIT")),
        stores=(store("S01", "T1", "T2"),),
    )
    return msgspec.structs.replace(made, **changes)


def known(number: int = 1, **changes: object) -> Known:
    """What the city knows of it: it is in the register, and nothing speaks against it."""
    return msgspec.structs.replace(Known(business=business(number)), **changes)


@asynccontextmanager
async def at(database: stores.Database, by: str = LI, now: datetime = NOW) -> AsyncIterator[Office]:
    """An operator's seat with a connection of its own."""
    async with database.connection("hanquan_operator") as conn:
        yield Office(conn=conn, by=by, now=now)


async def register(database: stores.Database, *entries: Business | Listing) -> None:
    """Loads entries of the register and of the public list."""
    async with at(database) as office:
        if businesses := [entry for entry in entries if isinstance(entry, Business)]:
            await office.book.load(businesses, bytes(32), LI, NOW)
        if listings := [entry for entry in entries if isinstance(entry, Listing)]:
            await office.book.load(listings, bytes(32), LI, NOW)


async def let_in(database: stores.Database, number: int = 1, now: datetime = NOW) -> str:
    """The n-th business as an approved merchant; its id."""
    await register(database, business(number))
    asked = application(number)
    async with at(database, LI, now) as office:
        assert (await apply(office, asked)) == Applied(merchant_id=asked.merchant_id, state="SUBMITTED")
    async with at(database, WANG, now) as office:
        decided = await approve(office, asked.merchant_id)
    assert isinstance(decided, Decided), decided
    return asked.merchant_id
