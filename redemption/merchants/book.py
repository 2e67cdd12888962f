"""Every statement about merchants, on one connection. Transactions are the callers', the use cases'."""

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any

import asyncpg
import msgspec

import sql
from kernel.postgres import Connection
from redemption.merchants.application import Application, Paper, Store
from redemption.merchants.check import Business, Known, Listing, read_day
from redemption.merchants.credit_code import flaw_of

ROWS_AT_ONCE = 10_000

Numbers = tuple[int, int | None, int | None]
"""Of a merchant, and of one of its stores or one of its terminals."""

_queries = sql.load("merchants")


class ApplicationRow(msgspec.Struct, frozen=True, kw_only=True):
    """An application as it stands."""

    application_no: int
    merchant_id: str
    credit_code: str | None
    state: str
    document: str
    sent_by: str
    sent_at: datetime
    decided_by: str | None
    decided_at: datetime | None
    why: str
    merchant_no: int | None


class MerchantRow(msgspec.Struct, frozen=True, kw_only=True):
    """A merchant as it stands at a time. `suspended_until` None: until somebody resumes it."""

    merchant_no: int
    merchant_id: str
    name: str
    category: str
    district: str
    payee_name: str
    payee_account: str
    payee_bank: str
    suspended: bool
    suspended_until: datetime | None
    suspended_why: str | None


class StoreRow(msgspec.Struct, frozen=True, kw_only=True):
    """A shop of a merchant."""

    store_no: int
    store_id: str
    name: str
    district: str
    address: str
    category: str
    suspended: bool


class TerminalRow(msgspec.Struct, frozen=True, kw_only=True):
    """A till of a merchant; `suspended` also when its store is."""

    terminal_no: int
    terminal_id: str
    store_id: str | None
    suspended: bool


class KeyRow(msgspec.Struct, frozen=True, kw_only=True):
    """A key of a terminal that is neither revoked nor over."""

    serial_no: str
    terminal_no: int
    algorithm: str
    not_before: datetime
    not_after: datetime


class PaperRow(msgspec.Struct, frozen=True, kw_only=True):
    """A paper of an application. `valid_until` None: no end."""

    kind: str
    number: str
    holder: str
    valid_from: date
    valid_until: date | None
    sha256: str


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was done to a merchant, a store, a terminal or a key."""

    changed_at: datetime
    verb: str
    what: str
    changed_by: str
    why: str
    until: datetime | None


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A merchant or an applicant in the list. `standing`: ACTIVE, SUSPENDED, or the state of its application."""

    merchant_id: str
    name: str | None
    standing: str
    stores: int
    terminals: int
    papers_until: date | None


class Doubtful(msgspec.Struct, frozen=True, kw_only=True):
    """An approved merchant that the register or the public list speaks against."""

    merchant_id: str
    credit_code: str
    status: str
    valid_until: date | None
    listed_until: date | None


class MerchantBook:
    """The books of merchants, as hanquan_operator or, to look, as hanquan_redemption."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn

    # ------------------------------------------------------------ what papers are checked against

    async def load(
        self, entries: Sequence[Business] | Sequence[Listing], sha256: bytes, by: str, now: datetime
    ) -> None:
        """Keeps the entries of a file of the register or of the public list. One kind in a file."""
        what, query = ("REGISTER", "upsert_businesses")
        if isinstance(entries[0], Listing):
            what, query = ("PUBLIC_LIST", "upsert_listings")
        load_no = await self.conn.fetchval(_queries["insert_load"], what, sha256, len(entries), by, now)
        for start in range(0, len(entries), ROWS_AT_ONCE):
            rows = [_columns_of(entry) for entry in entries[start : start + ROWS_AT_ONCE]]
            await self.conn.execute(_queries[query], *(list(column) for column in zip(*rows, strict=True)), load_no)

    async def doubtful(self, today: date) -> list[Doubtful]:
        """Approved merchants that would not be approved today."""
        return [Doubtful(**row) for row in await self.conn.fetch(_queries["doubtful_merchants"], today)]

    async def known(self, application: Application, application_no: int | None, today: date) -> Known:
        """All that the pre-check asks about an applicant. `application_no`: of its application, if it has one."""
        code = application.credit_code if flaw_of(application.credit_code) is None else None
        business = await self.conn.fetchrow(_queries["business"], code)
        listing = await self.conn.fetchrow(_queries["listing"], code, today)
        taken = await self.conn.fetchrow(_queries["taken"], application.merchant_id, code, application_no)
        assert taken is not None
        kinds, numbers = [p.kind for p in application.papers], [p.number for p in application.papers]
        files = [file for paper in application.papers if (file := _digest(paper))]
        papers = await self.conn.fetch(_queries["papers_of_others"], kinds, numbers, files, application_no)
        return Known(
            business=Business(**business) if business else None,
            listing=Listing(**listing) if listing else None,
            is_id_taken=taken["is_id_taken"],
            code_taken_by=taken["code_taken_by"],
            numbers={(row["kind"], row["number"]): row["merchant_id"] for row in papers},
            files={row["sha256"]: row["merchant_id"] for row in papers},
            categories=frozenset(row["category"] for row in await self.conn.fetch(_queries["categories"])),
        )

    # ------------------------------------------------------------ applications

    async def lock_onboarding(self) -> None:
        """Waits until nobody else judges an application, and holds the place until the transaction ends."""
        await self.conn.execute(_queries["lock_onboarding"])

    async def applications(self, merchant_id: str, *, locked: bool = False) -> list[ApplicationRow]:
        """The applications of a merchant id, the newest first."""
        query = _queries["applications" if locked else "look_at_applications"]
        return [ApplicationRow(**row) for row in await self.conn.fetch(query, merchant_id)]

    async def save_draft(self, application: Application, document: str, by: str, now: datetime) -> int:
        """Keeps a draft in the place of the one before; its number."""
        code = application.credit_code if flaw_of(application.credit_code) is None else None
        return await self._number("save_draft", application.merchant_id, code, document, by, now)

    async def submit(self, application_no: int, papers: Sequence[Paper]) -> None:
        """Makes a draft wait for a decision. Its papers were checked: they can be read."""
        await self._number("submit", application_no)
        rows = [
            (p.kind, p.number, p.holder, read_day(p.valid_from), read_day(p.valid_until), bytes.fromhex(p.sha256))
            for p in papers
        ]
        await self.conn.execute(_queries["insert_papers"], application_no, *map(list, zip(*rows, strict=True)))

    async def decide(
        self, application_no: int, state: str, by: str, now: datetime, why: str = "", merchant_no: int | None = None
    ) -> None:
        """Ends an application: APPROVED with the merchant's number, or REJECTED with a reason."""
        await self._number("decide", application_no, state, by, now, why, merchant_no)
        if state == "REJECTED":
            await self.conn.execute(_queries["free_papers"], application_no)

    async def papers(self, application_no: int) -> list[PaperRow]:
        """The papers that an application showed."""
        return [PaperRow(**row) for row in await self.conn.fetch(_queries["papers"], application_no)]

    # ------------------------------------------------------------ merchants, stores, terminals

    async def insert_merchant(self, a: Application) -> int:
        """Enrols a merchant; its number."""
        payee = (a.payee_name, a.payee_account, a.payee_bank)
        return await self._number("insert_merchant", a.merchant_id, a.name, a.category, a.district, *payee)

    async def insert_store(self, merchant_no: int, store: Store, by: str, now: datetime) -> int | None:
        """A shop; its number, or None when the merchant has one of this id."""
        place = (store.store_id, store.name, store.district, store.address, store.category)
        return await self._maybe_number("insert_store", merchant_no, *place, by, now)

    async def insert_terminal(self, merchant_no: int, terminal_id: str, store_no: int) -> int | None:
        """A till; its number, or None when the merchant has one of this id."""
        return await self._maybe_number("insert_terminal", merchant_no, terminal_id, store_no)

    async def merchant_no(self, merchant_id: str) -> int | None:
        """The number of an enrolled merchant."""
        return await self._maybe_number("merchant_no", merchant_id)

    async def store_no(self, merchant_no: int, store_id: str) -> int | None:
        """The number of a merchant's store."""
        return await self._maybe_number("store_no", merchant_no, store_id)

    async def terminal_no(self, merchant_no: int, terminal_id: str) -> int | None:
        """The number of a merchant's terminal."""
        return await self._maybe_number("terminal_no", merchant_no, terminal_id)

    async def merchant(self, merchant_no: int, now: datetime) -> MerchantRow | None:
        """A merchant as it stands."""
        row = await self.conn.fetchrow(_queries["merchant"], merchant_no, now)
        return MerchantRow(**row) if row else None

    async def stores(self, merchant_no: int) -> list[StoreRow]:
        """Its stores, by id."""
        return [StoreRow(**row) for row in await self.conn.fetch(_queries["stores"], merchant_no)]

    async def terminals(self, merchant_no: int) -> list[TerminalRow]:
        """Its terminals, by id."""
        return [TerminalRow(**row) for row in await self.conn.fetch(_queries["terminals"], merchant_no)]

    async def keys(self, merchant_no: int, now: datetime) -> list[KeyRow]:
        """Its keys that sign now or soon, the oldest first."""
        return [KeyRow(**row) for row in await self.conn.fetch(_queries["keys"], merchant_no, now)]

    async def changes(self, merchant_no: int) -> list[Change]:
        """What was done to it, in order."""
        return [Change(**row) for row in await self.conn.fetch(_queries["changes"], merchant_no)]

    async def everybody(self, now: datetime) -> list[Listed]:
        """Every merchant and every applicant, by id."""
        return [Listed(**row) for row in await self.conn.fetch(_queries["list"], now)]

    # ------------------------------------------------------------ standing

    async def lock(self, what: str, number: int) -> tuple[bool, datetime | None]:
        """Whether a `merchant`, `store` or `terminal` is suspended and until when; it stays so in this transaction."""
        row = await self.conn.fetchrow(_queries[f"lock_{what}"], number)
        assert row is not None
        return row["suspended"], row["suspended_until"]

    async def set_standing(self, what: str, number: int, suspended: bool, until: datetime | None) -> None:
        """Suspends or resumes."""
        more = (until,) if what == "merchant" else ()
        await self.conn.execute(_queries[f"set_{what}"], number, suspended, *more)

    async def note_change(self, numbers: Numbers, verb: str, until: datetime | None, *why_by_at: object) -> None:
        """Writes down a suspension or its end: why, by whom, when."""
        await self.conn.execute(_queries["insert_change"], *numbers, verb, until, *why_by_at)

    # ------------------------------------------------------------ keys

    async def add_key(self, *values: object) -> asyncpg.Record:
        """Calls add_terminal_key of the schema."""
        return await self._row("add_key", *values)

    async def register_own_key(self, *values: object) -> asyncpg.Record:
        """Calls register_own_key of the schema."""
        return await self._row("register_own_key", *values)

    async def key_owner(self, serial_no: str) -> asyncpg.Record | None:
        """merchant_id, terminal_id and revoked_at of a merchant's key."""
        return await self.conn.fetchrow(_queries["key_row"], serial_no)

    async def revoke(self, serial_no: str, by: str, why: str, now: datetime) -> list[str]:
        """Revokes a key with those that the merchant registered with it; the serial numbers revoked now."""
        rows = await self.conn.fetch(_queries["revoke_key"], serial_no, by, why, now)
        return [row["serial_no"] for row in rows]

    async def _row(self, name: str, *values: object) -> asyncpg.Record:
        row = await self.conn.fetchrow(_queries[name], *values)
        assert row is not None
        return row

    async def _number(self, name: str, *values: object) -> int:
        number = await self._maybe_number(name, *values)
        assert number is not None
        return number

    async def _maybe_number(self, name: str, *values: object) -> int | None:
        number: int | None = await self.conn.fetchval(_queries[name], *values)
        return number


def _columns_of(entry: Business | Listing) -> tuple[Any, ...]:
    if isinstance(entry, Business):
        return entry.credit_code, entry.name, entry.status, entry.valid_until
    return entry.credit_code, entry.reason, entry.listed_on, entry.listed_until


def _digest(paper: Paper) -> bytes:
    try:
        return bytes.fromhex(paper.sha256)
    except ValueError:
        return b""
