"""./hanquan merchants: onboarding with a pre-check, stores, terminals, keys, suspension."""

import hashlib
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from cyclopts import App, Parameter
from rich.console import Group

from kernel.clock import business_day
from kernel.errors import Refusal
from redemption.merchants import keys as key_desk
from redemption.merchants import onboarding, places, standing
from redemption.merchants.application import Store
from redemption.merchants.book import (
    ApplicationRow,
    Change,
    Doubtful,
    KeyRow,
    Listed,
    MerchantRow,
    PaperRow,
    StoreRow,
    TerminalRow,
)
from redemption.merchants.check import Business, Listing
from redemption.merchants.findings import Finding
from redemption.merchants.keys import KeyAdded
from redemption.merchants.office import Office, no_such
from redemption.merchants.register import BadFile, Register, read_public_list, read_register
from redemption.merchants.standing import Stands, Subject
from stack.console import Data
from stack.data_folder import DEFAULT, DataFolder
from stack.errors import StackError
from stack.finance import Json, read_file, table, tell
from stack.merchants import (
    at_work,
    changes_table,
    findings_table,
    head,
    key_line,
    list_table,
    make_key,
    moment,
    open_application,
    papers_table,
    stores_table,
    terminals_table,
    tidy_why,
    time_of,
)
from stack.reach import Reach

app = App(name="merchants", version_flags=(), help="Let merchants in, check their papers, lead stores, tills and keys.")
stores = App(name="stores", version_flags=(), help="Shops of a merchant.")
terminals = App(name="terminals", version_flags=(), help="Tills of a merchant.")
keys = App(name="keys", version_flags=(), help="Keys of tills: issue, rotate with an overlap, revoke.")
for _group in (stores, terminals, keys):
    app.command(_group)

Id = Annotated[str, Parameter(help="The merchant's id.")]
StoreId = Annotated[str, Parameter(help="The store's id.")]
TerminalId = Annotated[str, Parameter(help="The terminal's id.")]
By = Annotated[str, Parameter(name="--by", help="Who does it; the name stands in the books.")]
Why = Annotated[str, Parameter(help="The reason; it stands in the books, and the merchant reads it.")]
PublicKey = Annotated[
    Path | None, Parameter(help="The merchant's RSA public key of 2048 bits (PEM). Without it a secret is made.")
]

Entry = TypeVar("Entry", Business, Listing)


class Loaded(msgspec.Struct, frozen=True):
    """A file that was taken, and approved merchants that it speaks against."""

    entries: int
    doubtful: list[Doubtful]


class MerchantShown(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about one merchant or applicant."""

    merchant: MerchantRow | None
    applications: list[ApplicationRow]
    papers: list[PaperRow]
    stores: list[StoreRow]
    terminals: list[TerminalRow]
    keys: list[KeyRow]
    changes: list[Change]


# ---------------------------------------------------------------- what papers are checked against


@app.command
def register_load(
    file: Annotated[Path, Parameter(help="CSV: credit_code,name,status,valid_until")],
    *,
    by: By = "operator",
    json: Json = False,
    data: Data = DEFAULT,
) -> None:
    """Load entries of the register of businesses. What is there already is replaced."""
    _load(file, read_register, by, json, data)


@app.command
def list_load(
    file: Annotated[Path, Parameter(help="CSV: credit_code,reason,listed_on,listed_until")],
    *,
    by: By = "operator",
    json: Json = False,
    data: Data = DEFAULT,
) -> None:
    """Load entries of the public list of forgers. An entry holds from its first to its last day."""
    _load(file, read_public_list, by, json, data)


def _load(file: Path, read: Callable[[bytes], Register[Entry] | BadFile], by: str, json: bool, data: Path) -> None:
    content = read_file(file)
    taken = read(content)
    if isinstance(taken, BadFile):
        raise StackError(f"{file}, nothing was loaded: " + "; ".join(taken.complaints))

    async def work(office: Office) -> Loaded:
        async with office.conn.transaction():
            await office.book.load(taken.entries, hashlib.sha256(content).digest(), office.by, office.now)
        return Loaded(len(taken.entries), await office.book.doubtful(business_day(office.now)))

    answer = at_work(data, by, work)
    tell(answer, lambda: _loaded(answer), json=json)


def _loaded(answer: Loaded) -> object:
    line = f"loaded, entries: {answer.entries:,}"
    if not answer.doubtful:
        return line
    made = table("", "merchant", "register", "its term ends", "listed until")
    for one in answer.doubtful:
        made.add_row(one.merchant_id, one.status, str(one.valid_until or "-"), str(one.listed_until or "-"))
    return Group(line, "These merchants would not be approved today; suspend whom you must:", made)


# ---------------------------------------------------------------- applications


@app.command
def precheck(
    file: Annotated[Path, Parameter(help="The application, YAML.")], *, json: Json = False, data: Data = DEFAULT
) -> int:
    """List everything that is missing or wrong in an application; nothing is kept. Exit status 1 when something is."""
    application, unreadable = open_application(file)

    async def work(office: Office) -> list[Finding]:
        return await onboarding.check(office, application, unreadable)

    found = at_work(data, "nobody", work)
    tell(found, lambda: findings_table(found) if found else "nothing is missing", json=json)
    return 1 if found else 0


@app.command
def apply(
    file: Annotated[Path, Parameter(help="The application, YAML.")],
    *,
    by: By,
    json: Json = False,
    data: Data = DEFAULT,
) -> int:
    """Submit an application. One that is not complete is kept as a draft, and what is missing is listed (status 1)."""
    application, unreadable = open_application(file)

    async def work(office: Office) -> onboarding.Applied:
        return await onboarding.apply(office, application, unreadable)

    answer = at_work(data, by, work)
    tell(answer, lambda: _applied(answer), json=json)
    return 1 if answer.findings else 0


def _applied(answer: onboarding.Applied) -> object:
    line = f"{answer.merchant_id or 'the application'} is {answer.state}{_before(answer.replayed)}"
    return findings_table(answer.findings, f"{line}: ") if answer.findings else line


@app.command
def approve(merchant_id: Id, /, *, by: By, json: Json = False, data: Data = DEFAULT) -> None:
    """Approve an application: the merchant is enrolled. Somebody else must have submitted it."""
    answer = at_work(data, by, lambda office: onboarding.approve(office, merchant_id))
    tell(answer, lambda: f"{merchant_id} is {answer.state}{_before(answer.replayed)}", json=json)


@app.command
def reject(merchant_id: Id, /, *, by: By, why: Why, json: Json = False, data: Data = DEFAULT) -> None:
    """Turn an application down; its papers may be shown again. Somebody else must have submitted it."""
    answer = at_work(data, by, lambda office: onboarding.reject(office, merchant_id, tidy_why(why)))
    tell(answer, lambda: f"{merchant_id} is {answer.state}{_before(answer.replayed)}", json=json)


# ---------------------------------------------------------------- looking


@app.command(name="list")
def list_(*, json: Json = False, data: Data = DEFAULT) -> None:
    """List merchants and applicants. A "!" marks papers that ran out or will within 30 days."""

    async def work(office: Office) -> tuple[list[Listed], datetime]:
        return await office.book.everybody(office.now), office.now

    rows, now = at_work(data, "nobody", work)
    tell(rows, lambda: list_table(rows, now) if rows else "no merchant yet", json=json)


@app.command
def show(merchant_id: Id, /, *, json: Json = False, data: Data = DEFAULT) -> None:
    """Show a merchant: applications, papers, stores, terminals, keys, and what was done to them."""
    answer = at_work(data, "nobody", lambda office: _look(office, merchant_id))
    tell(answer, lambda: _shown(answer), json=json)


async def _look(office: Office, merchant_id: str) -> MerchantShown | Refusal:
    book, number = office.book, await office.book.merchant_no(merchant_id)
    applications = await book.applications(merchant_id)
    if number is None and not applications:
        return no_such(f"merchant {merchant_id}")
    return MerchantShown(
        merchant=None if number is None else await book.merchant(number, office.now),
        applications=applications,
        papers=await book.papers(applications[0].application_no) if applications else [],
        stores=[] if number is None else await book.stores(number),
        terminals=[] if number is None else await book.terminals(number),
        keys=[] if number is None else await book.keys(number, office.now),
        changes=[] if number is None else await book.changes(number),
    )


def _shown(one: MerchantShown) -> Group:
    tables = (
        (one.papers, papers_table(one.papers)),
        (one.stores, stores_table(one.stores)),
        (one.terminals, terminals_table(one.terminals, one.keys)),
        (one.changes, changes_table(one.changes)),
    )
    parts = [part for rows, made in tables if rows for part in ("", made)]
    return Group(head(one.merchant, one.applications), *parts)


# ---------------------------------------------------------------- standing


@app.command
def suspend(
    merchant_id: Id,
    /,
    *,
    by: By,
    why: Why,
    until: Annotated[str, Parameter(help="When it ends by itself: 2020-05-01 or 2020-05-01T12:00.")] = "",
    json: Json = False,
    data: Data = DEFAULT,
) -> None:
    """Suspend a merchant at once: none of its tills redeems."""
    end = moment(until) if until else None
    subject = Subject(merchant_id=merchant_id)
    _stands(data, by, json, lambda office: standing.suspend(office, subject, tidy_why(why), end))


@app.command
def resume(merchant_id: Id, /, *, by: By, why: Why = "", json: Json = False, data: Data = DEFAULT) -> None:
    """End a merchant's suspension at once."""
    subject = Subject(merchant_id=merchant_id)
    _stands(data, by, json, lambda office: standing.resume(office, subject, tidy_why(why)))


def _stands(data: Path, by: str, json: bool, work: Callable[[Office], Awaitable[Stands | Refusal]]) -> None:
    answer = at_work(data, by, work)
    word = "suspended" if answer.suspended else "active"
    until = f" until {time_of(answer.until)}" if answer.until else ""
    tell(answer, lambda: f"{answer.what} is {word}{until}{_before(answer.replayed)}", json=json)


# ---------------------------------------------------------------- stores and terminals


@stores.command(name="add")
def add_store(
    merchant_id: Id,
    store_id: StoreId,
    /,
    *,
    name: str,
    district: str,
    address: str,
    category: str,
    by: By,
    json: Json = False,
    data: Data = DEFAULT,
) -> None:
    """Add a shop."""
    store = Store(store_id=store_id, name=name, district=district, address=address, category=category)
    _added(data, by, json, lambda office: places.add_store(office, merchant_id, store))


@stores.command(name="suspend")
def suspend_store(
    merchant_id: Id, store_id: StoreId, /, *, by: By, why: Why, json: Json = False, data: Data = DEFAULT
) -> None:
    """Suspend a shop at once: none of its tills signs anything."""
    subject = Subject(merchant_id=merchant_id, store_id=store_id)
    _stands(data, by, json, lambda office: standing.suspend(office, subject, tidy_why(why)))


@stores.command(name="resume")
def resume_store(
    merchant_id: Id, store_id: StoreId, /, *, by: By, why: Why = "", json: Json = False, data: Data = DEFAULT
) -> None:
    """End a shop's suspension at once."""
    subject = Subject(merchant_id=merchant_id, store_id=store_id)
    _stands(data, by, json, lambda office: standing.resume(office, subject, tidy_why(why)))


@terminals.command(name="add")
def add_terminal(
    merchant_id: Id,
    terminal_id: TerminalId,
    /,
    *,
    store: Annotated[str, Parameter(help="Where it stands.")],
    by: By,
    json: Json = False,
    data: Data = DEFAULT,
) -> None:
    """Add a till to a shop. Give it a key with `keys issue`."""
    _added(data, by, json, lambda office: places.add_terminal(office, merchant_id, terminal_id, store))


@terminals.command(name="suspend")
def suspend_terminal(
    merchant_id: Id, terminal_id: TerminalId, /, *, by: By, why: Why, json: Json = False, data: Data = DEFAULT
) -> None:
    """Suspend a till at once: it signs nothing."""
    subject = Subject(merchant_id=merchant_id, terminal_id=terminal_id)
    _stands(data, by, json, lambda office: standing.suspend(office, subject, tidy_why(why)))


@terminals.command(name="resume")
def resume_terminal(
    merchant_id: Id, terminal_id: TerminalId, /, *, by: By, why: Why = "", json: Json = False, data: Data = DEFAULT
) -> None:
    """End a till's suspension at once."""
    subject = Subject(merchant_id=merchant_id, terminal_id=terminal_id)
    _stands(data, by, json, lambda office: standing.resume(office, subject, tidy_why(why)))


def _added(data: Path, by: str, json: bool, work: Callable[[Office], Awaitable[places.Added | Refusal]]) -> None:
    answer = at_work(data, by, work)
    tell(answer, lambda: f"{answer.merchant_id} has {answer.what}", json=json)


# ---------------------------------------------------------------- keys


@keys.command
def issue(
    merchant_id: Id,
    terminal_id: TerminalId,
    /,
    *,
    by: By,
    public_key: PublicKey = None,
    json: Json = False,
    data: Data = DEFAULT,
) -> None:
    """Give a till its first key. A made secret is kept in keys.json as MERCHANT/TERMINAL."""
    _key(data, by, json, merchant_id, terminal_id, public_key, None)


@keys.command
def rotate(
    merchant_id: Id,
    terminal_id: TerminalId,
    /,
    *,
    by: By,
    overlap_days: Annotated[int, Parameter(help="How long the old key still signs; 0: not any more.")] = 7,
    public_key: PublicKey = None,
    json: Json = False,
    data: Data = DEFAULT,
) -> None:
    """Give a till its next key. Both sign during the overlap, then the old one ends."""
    _key(data, by, json, merchant_id, terminal_id, public_key, timedelta(days=overlap_days))


def _key(
    data: Path,
    by: str,
    json: bool,
    merchant_id: str,
    terminal_id: str,
    public_key: Path | None,
    overlap: timedelta | None,
) -> None:
    made = make_key(Reach(DataFolder(data)), merchant_id, public_key)

    async def work(office: Office) -> KeyAdded | Refusal:
        if overlap is None:
            return await key_desk.issue(office, merchant_id, terminal_id, made.key)
        return await key_desk.rotate(office, merchant_id, terminal_id, made.key, overlap)

    answer = at_work(data, by, work)
    made.keep(data, f"{merchant_id}/{terminal_id}")
    tell(answer, lambda: f"{key_line(answer)}{_before(answer.replayed)}", json=json)


@keys.command
def revoke(
    serial_no: Annotated[str, Parameter(help="The key's serial number, as `show` tells it.")],
    /,
    *,
    by: By,
    why: Why,
    json: Json = False,
    data: Data = DEFAULT,
) -> None:
    """Revoke a key at once and for good, with every key that was registered with it."""
    revoked = at_work(data, by, lambda office: key_desk.revoke(office, serial_no, tidy_why(why)))
    words = f"revoked: {', '.join(revoked)}" if revoked else f"{serial_no} is revoked (it was before)"
    tell(revoked, lambda: words, json=json)


def _before(replayed: bool) -> str:
    return " (it was before)" if replayed else ""
