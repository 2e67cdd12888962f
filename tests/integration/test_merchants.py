"""Onboarding at real books: same papers twice, two people, stores, keys with an overlap, suspension."""

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import date, timedelta
from typing import Any

import asyncpg
import msgspec
import pytest
import pytest_asyncio

import sql
from kernel.clock import ManualClock
from kernel.errors import Refusal, Rejected
from kernel.keyring import Keyring
from kernel.signing import Algorithm, Signer, parse_authorization
from redemption.merchants import keys as key_desk
from redemption.merchants.application import Application
from redemption.merchants.book import MerchantBook, MerchantRow
from redemption.merchants.keys import KeyAdded, KeyMaterial
from redemption.merchants.onboarding import Applied, Decided, apply, approve, check, reject
from redemption.merchants.places import Added, add_store, add_terminal
from redemption.merchants.standing import Stands, Subject, resume, suspend
from stack.enrol import NewMerchant, enrol_merchants, new_key
from tests import stores
from tests.city import MASTER_KEY
from tests.merchant_world import LI, NOW, WANG, application, at, business, let_in, listing, paper, register, store

WEEK = timedelta(days=7)

key_queries, checkout_queries = sql.load("keys"), sql.load("checkout")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(cluster: stores.Cluster) -> AsyncIterator[stores.Database]:
    """One database for all tests: each has businesses of its own."""
    async with stores.database(cluster) as database:
        yield database


@pytest.fixture
def database(made: stores.Database) -> stores.Database:
    """Its pool belongs to another loop; tests connect."""
    return made


@pytest.fixture
def n() -> int:
    """The number of a business that no other test has; so is the next one's."""
    return next(numbers)


numbers = itertools.count(10, 10)


def m(n: int) -> str:
    """Its merchant id."""
    return application(n).merchant_id


@asynccontextmanager
async def at_redemption(database: stores.Database) -> AsyncIterator[MerchantBook]:
    """The books as a till's service reads them."""
    async with database.connection("hanquan_redemption") as conn:
        yield MerchantBook(conn)


async def execute(database: stores.Database, statement: str, *values: object) -> None:
    """A statement of the superuser."""
    async with database.connection() as conn:
        await conn.execute(statement, *values)


async def sent(database: stores.Database, asked: Application, by: str = LI) -> Applied:
    async with at(database, by) as office:
        return await apply(office, asked)


def codes(answer: Applied) -> set[str]:
    return {one.code.value for one in answer.findings}


def rule(answer: object) -> str | None:
    assert isinstance(answer, Refusal), answer
    return answer.rule or answer.code


# ---------------------------------------------------------------- applying


async def test_an_application_from_draft_to_merchant(database: stores.Database, n: int) -> None:
    await register(database, business(n))
    asked = application(n, stores=(store("S01", "T1", "T2"), store("S02", "T3", district="Wuchang", category="malls")))
    draft = await sent(database, msgspec.structs.replace(asked, payee_bank=""))
    assert (draft.state, codes(draft)) == ("DRAFT", {"FIELD_MISSING"})
    assert (await sent(database, asked)).state == "SUBMITTED"
    assert await sent(database, asked, WANG) == Applied(merchant_id=m(n), state="SUBMITTED", replayed=True)
    async with at(database, WANG) as office:
        approved = await approve(office, m(n))
        assert isinstance(approved, Decided)
        assert approved.merchant_no is not None
        assert await approve(office, m(n)) == msgspec.structs.replace(approved, replayed=True)
        book = office.book
        merchant = await book.merchant(approved.merchant_no, NOW)
        assert isinstance(merchant, MerchantRow)
        assert (merchant.name, merchant.payee_account, merchant.suspended) == (asked.name, asked.payee_account, False)
        shops = [(one.store_id, one.district, one.category) for one in await book.stores(approved.merchant_no)]
        assert shops == [("S01", "Jianghan", "dining"), ("S02", "Wuchang", "malls")]
        tills = [(one.terminal_id, one.store_id) for one in await book.terminals(approved.merchant_no)]
        assert tills == [("T1", "S01"), ("T2", "S01"), ("T3", "S02")]
        [listed] = [one for one in await book.everybody(NOW) if one.merchant_id == m(n)]
        assert (listed.merchant_id, listed.standing, listed.terminals) == (m(n), "ACTIVE", 3)
        assert listed.papers_until == date(2038, 4, 30)
    assert (await sent(database, asked)).replayed
    assert codes(await sent(database, application(n, district="Wuchang"))) >= {"MERCHANT_ID_TAKEN", "CREDIT_CODE_TAKEN"}


async def test_nothing_is_kept_by_a_precheck_or_without_an_id(database: stores.Database, n: int) -> None:
    async with at(database) as office:
        assert {one.code.value for one in await check(office, application(n))} == {"NOT_IN_REGISTER"}
        assert (await apply(office, application(n, merchant_id="M 1"))).state == "NOT_KEPT"
        assert m(n) not in [one.merchant_id for one in await office.book.everybody(NOW)]


async def test_whoever_submitted_cannot_decide_and_only_who_waits_is_decided(database: stores.Database, n: int) -> None:
    await register(database, business(n))
    await sent(database, application(n), "Li Na")
    async with at(database, "LI NA") as office:
        assert rule(await approve(office, m(n))) == "SAME_PERSON"
        assert rule(await reject(office, m(n), "no")) == "SAME_PERSON"
    async with at(database, WANG) as office:
        assert rule(await approve(office, "M999999")) == "RESOURCE_NOT_EXISTS"
        assert rule(await reject(office, m(n), "")) == "NO_REASON"
        assert isinstance(await reject(office, m(n), "a blurred scan"), Decided)
        assert rule(await approve(office, m(n))) == "NOT_WAITING"
    with pytest.raises(asyncpg.CheckViolationError, match="two_people"):  # the table holds it, too
        await execute(database, "UPDATE merchant_application SET sent_by = 'wang wei' WHERE merchant_id = $1", m(n))


async def test_a_rejected_applicant_may_come_again_with_the_same_papers(database: stores.Database, n: int) -> None:
    await register(database, business(n))
    await sent(database, application(n))
    async with at(database, WANG) as office:
        await reject(office, m(n), "a blurred scan")
    assert (await sent(database, application(n))).state == "SUBMITTED"


def another(n: int, **changes: Any) -> Application:
    """The second business, which shows a food permit of its own unless changed."""
    return application(n + 1, **changes)


@pytest.mark.parametrize(("field", "finding"), [("number", "PAPER_NUMBER_TAKEN"), ("sha256", "PAPER_FILE_TAKEN")])
async def test_a_paper_of_another_applicant_is_found_by_number_and_by_file(
    database: stores.Database, n: int, field: str, finding: str
) -> None:
    permit = paper("FOOD_PERMIT", n + 1, **{field: getattr(paper("FOOD_PERMIT", n), field)})
    await register(database, business(n), business(n + 1))
    await sent(database, application(n))
    asked = another(n, papers=(*another(n).papers[:2], permit))
    told = await sent(database, asked)
    assert (told.state, codes(told)) == ("DRAFT", {finding})
    assert m(n) in told.findings[0].en
    async with at(database, WANG) as office:
        await reject(office, m(n), "forged")
    assert (await sent(database, asked)).state == "SUBMITTED"


async def test_papers_are_looked_at_again_when_they_are_approved(database: stores.Database, n: int) -> None:
    await register(database, business(n))
    asked = application(n, papers=(*application(n).papers[:2], paper("FOOD_PERMIT", n, valid_until="2026-05-03")))
    assert (await sent(database, asked)).state == "SUBMITTED"
    await register(database, listing(n, until=date(2026, 5, 6)))
    for later, found in ((0, "ON_PUBLIC_LIST"), (3, "PAPER_EXPIRED"), (6, "PAPER_EXPIRED")):
        async with at(database, WANG, NOW + timedelta(days=later)) as office:
            refused = await approve(office, m(n))
            assert rule(refused) == "INCOMPLETE"
            assert isinstance(refused, Refusal)
            assert found in refused.detail
            assert ("ON_PUBLIC_LIST" in refused.detail) == (later < 6)
    async with at(database) as office:
        assert await office.book.merchant_no(m(n)) is None


async def test_a_merchant_that_the_register_speaks_against_later_is_named(database: stores.Database, n: int) -> None:
    await let_in(database, n)
    async with at(database) as office:
        assert m(n) not in [one.merchant_id for one in await office.book.doubtful(NOW.date())]
    for entry, found in (
        (listing(n), ("ACTIVE", date(2027, 2, 28))),
        (business(n, status="REVOKED"), ("REVOKED", date(2027, 2, 28))),
    ):
        await register(database, entry)
        async with at(database) as office:
            [one] = [one for one in await office.book.doubtful(NOW.date()) if one.merchant_id == m(n)]
            assert (one.merchant_id, one.status, one.listed_until) == (m(n), *found)


async def test_an_id_or_a_business_enrolled_otherwise_is_taken(database: stores.Database, n: int) -> None:
    await register(database, business(n), business(n + 1))
    shop = NewMerchant(
        merchant_id=m(n),
        name="quick",
        category="dining",
        district="x",
        payee_name="x",
        payee_account="62220000",
        payee_bank="x",
    )
    async with database.connection("hanquan_operator") as conn:
        await enrol_merchants(conn, MASTER_KEY, [shop], NOW)
    assert codes(await sent(database, application(n))) == {"MERCHANT_ID_TAKEN"}
    await sent(database, another(n))
    assert codes(await sent(database, another(n, merchant_id=f"OTHER{n}"))) >= {"CREDIT_CODE_TAKEN", "PAPER_FILE_TAKEN"}


async def test_stores_and_tills_are_added_once(database: stores.Database, n: int) -> None:
    await let_in(database, n)
    async with at(database) as office:
        assert await add_store(office, m(n), store("S02")) == Added(merchant_id=m(n), what="store S02")
        assert await add_terminal(office, m(n), "T9", "S02") == Added(merchant_id=m(n), what="terminal T9")
        for refused, why in (
            (await add_store(office, m(n), store("S02")), "STORE_TWICE"),
            (await add_store(office, m(n), store("S 3")), "PARAM_ERROR"),
            (await add_store(office, "M000009", store("S03")), "RESOURCE_NOT_EXISTS"),
            (await add_terminal(office, m(n), "T9", "S01"), "TERMINAL_TWICE"),
            (await add_terminal(office, m(n), "T8", "S09"), "RESOURCE_NOT_EXISTS"),
            (await add_terminal(office, m(n), "T 8", "S01"), "PARAM_ERROR"),
        ):
            assert rule(refused) == why


# ---------------------------------------------------------------- keys


def fresh(n: int) -> tuple[KeyMaterial, Signer]:
    """A new secret of a merchant."""
    made = new_key(MASTER_KEY, "merchant", m(n), Algorithm.HMAC)
    key = KeyMaterial(serial_no=made.signer.serial_no, algorithm=Algorithm.HMAC, material=made.material)
    return key, made.signer


class Till:
    """What a till's service knows of keys at a time that the test owns."""

    def __init__(self, database: stores.Database) -> None:
        self.database, self.clock = database, ManualClock(NOW)  # of the keys of all tests, it asks about some
        self.keyring = Keyring(self._rows, MASTER_KEY, self.clock)

    async def _rows(self) -> Sequence[dict[str, Any]]:
        async with self.database.connection("hanquan_redemption") as conn:
            return [dict(row) for row in await conn.fetch(key_queries["api_keys"])]

    async def knows(self, signer: Signer, holder_id: str = "") -> bool:
        """Whether a request that is signed so is taken."""
        await self.keyring.reload()
        stamp = int(self.clock.now().timestamp())
        who = msgspec.structs.replace(signer, holder_id=holder_id or signer.holder_id)
        signed = parse_authorization(who.authorization("GET", "/", b"", timestamp_s=stamp, nonce="12345678"))
        assert not isinstance(signed, Refusal)
        try:
            return self.keyring.authenticate(signed, "GET", "/", b"").holder_id == who.holder_id
        except Rejected:
            return False


async def test_two_keys_sign_during_the_overlap_and_then_the_new_one_alone(database: stores.Database, n: int) -> None:
    await let_in(database, n)
    till = Till(database)
    (old, old_signer), (new, new_signer), (third, third_signer) = fresh(n), fresh(n), fresh(n)
    async with at(database) as office:
        added = await key_desk.issue(office, m(n), "T1", old)
        assert isinstance(added, KeyAdded)
        assert added.not_after == NOW + key_desk.KEY_LIFE
        assert await till.knows(old_signer)
        rotated = await key_desk.rotate(office, m(n), "T1", new)
        assert isinstance(rotated, KeyAdded)
        assert (rotated.old_serial_no, rotated.old_not_after) == (old.serial_no, NOW + WEEK)
        assert rule(await key_desk.rotate(office, m(n), "T1", third)) == "HAS_KEY"
    till.clock.set(NOW + WEEK - timedelta(seconds=1))
    assert (await till.knows(old_signer), await till.knows(new_signer)) == (True, True)
    till.clock.set(NOW + WEEK)
    assert (await till.knows(old_signer), await till.knows(new_signer)) == (False, True)
    async with at(database, now=NOW + WEEK) as office:
        assert isinstance(await key_desk.rotate(office, m(n), "T1", third, timedelta()), KeyAdded)
    assert (await till.knows(new_signer), await till.knows(third_signer)) == (False, True)


async def test_an_overlap_never_makes_an_old_key_live_longer(database: stores.Database, n: int) -> None:
    await let_in(database, n)
    old, new = fresh(n)[0], fresh(n)[0]
    almost = NOW + key_desk.KEY_LIFE - timedelta(days=1)
    async with at(database) as office:
        await key_desk.issue(office, m(n), "T1", old)
    async with at(database, now=almost) as office:
        rotated = await key_desk.rotate(office, m(n), "T1", new, timedelta(days=90))
        assert isinstance(rotated, KeyAdded)
        assert rotated.old_not_after == NOW + key_desk.KEY_LIFE
        assert rule(await key_desk.rotate(office, m(n), "T1", fresh(n)[0], timedelta(days=91))) == "PARAM_ERROR"


async def test_a_till_has_one_key_and_nobody_elses(database: stores.Database, n: int) -> None:
    await let_in(database, n)
    await let_in(database, n + 1)
    till = Till(database)
    key, signer = fresh(n)
    async with at(database) as office:
        assert rule(await key_desk.rotate(office, m(n), "T1", key)) == "NO_KEY"
        assert rule(await key_desk.issue(office, m(n), "T9", key)) == "RESOURCE_NOT_EXISTS"
        assert isinstance(await key_desk.issue(office, m(n), "T1", key), KeyAdded)
        assert rule(await key_desk.issue(office, m(n), "T1", fresh(n)[0])) == "HAS_KEY"
        assert rule(await key_desk.issue(office, m(n), "T2", key)) == "KEY_TAKEN"
        assert rule(await key_desk.issue(office, m(n + 1), "T1", key)) == "KEY_TAKEN"
    assert await till.knows(signer)
    assert not await till.knows(signer, m(n + 1))
    await execute(  # whoever writes a key past the commands wins nothing: the till is not theirs
        database,
        "UPDATE api_key SET terminal_no = (SELECT terminal_no FROM terminal JOIN merchant USING (merchant_no)"
        " WHERE merchant_id = $2 AND terminal_id = 'T1') WHERE serial_no = $1",
        key.serial_no,
        m(n + 1),
    )
    assert not await till.knows(signer)


async def test_a_revoked_key_takes_those_along_that_were_registered_with_it(database: stores.Database, n: int) -> None:
    await let_in(database, n)
    till = Till(database)
    (stolen, stolen_signer), thief = fresh(n), new_key(MASTER_KEY, "merchant", m(n), Algorithm.RSA)
    async with at(database) as office:
        await key_desk.issue(office, m(n), "T1", stolen)
        async with at_redemption(database) as book:
            material = KeyMaterial(serial_no=thief.signer.serial_no, algorithm=Algorithm.RSA, material=thief.material)
            told = await key_desk.register(book, m(n), "T1", stolen.serial_no, material, NOW)
            assert isinstance(told, KeyAdded)
        assert (await till.knows(stolen_signer), await till.knows(thief.signer)) == (True, True)
        assert rule(await key_desk.revoke(office, stolen.serial_no, "")) == "NO_REASON"
        assert rule(await key_desk.revoke(office, "0" * 20, "stolen")) == "RESOURCE_NOT_EXISTS"
        revoked = await key_desk.revoke(office, stolen.serial_no, "stolen")
        assert not isinstance(revoked, Refusal)
        assert set(revoked) == {stolen.serial_no, thief.signer.serial_no}
        assert (await till.knows(stolen_signer), await till.knows(thief.signer)) == (False, False)
        assert await key_desk.revoke(office, stolen.serial_no, "stolen") == []
        async with at_redemption(database) as book:
            assert rule(await key_desk.register(book, m(n), "T1", stolen.serial_no, fresh(n)[0], NOW)) == "NOT_LIVE"
        key, signer = fresh(n)
        assert isinstance(await key_desk.issue(office, m(n), "T1", key), KeyAdded)
        # what an operator handed out does not go with the key before it
        next_key, next_signer = fresh(n)
        await key_desk.rotate(office, m(n), "T1", next_key)
        await key_desk.revoke(office, key.serial_no, "lost")
        assert (await till.knows(signer), await till.knows(next_signer)) == (False, True)


# ---------------------------------------------------------------- standing


async def test_who_is_suspended_until_when_and_why(database: stores.Database, n: int) -> None:
    await let_in(database, n)
    until, subject = NOW + WEEK, Subject(merchant_id=m(n))
    async with at(database) as office:
        number = await office.book.merchant_no(m(n))
        assert number is not None
        assert rule(await suspend(office, subject, "")) == "NO_REASON"
        assert rule(await suspend(office, subject, "why", NOW)) == "PARAM_ERROR"
        assert rule(await suspend(office, Subject(merchant_id="M000009"), "why")) == "RESOURCE_NOT_EXISTS"
        expected = Stands(what=m(n), suspended=True, until=until)
        assert await suspend(office, subject, "odd refunds", until) == expected
        assert await suspend(office, subject, "odd refunds", until) == msgspec.structs.replace(expected, replayed=True)
        for at_time, suspended in ((until - timedelta(seconds=1), True), (until, False)):
            row = await office.book.merchant(number, at_time)
            assert row is not None
            assert (row.suspended, row.suspended_why) == (suspended, "odd refunds" if suspended else None)
            shown = await office.conn.fetch(checkout_queries["merchants"], at_time)
            assert [one["suspended"] for one in shown if one["merchant_no"] == number] == [suspended]
        assert await suspend(office, subject, "worse") == Stands(what=m(n), suspended=True)
        assert await resume(office, subject) == Stands(what=m(n), suspended=False)
        assert await resume(office, subject) == Stands(what=m(n), suspended=False, replayed=True)
        changes = [(one.verb, one.why, one.until) for one in await office.book.changes(number)]
        assert changes == [("SUSPEND", "odd refunds", until), ("SUSPEND", "worse", None), ("RESUME", "", None)]


async def test_a_suspended_store_silences_its_tills_and_no_others(database: stores.Database, n: int) -> None:
    await let_in(database, n)
    till = Till(database)
    (key, signer), (other, other_signer) = fresh(n), fresh(n)
    shop, one = Subject(merchant_id=m(n), store_id="S02"), Subject(merchant_id=m(n), terminal_id="T9")
    async with at(database) as office:
        await add_store(office, m(n), store("S02"))
        await add_terminal(office, m(n), "T9", "S02")
        await key_desk.issue(office, m(n), "T1", key)
        await key_desk.issue(office, m(n), "T9", other)
        for subject in (shop, one):
            assert isinstance(await suspend(office, subject, "stolen"), Stands)
            assert (await till.knows(signer), await till.knows(other_signer)) == (True, False)
            await resume(office, subject)
            assert await till.knows(other_signer)
        assert rule(await suspend(office, shop, "why", NOW + WEEK)) == "PARAM_ERROR"
        assert rule(await suspend(office, Subject(merchant_id=m(n), store_id="S09"), "why")) == "RESOURCE_NOT_EXISTS"


async def test_who_is_suspended_registers_no_keys(database: stores.Database, n: int) -> None:
    await let_in(database, n)
    key = fresh(n)[0]
    async with at(database) as office, at_redemption(database) as book:
        await key_desk.issue(office, m(n), "T1", key)
        for subject in (
            Subject(merchant_id=m(n)),
            Subject(merchant_id=m(n), store_id="S01"),
            Subject(merchant_id=m(n), terminal_id="T1"),
        ):
            await suspend(office, subject, "why")
            assert rule(await key_desk.register(book, m(n), "T1", key.serial_no, fresh(n)[0], NOW)) == "SUSPENDED"
            await resume(office, subject)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):  # and a till's service hands out none
            await book.add_key(1, None, "A" * 20, "HMAC-SHA256", b"x", None, WEEK, WEEK, NOW)
