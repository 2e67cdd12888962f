"""A crowd (stack/faults/crowd.py) in a test's city, and what the city's books say of it."""

from collections.abc import Sequence

from stack.faults.books import read_entries, weigh
from stack.faults.crowd import Crowd
from stack.faults.drill import Weighed
from tests.city import City

AGREED = Weighed([], [], [])


def crowd_of(city: City, *stock_ids: str, seed: int = 5, services: Sequence[str] = ()) -> Crowd:
    """People of the platform `wechat`, who go to the city's own issuer or to these services in turn."""
    return Crowd(city.session, city.signers["wechat"], city.clock, services or [city.issuer], stock_ids, seed=seed)


async def weigh_known(city: City, crowd: Crowd) -> Weighed:
    """Drains, and holds the claims whose outcome the crowd knows against the books."""
    await city.drain()
    async with city.database.connection("hanquan_auditor") as conn:
        entries = await read_entries(conn, "wechat", crowd.asked, city.codes)
    known = {number: ask for number, ask in crowd.asked.items() if number not in crowd.open}
    return weigh(known, crowd.won, [entry for entry in entries if entry.number not in crowd.open])
