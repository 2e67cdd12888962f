"""The operator service and ./hanquan stock, from outside: who signs is who did it, codes, and the same answer again."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from issuer.operator.app import make_app
from kernel.errors import Code
from stack.enrol import enrol_operator
from tests import stores
from tests.city import MASTER_KEY, City, Reply, assert_problem, open_city, unchanged
from tests.city_plan import person
from tests.offices import LI, LIFE, QUANTITY, WANG, drain_all

pytestmark = pytest.mark.asyncio(loop_scope="module")

DINING = "life_r1_dining"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    async with open_city(cluster, tmp_path_factory.mktemp("operators"), campaigns=[LIFE]) as made:
        async with made.database.connection("hanquan_operator") as conn:
            for operator_id, name in (("li", LI), ("wang", WANG)):
                signer = await enrol_operator(conn, MASTER_KEY, operator_id, name, made.clock.now())
                assert not isinstance(signer, str)
                made.signers[operator_id] = signer  # type: ignore[index]
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(city: City) -> str:
    """The base URL of the operator service."""
    return await city.serve(await make_app(city.settings("hanquan_operator")))


async def post(city: City, desk: str, path: str, body: object = None, by: str = "li") -> Reply:
    return await city.call(desk, by, "POST", path, body)


async def test_a_stock_is_paused_and_resumed_by_its_signer(city: City, desk: str) -> None:
    paused = await post(city, desk, f"/v1/stocks/{DINING}/pause", {"why": "a complaint"})
    assert (paused.status, paused.json) == (200, {"stock_id": DINING, "state": "PAUSED"})
    assert_problem(await city.claim(DINING, person(1)), Code.PAUSED)
    again = await post(city, desk, f"/v1/stocks/{DINING}/pause", {"why": "a complaint"})
    assert (again.body, again.headers["Idempotent-Replayed"]) == (paused.body, "true")
    assert "Idempotent-Replayed" not in paused.headers
    resumed = await post(city, desk, f"/v1/stocks/{DINING}/resume", by="wang")
    assert resumed.json == {"stock_id": DINING, "state": "RUNNING"}
    assert (await city.claim(DINING, person(1))).status == 200
    told = (await city.call(desk, "li", "GET", f"/v1/stocks/{DINING}")).json
    assert [(move["verb"], move["moved_by"], move["why"]) for move in told["moves"]] == [
        ("PAUSE", LI, "a complaint"),
        ("RESUME", WANG, ""),
    ]
    assert (told["stock"]["state"], told["stock"]["quantity"], told["left"]) == ("RUNNING", QUANTITY, QUANTITY - 1)


async def test_stocks_are_listed(city: City, desk: str) -> None:
    stocks = (await city.call(desk, "li", "GET", "/v1/stocks")).json["stocks"]
    assert [stock["stock_id"] for stock in stocks][:2] == [DINING, "life_r1_mall"]
    assert stocks[0]["opens_at"] == "2020-04-23T12:00:00+08:00"
    none = await city.call(desk, "li", "GET", "/v1/stocks?campaign_id=no-such")
    assert none.json == {"stocks": []}


async def test_two_people_approve_a_campaign(city: City, desk: str) -> None:
    await city.database.pool.execute("UPDATE stock SET state = 'DRAFT' WHERE stock_id LIKE 'life_r2%'")
    for stock in ("life_r2_dining", "life_r2_mall"):
        assert (await post(city, desk, f"/v1/stocks/{stock}/submit")).json["state"] == "AUDIT"
    async with unchanged(city):
        assert_problem(await post(city, desk, "/v1/campaigns/life/approve"), Code.RULE_LIMIT, "SAME_PERSON")
    approved = await post(city, desk, "/v1/campaigns/life/approve", by="wang")
    assert approved.json == {"campaign_id": "life", "state": "SCHEDULED", "stocks": 5}
    again = await post(city, desk, "/v1/campaigns/life/approve", by="wang")
    assert (again.body, again.headers["Idempotent-Replayed"]) == (approved.body, "true")
    assert_problem(await post(city, desk, "/v1/campaigns/nobody/approve"), Code.RESOURCE_NOT_EXISTS)


async def test_a_quantity_is_edited_once(city: City, desk: str) -> None:
    path, edit = "/v1/stocks/life_r1_mall/budget", {"current_quantity": 40, "target_quantity": 55, "why": "demand"}
    done = await post(city, desk, path, edit)
    assert (done.status, done.json) == (200, {"stock_id": "life_r1_mall", "quantity": 55})
    again = await post(city, desk, path, edit)
    assert (again.body, again.headers["Idempotent-Replayed"]) == (done.body, "true")
    async with unchanged(city):
        assert_problem(await post(city, desk, path, edit, by="wang"), Code.STALE_VALUE)
        much = edit | {"current_quantity": 55, "target_quantity": 1_999_999_999}
        assert_problem(await post(city, desk, path, much), Code.RULE_LIMIT, "OVER_ROUND_BUDGET")


BAD: list[tuple[str, dict[str, Any], str | None]] = [
    ("budget", {"current_quantity": 55, "target_quantity": 0, "why": "x"}, "target_quantity"),
    ("budget", {"current_quantity": 55, "target_quantity": -1, "why": "x"}, "target_quantity"),
    ("budget", {"current_quantity": 55, "target_quantity": 10**30, "why": "x"}, "target_quantity"),
    ("budget", {"current_quantity": -1, "target_quantity": 60, "why": "x"}, "current_quantity"),
    ("budget", {"current_quantity": 55, "target_quantity": 60.5, "why": "x"}, "target_quantity"),
    ("budget", {"current_quantity": 55, "target_quantity": 60, "why": ""}, "why"),
    ("budget", {"current_quantity": 55, "target_quantity": 60}, None),
    ("budget", {"target_quantity": 60, "why": "x"}, None),
    ("pause", {"why": "x" * 501}, "why"),
    ("pause", {"by": "Wang Wei"}, None),
]


@pytest.mark.parametrize(("verb", "body", "pointer"), BAD)
async def test_bad_bodies(city: City, desk: str, verb: str, body: dict[str, Any], pointer: str | None) -> None:
    async with unchanged(city):
        reply = await post(city, desk, f"/v1/stocks/life_r1_mall/{verb}", body)
        assert_problem(reply, Code.PARAM_ERROR)
        assert reply.json.get("pointer") == pointer


async def test_refusals_change_nothing(city: City, desk: str) -> None:
    async with unchanged(city):
        assert_problem(await post(city, desk, "/v1/stocks/nobody/pause"), Code.RESOURCE_NOT_EXISTS)
        assert_problem(await city.call(desk, "li", "GET", "/v1/stocks/nobody"), Code.RESOURCE_NOT_EXISTS)
        assert_problem(await post(city, desk, f"/v1/stocks/{DINING}/submit"), Code.STATE_CONFLICT)
        assert_problem(await post(city, desk, f"/v1/stocks/{DINING}/close"), Code.STATE_CONFLICT)
        assert_problem(await post(city, desk, f"/v1/stocks/{DINING}/end"), Code.RULE_LIMIT, "NO_REASON")
        rollover = {"to_round_id": "r2"}
        assert_problem(await post(city, desk, "/v1/rounds/life_r1/rollover", rollover), Code.STATE_CONFLICT)
        assert_problem(await post(city, desk, "/v1/rounds/life_r9/rollover", rollover), Code.RESOURCE_NOT_EXISTS)
        assert_problem(await post(city, desk, "/v1/rounds/life/rollover", rollover), Code.RESOURCE_NOT_EXISTS)
        assert_problem(await post(city, desk, "/v1/rounds/life_r1/rollover", {}), Code.PARAM_ERROR)


async def test_only_operators_are_let_in(city: City, desk: str) -> None:
    """A partner's or a shop's key signs nothing here, and an operator's nothing there."""
    async with unchanged(city):
        for signer in ("wechat", "NOODLES"):
            assert_problem(await post(city, desk, f"/v1/stocks/{DINING}/pause", by=signer), Code.SIGN_ERROR)
            assert_problem(await city.call(desk, signer, "GET", "/v1/stocks"), Code.SIGN_ERROR)
        assert_problem(await city.send(desk, "GET", "/v1/stocks", None), Code.SIGN_ERROR)
        claim = {"out_request_no": "claim-0001", "stock_id": DINING, "person_token": person(5)}
        assert_problem(await city.call(city.issuer, "li", "POST", "/v1/claims", claim), Code.SIGN_ERROR)
        body = b'{"why": "x"}'
        signed = {"body": b'{"why": "y"}'}
        reply = await city.call(desk, "li", "POST", f"/v1/stocks/{DINING}/pause", body, sign=signed)
        assert_problem(reply, Code.SIGN_ERROR)


async def test_one_person_is_one_operator(city: City) -> None:
    async with city.database.connection("hanquan_operator") as conn:
        now = city.clock.now()
        assert await enrol_operator(conn, MASTER_KEY, "li", WANG, now) == LI
        assert not isinstance(await enrol_operator(conn, MASTER_KEY, "li", LI, now), str)  # one more key
        with pytest.raises(asyncpg.UniqueViolationError):
            await enrol_operator(conn, MASTER_KEY, "li2", LI.upper(), now)


# ---------------------------------------------------------------- the command line

RUN = """
import json, os, sys
from pathlib import Path
from stack import operating
class Reach:
    replicas_acked = 0
    def __init__(self, folder): self.valkey_url = os.environ["VALKEY"]
    def dsn(self, role): return os.environ["DSN"]
operating.Reach = Reach
from stack.__main__ import main
for line in json.loads(sys.argv[1]):
    sys.argv = ["hanquan", *line]
    try:
        main()
    except SystemExit as end:
        print("status", end.code or 0, flush=True)
"""


async def hanquan(city: City, *lines: str) -> list[str]:
    """Runs commands on the city's stores; what they said, with a line for each status."""
    env = {"VALKEY": city.valkey.url, "DSN": city.database.dsn("hanquan_operator")}
    env |= {"HANQUAN_CLOCK_FILE": str(city.clock_file), "COLUMNS": "300", "PATH": "", "HOME": "/nonexistent"}
    argv = json.dumps([line.split("|") for line in lines])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", RUN, argv),
        cwd=Path(__file__).parents[2],
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return said.decode().splitlines()


async def test_the_commands_do_the_same(city: City) -> None:
    await drain_all(city)
    await city.database.pool.execute("UPDATE stock SET state = 'SCHEDULED'")
    mall = await city.fetchval("SELECT quantity FROM stock WHERE stock_id = 'life_r1_mall'")
    said = await hanquan(
        city,
        f"stock|pause|{DINING}|--by|Li  Na|--json",
        f"stock|pause|{DINING}|--by|Li Na",
        f"stock|resume|{DINING}|--by|Wang Wei",
        f"stock|budget|life_r1_mall|{mall}|{mall - 5}|--by|Li Na|--why|enough",
        f"stock|budget|life_r1_mall|{mall}|{mall - 10}|--by|Li Na|--why|enough",
        f"stock|budget|life_r1_mall|{mall - 5}|0|--by|Li Na|--why|none",
        "stock|approve|life_r1_mall|--by|   ",
        "stock|end|life_r1_alipay|--by|Li Na|--why|no demand",
        "stock|close|life_r1_alipay|--by|Li Na",
        "stock|rollover|life|r1|r2|--by|Li Na",
        "stock|list|life",
        "stock|show|life_r1_alipay",
    )
    text = "\n".join(said)
    assert said[0] == '{"stock_id":"life_r1_dining","state":"PAUSED","replayed":false}', text
    assert f"{DINING} is PAUSED (it was before)" in text
    assert f"{DINING} is RUNNING" in text
    assert f"life_r1_mall has {mall - 5} vouchers" in text
    assert f"STALE_VALUE: the quantity is {mall - 5}, not {mall}" in text
    assert "a stock has 1 to 2,000,000,000 vouchers" in text
    assert "a name of 1 to 64 printable characters must sign this" in text
    assert "life_r1_alipay is CLOSED" in text
    assert "STATE_CONFLICT: round r1 is not over" in text
    assert "life_r1_alipay: CLOSED, 10 vouchers, 0 in the books, 10 left to claim" in text
    assert "no demand" in text
    assert [line for line in said if line.startswith("status")].count("status 1") == 4
