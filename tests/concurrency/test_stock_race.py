"""The rush for the last vouchers: over several services, from processes of their own, with clicks to spare.

`fair` judges every run. The same judge must find the unsafe controls guilty.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from random import Random

import pytest
from redis.asyncio import Redis

from issuer.claim import ClaimRequest, Told
from issuer.handlers import DESK
from kernel.errors import Code
from tests import stores
from tests.city import City, Reply, open_city
from tests.city_plan import NOON, a_campaign, a_round, a_stock, person

QUANTITY = 60
PEOPLE = 200
CITY = a_campaign("rush", a_round("noon", NOON, a_stock("rush", quantity=QUANTITY), a_stock("rest", quantity=5_000)))
TWICE = a_campaign("twice", a_round("noon", NOON, a_stock("twice", quantity=5_000)), limit=2)


@pytest.fixture
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    async with open_city(cluster, tmp_path_factory.mktemp("rush"), campaigns=[CITY, TWICE]) as made:
        yield made


def fair(won: Sequence[tuple[str, str]], left: int, quantity: int, limit: int = 1) -> None:
    """`won` (person, code) out of a stock that all wanted: nothing over, nothing under, nobody too often."""
    assert len(won) <= quantity, f"over-issued: {len(won)} of {quantity}"
    assert left == quantity - len(won), f"{len(won)} given, yet {left} left of {quantity}"
    assert len({code for _, code in won}) == len(won), "one code for two people"
    assert max(Counter(who for who, _ in won).values()) <= limit, "somebody has too many"
    assert left == 0, f"under-issued: {left} left"


async def left_of(city: City, stock_id: str) -> int:
    """What Valkey says is left of a stock."""
    numbers = {name: no for campaign in city.campaigns.values() for name, no in campaign.stock_nos.items()}
    left = await city.valkey.client.hget(f"{{s0}}:stock:{numbers[stock_id]}", "left")
    assert left is not None
    return int(left)


# ---------------------------------------------------------------- the real thing


async def rush(city: City, services: Sequence[str]) -> list[tuple[str, Reply]]:
    """Everybody clicks three times at once, each time under a new number and at another service."""

    async def click(citizen: int, turn: int) -> tuple[str, Reply]:
        who = person(citizen)
        service = services[(citizen + turn) % len(services)]
        return who, await city.claim("rush", who, number=f"click-{citizen:04}-{turn}", service=service)

    clicks = [(citizen, turn) for citizen in range(PEOPLE) for turn in range(3)]
    Random(7).shuffle(clicks)
    return await asyncio.gather(*(click(*each) for each in clicks))


async def test_the_last_vouchers_from_three_processes(city: City) -> None:
    children = [city.process("issuer", "hanquan_issuer") for _ in range(2)]
    try:
        for child, _ in children:
            await child.ready()
        told = await rush(city, [city.issuer, *(url for _, url in children)])
    finally:
        for child, _ in children:
            child.kill()
    won = [(who, reply.json["voucher_code"]) for who, reply in told if reply.status == 200]
    fair(won, await left_of(city, "rush"), QUANTITY)
    assert {reply.code for _, reply in told} == {None, Code.SOLD_OUT, Code.USER_ALREADY_CLAIMED}
    assert await city.drain() == QUANTITY
    rows = await city.database.pool.fetch("SELECT voucher_id, replace(person::text, '-', '') AS person FROM voucher")
    assert {(row["person"], city.codes.encode(row["voucher_id"])) for row in rows} == set(won)


async def test_one_person_and_a_hundred_clicks(city: City) -> None:
    services = [city.issuer, await city.new_issuer()]
    for stock_id, limit in (("rest", 1), ("twice", 2)):
        who = person(limit)
        replies = await asyncio.gather(*(city.claim(stock_id, who, service=services[n % 2]) for n in range(100)))
        codes = [reply.json["voucher_code"] for reply in replies if reply.status == 200]
        assert len(set(codes)) == len(codes) == limit
        refused = {reply.code for reply in replies} - {None}
        assert refused <= {Code.USER_ALREADY_CLAIMED, Code.FREQUENCY_LIMITED}
        assert await left_of(city, stock_id) == 5_000 - limit


async def test_one_number_from_many_connections_is_one_voucher(city: City) -> None:
    services = [city.issuer, await city.new_issuer()]
    replies = await asyncio.gather(
        *(city.claim("rest", person(1), number="same-1", service=services[n % 2]) for n in range(100))
    )
    assert {reply.status for reply in replies} == {200}
    assert len({reply.body for reply in replies}) == 1
    assert sum("Idempotent-Replayed" not in reply.headers for reply in replies) == 1
    assert await left_of(city, "rest") == 4_999


async def test_one_number_of_many_people_is_one_of_theirs(city: City) -> None:
    services = [city.issuer, await city.new_issuer()]
    replies = await asyncio.gather(
        *(city.claim("rest", person(n), number="same-1", service=services[n % 2]) for n in range(50))
    )
    assert Counter(reply.code for reply in replies) == {None: 1, Code.IDEMPOTENCY_MISMATCH: 49}
    assert await left_of(city, "rest") == 4_999


async def test_callers_that_go_away_in_mid_command_mix_up_nobody(city: City) -> None:
    """Tasks are cancelled at random moments; every other one gets the answer to its own question."""
    desk, random = city.apps[city.issuer][DESK], Random(11)
    partner_no = await city.fetchval("SELECT partner_no FROM partner WHERE partner_id = 'wechat'")

    async def ask(n: int) -> Told:
        request = ClaimRequest(out_request_no=f"cancel-{n:04}", stock_id="rest", person_token=person(n))
        told = await desk.claim(partner_no, request)
        assert isinstance(told, Told)
        return told

    async def ask_and_leave(n: int) -> None:
        task = asyncio.create_task(ask(n))
        await asyncio.sleep(random.uniform(0, 0.02))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def ask_and_stay(n: int) -> None:
        await asyncio.sleep(random.uniform(0, 0.02))
        assert (await ask(n)).answer.out_request_no == f"cancel-{n:04}"

    await asyncio.gather(*(ask_and_leave(n) if n % 2 else ask_and_stay(n) for n in range(600)))
    told = await asyncio.gather(*(ask(n) for n in range(600)))
    assert len({each.answer.voucher_code for each in told}) == 600
    assert await left_of(city, "rest") == 5_000 - 600


# ---------------------------------------------------------------- unsafe controls


Claim = Callable[[Redis, str], Awaitable[bool]]


async def look_then_take(valkey: Redis, who: str) -> bool:
    """Looks whether anything is left, then takes it: two steps, as if nobody stood between them."""
    if int(await valkey.get("left") or 0) <= 0 or await valkey.sismember("people", who):
        return False
    await valkey.decr("left")
    await valkey.sadd("people", who)
    return True


async def take_then_look(valkey: Redis, who: str) -> bool:
    """Takes stock, atomically, and only then looks whether the person has one: clicks eat vouchers."""
    if await valkey.decr("left") < 0:
        await valkey.incr("left")
        return False
    return bool(await valkey.sadd("people", who))


async def unsafe_rush(city: City, claim: Claim) -> tuple[list[tuple[str, str]], int]:
    """The same rush against another way to claim; who won what, and what is left."""
    await city.valkey.client.set("left", QUANTITY)
    won: list[tuple[str, str]] = []

    async def click(citizen: int, turn: int) -> None:
        if await claim(city.valkey.client, person(citizen)):
            won.append((person(citizen), f"{citizen}/{turn}"))

    at_once = asyncio.Semaphore(8)  # the client has as many connections

    async def queue(citizen: int, turn: int) -> None:
        async with at_once:
            await click(citizen, turn)

    clicks = [(citizen, turn) for citizen in range(PEOPLE) for turn in range(3)]
    await asyncio.gather(*(queue(*each) for each in clicks))
    return won, int(await city.valkey.client.get("left") or 0)


@pytest.mark.parametrize(
    ("claim", "verdict"),
    [(look_then_take, "over-issued|too many"), (take_then_look, "given, yet|under-issued")],
)
async def test_control_the_judge_finds_the_unsafe_guilty(city: City, claim: Claim, verdict: str) -> None:
    won, left = await unsafe_rush(city, claim)
    with pytest.raises(AssertionError, match=verdict):
        fair(won, left, QUANTITY)


async def test_control_the_judge_lets_the_fair_go(city: City) -> None:
    """A third way, with both steps in one transaction of the store, is found innocent."""

    async def at_once(valkey: Redis, who: str) -> bool:
        script = (
            "if redis.call('SISMEMBER', KEYS[2], ARGV[1]) == 1 or tonumber(redis.call('GET', KEYS[1])) <= 0 then "
            "return 0 end redis.call('DECR', KEYS[1]) redis.call('SADD', KEYS[2], ARGV[1]) return 1"
        )
        return bool(await valkey.eval(script, 2, "left", "people", who))

    won, left = await unsafe_rush(city, at_once)
    fair(won, left, QUANTITY)
