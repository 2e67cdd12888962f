"""Merchants under contention: a suspension among tills at work, two people who approve, two who show one paper.

Each has its control: without the guard it goes wrong.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

import kernel.keyring
import redemption.catalogue
from kernel.errors import Code, Refusal
from kernel.signing import Algorithm
from redemption.merchants import keys as key_desk
from redemption.merchants import onboarding
from redemption.merchants.book import MerchantBook
from redemption.merchants.keys import KeyAdded, KeyMaterial
from redemption.merchants.office import Office
from redemption.merchants.onboarding import Applied, Decided, apply, approve
from redemption.merchants.standing import Stands, Subject, resume, suspend
from stack.enrol import new_key
from tests import stores
from tests.city import MASTER_KEY, City, Reply, assert_problem, open_city
from tests.city_plan import person
from tests.merchant_world import LI, NOW, WANG, application, at, business, let_in, paper, register

NEVER_S = 3_600.0
"""No refresh comes by itself: only what the books tell reaches a till."""
AT_ONCE_S = 1.0
"""Generous: it is milliseconds on a machine that does nothing else."""
TILLS = 6
HALF = 200
"""Vouchers for the test, and as many for its control."""


# ---------------------------------------------------------------- suspension


@dataclass(frozen=True)
class Taken:
    """One redemption: when it was answered (monotonic, seconds), and how."""

    at_s: float
    shop: str
    reply: Reply


@pytest.fixture
async def city(
    cluster: stores.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[City, list[str]]]:
    """A city with two checkout workers that never look again unless they are told, and vouchers to redeem."""
    monkeypatch.setattr(redemption.catalogue, "REFRESH_EVERY_S", NEVER_S)
    monkeypatch.setattr(kernel.keyring, "RELOAD_EVERY_S", NEVER_S)
    async with open_city(cluster, tmp_path) as made:
        await made.new_redemption()
        yield made, await made.claim_many("dining", [person(number) for number in range(2 * HALF + 20)])


@asynccontextmanager
async def tills_at_work(city: City, codes: Sequence[str], shops: Sequence[str]) -> AsyncIterator[list[Taken]]:
    """Tills of some shops redeem one voucher after another at all workers, while the context is open."""
    workers = [url for url in city.apps if url != city.issuer]
    left, taken, closing = iter(codes), list[Taken](), asyncio.Event()

    async def till(number: int) -> None:
        shop, worker = shops[number % len(shops)], workers[number // len(shops) % len(workers)]
        while not closing.is_set() and (code := next(left, None)):
            reply = await city.redeem(shop, code, service=worker)
            taken.append(Taken(time.monotonic(), shop, reply))

    async with asyncio.TaskGroup() as tasks:
        for number in range(TILLS):
            tasks.create_task(till(number))
        yield taken
        closing.set()


@asynccontextmanager
async def operator(city: City) -> AsyncIterator[Office]:
    async with city.database.connection("hanquan_operator") as conn:
        yield Office(conn=conn, by=LI, now=city.clock.now())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def of(taken: Sequence[Taken], shop: str, since_s: float = 0.0, *, used: bool = True) -> list[Taken]:
    return [one for one in taken if one.shop == shop and one.at_s > since_s and (one.reply.status == 200) == used]


async def test_a_suspension_reaches_every_till_at_once_and_no_other_shop(city: tuple[City, list[str]]) -> None:
    made, codes = city[0], city[1][:HALF]
    async with operator(made) as office:
        async with tills_at_work(made, codes, ["NOODLES", "DUMPLINGS", "HOTPOT"]) as taken:
            await until(lambda: len(of(taken, "NOODLES")) > 10)
            assert isinstance(await suspend(office, Subject(merchant_id="NOODLES"), "odd refunds"), Stands)
            noodles_s = time.monotonic()
            await until(lambda: len(of(taken, "NOODLES", noodles_s, used=False)) > 10)
            await suspend(office, Subject(merchant_id="DUMPLINGS", terminal_id="T1"), "stolen")
            dumplings_s = time.monotonic()
            await until(lambda: len(of(taken, "DUMPLINGS", dumplings_s, used=False)) > 10)
        assert of(taken, "NOODLES", noodles_s + AT_ONCE_S) == []
        assert {one.reply.rule for one in of(taken, "NOODLES", used=False)} == {"MERCHANT_SUSPENDED"}
        assert of(taken, "DUMPLINGS", dumplings_s + AT_ONCE_S) == []
        assert {one.reply.code for one in of(taken, "DUMPLINGS", used=False)} == {Code.SIGN_ERROR}
        assert of(taken, "HOTPOT", dumplings_s)
        assert of(taken, "HOTPOT", used=False) == []
        await resume(office, Subject(merchant_id="NOODLES"))
        rest = iter(city[1][::-1])
        async with asyncio.timeout(AT_ONCE_S):
            while (await made.redeem("NOODLES", next(rest))).status != 200:
                await asyncio.sleep(0.01)
    stranger = msgspec.structs.replace(made.signers["HOTPOT"], holder_id="EMPORIUM")
    assert_problem(await made.call(made.redemption, stranger, "GET", "/v1/statements/2020-04-23"), Code.SIGN_ERROR)
    await control_tills_that_are_not_told_go_on(made, city[1][HALF : 2 * HALF])


async def control_tills_that_are_not_told_go_on(city: City, codes: Sequence[str]) -> None:
    await city.database.pool.execute("DROP TRIGGER tell_of_merchant ON merchant")
    async with operator(city) as office, tills_at_work(city, codes, ["HOTPOT"]) as taken:
        await until(lambda: len(of(taken, "HOTPOT")) > 10)
        await suspend(office, Subject(merchant_id="HOTPOT"), "odd refunds")
        suspended_s = time.monotonic()
        await asyncio.sleep(0.3)
    assert of(taken, "HOTPOT", suspended_s + 0.1)
    assert of(taken, "HOTPOT", used=False) == []


# ---------------------------------------------------------------- onboarding


async def together(database: stores.Database, *acts: tuple[str, Callable[[Office], Any]]) -> list[Any]:
    """What people answer who act at the same time, each on a connection of their own."""

    async def act(by: str, work: Callable[[Office], Any]) -> Any:
        async with at(database, by) as office:
            return await work(office)

    return await asyncio.gather(*(act(by, work) for by, work in acts), return_exceptions=True)


def meet_after_judging(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: nobody waits for anybody, and both have judged before either acts."""
    judge, both = onboarding._judge, asyncio.Barrier(2)

    async def judged(*args: Any) -> Any:
        found = await judge(*args)
        await both.wait()
        return found

    async def look(self: MerchantBook, merchant_id: str, *, locked: bool = False) -> Any:
        return await look_only(self, merchant_id)

    async def go_on(self: MerchantBook) -> None:
        """Takes no lock."""

    look_only = MerchantBook.applications
    monkeypatch.setattr(onboarding, "_judge", judged)
    monkeypatch.setattr(MerchantBook, "applications", look)
    monkeypatch.setattr(MerchantBook, "lock_onboarding", go_on)


@pytest.mark.parametrize("is_guarded", [True, False], ids=["guarded", "control"])
async def test_two_who_approve_at_once_make_one_merchant(
    database: stores.Database, monkeypatch: pytest.MonkeyPatch, is_guarded: bool
) -> None:
    await register(database, business())
    async with at(database) as office:
        await apply(office, application())
    if not is_guarded:
        meet_after_judging(monkeypatch)
        await database.pool.execute("ALTER TABLE merchant DROP CONSTRAINT merchant_merchant_id_key")
        await database.pool.execute(
            "ALTER TABLE merchant_application DROP CONSTRAINT merchant_application_merchant_no_key"
        )
    told = await together(
        database,
        (WANG, lambda office: approve(office, "M000001")),
        ("Zhao Min", lambda office: approve(office, "M000001")),
    )
    assert sum(isinstance(one, Decided) for one in told) == 1
    clean = [isinstance(one, Refusal) and one.rule == "NOT_WAITING" for one in told]
    assert (sum(clean) == 1) == is_guarded, told
    assert await database.pool.fetchval("SELECT count(*) FROM merchant") == 1


@pytest.mark.parametrize("is_guarded", [True, False], ids=["guarded", "control"])
async def test_of_two_who_show_one_paper_at_once_one_waits_and_the_other_is_told(
    database: stores.Database, monkeypatch: pytest.MonkeyPatch, is_guarded: bool
) -> None:
    await register(database, business(1), business(2))
    forged = paper("FOOD_PERMIT", 2, sha256=paper("FOOD_PERMIT", 1).sha256)
    second = application(2, papers=(*application(2).papers[:2], forged))
    if not is_guarded:
        meet_after_judging(monkeypatch)
    told = await together(
        database, (LI, lambda office: apply(office, application())), (WANG, lambda office: apply(office, second))
    )
    if is_guarded:
        assert sorted(one.state for one in told) == ["DRAFT", "SUBMITTED"]
        [draft] = [one for one in told if isinstance(one, Applied) and one.findings]
        assert [one.code for one in draft.findings] == ["PAPER_FILE_TAKEN"]
    else:  # the table stops the second; nobody is told what is wrong
        assert sum(isinstance(one, asyncpg.UniqueViolationError) for one in told) == 1


async def test_a_till_that_is_rotated_twice_at_once_has_one_new_key(database: stores.Database) -> None:
    merchant_id = await let_in(database)

    def fresh() -> KeyMaterial:
        made = new_key(MASTER_KEY, "merchant", merchant_id, Algorithm.HMAC)
        return KeyMaterial(serial_no=made.signer.serial_no, algorithm=Algorithm.HMAC, material=made.material)

    async with at(database) as office:
        issued = await key_desk.issue(office, merchant_id, "T1", fresh())
        assert isinstance(issued, KeyAdded)
    told = await together(
        database,
        *((by, lambda office: key_desk.rotate(office, merchant_id, "T1", fresh())) for by in (LI, WANG, "Zhao Min")),
    )
    assert sum(isinstance(one, KeyAdded) for one in told) == 1, told
    assert sum(isinstance(one, Refusal) and one.rule == "HAS_KEY" for one in told) == 2
    live = "SELECT count(*) FROM api_key WHERE revoked_at IS NULL AND not_after > $1"
    assert await database.pool.fetchval(live, NOW) == 2


async def test_no_key_slips_in_beside_a_revocation(database: stores.Database) -> None:
    merchant_id = await let_in(database)
    keys = [new_key(MASTER_KEY, "merchant", merchant_id, Algorithm.HMAC) for _ in range(2)]
    old, thiefs = (
        KeyMaterial(serial_no=one.signer.serial_no, algorithm=Algorithm.HMAC, material=one.material) for one in keys
    )
    async with at(database) as office:
        await key_desk.issue(office, merchant_id, "T1", old)
        async with database.connection("hanquan_redemption") as thief, thief.transaction():
            told = await key_desk.register(MerchantBook(thief), merchant_id, "T1", old.serial_no, thiefs, NOW)
            assert isinstance(told, KeyAdded)
            revoking = asyncio.create_task(key_desk.revoke(office, old.serial_no, "stolen"))
            await asyncio.sleep(0.05)
            assert not revoking.done()  # it waits for the thief's transaction, and sees what that did
        revoked = await revoking
    assert not isinstance(revoked, Refusal)
    assert set(revoked) == {old.serial_no, thiefs.serial_no}
