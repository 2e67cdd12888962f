"""Ten times as many callers as there are connections: 503 that is safe to send again, never a 500, never a hang."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from time import monotonic

import msgspec
import pytest
from aiohttp import web

from issuer.app import make_app
from kernel.valkey import open_valkey
from kernel.web import new_app
from tests import stores
from tests.city import City, Reply, open_city
from tests.city_plan import person
from tests.proxy import Wire, wire_to

CONNECTIONS = 64
"""Of a claim service to Valkey; it has fewer to PostgreSQL."""
CALLERS = 10 * CONNECTIONS
SLOW_S = 0.05
WITHIN_S = 30.0


def judge(replies: Sequence[Reply], took_s: float) -> None:
    """Everybody is answered in time; whoever is turned away is told to send the same again."""
    assert took_s < WITHIN_S, f"the last answer took {took_s:.1f} s"
    statuses = Counter(reply.status for reply in replies)
    assert statuses.keys() <= {200, 503}, f"statuses {statuses}"
    for reply in replies:
        if reply.status == 503:
            assert reply.json["retry"] == "SAFE"
            assert int(reply.headers["Retry-After"]) >= 1


async def test_claims_and_lookups_at_ten_times_the_connections(
    cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with open_city(cluster, tmp_path_factory.mktemp("full")) as city, wire_to(city.valkey.url) as wire:
        settings = msgspec.structs.replace(city.settings("hanquan_issuer"), valkey_url=wire.url(city.valkey.url))
        service = await city.serve(await make_app(settings))
        wire.delay = lambda: SLOW_S
        started = monotonic()
        replies = await asyncio.gather(
            *(city.claim("dining", person(n), number=f"full-{n:05}", service=service) for n in range(CALLERS))
        )
        found = await asyncio.gather(*(_look(city, service, n) for n in range(CALLERS // 2)))
        judge([*replies, *found], monotonic() - started)
        wire.delay = lambda: 0.0
        again = [await city.claim("dining", person(n), number=f"full-{n:05}", service=service) for n in range(20)]
        assert {reply.status for reply in again} == {200}
        assert await city.drain() == len(
            {n for n, reply in enumerate([*replies]) if reply.status == 200} | {*range(20)}
        )
        await city.stack.aclose()


async def _look(city: City, service: str, n: int) -> Reply:
    return await city.call(service, "wechat", "GET", f"/v1/claims/full-{n:05}?person_token={person(n)}")


async def test_control_a_service_that_trusts_its_pool_answers_500(
    cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """redis-py raises when its pool is full; nobody here makes a 503 of it."""
    async with open_city(cluster, tmp_path_factory.mktemp("full")) as city, wire_to(city.valkey.url) as wire:
        wire.delay = lambda: SLOW_S
        service = await city.serve(_trusting(city, wire))
        started = monotonic()
        replies = await asyncio.gather(*(city.send(service, "GET", "/ping", None) for _ in range(200)))
        with pytest.raises(AssertionError, match="statuses"):
            judge(replies, monotonic() - started)
        await city.stack.aclose()


def _trusting(city: City, wire: Wire) -> web.Application:
    client = open_valkey(wire.url(city.valkey.url), connections=CONNECTIONS)

    async def ping(request: web.Request) -> web.Response:
        await client.ping()
        return web.json_response({})

    async def close(app: web.Application) -> None:
        await client.aclose()

    app = new_app(city.clock)
    app.router.add_get("/ping", ping)
    app.on_cleanup.append(close)
    return app
