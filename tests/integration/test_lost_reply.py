"""The store did it, and its reply is lost: the outcome is not known, nobody guesses, and asking again finds out."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec
import pytest

from issuer.app import make_app as make_issuer
from kernel.errors import Code
from redemption.app import make_app as make_redemption
from tests import stores
from tests.city import City, assert_problem, open_city
from tests.city_plan import person
from tests.proxy import Wire, wire_to


@dataclass(frozen=True)
class Wired:
    """A city with one service of each kind whose wires to the stores can be cut."""

    city: City
    issuer: str
    redemption: str
    valkey: Wire
    postgres: Wire


@pytest.fixture
async def wired(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Wired]:
    async with (
        open_city(cluster, tmp_path_factory.mktemp("wired")) as city,
        wire_to(city.valkey.url) as valkey,
        wire_to(city.database.dsn()) as postgres,
    ):
        # Services close before their wires do.
        claims = msgspec.structs.replace(city.settings("hanquan_issuer"), valkey_url=valkey.url(city.valkey.url))
        dsn = postgres.url(city.database.dsn("hanquan_redemption"))
        checkout = msgspec.structs.replace(city.settings("hanquan_redemption"), postgres_dsn=dsn)
        issuer = await city.serve(await make_issuer(claims))
        redemption = await city.serve(await make_redemption(checkout))
        yield Wired(city, issuer, redemption, valkey, postgres)
        await city.stack.aclose()


async def test_a_win_whose_reply_was_lost_is_told_when_asked_again(wired: Wired) -> None:
    city = wired.city
    wired.valkey.lose(b"$13\r\nG")
    lost = await city.claim("dining", person(1), number="lost-1", service=wired.issuer)
    assert wired.valkey.lost == 1
    assert_problem(lost, Code.SYSTEM_BUSY)
    assert lost.json["retry"] == "SAFE"
    again = await city.claim("dining", person(1), number="lost-1", service=wired.issuer)
    assert (again.status, again.headers["Idempotent-Replayed"]) == (200, "true")
    assert await city.drain() == 1
    # It was no try of somebody else's: under another number it is a second voucher, and refused.
    assert (await city.claim("dining", person(1), service=wired.issuer)).code == Code.USER_ALREADY_CLAIMED


async def test_a_batch_whose_reply_was_lost_is_told_when_asked_again(wired: Wired) -> None:
    city = wired.city
    claims = [{"out_request_no": f"lost-{n:03}", "stock_id": "dining", "person_token": person(n)} for n in range(50)]
    wired.valkey.lose(b"$13\r\nG")
    lost = await city.call(wired.issuer, "wechat", "POST", "/v1/claims:batch", {"claims": claims})
    assert {item["status"] for item in lost.json["results"]} == {503}
    again = await city.call(wired.issuer, "wechat", "POST", "/v1/claims:batch", {"claims": claims})
    assert all(item["status"] == 200 and item["replayed"] for item in again.json["results"])
    assert await city.drain() == 50


async def test_a_redemption_whose_commit_was_not_heard_of_is_found_out(wired: Wired) -> None:
    city = wired.city
    [code] = await city.claim_many("dining", [person(1)])
    wired.postgres.lose(b"DONE")
    lost = await city.redeem("NOODLES", code, number="lost-1", order="lost-1", service=wired.redemption)
    assert wired.postgres.lost == 1
    assert_problem(lost, Code.SYSTEM_BUSY)
    assert await city.fetchval("SELECT count(*) FROM redemption") == 1
    again = await city.redeem("NOODLES", code, number="lost-1", order="lost-1", service=wired.redemption)
    assert again.status == 200
    assert "Idempotent-Replayed" in again.headers
    assert await city.fetchval("SELECT count(*) FROM redemption") == 1
    # Meanwhile nobody else could have it.
    assert (await city.redeem("DUMPLINGS", code, service=wired.redemption)).code == Code.USED_BY_ANOTHER_ORDER


async def test_a_refund_whose_commit_was_not_heard_of_is_found_out(wired: Wired) -> None:
    city = wired.city
    [code] = await city.claim_many("dining", [person(1)])
    await city.redeem("NOODLES", code, number="lost-1", service=wired.redemption)
    wired.postgres.lose(b"DONE")
    lost = await city.refund("NOODLES", "lost-1", number="lost-back-1", service=wired.redemption)
    assert_problem(lost, Code.SYSTEM_BUSY)
    again = await city.refund("NOODLES", "lost-1", number="lost-back-1", service=wired.redemption)
    assert (again.status, again.headers["Idempotent-Replayed"]) == (200, "true")
    assert await city.fetchval("SELECT count(*) FROM refund") == 1


async def test_control_asking_again_under_a_new_number_pays_for_two(wired: Wired) -> None:
    """What a client does that takes no answer for a no: a lost reply then is a second claim, and here the limit
    of two lets it pass. This is what the numbers are for."""
    city = wired.city
    wired.valkey.lose(b"$13\r\nG")
    await city.claim("returning", person(1), number="guess-1", service=wired.issuer)
    assert (await city.claim("returning", person(1), number="guess-2", service=wired.issuer)).status == 200
    assert await city.drain() == 2
