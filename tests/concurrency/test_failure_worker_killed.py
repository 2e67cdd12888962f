"""One of several workers is killed in the rush: its neighbour goes on as if nothing had happened, and no win is
unaccounted for."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from stack.faults.crowd import Ask, Crowd
from tests import stores
from tests.city import City, open_city
from tests.city_plan import NOON, a_campaign, a_round, a_stock
from tests.crowds import AGREED, crowd_of, weigh_known

CITY = a_campaign("workers", a_round("noon", NOON, a_stock("work", quantity=20_000)))


@asynccontextmanager
async def rush(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    async with open_city(cluster, tmp_path_factory.mktemp("workers"), campaigns=[CITY]) as city:
        yield city


async def kill_one(city: City) -> tuple[Crowd, Crowd]:
    """Clients of two workers claim, and one worker, a process, is killed. The other's clients, and its own."""
    child, address = city.process("issuer", "hanquan_issuer")
    try:
        await child.ready()
        here, there = crowd_of(city, "work", seed=1), crowd_of(city, "work", seed=2, services=[address])
        there.begin(2, ["work"])
        async with here.claims_go_on(3), there.claims_go_on(3):
            await asyncio.sleep(0.3)
            assert child.kill() == -signal.SIGKILL
            here.slowest_s = 0.0
            await asyncio.sleep(0.3)
    finally:
        child.kill()
    return here, there


async def test_the_neighbour_goes_on(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> None:
    async with rush(cluster, tmp_path_factory) as city:
        here, there = await kill_one(city)
        assert set(here.outcomes) <= {"GRANTED", "USER_ALREADY_CLAIMED", "FREQUENCY_LIMITED"}, (
            "the neighbour was harmed"
        )
        assert here.slowest_s < 5
        assert there.outcomes["GRANTED"] and there.outcomes["UNKNOWN"]
        there.addresses = here.addresses  # a proxy would send them there
        await there.resolve()
        for crowd in (here, there):
            assert crowd.wrong == []
            assert await weigh_known(city, crowd) == AGREED


async def test_control_a_worker_that_answers_early_is_found_out(
    cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It told of a win, and was killed before it took it to the store."""
    async with rush(cluster, tmp_path_factory) as city:
        crowd = crowd_of(city, "work")
        await crowd.probe(city.issuer)
        early = crowd.new_ask()
        _tell_early(crowd, early, city.codes.encode(1 << 38 | 1))
        weighed = await weigh_known(city, crowd)
        assert len(weighed.lost) == 1
        assert early.number in weighed.lost[0]


def _tell_early(crowd: Crowd, ask: Ask, code: str) -> None:
    crowd.asked[ask.number], crowd.won[ask.number] = ask, code
