"""Stores and terminals that a merchant opens later."""

import msgspec

from kernel.errors import Code, Refusal
from redemption.merchants.application import Store
from redemption.merchants.check import store_findings, terminal_findings
from redemption.merchants.findings import Finding
from redemption.merchants.office import Office, conflict, find_merchant, no_such


class Added(msgspec.Struct, frozen=True, kw_only=True):
    """A store or a terminal that is there now."""

    merchant_id: str
    what: str


async def add_store(office: Office, merchant_id: str, store: Store) -> Added | Refusal:
    """Adds a shop. It has no terminals yet."""
    if found := store_findings(store):
        return _wrong(found)
    merchant_no = await find_merchant(office, merchant_id)
    if isinstance(merchant_no, Refusal):
        return merchant_no
    if await office.book.insert_store(merchant_no, store, office.by, office.now) is None:
        return conflict("STORE_TWICE", f"{merchant_id} has a store {store.store_id} already")
    return Added(merchant_id=merchant_id, what=f"store {store.store_id}")


async def add_terminal(office: Office, merchant_id: str, terminal_id: str, store_id: str) -> Added | Refusal:
    """Adds a till to a store. It has no key yet."""
    if found := terminal_findings(terminal_id):
        return _wrong(found)
    merchant_no = await find_merchant(office, merchant_id)
    if isinstance(merchant_no, Refusal):
        return merchant_no
    store_no = await office.book.store_no(merchant_no, store_id)
    if store_no is None:
        return no_such(f"store {store_id} of {merchant_id}")
    if await office.book.insert_terminal(merchant_no, terminal_id, store_no) is None:
        return conflict("TERMINAL_TWICE", f"{merchant_id} has a terminal {terminal_id} already")
    return Added(merchant_id=merchant_id, what=f"terminal {terminal_id}")


def _wrong(findings: list[Finding]) -> Refusal:
    told = "; ".join(f"{one.where} {one.en}" for one in findings)
    return Refusal(code=Code.PARAM_ERROR, detail=told)
