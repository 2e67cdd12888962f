"""PostgreSQL stands still: claims go on and the log grows, and afterwards every win is carried over.

(That tills and lookups are told in time to come again is tried in tests/concurrency/test_drain_kill.py.)
"""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
import pytest
from aiohttp import web

from issuer.keys import log_key
from kernel.web import new_app
from stack.family import family_of
from stack.faults.crowd import Crowd
from tests import stores
from tests.city import City, open_city
from tests.crowds import AGREED, crowd_of, weigh_known

STILL_S = 0.5


@contextmanager
def stopped(cluster: stores.Cluster) -> Iterator[None]:
    """PostgreSQL with all its processes stands still inside the block."""
    pids = [*family_of(cluster.child.pid)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)


async def claim_meanwhile(city: City, service: str) -> tuple[Crowd, int]:
    """Clients claim while PostgreSQL stands still; they, and by how many entries the log grew."""
    crowd = crowd_of(city, "dining", services=[service])
    before = await city.valkey.client.xlen(log_key(0))
    with stopped(city.database.cluster):
        async with crowd.claims_go_on(3):
            await asyncio.sleep(STILL_S)
    return crowd, await city.valkey.client.xlen(log_key(0)) - before


def judge(crowd: Crowd, grown: int) -> None:
    """Claims went on as if nothing had happened, and their wins wait in the log."""
    assert crowd.outcomes["GRANTED"] > 10, "claims did not go on"
    assert not crowd.open, "somebody was left unsure"
    assert crowd.wrong == []
    assert grown > 0


async def test_claims_go_on_and_are_carried_over_afterwards(
    cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with open_city(cluster, tmp_path_factory.mktemp("still")) as city:
        crowd, grown = await claim_meanwhile(city, city.issuer)
        judge(crowd, grown)
        assert await weigh_known(city, crowd) == AGREED
        assert await city.valkey.client.xlen(log_key(0)) == 0


async def test_control_a_service_that_asks_the_database_first_stands_still_with_it(
    cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with open_city(cluster, tmp_path_factory.mktemp("still")) as city:
        crowd, grown = await claim_meanwhile(city, await city.serve(_asking_first(city)))
        with pytest.raises(AssertionError, match="did not go on"):
            judge(crowd, grown)


def _asking_first(city: City) -> web.Application:
    """Looks whether the person is known before it passes a claim on."""

    async def claim(request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(STILL_S), city.database.connection() as conn:
                await conn.fetchval("SELECT 1")
        except (TimeoutError, asyncpg.PostgresError, OSError):
            problem = {"code": "SYSTEM_BUSY", "retry": "SAFE"}
            return web.json_response(problem, status=503, headers={"Retry-After": "1"})
        raise web.HTTPTemporaryRedirect(city.issuer + request.path)

    app = new_app(city.clock)
    app.router.add_post("/v1/claims", claim)
    app.router.add_post("/v1/claims:batch", claim)
    return app
