"""More than the issuer can take: said at once, to those who ask too much, and to nobody else."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import contextmanager
from statistics import median

import pytest
import pytest_asyncio

from kernel.answers import ADMISSION, KEYRING
from kernel.errors import Code
from kernel.keyring import Keyring
from tests import stores
from tests.city import City, Reply, assert_problem, open_city, unchanged
from tests.city_plan import person
from tests.hostile import FORGERIES, Ask

pytestmark = pytest.mark.asyncio(loop_scope="module")

AT_ONCE_S = 0.25
CLAIM = Ask(
    "issuer",
    "wechat",
    "POST",
    "/v1/claims",
    {"out_request_no": "pressure-1", "stock_id": "dining", "person_token": person(0)},
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    async with open_city(cluster, tmp_path_factory.mktemp("pressure")) as made:
        yield made


async def timed(asked: Awaitable[Reply]) -> tuple[Reply, float]:
    """A reply, and the seconds it took."""
    started = time.perf_counter()
    return await asked, time.perf_counter() - started


# ---------------------------------------------------------------- too many under way


@contextmanager
def stalled(city: City) -> Iterator[None]:
    """The claim store answers nobody inside the block."""
    city.valkey.child.send(signal.SIGSTOP)
    try:
        yield
    finally:
        city.valkey.child.send(signal.SIGCONT)


@contextmanager
def limited_to(city: City, under_way_max: int) -> Iterator[None]:
    admission = city.apps[city.issuer][ADMISSION]
    before, admission.under_way_max = admission.under_way_max, under_way_max
    try:
        yield
    finally:
        admission.under_way_max = before


async def test_who_comes_when_too_many_are_under_way_is_told_at_once(city: City) -> None:
    with limited_to(city, 8), stalled(city):
        waiting = [asyncio.create_task(city.claim("mall", person(100 + n))) for n in range(8)]
        await asyncio.sleep(0.2)
        told = [await timed(city.claim("mall", person(200 + n))) for n in range(9)]
        unsigned = await city.send(city.issuer, "POST", "/v1/claims", b"{}")
        lookup = await city.call(city.issuer, "wechat", "GET", f"/v1/claims/no-such-1?person_token={person(0)}")
        health = await city.send(city.issuer, "GET", "/healthz", None)
        metrics = await city.send(city.issuer, "GET", "/metrics", None)
    for reply, _ in [*told, (unsigned, 0.0), (lookup, 0.0)]:  # nobody's signature was looked at
        assert_problem(reply, Code.SYSTEM_BUSY)
        assert reply.headers["Retry-After"] == "1"
    assert median(seconds for _, seconds in told) < AT_ONCE_S
    assert (health.status, metrics.status) == (200, 200)
    assert [reply.status for reply in await asyncio.gather(*waiting)] == [200] * 8
    assert (await city.claim("mall", person(200))).status == 200  # and nothing of those refused was done


async def test_control_without_the_limit_they_hang(city: City) -> None:
    with stalled(city):
        waiting = [asyncio.create_task(city.claim("mall", person(100 + n))) for n in range(9)]
        done, _ = await asyncio.wait(waiting, timeout=2 * AT_ONCE_S)
        assert not done
    assert {reply.status for reply in await asyncio.gather(*waiting)} <= {200, 409}


async def test_places_are_given_back_however_a_request_ends(city: City) -> None:
    """Refused, malformed, forged, too large, cut off: afterwards as many are taken as before."""
    admission = city.apps[city.issuer][ADMISSION]
    with limited_to(city, 2):
        for _ in range(5):
            await city.claim("no_such_stock", person(1))
            await CLAIM.send(city, body=b"{")
            await FORGERIES["a guessed secret"](city, CLAIM)
            await CLAIM.send(city, body=b" " * 5_000)
            await city.send(city.issuer, "POST", "/v1/nowhere", b"x")
        assert admission.enter(2)
        admission.leave(2)


# ---------------------------------------------------------------- a partner over its quota


@pytest_asyncio.fixture(loop_scope="module")
async def quota(city: City) -> AsyncIterator[Keyring]:
    """wechat may send ten claims a second."""
    keyring = city.apps[city.issuer][KEYRING]
    await set_quota(city, 10)
    await keyring.reload()
    yield keyring
    await set_quota(city, None)
    await keyring.reload()


async def set_quota(city: City, claims_per_s_max: int | None) -> None:
    await city.database.pool.execute(
        "UPDATE partner SET claims_per_s_max = $1 WHERE partner_id = 'wechat'", claims_per_s_max
    )


def batch(city: City, size: int) -> dict[str, object]:
    return {
        "claims": [
            {"out_request_no": city.number(), "stock_id": "mall", "person_token": person(3_000 + n)}
            for n in range(size)
        ]
    }


async def use_up(city: City) -> None:
    assert (await city.call(city.issuer, "wechat", "POST", "/v1/claims:batch", batch(city, 60))).status == 200


async def test_who_is_over_its_quota_is_turned_away_and_nobody_else(city: City, quota: Keyring) -> None:
    replies = [await CLAIM.send(city) for _ in range(15)]  # replays count
    assert [reply.status for reply in replies[:10]] == [200] * 10
    assert_problem(replies[-1], Code.FREQUENCY_LIMITED)
    assert replies[-1].headers["Retry-After"] == "1"
    assert (await city.claim("alipay_dining", person(51), signer="alipay")).status == 200
    await asyncio.sleep(1.0)
    assert (await CLAIM.send(city)).status == 200


async def test_a_batch_counts_its_items_and_is_not_cut(city: City, quota: Keyring) -> None:
    await use_up(city)
    async with unchanged(city):
        for path, body in (("/v1/claims:batch", batch(city, 2)), ("/v1/claims", CLAIM.body)):
            reply = await city.call(city.issuer, "wechat", "POST", path, body)
            assert_problem(reply, Code.FREQUENCY_LIMITED)
            assert int(reply.headers["Retry-After"]) in (5, 6)  # 50 are owed at 10 a second
        reply = await city.call(city.issuer, "wechat", "GET", "/v1/vouchers/0123456789ABCDEFGHJKMNPQRS")
        assert_problem(reply, Code.FREQUENCY_LIMITED)


async def test_who_is_over_its_quota_is_turned_away_unread(city: City, quota: Keyring) -> None:
    """Before the body: it has not even been sent. Before the signature: it is wrong."""
    await use_up(city)
    header = CLAIM.authorization(city, b"something else")
    reader, writer = await asyncio.open_connection("127.0.0.1", int(city.issuer.rpartition(":")[2]))
    head = f"POST /v1/claims HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\nAuthorization: {header}\r\n\r\n"
    writer.write(head.encode())
    async with asyncio.timeout(30):
        assert (await reader.readline()).startswith(b"HTTP/1.1 429 ")
    writer.close()


async def test_a_stranger_cannot_use_up_a_quota(city: City, quota: Keyring) -> None:
    for name in ("a guessed secret", "a signature with one letter changed", "a key nobody knows"):
        for _ in range(10):
            assert_problem(await FORGERIES[name](city, CLAIM), Code.SIGN_ERROR)
    assert (await CLAIM.send(city)).status == 200


async def test_workers_share_a_quota(city: City, quota: Keyring) -> None:
    rows = [dict(row) for row in quota._rows.values()]

    async def read() -> list[dict[str, object]]:
        return rows

    keyring = Keyring(read, bytes(range(32)), city.clock, workers=4)
    await keyring.reload()
    assert {bucket.per_s for bucket in keyring._buckets.values()} == {2.5}


# ---------------------------------------------------------------- a flood


FLOOD_QUOTA = 100
FLOOD_S = 1.2
BATCHES = 24
TRIES = 4


def flood_bodies(city: City) -> list[bytes]:
    return [
        json.dumps({"claims": [{"out_request_no": f"flood-{b:03}-{n:04}", "stock_id": "mall",
                                "person_token": person(10_000 + 500 * b + n)} for n in range(500)]}).encode()
        for b in range(BATCHES)
    ]  # fmt: skip


async def flood(city: City, service: str, bodies: list[bytes], until_s: float) -> int:
    """Eight connections of one partner that send batch after batch, told to wait or not; claims sent."""
    sent = 0

    async def send(bodies: list[bytes]) -> None:
        nonlocal sent
        while time.perf_counter() < until_s:
            for body in bodies:
                await city.call(service, "wechat", "POST", "/v1/claims:batch", body)
                sent += 500
                await asyncio.sleep(0.02)

    await asyncio.gather(*(send(bodies[n::8]) for n in range(8)))
    return sent


async def latency_s(city: City, service: str, start: int, until_s: float) -> float:
    """The median a neighbour sees, one claim after the other."""
    took: list[float] = []
    while time.perf_counter() < until_s:
        token = person(start + len(took))
        reply, seconds = await timed(city.claim("alipay_dining", token, signer="alipay", service=service))
        assert reply.status in (200, 409), reply
        took.append(seconds)
        await asyncio.sleep(0.005)
    return median(took)


async def slowed_by_a_flood(city: City, claims_per_s_max: int | None) -> float:
    """How many times longer alipay's claims take while wechat floods."""
    await set_quota(city, claims_per_s_max)
    child, service = city.process("issuer", "hanquan_issuer")
    try:
        await child.ready()
        start = 50_000 if claims_per_s_max else 60_000
        calm_s = await latency_s(city, service, start, time.perf_counter() + 0.6)
        until_s = time.perf_counter() + FLOOD_S
        bodies = flood_bodies(city)
        flooding = asyncio.create_task(flood(city, service, bodies, until_s))
        flooded_s = await latency_s(city, service, start + 5_000, until_s)
        assert await flooding > 10 * FLOOD_QUOTA * FLOOD_S
        return flooded_s / calm_s
    finally:
        child.kill()
        await set_quota(city, None)


async def test_a_flood_slows_nobody_else(city: City) -> None:
    """One partner at more than ten times its quota; and the control, which has none, in the same run. Others at work
    on the machine blur the difference, never make it: so it may be tried again."""
    for _ in range(TRIES):
        with_quota, without = [await slowed_by_a_flood(city, quota) for quota in (FLOOD_QUOTA, None)]
        if with_quota < 3 and without > 2 * with_quota:
            return
    raise AssertionError((with_quota, without))
