"""Races for holds and of their ends, over two checkout services. The controls at the end must lose."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

import msgspec
import pytest
import pytest_asyncio

from kernel.clock import FileClock
from kernel.errors import Code
from redemption.app import make_app
from redemption.numbers import Scope
from tests import stores
from tests.city import City, Reply, open_city
from tests.city_plan import FACE, NOON, a_campaign, a_round, a_stock
from tests.tilling import (
    assert_audited,
    bucket_of_code,
    double_uses,
    fresh,
    moving,
    no_lock,
    slow_commits,
    vouchers,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHOP, OTHER = "NOODLES", "DUMPLINGS"
TILLS = 100
AHEAD_S = 20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    plan = a_campaign("restoring", a_round("now", NOON, a_stock("dining", quantity=2_000)))
    async with open_city(cluster, tmp_path_factory.mktemp("holds"), campaigns=[plan]) as made:
        await slow_commits(made, "redemption", "hold", "hold_end")
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def services(city: City) -> tuple[str, str]:
    """Two checkout services over one ledger."""
    return city.redemption, await city.new_redemption()


def told(replies: Sequence[Reply]) -> Counter[str | None]:
    """How often each rule or code was answered; None is success."""
    return Counter(reply.rule or reply.code for reply in replies)


async def held(city: City, codes: Sequence[str], ttl_s: int = 3_600) -> list[str]:
    """Numbers of holds, one of each voucher."""
    numbers = [city.number("hold") for _ in codes]
    replies = await asyncio.gather(
        *(city.hold(SHOP, code, number=number, ttl_s=ttl_s) for code, number in zip(codes, numbers, strict=True))
    )
    assert told(replies) == {None: len(codes)}
    return numbers


# ---------------------------------------------------------------- one voucher, many tills


async def test_a_hundred_tills_hold_or_redeem_one_voucher(city: City, services: Sequence[str]) -> None:
    [code] = await vouchers(city, 1)

    async def ask(n: int) -> Reply:
        act = city.hold if n % 3 else city.redeem
        return await act(SHOP if n % 2 else OTHER, code, service=services[n % 2])

    replies = await asyncio.gather(*(ask(n) for n in range(TILLS)))
    [winner] = [reply.json for reply in replies if reply.status == 200]
    lost = Code.USED_BY_ANOTHER_ORDER if winner["state"] == "USED" else Code.LOCKED_BY_ANOTHER_ORDER
    assert told(replies) == {None: 1, lost: TILLS - 1}
    counted = "SELECT (SELECT count(*) FROM hold h WHERE h.voucher_id = $1) + (SELECT count(*) FROM redemption r"
    assert await city.fetchval(f"{counted} WHERE r.voucher_id = $1)", city.codes.decode(code)) == 1


async def test_the_same_hold_from_many_connections_is_one(city: City, services: Sequence[str]) -> None:
    [code] = await vouchers(city, 1)
    replies = await asyncio.gather(
        *(city.hold(SHOP, code, number="same-hold", order="same-hold", service=services[n % 2]) for n in range(40))
    )
    assert told(replies) == {None: 40}
    assert len({reply.body for reply in replies}) == 1
    assert sum("Idempotent-Replayed" not in reply.headers for reply in replies) == 1, "one did it, 39 are told"
    confirmed = await asyncio.gather(
        *(city.confirm(SHOP, "same-hold", number="same-use", service=services[n % 2]) for n in range(40))
    )
    assert told(confirmed) == {None: 40}
    assert len({reply.body for reply in confirmed}) == 1
    assert sum("Idempotent-Replayed" not in reply.headers for reply in confirmed) == 1


# ---------------------------------------------------------------- one end


async def end_both_ways(city: City, services: Sequence[str], numbers: Sequence[str]) -> list[tuple[Reply, Reply]]:
    """Each hold confirmed and cancelled at once, hold after hold so that no batch puts them in order."""
    ends: list[tuple[Reply, Reply]] = []
    for n, number in enumerate(numbers):
        ends.append(
            await asyncio.gather(
                city.confirm(SHOP, number, service=services[n % 2]),
                city.cancel(SHOP, number, service=services[1 - n % 2]),
            )
        )
    return ends


async def ended_twice(city: City) -> int:
    """Holds that ended more than once."""
    count: int = await city.fetchval(
        "SELECT count(*) FROM (SELECT FROM hold_end GROUP BY voucher_id, attempt HAVING count(*) > 1) AS doubled"
    )
    return count


async def test_a_hold_is_confirmed_or_cancelled_and_money_agrees(city: City, services: Sequence[str]) -> None:
    codes = await vouchers(city, 12)
    numbers = await held(city, codes)
    before = await city.fetchval("SELECT count(*) FROM redemption")
    ends = await end_both_ways(city, services, numbers)
    words = Counter((confirm.rule, cancel.rule) for confirm, cancel in ends)
    assert set(words) <= {(None, "HOLD_CONFIRMED"), ("HOLD_CANCELLED", None)}, words
    confirmed = sum(confirm.status == 200 for confirm, _ in ends)
    assert await city.fetchval("SELECT count(*) FROM redemption") - before == confirmed
    async with moving(city, ISSUED=-FACE * (12 - confirmed), PAYABLE=FACE * (12 - confirmed)):
        again = [await city.redeem(OTHER, code) for code in codes]
    assert told(again) == Counter({Code.USED_BY_ANOTHER_ORDER: confirmed, None: 12 - confirmed})
    assert (await ended_twice(city), await double_uses(city)) == (0, 0)


@pytest.mark.parametrize("is_here", [True, False], ids=["number_at_home", "number_elsewhere"])
async def test_one_number_with_two_bodies_at_once_does_one_thing(
    city: City, services: Sequence[str], is_here: bool
) -> None:
    for pair in await pairs(city, 4):
        number = await fresh(city, Scope.HOLD, SHOP, pair[0], is_here=is_here)
        holds = await asyncio.gather(
            *(city.hold(SHOP, code, number=number, service=url) for code, url in zip(pair, services, strict=True))
        )
        assert told(holds) == {None: 1, Code.IDEMPOTENCY_MISMATCH: 1}
    for pair in await pairs(city, 4):
        numbers = await held(city, pair)
        use = await fresh(city, Scope.USE, SHOP, pair[0], is_here=is_here)
        uses = await asyncio.gather(
            *(city.confirm(SHOP, one, number=use, service=url) for one, url in zip(numbers, services, strict=True))
        )
        assert told(uses) == {None: 1, Code.IDEMPOTENCY_MISMATCH: 1}


async def pairs(city: City, count: int, *, is_apart: bool = True) -> list[Sequence[str]]:
    """Pairs of vouchers, one of each bucket or both of the first."""
    codes = await vouchers(city, 8 * count + 20)
    first, second = [[code for code in codes if bucket_of_code(city, code) == bucket] for bucket in (0, 1)]
    if not is_apart:
        second = first[count:]
    return list(zip(first[:count], second[:count], strict=True))


# ---------------------------------------------------------------- the clock


async def ahead(city: City) -> str:
    """A checkout service on a machine whose clock is ahead."""
    clock_file = city.folder / "clock_ahead"
    FileClock(clock_file).move_to(city.clock.now() + timedelta(seconds=AHEAD_S))
    settings = msgspec.structs.replace(city.settings("hanquan_redemption"), clock_file=str(clock_file))
    return await city.serve(await make_app(settings))


async def run_out_race(city: City, early: str, late: str, count: int) -> list[tuple[Reply, Reply]]:
    """Holds confirmed where they still live while another till redeems where they have run out."""
    codes = await vouchers(city, count)
    numbers = await held(city, codes, ttl_s=AHEAD_S - 5)
    ends: list[tuple[Reply, Reply]] = []
    for code, number in zip(codes, numbers, strict=True):
        ends.append(
            await asyncio.gather(
                city.confirm(SHOP, number, service=early),
                city.redeem(OTHER, code, service=late),
            )
        )
    return ends


async def test_a_confirm_and_the_next_till_never_both_win(city: City) -> None:
    """Two machines whose clocks differ: for one the hold lives, for the other it has run out."""
    ends = await run_out_race(city, city.redemption, await ahead(city), 10)
    words = Counter((confirm.rule, redeem.code) for confirm, redeem in ends)
    assert set(words) <= {(None, Code.USED_BY_ANOTHER_ORDER), ("HOLD_RUN_OUT", None)}, words
    assert await double_uses(city) == 0


async def test_confirms_and_the_next_till_while_the_clock_runs_out(city: City, services: Sequence[str]) -> None:
    """Half of the confirms come just before, half just after; whoever comes too late finds the other's payment."""
    codes = await vouchers(city, 20)
    numbers = await held(city, codes, ttl_s=10)
    expires_at = await city.fetchval("SELECT max(expires_at) FROM hold")
    before = city.clock.now()
    city.clock.move_to(expires_at - timedelta(seconds=0.5))

    async def race(n: int) -> tuple[Reply, Reply]:
        await asyncio.sleep(0.6 if n % 2 else 0)
        confirm, redeem = await asyncio.gather(
            city.confirm(SHOP, numbers[n], service=services[n % 2]),
            city.redeem(OTHER, codes[n], service=services[1 - n % 2]),
        )
        return confirm, redeem

    ends = await asyncio.gather(*(race(n) for n in range(20)))
    city.clock.move_to(before)
    for confirm, redeem in ends:
        assert confirm.rule in (None, "HOLD_RUN_OUT")
        assert redeem.code in (None, Code.USED_BY_ANOTHER_ORDER, Code.LOCKED_BY_ANOTHER_ORDER)
        assert (confirm.rule is None) == (redeem.code is not None), "just one of the two was paid"
    assert {redeem.status for _, redeem in ends[1::2]} == {200}, "what ran out is free at once"
    assert await double_uses(city) == 0


async def test_the_books_are_right_after_all_that(city: City) -> None:
    await assert_audited(city)


# ---------------------------------------------------------------- controls (last: they break the books)


async def test_control_without_the_lock_one_number_holds_two_vouchers(city: City, services: Sequence[str]) -> None:
    async with no_lock(city):
        for pair in await pairs(city, 10, is_apart=False):
            number = await fresh(city, Scope.HOLD, SHOP, pair[0], is_here=True)
            holds = await asyncio.gather(
                *(city.hold(SHOP, code, number=number, service=url) for code, url in zip(pair, services, strict=True))
            )
            if told(holds) == {None: 2}:
                return
    pytest.fail("the lock was off and nothing collided: the race was none")


async def test_control_without_the_lock_a_run_out_hold_pays_twice(city: City) -> None:
    async with no_lock(city):
        await run_out_race(city, city.redemption, await ahead(city), 12)
    assert await double_uses(city) > 0


async def test_without_the_lock_the_key_still_holds(city: City, services: Sequence[str]) -> None:
    """The second guard: what the lock would have decided, the primary key decides, less politely."""
    async with no_lock(city):
        ends = await end_both_ways(city, services, await held(city, await vouchers(city, 12)))
    assert Code.SYSTEM_BUSY in {reply.code for pair in ends for reply in pair}, "nothing collided: the race was none"
    assert await ended_twice(city) == 0


async def test_control_without_lock_and_key_a_hold_ends_both_ways(city: City, services: Sequence[str]) -> None:
    await city.database.pool.execute("ALTER TABLE hold_end DROP CONSTRAINT hold_end_pkey")
    async with no_lock(city):
        ends = await end_both_ways(city, services, await held(city, await vouchers(city, 12)))
    assert any(confirm.status == cancel.status == 200 for confirm, cancel in ends)
    assert await ended_twice(city) > 0
