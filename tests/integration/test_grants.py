"""Grants to a list: everybody once, however often and from wherever the list is run."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping

import asyncpg
import pytest
import pytest_asyncio

from issuer.claim import ClaimDesk
from issuer.grants import grant as granting
from issuer.grants.grant import GrantReport, grant_number
from issuer.grants.people import People, read_people
from issuer.keys import stock_key
from kernel.errors import Code, StoreDown
from kernel.postgres import open_pool
from stack.errors import StackError
from stack.granting import ROLE, Stores, grant
from tests import stores
from tests.city import City, assert_problem, open_city
from tests.city_plan import NOON, a_campaign, a_pack, a_round, a_stock, person
from tests.limits_plan import everybody_rests, touring

pytestmark = pytest.mark.asyncio(loop_scope="module")

FEW = 30
TOMORROW = NOON.replace(day=24)
EXTRA = a_campaign(
    "extra",
    a_round(
        "noon",
        NOON,
        a_stock("extra_few", quantity=FEW, granted=True),
        a_stock("extra_many", category_id="mall", quantity=5_000, granted=True),
        a_stock("extra_paused", category_id="care", granted=True),
        packs=[a_pack("extra_pack", {"extra_few": 1, "extra_many": 3}, granted=True)],
    ),
    a_round("later", TOMORROW, a_stock("extra_later", granted=True)),
    a_round("over", NOON.replace(day=22), a_stock("extra_over", granted=True)),
    limit=2,
)
STAGED = a_campaign(
    "staged", a_round("noon", NOON, a_stock("staged", granted=True), stages=[(0, 5_000), (6_000, 10_000)])
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    campaigns = [EXTRA, STAGED, touring(), touring("race")]
    async with open_city(cluster, tmp_path_factory.mktemp("grants"), campaigns=campaigns) as made:
        yield made


def people_of(numbers: Iterable[int]) -> People:
    read = read_people("\n".join(person(n) for n in numbers).encode())
    assert isinstance(read, People)
    return read


async def run_list(city: City, offer_id: str, numbers: Iterable[int], by: str = "Li Wei") -> GrantReport:
    """Runs a list as the operator does, with connections of its own."""
    pool = await open_pool(city.database.dsn(ROLE), size=1)
    try:
        held = Stores(pool, city.valkey.client, city.clock, city.codes)
        return await grant(held, offer_id, people_of(numbers), by, lambda _: None)
    finally:
        await pool.close()


async def results_of(city: City, run_no: int) -> Mapping[str, int]:
    rows = await city.database.pool.fetch("SELECT outcome, people FROM grant_result WHERE run_no = $1", run_no)
    return {row["outcome"]: row["people"] for row in rows}


PEOPLE_WITH = """
    SELECT replace(person::text, '-', '') AS who FROM voucher JOIN stock USING (stock_no) WHERE stock_id = $1
"""


async def vouchers(city: City, stock_id: str) -> Counter[str]:
    """How many of a stock each person has in the books."""
    await city.drain()
    rows = await city.database.pool.fetch(
        "SELECT replace(person::text, '-', '') AS who FROM voucher JOIN stock USING (stock_no) WHERE stock_id = $1",
        stock_id,
    )
    return Counter(row["who"] for row in rows)


# ---------------------------------------------------------------- the list


async def test_everybody_on_the_list_gets_it_and_it_is_written_down(city: City) -> None:
    report = await run_list(city, "tour_granted", range(1_500))  # two chunks
    assert (report.people, report.results, report.stopped) == (1_500, {"GRANTED": 1_000, "SOLD_OUT": 500}, None)
    assert not report.everybody_has_it
    assert await vouchers(city, "tour_granted") == Counter(person(n) for n in range(1_000))
    assert await results_of(city, report.run_no) == report.results
    run = await city.database.pool.fetchrow("SELECT * FROM grant_run WHERE run_no = $1", report.run_no)
    assert run is not None
    assert (run["stock_no"], run["pack_no"]) == (city.campaigns["tour"].stock_nos["tour_granted"], None)
    assert (run["people"], run["granted_by"]) == (1_500, "Li Wei")
    assert run["sha256"] == people_of(range(1_500)).sha256
    assert abs((run["began_at"] - city.clock.now()).total_seconds()) < 60


async def test_the_partner_finds_it_by_the_number_that_follows_from_person_and_stock(city: City) -> None:
    await run_list(city, "extra_many", [1])
    number = grant_number("extra_many", bytes.fromhex(person(1)))
    path = f"/v1/claims/{number}?person_token={person(1)}"
    reply = await city.call(city.issuer, "wechat", "GET", path)
    assert (reply.status, reply.json["state"]) == (200, "CONFIRMING")
    await city.drain()
    reply = await city.call(city.issuer, "wechat", "GET", path)
    assert (reply.json["state"], reply.json["stock_id"]) == ("EFFECTIVE", "extra_many")
    assert (await city.redeem("EMPORIUM", reply.json["voucher_code"])).status == 200
    assert (await city.call(city.issuer, "alipay", "GET", path)).status == 404


async def test_running_it_again_or_a_longer_list_grants_nothing_twice(city: City) -> None:
    first = await run_list(city, "extra_many", range(10, 20))
    again = await run_list(city, "extra_many", range(10, 20), by="Wang Fang")
    longer = await run_list(city, "extra_many", reversed(range(10, 25)))
    assert (first.results, again.results) == ({"GRANTED": 10}, {"HAD_IT": 10})
    assert longer.results == {"HAD_IT": 10, "GRANTED": 5}
    assert again.everybody_has_it
    had = await vouchers(city, "extra_many")
    assert {had[person(n)] for n in range(10, 25)} == {1}


async def test_one_list_at_once_from_many_places_grants_once(city: City) -> None:
    reports = await asyncio.gather(*(run_list(city, "race_granted", range(200)) for _ in range(4)))
    assert sum(report.results.get("GRANTED", 0) for report in reports) == 200
    assert sum(report.results.get("HAD_IT", 0) for report in reports) == 600
    assert await vouchers(city, "race_granted") == Counter(person(n) for n in range(200))


async def test_a_run_that_dies_is_taken_up_where_it_stood(city: City, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store goes away after the second chunk, and the chunk's answer is lost as well."""
    calls, decide = 0, ClaimDesk.decide

    async def broken(desk: ClaimDesk, shard: int, claims: object) -> object:
        nonlocal calls
        calls += 1
        answer = await decide(desk, shard, claims)  # type: ignore[arg-type]
        if calls >= 2:
            raise StoreDown("gone")
        return answer

    monkeypatch.setattr(granting, "CHUNK", 20)
    monkeypatch.setattr(granting, "RETRY_S", 0.001)
    with monkeypatch.context() as patch:
        patch.setattr(ClaimDesk, "decide", broken)
        with pytest.raises(StackError, match="gone; run the same list again"):
            await run_list(city, "extra_many", range(100, 200))
    assert calls == 1 + granting.TRIES_MAX
    run_no = await city.fetchval("SELECT max(run_no) FROM grant_run")
    assert await results_of(city, run_no) == {}
    report = await run_list(city, "extra_many", range(100, 200))
    assert report.results == {"HAD_IT": 40, "GRANTED": 60}
    had = await vouchers(city, "extra_many")
    assert {had[person(n)] for n in range(100, 200)} == {1}


# ---------------------------------------------------------------- limits and stock


async def test_limits_hold_for_grants_and_grants_count_for_limits(city: City) -> None:
    await everybody_rests(city)
    full, half = 5_001, 5_002
    for offer_id in ("race_dining", "race_mall"):
        assert (await city.claim(offer_id, person(full))).status == 200
    assert (await city.claim("race_dining", person(half))).status == 200
    report = await run_list(city, "race_granted", [full, half])
    assert report.results == {"USER_ALREADY_CLAIMED": 1, "GRANTED": 1}
    assert_problem(await city.claim("race_dining", person(half)), Code.USER_ALREADY_CLAIMED)


async def test_a_pack_is_granted_whole_until_one_part_is_gone(city: City) -> None:
    report = await run_list(city, "extra_pack", range(1_000, 1_000 + FEW + 3))
    assert report.results == {"GRANTED": FEW, "SOLD_OUT": 3}
    few, many = await vouchers(city, "extra_few"), await vouchers(city, "extra_many")
    assert {few[person(n)] for n in range(1_000, 1_000 + FEW)} == {1}
    assert {many[person(n)] for n in range(1_000, 1_000 + FEW)} == {3}
    assert sum(many[person(n)] for n in range(1_000 + FEW, 1_000 + FEW + 3)) == 0


async def test_over_several_shards_the_last_one_is_granted_too(
    cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each shard has a third of the stock, and the people of the list are not spread that evenly."""
    campaign = a_campaign("wide", a_round("noon", NOON, a_stock("wide_few", quantity=FEW, granted=True)))
    folder = tmp_path_factory.mktemp("shards")
    async with open_city(cluster, folder, shards=3, campaigns=[campaign]) as wide:
        assert (await run_list(wide, "wide_few", range(FEW - 1))).results == {"GRANTED": FEW - 1}
        assert (await run_list(wide, "wide_few", range(FEW + 4))).results == {
            "HAD_IT": FEW - 1,
            "GRANTED": 1,
            "SOLD_OUT": 4,
        }


async def test_the_gate_is_not_asked(city: City) -> None:
    """A person who clicks too fast to claim anything still gets what the city grants."""
    replies = await asyncio.gather(*(city.claim("race_scarce", person(6_000)) for _ in range(20)))
    assert Code.FREQUENCY_LIMITED in {reply.code for reply in replies}
    assert (await run_list(city, "extra_many", [6_000])).results == {"GRANTED": 1}


async def test_what_is_not_released_yet_waits_for_another_run(city: City) -> None:
    report = await run_list(city, "staged", range(8))
    assert report.results == {"GRANTED": 5, "NOT_RELEASED": 3}


# ---------------------------------------------------------------- when it cannot be done


@pytest.mark.parametrize(
    ("offer_id", "why"),
    [
        ("extra_later", "the round opens at 2020-04-24T12:00:00+08:00"),
        ("extra_over", "the round closed at 2020-04-22T20:00:00+08:00"),
        ("extra_paused", "the city has paused the stock"),
    ],
)
async def test_a_run_that_cannot_go_on_says_why_and_tries_nobody(city: City, offer_id: str, why: str) -> None:
    await pause(city, "extra_paused")
    report = await run_list(city, offer_id, range(5))
    assert report.results == {"NOT_TRIED": 5}
    assert report.stopped is not None
    assert report.stopped.startswith(why)
    assert await results_of(city, report.run_no) == report.results


async def pause(city: City, stock_id: str) -> None:
    """Pauses a stock and waits until the store knows."""
    await city.database.pool.execute("UPDATE stock SET state = 'PAUSED' WHERE stock_id = $1", stock_id)
    key = stock_key(0, city.campaigns["extra"].stock_nos[stock_id])
    async with asyncio.timeout(60):
        while await city.valkey.client.hget(key, "state") != b"PAUSED":
            await asyncio.sleep(0.02)


async def test_a_grant_goes_no_faster_than_the_books(city: City, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a log that nobody drains it stops, and says whom to ask."""
    monkeypatch.setattr(granting, "LOG_ENTRIES_MAX", 1)
    monkeypatch.setattr(granting, "CHUNK", 10)
    monkeypatch.setattr(granting, "DRAIN_WAIT_S", 0.1)
    monkeypatch.setattr(granting, "RETRY_S", 0.001)
    await city.drain()
    with pytest.raises(StackError, match="see that it runs; run the same list again"):
        await run_list(city, "extra_many", range(7_000, 7_020))
    had = await vouchers(city, "extra_many")
    assert sum(had[person(n)] for n in range(7_000, 7_020)) == 10
    assert (await run_list(city, "extra_many", range(7_000, 7_020))).results == {"HAD_IT": 10, "GRANTED": 10}


async def test_an_unknown_offer_and_a_nameless_clerk(city: City) -> None:
    with pytest.raises(StackError, match="no stock and no pack extra_man; did you mean extra_many"):
        await run_list(city, "extra_man", [1])
    with pytest.raises(StackError, match="is no name"):
        await run_list(city, "extra_many", [1], by=" ")
    with pytest.raises(StackError, match="is no name"):
        await run_list(city, "extra_many", [1], by="Ｌｉ")


async def test_what_was_written_stays(city: City) -> None:
    await run_list(city, "extra_many", [1])
    for statement in ("UPDATE grant_run SET people = 2", "DELETE FROM grant_result"):
        with pytest.raises(asyncpg.PostgresError):
            await city.database.pool.execute(statement)
