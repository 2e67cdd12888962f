"""Use cases of onboarding: pre-check, apply, approve, reject. Each is one transaction.

An application is judged when it is sent and again when it is approved: a paper may have run out in between.
"""

import re
from collections.abc import Sequence

import msgspec

from kernel.clock import business_day
from kernel.errors import Refusal
from redemption.merchants.application import Application, from_document, to_document
from redemption.merchants.book import ApplicationRow
from redemption.merchants.check import precheck
from redemption.merchants.findings import Finding
from redemption.merchants.office import Office, conflict, is_same_person, no_such

_MERCHANT_ID = re.compile(r"[A-Za-z0-9_-]{4,32}")


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an application that was sent.

    state      SUBMITTED: complete, waits for somebody else; DRAFT: kept, and the findings say what is missing;
               NOT_KEPT: it has no merchant id of its own
    replayed   this very application waited already, or was approved
    """

    merchant_id: str
    state: str
    findings: tuple[Finding, ...] = ()
    replayed: bool = False


class Decided(msgspec.Struct, frozen=True, kw_only=True):
    """An application that was approved or rejected. `replayed`: it was before."""

    merchant_id: str
    state: str
    merchant_no: int | None = None
    replayed: bool = False


async def check(office: Office, application: Application, unreadable: Sequence[Finding] = ()) -> list[Finding]:
    """Everything that is missing or wrong; nothing is kept. `unreadable`: what the reader found already."""
    return await _judge(office, application, None, unreadable)


async def apply(office: Office, application: Application, unreadable: Sequence[Finding] = ()) -> Applied:
    """Submits an application that is complete, keeps any other as a draft."""
    document, merchant_id = to_document(application), application.merchant_id
    if not _MERCHANT_ID.fullmatch(merchant_id):
        return Applied(merchant_id="", state="NOT_KEPT", findings=tuple(await check(office, application, unreadable)))
    async with office.conn.transaction():
        await office.book.lock_onboarding()
        for row in await office.book.applications(merchant_id):
            if row.document == document and row.state in ("SUBMITTED", "APPROVED"):
                return Applied(merchant_id=merchant_id, state=row.state, replayed=True)
        findings = await _judge(office, application, None, unreadable)
        application_no = await office.book.save_draft(application, document, office.by, office.now)
        if not findings:
            await office.book.submit(application_no, application.papers)
    return Applied(merchant_id=merchant_id, state="DRAFT" if findings else "SUBMITTED", findings=tuple(findings))


async def approve(office: Office, merchant_id: str) -> Decided | Refusal:
    """Enrols the merchant with its stores and terminals; keys are issued one by one. Refused with SAME_PERSON,
    NOT_WAITING, or INCOMPLETE when the pre-check finds something now."""
    async with office.conn.transaction():
        row = await _waiting(office, merchant_id, "APPROVED")
        if not isinstance(row, ApplicationRow):
            return row
        application = from_document(row.document)
        if findings := await _judge(office, application, row.application_no):
            told = "; ".join(f"{one.code} {one.where}: {one.en}" for one in findings)
            return conflict("INCOMPLETE", f"the application does not pass any more: {told}")
        merchant_no = await _enrol(office, application)
        await office.book.decide(row.application_no, "APPROVED", office.by, office.now, merchant_no=merchant_no)
    return Decided(merchant_id=merchant_id, state="APPROVED", merchant_no=merchant_no)


async def reject(office: Office, merchant_id: str, why: str) -> Decided | Refusal:
    """Turns an application down; its papers are free again. Refused with SAME_PERSON, NOT_WAITING, NO_REASON."""
    if not why:
        return conflict("NO_REASON", "say why")
    async with office.conn.transaction():
        row = await _waiting(office, merchant_id, "REJECTED")
        if not isinstance(row, ApplicationRow):
            return row
        await office.book.decide(row.application_no, "REJECTED", office.by, office.now, why)
    return Decided(merchant_id=merchant_id, state="REJECTED")


async def _judge(
    office: Office, application: Application, application_no: int | None, unreadable: Sequence[Finding] = ()
) -> list[Finding]:
    today = business_day(office.now)
    found = precheck(application, await office.book.known(application, application_no, today), today)
    told = {one.where for one in unreadable}
    return [*unreadable, *(one for one in found if one.where not in told)]


async def _waiting(office: Office, merchant_id: str, wanted: str) -> ApplicationRow | Decided | Refusal:
    """The application that waits, locked; or the decision that was made before; or why there is none."""
    await office.book.lock_onboarding()
    rows = await office.book.applications(merchant_id, locked=True)
    if not rows:
        return no_such(f"application of {merchant_id}")
    row = rows[0]
    if row.state == wanted and row.decided_by is not None and is_same_person(row.decided_by, office.by):
        return Decided(merchant_id=merchant_id, state=wanted, merchant_no=row.merchant_no, replayed=True)
    if row.state != "SUBMITTED":
        return conflict("NOT_WAITING", f"the application of {merchant_id} is {row.state}")
    if is_same_person(row.sent_by, office.by):
        return conflict("SAME_PERSON", f"{row.sent_by} submitted it; someone else must decide")
    return row


async def _enrol(office: Office, application: Application) -> int:
    merchant_no = await office.book.insert_merchant(application)
    for store in application.stores:
        store_no = await office.book.insert_store(merchant_no, store, office.by, office.now)
        assert store_no is not None  # the pre-check found no id twice
        for terminal_id in store.terminals:
            await office.book.insert_terminal(merchant_no, terminal_id, store_no)
    return merchant_no
