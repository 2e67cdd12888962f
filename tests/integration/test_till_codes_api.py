"""Codes at the till over HTTP: seeds, till codes that work once, one answer to invalid ones, terminals that lock."""

import asyncio
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

import pytest
import pytest_asyncio

from kernel.codes import CodeBook
from kernel.errors import Code, Refusal
from kernel.sealing import seal
from kernel.signing import Algorithm, Caller, Signer
from kernel.till_codes import TillSeeds, till_code, window_of
from kernel.web import KEYRING
from redemption.lockout import LOCK_S, MERCHANT_MAX, NO_SUCH_CODE, STRICT_MAX, TERMINAL_MAX, Lockout
from redemption.till_codes import Presented, TillCodes
from stack.child import Child
from tests import stores
from tests.city import CODE_KEYS, MASTER_KEY, City, Reply, assert_problem, open_city, unchanged
from tests.city_plan import BILL, PAID, person
from tests.hostile import FORGERIES, Ask, add_bad_keys

pytestmark = pytest.mark.asyncio(loop_scope="module")

PEOPLE = iter(range(10_000))
SEEDS = TillSeeds(CODE_KEYS)
OTHER_KEYS = {1: bytes(16)}
SHOP = "NOODLES"
REVIVED: list[Child] = []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    async with open_city(cluster, tmp_path_factory.mktemp("tills")) as made:
        await add_bad_keys(made, "wechat")
        yield made
    for child in REVIVED:
        child.kill()


async def new_tills(city: City, count: int = 1, shop: str = SHOP, service: str | None = None) -> list[Signer]:
    """Fresh terminals of a shop, each with its key, known to the checkout."""
    pool, made = city.database.pool, []
    merchant_no = await pool.fetchval("SELECT merchant_no FROM merchant WHERE merchant_id = $1", shop)
    for _ in range(count):
        serial_no, secret = secrets.token_hex(10).upper(), secrets.token_bytes(32)
        terminal_no = await pool.fetchval(
            "INSERT INTO terminal (merchant_no, terminal_id) VALUES ($1, $2) RETURNING terminal_no",
            merchant_no,
            serial_no,
        )
        await pool.execute(
            "INSERT INTO api_key (serial_no, holder_kind, holder_id, terminal_no, algorithm, key_material, not_before,"
            " not_after) VALUES ($1, 'merchant', $2, $3, 'HMAC-SHA256', $4, $5, $6)",
            *(serial_no, shop, terminal_no, seal(MASTER_KEY, secret, serial_no)),
            *(city.clock.now() - timedelta(days=1), city.clock.now() + timedelta(days=9)),
        )
        made.append(Signer(holder_id=shop, serial_no=serial_no, algorithm=Algorithm.HMAC, secret=secret))
    await city.apps[service or city.redemption][KEYRING].reload()
    return made


async def redeem(
    city: City, till: Signer, code: str, number: str | None = None, order: str = "", service: str | None = None
) -> Reply:
    number = number or city.number("use")
    body = {"use_request_no": number, "voucher_code": code, "order_no": order or number, "bill_fen": BILL}
    return await city.call(service or city.redemption, till, "POST", "/v1/redemptions", body)


async def vouchers(city: City, count: int = 1) -> list[str]:
    """Codes of fresh vouchers, drained."""
    return await city.claim_many("dining", [person(next(PEOPLE)) for _ in range(count)])


def shown(city: City, printed: str, *, later_s: float = 0, seeds: TillSeeds = SEEDS) -> str:
    """What the phone of who holds a voucher shows in so many seconds."""
    voucher_id = city.codes.decode(printed)
    assert voucher_id is not None
    return till_code(seeds.of(voucher_id), window_of(city.clock.now() + timedelta(seconds=later_s)))


def guess() -> str:
    """A till code that nobody's phone made."""
    return "".join(secrets.choice("0123456789ABCDEFGHJKMNPQRSTVWXYZ") for _ in range(20))


def pass_time(city: City, seconds: float) -> None:
    city.clock.move_to(city.clock.now() + timedelta(seconds=seconds))


def words(reply: Reply) -> str:
    """A problem without what differs from one answer to the next."""
    differ = ("request_id", "server_time", "retry_after_s")
    return json.dumps({name: value for name, value in reply.json.items() if name not in differ})


# ---------------------------------------------------------------- the seed


def ask(code: str) -> Ask:
    return Ask("issuer", "wechat", "GET", f"/v1/vouchers/{code}/seed")


async def test_a_partner_is_given_the_seed_of_its_voucher(city: City, capfd: pytest.CaptureFixture[str]) -> None:
    [code] = await vouchers(city)
    async with unchanged(city):
        replies = [await ask(code).send(city) for _ in range(2)]
    voucher_id = city.codes.decode(code)
    assert voucher_id is not None
    given = SEEDS.of(voucher_id)
    assert [reply.json for reply in replies] == [{"name": given.name, "seed": given.seed.hex(), "window_s": 60}] * 2
    assert {reply.headers["Cache-Control"] for reply in replies} == {"no-store"}
    shown = till_code(given, window_of(city.clock.now()))
    presented = TillCodes(city.codes, SEEDS).read(shown, city.clock.now())
    assert presented == Presented(voucher_id, window_of(city.clock.now()))
    logged = "".join(capfd.readouterr()).lower()
    assert given.seed.hex() not in logged and given.name.lower() not in logged and code.lower() not in logged


async def test_others_and_unknown_codes_get_one_answer(city: City) -> None:
    [code] = await vouchers(city)
    swapped = code[:-2] + code[:-3:-1]
    asked = [("alipay", code), ("wechat", swapped), ("wechat", "0" * 26), ("wechat", SEEDS.of(1).name * 2)]
    replies = [await ask(one).send(city, signer=signer) for signer, one in asked]
    for reply in replies:
        assert_problem(reply, Code.RESOURCE_NOT_EXISTS)
        assert reply.headers["Cache-Control"] == "no-store"
    differ = ("request_id", "server_time")
    words = [{name: value for name, value in reply.json.items() if name not in differ} for reply in replies]
    assert words == [words[0]] * len(words)


async def test_a_voucher_on_its_way_into_the_ledger_is_asked_for_again(city: City) -> None:
    code = (await city.claim("dining", person(next(PEOPLE)))).json["voucher_code"]
    reply = await ask(code).send(city)
    assert_problem(reply, Code.CONFIRMING)
    assert reply.headers["Retry-After"] == "1"
    await city.drain()
    assert (await ask(code).send(city)).status == 200


async def test_nobody_else_is_given_a_seed(city: City) -> None:
    [code] = await vouchers(city)
    for flaw in FORGERIES.values():
        assert_problem(await flaw(city, ask(code)), Code.SIGN_ERROR)


async def test_only_get_is_taken(city: City) -> None:
    path = f"/v1/vouchers/{(await vouchers(city))[0]}/seed"
    assert_problem(await city.call(city.issuer, "wechat", "POST", path), Code.METHOD_NOT_ALLOWED)


# ---------------------------------------------------------------- till codes


async def test_a_till_code_redeems(city: City) -> None:
    [code], [till] = await vouchers(city), await new_tills(city)
    reply = await redeem(city, till, shown(city, code).lower())
    assert (reply.status, reply.json["state"], reply.json["voucher_code"]) == (200, "USED", code)


async def test_a_phone_a_minute_wrong_is_taken_and_one_two_minutes_wrong_is_not(city: City) -> None:
    [behind, ahead, late], [till] = await vouchers(city, 3), await new_tills(city)
    assert (await redeem(city, till, shown(city, behind, later_s=-50))).status == 200
    assert (await redeem(city, till, shown(city, ahead, later_s=55))).status == 200
    for wrong_s in (-185, 185):
        assert_problem(await redeem(city, till, shown(city, late, later_s=wrong_s)), Code.RESOURCE_NOT_EXISTS)


async def test_a_till_code_works_once(city: City) -> None:
    """Also when the voucher lives again after a refund; the next code works, and the printed one at once."""
    [code, other], [till] = await vouchers(city, 2), await new_tills(city)
    for voucher, is_printed in ((code, False), (other, True)):
        picture, number = shown(city, voucher, later_s=40), city.number("use")
        assert (await redeem(city, till, picture, number)).status == 200
        assert_problem(await redeem(city, till, picture), Code.RESOURCE_NOT_EXISTS)
        assert_problem(await redeem(city, till, voucher), Code.USED_BY_ANOTHER_ORDER)
        refund = {"refund_request_no": city.number("back"), "use_request_no": number, "refund_fen": PAID}
        assert (await city.call(city.redemption, till, "POST", "/v1/refunds", refund)).status == 200
        assert_problem(await redeem(city, till, picture), Code.RESOURCE_NOT_EXISTS)
        if not is_printed:
            pass_time(city, 120)
        assert (await redeem(city, till, voucher if is_printed else shown(city, voucher))).status == 200


async def test_a_repeated_request_finds_its_answer_though_its_code_is_old(city: City) -> None:
    [code, other], [till, neighbour] = await vouchers(city, 2), await new_tills(city, 2)
    picture, number, order = shown(city, code), city.number("use"), city.number("order")
    first = await redeem(city, till, picture, number, order)
    for later_s in (200, 3_600, 5 * 86_400):
        pass_time(city, later_s)
        again = await redeem(city, till, picture, number, order)
        assert (again.status, again.body) == (200, first.body)
        assert again.headers["Idempotent-Replayed"] == "true"
    # An old code is good for nothing else: not under another number, for another payment, or of another voucher.
    assert_problem(await redeem(city, till, picture), Code.RESOURCE_NOT_EXISTS)
    assert_problem(await redeem(city, till, picture, number, "other-order"), Code.IDEMPOTENCY_MISMATCH)
    assert_problem(await redeem(city, till, shown(city, other, later_s=-900), number, order), Code.IDEMPOTENCY_MISMATCH)
    [stranger] = await new_tills(city, shop="DUMPLINGS")
    assert_problem(await redeem(city, stranger, picture, number, order), Code.RESOURCE_NOT_EXISTS)
    assert (await redeem(city, neighbour, picture, number, order)).status == 200, "the same merchant"
    pass_time(city, -(200 + 3_600 + 5 * 86_400))


# ---------------------------------------------------------------- one answer, and the lock


async def test_all_invalid_codes_get_one_answer(city: City) -> None:
    [code, other] = await vouchers(city, 2)
    voucher_id = city.codes.decode(code) or 0
    shape = {
        "one letter wrong": code[:-1] + ("0" if code[-1] != "0" else "1"),
        "of another city": CodeBook(OTHER_KEYS).encode(voucher_id),
        "of no key": "Z" * 26,
        "too old": shown(city, code, later_s=-300),
        "too early": shown(city, code, later_s=300),
        "made up": guess(),
        "of another city's phone": shown(city, code, seeds=TillSeeds(OTHER_KEYS)),
        "another voucher's proof": SEEDS.of(voucher_id).name + shown(city, other)[10:],
        "the name alone": SEEDS.of(voucher_id).name,
        "nothing": "-",
        "too long": "0" * 64,
        "no code at all": "二维码",
    }
    tills = await new_tills(city, len(shape))
    replies = {name: await redeem(city, till, text) for till, (name, text) in zip(tills, shape.items(), strict=True)}
    for name, reply in replies.items():
        assert_problem(reply, Code.RESOURCE_NOT_EXISTS)
        assert words(reply) == words(replies["made up"]), name
        assert {key.lower() for key in reply.headers} == {key.lower() for key in replies["made up"].headers}, name


async def test_five_invalid_codes_lock_the_terminal_and_no_other(city: City) -> None:
    [code, used], [till, neighbour] = await vouchers(city, 2), await new_tills(city, 2)
    number = city.number("use")
    assert (await redeem(city, till, used, number)).status == 200
    for _ in range(TERMINAL_MAX):
        assert_problem(await redeem(city, till, guess()), Code.RESOURCE_NOT_EXISTS)
    asked = [code, shown(city, code), guess(), code[::-1], "-", used]
    locked = [await redeem(city, till, text) for text in asked]
    for reply in locked:
        assert_problem(reply, Code.TERMINAL_LOCKED)
        assert LOCK_S - 30 <= int(reply.headers["Retry-After"]) == reply.json["retry_after_s"] <= LOCK_S
    assert len({words(reply) for reply in locked}) == 1, "right or wrong, nobody can tell"
    # What carries no code goes on: the answer of before is found by its number, and the refund is taken.
    assert (await city.call(city.redemption, till, "GET", f"/v1/redemptions/{number}")).json["voucher_code"] == used
    refund = {"refund_request_no": city.number("back"), "use_request_no": number, "refund_fen": PAID}
    assert (await city.call(city.redemption, till, "POST", "/v1/refunds", refund)).status == 200
    assert (await redeem(city, neighbour, used)).status == 200
    pass_time(city, LOCK_S - 40)
    assert_problem(await redeem(city, till, code), Code.TERMINAL_LOCKED)
    pass_time(city, 40)
    assert (await redeem(city, till, code)).status == 200


async def test_old_screens_and_wrong_clocks_lock_nobody(city: City) -> None:
    [code], [till] = await vouchers(city), await new_tills(city)
    for late_s in (-86_400, -3_600, -300, -200, 200, 300, 3_600):
        assert_problem(await redeem(city, till, shown(city, code, later_s=late_s)), Code.RESOURCE_NOT_EXISTS)
    assert (await redeem(city, till, code)).status == 200


async def test_a_cashier_who_makes_four_mistakes_goes_on(city: City) -> None:
    codes, [till] = await vouchers(city, 2), await new_tills(city)
    for code in codes:
        for at in range(TERMINAL_MAX - 1):
            typed = code[:at] + ("7" if code[at] != "7" else "8") + code[at + 1 :]
            assert_problem(await redeem(city, till, typed), Code.RESOURCE_NOT_EXISTS)
        assert (await redeem(city, till, code)).status == 200
        pass_time(city, LOCK_S)


async def test_two_workers_share_the_count(city: City) -> None:
    second = await city.new_redemption()
    [code], [till] = await vouchers(city), await new_tills(city)
    await city.apps[second][KEYRING].reload()
    services = [city.redemption, second, city.redemption, second, second]
    told = [(await redeem(city, till, guess(), service=service)).code for service in services]
    assert told == [Code.RESOURCE_NOT_EXISTS] * TERMINAL_MAX
    assert_problem(await redeem(city, till, guess(), service=city.redemption), Code.TERMINAL_LOCKED)
    for service in (second, city.redemption):
        assert_problem(await redeem(city, till, code, service=service), Code.TERMINAL_LOCKED)


# ---------------------------------------------------------------- enumeration


async def enumerate_codes(city: City, tills: Sequence[Signer], rounds: int) -> Counter[str | None]:
    """Each till sends a guess a round, all of them at once; how they were answered."""
    told: Counter[str | None] = Counter()
    for _ in range(rounds):
        told += Counter(reply.code for reply in await asyncio.gather(*(redeem(city, till, guess()) for till in tills)))
    return told


def assert_stopped(told: Counter[str | None], tills: int) -> None:
    """No more were judged than 50 of the merchant, and two of each till."""
    assert told[Code.RESOURCE_NOT_EXISTS] <= MERCHANT_MAX + STRICT_MAX * tills, told
    assert told[None] == 0
    assert told[Code.TERMINAL_LOCKED] > 0, told


async def test_enumeration_from_a_hundred_terminals_is_stopped(city: City) -> None:
    tills = await new_tills(city, 100, "HOTPOT")
    assert_stopped(await enumerate_codes(city, tills, 5), len(tills))
    [code] = await vouchers(city)
    [fresh] = await new_tills(city, 1, "HOTPOT")
    assert_problem(await redeem(city, fresh, guess()), Code.RESOURCE_NOT_EXISTS)
    assert (await redeem(city, fresh, code)).status == 200, "an honest till of that very merchant, after one mistake"


async def test_without_the_lockout_enumeration_goes_on(city: City, monkeypatch: pytest.MonkeyPatch) -> None:
    async def not_counted(self: Lockout, caller: Caller) -> Refusal:
        return NO_SUCH_CODE

    monkeypatch.setattr(Lockout, "refusal", lambda self, caller: None)
    monkeypatch.setattr(Lockout, "failed", not_counted)
    tills = await new_tills(city, 100, "HOTPOT")
    told = await enumerate_codes(city, tills, 4)
    assert told == {Code.RESOURCE_NOT_EXISTS: 400}
    with pytest.raises(AssertionError):
        assert_stopped(told, len(tills))


# ---------------------------------------------------------------- the store is away


async def test_without_valkey_tills_go_on_and_the_lockout_stays_closed(city: City) -> None:
    codes, [till, neighbour] = await vouchers(city, 2), await new_tills(city, 2, "DUMPLINGS")
    city.valkey.child.kill()
    try:
        assert (await redeem(city, till, codes[0])).status == 200
        told = [(await redeem(city, till, guess())).code for _ in range(TERMINAL_MAX + 1)]
        assert told == [Code.RESOURCE_NOT_EXISTS] * TERMINAL_MAX + [Code.TERMINAL_LOCKED]
        assert_problem(await redeem(city, till, codes[1]), Code.TERMINAL_LOCKED)
        assert (await redeem(city, neighbour, shown(city, codes[1]))).status == 200
    finally:
        again = Child(city.valkey.server.program())
        REVIVED.append(again)
        await again.ready()
