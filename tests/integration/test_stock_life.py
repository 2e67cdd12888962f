"""Who may move a stock and when: every move from every state, two people, and a quantity at its boundaries."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import msgspec
import pytest
import pytest_asyncio

from issuer.operator.budget import Edited, edit_budget
from issuer.operator.life import CampaignMoved, Moved, approve_campaign, move_stock, show_stock, submit_campaign
from issuer.operator.office import Office
from issuer.operator.shards import plan_of
from issuer.operator.store import Verb
from kernel.errors import Code, Refusal
from tests import stores
from tests.city import City, open_city
from tests.city_plan import FACE, NOON, person
from tests.offices import LI, LIFE, QUANTITY, ROOM, WANG, drain_all, left_of, office, row_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

DINING, MALL, LATER = "life_r1_dining", "life_r1_mall", "life_r2_dining"

MOVES = {
    Verb.SUBMIT: ({"DRAFT"}, "AUDIT"),
    Verb.APPROVE: ({"AUDIT"}, "SCHEDULED"),
    Verb.REJECT: ({"AUDIT"}, "DRAFT"),
    Verb.PAUSE: ({"SCHEDULED"}, "PAUSED"),
    Verb.RESUME: ({"PAUSED"}, "SCHEDULED"),
    Verb.END: ({"SCHEDULED", "PAUSED"}, "ENDED"),
    Verb.CLOSE: ({"ENDED"}, "CLOSED"),
}
STATES = ("DRAFT", "AUDIT", "SCHEDULED", "PAUSED", "ENDED", "CLOSED")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def city(cluster: stores.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[City]:
    async with open_city(cluster, tmp_path_factory.mktemp("life"), campaigns=[LIFE], shards=2) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def desk(city: City) -> AsyncIterator[Office]:
    async with office(city) as made:
        yield made


async def put(city: City, stock_id: str, state: str) -> None:
    """The stock is in this state, whatever it was; Zhao submitted it."""
    await city.database.pool.execute("UPDATE stock SET state = $2::stock_state WHERE stock_id = $1", stock_id, state)
    await city.database.pool.execute(
        "INSERT INTO stock_move (stock_no, verb, from_state, to_state, moved_by, why, moved_at)"
        " SELECT stock_no, 'SUBMIT', 'DRAFT', 'AUDIT', 'Zhao', '', now() FROM stock WHERE stock_id = $1",
        stock_id,
    )


def code_of(answer: object) -> Code | None:
    return answer.code if isinstance(answer, Refusal) else None


def rule_of(answer: object) -> str | None:
    assert isinstance(answer, Refusal), answer
    return answer.rule


# ---------------------------------------------------------------- moves


@pytest.mark.parametrize("verb", Verb)
async def test_every_move_from_every_state(city: City, desk: Office, verb: Verb) -> None:
    """Allowed, already there, or refused with nothing changed; each allowed one is written down."""
    sources, target = MOVES[verb]
    for state in STATES:
        await put(city, LATER, state)
        row = await row_of(desk, LATER)
        before = await desk.book.moves(row.stock_no)
        outcome = await desk.book.move(row.stock_no, verb, LI, "because", desk.now)
        after = await desk.book.moves(row.stock_no)
        wanted = "MOVED" if state in sources else "REPLAYED" if state == target else "STATE_CONFLICT"
        assert (outcome.name, outcome.value) == (wanted, target if wanted == "MOVED" else state), state
        assert len(after) - len(before) == (wanted == "MOVED")
        if wanted == "MOVED":
            assert (after[-1]["verb"], after[-1]["from_state"], after[-1]["to_state"]) == (verb, state, target)
            assert (after[-1]["moved_by"], after[-1]["why"]) == (LI, "because")
    await put(city, LATER, "SCHEDULED")


@pytest.mark.parametrize("state", STATES)
async def test_a_stock_past_its_round_is_over(city: City, desk: Office, state: str) -> None:
    await put(city, LATER, state)
    late = msgspec.structs.replace(desk, now=desk.now.replace(year=2021))
    assert (await row_of(late, LATER)).state == ("CLOSED" if state == "CLOSED" else "ENDED")
    for verb in set(Verb) - {Verb.CLOSE, Verb.END}:
        assert code_of(await move_stock(late, LATER, verb, "x")) == Code.STATE_CONFLICT
    await put(city, LATER, "SCHEDULED")


async def test_whoever_submitted_cannot_approve(city: City, desk: Office) -> None:
    await put(city, LATER, "DRAFT")
    assert await move_stock(desk, LATER, Verb.SUBMIT) == Moved(stock_id=LATER, state="AUDIT", replayed=False)
    for name in (LI, LI.upper(), LI.lower()):
        refusal = await move_stock(msgspec.structs.replace(desk, by=name), LATER, Verb.APPROVE)
        assert (code_of(refusal), rule_of(refusal)) == (Code.RULE_LIMIT, "SAME_PERSON")
    other = msgspec.structs.replace(desk, by=WANG)
    assert await move_stock(other, LATER, Verb.APPROVE) == Moved(stock_id=LATER, state="SCHEDULED", replayed=False)
    assert await move_stock(other, LATER, Verb.APPROVE) == Moved(stock_id=LATER, state="SCHEDULED", replayed=True)


async def test_of_six_approvals_at_once_none_is_the_submitters(city: City, desk: Office) -> None:
    await put(city, LATER, "DRAFT")
    await move_stock(desk, LATER, Verb.SUBMIT)

    async def approve(by: str) -> None:
        async with office(city, by) as one:
            await move_stock(one, LATER, Verb.APPROVE)

    await asyncio.gather(*(approve(name) for name in (LI, LI.lower(), LI.upper(), WANG, "Chen", LI)))
    moves = await desk.book.moves((await row_of(desk, LATER)).stock_no)
    assert moves[-1]["verb"] == "APPROVE" and moves[-1]["moved_by"] in (WANG, "Chen")


async def test_a_rejected_stock_is_submitted_anew_and_the_new_one_counts(city: City, desk: Office) -> None:
    await put(city, LATER, "DRAFT")
    other = msgspec.structs.replace(desk, by=WANG)
    await move_stock(desk, LATER, Verb.SUBMIT)
    assert rule_of(await move_stock(other, LATER, Verb.REJECT)) == "NO_REASON"
    assert isinstance(await move_stock(other, LATER, Verb.REJECT, "too many"), Moved)
    await move_stock(other, LATER, Verb.SUBMIT)
    assert rule_of(await move_stock(other, LATER, Verb.APPROVE)) == "SAME_PERSON"
    assert isinstance(await move_stock(desk, LATER, Verb.APPROVE), Moved)


async def test_in_audit_without_a_submitter_nobody_approves(city: City, desk: Office) -> None:
    """However it came there: nobody could be the other person."""
    await city.database.pool.execute("UPDATE stock SET state = 'AUDIT' WHERE stock_id = 'life_r2_mall'")
    assert code_of(await move_stock(desk, "life_r2_mall", Verb.APPROVE)) == Code.STATE_CONFLICT
    await city.database.pool.execute("UPDATE stock SET state = 'SCHEDULED' WHERE stock_id = 'life_r2_mall'")


async def test_two_approve_or_pause_at_once_and_one_move_is_made(city: City, desk: Office) -> None:
    await put(city, LATER, "SCHEDULED")
    before = len(await desk.book.moves((await row_of(desk, LATER)).stock_no))

    async def pause() -> object:
        async with office(city, WANG) as one:
            return await move_stock(one, LATER, Verb.PAUSE)

    answers = await asyncio.gather(*(pause() for _ in range(6)))
    assert sorted(answer.replayed for answer in answers if isinstance(answer, Moved)) == [False] + [True] * 5
    assert len(await desk.book.moves((await row_of(desk, LATER)).stock_no)) == before + 1
    await move_stock(desk, LATER, Verb.RESUME)


async def test_a_campaign_is_approved_whole_or_not_at_all(city: City, desk: Office) -> None:
    pool = city.database.pool
    await pool.execute("UPDATE stock SET state = 'DRAFT' WHERE stock_id LIKE 'life_r2%'")
    submitted = await submit_campaign(desk.conn, "life", LI, desk.now)
    assert code_of(submitted) == Code.STATE_CONFLICT  # r1 runs already
    await pool.execute("UPDATE stock SET state = 'DRAFT'")
    submitted = await submit_campaign(desk.conn, "life", LI, desk.now)
    assert submitted == CampaignMoved(campaign_id="life", state="AUDIT", stocks=5, moved=5)
    assert rule_of(await approve_campaign(desk, "life")) == "SAME_PERSON"
    other = msgspec.structs.replace(desk, by=WANG)
    await move_stock(other, LATER, Verb.REJECT, "too many")
    assert code_of(await approve_campaign(other, "life")) == Code.STATE_CONFLICT
    assert await pool.fetchval("SELECT count(*) FROM stock WHERE state = 'AUDIT'") == 4
    await move_stock(desk, LATER, Verb.SUBMIT)
    approved = await approve_campaign(other, "life")
    assert approved == CampaignMoved(campaign_id="life", state="SCHEDULED", stocks=5, moved=5)
    assert await approve_campaign(other, "life") == msgspec.structs.replace(approved, moved=0)
    assert code_of(await approve_campaign(other, "no-such")) == Code.RESOURCE_NOT_EXISTS


async def test_a_stock_that_nobody_knows(desk: Office) -> None:
    for verb in Verb:
        assert code_of(await move_stock(desk, "no_such_stock", verb, "x")) == Code.RESOURCE_NOT_EXISTS
    assert code_of(await edit_budget(desk, "no_such_stock", 1, 2, "x")) == Code.RESOURCE_NOT_EXISTS
    assert code_of(await show_stock(desk, "no_such_stock")) == Code.RESOURCE_NOT_EXISTS


async def test_shards_are_told_at_once(city: City, desk: Office) -> None:
    for verb, state, code in ((Verb.PAUSE, "PAUSED", Code.PAUSED), (Verb.RESUME, "RUNNING", None)):
        assert await move_stock(desk, DINING, verb) == Moved(stock_id=DINING, state=state, replayed=False)
        assert [(await city.claim(DINING, person(n))).code for n in range(50, 54)] == [code] * 4
    answer = await show_stock(desk, DINING)
    assert not isinstance(answer, Refusal)
    assert (answer.stock.quantity, answer.left) == (QUANTITY, QUANTITY - 4)
    assert [move["verb"] for move in answer.moves][-2:] == ["PAUSE", "RESUME"]


async def test_operators_cannot_go_past_the_books(city: City) -> None:
    async with city.database.connection("hanquan_operator") as conn:
        for statement in (
            "UPDATE stock SET state = 'SCHEDULED'",
            "UPDATE stock SET quantity = quantity + 1",
            "UPDATE round SET budget_fen = budget_fen + 1",
            "INSERT INTO stock_edit (stock_no, current_quantity, target_quantity, state, asked_by, why, asked_at)"
            " VALUES (1, 1, 2, 'PENDING', 'x', 'x', now())",
            "SELECT change_quantity(1, 1)",
            "SELECT add_adjustments(1, '{0}', '{1}')",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await conn.execute(statement)


# ---------------------------------------------------------------- quantities


async def edit(desk: Office, current: int, target: int, stock_id: str = MALL) -> Edited | Refusal:
    return await edit_budget(desk, stock_id, current, target, "a test")


async def test_up_and_down_and_the_shards_follow(city: City, desk: Office) -> None:
    await drain_all(city)
    quantity = (await row_of(desk, MALL)).quantity
    for target in (quantity + 1, quantity + 20, quantity + 3, 1, quantity):
        before = (await row_of(desk, MALL)).quantity
        assert await edit(desk, before, target) == Edited(stock_id=MALL, quantity=target, replayed=False)
        assert (await row_of(desk, MALL)).quantity == target == await left_of(desk, MALL)
    audit = await city.fetchval(
        "SELECT sum(a.applied) FROM stock_adjustment a JOIN stock USING (stock_no) WHERE stock_id = $1", MALL
    )
    assert audit == 0


async def test_the_same_edit_again_answers_the_same(desk: Office) -> None:
    quantity = (await row_of(desk, MALL)).quantity
    for target in (quantity + 2, quantity):
        before = (await row_of(desk, MALL)).quantity
        assert await edit(desk, before, target) == Edited(stock_id=MALL, quantity=target, replayed=False)
        assert await edit(desk, before, target) == Edited(stock_id=MALL, quantity=target, replayed=True)


async def test_a_stale_current_value(desk: Office) -> None:
    quantity = (await row_of(desk, MALL)).quantity
    for current in (quantity - 1, quantity + 1, 0):
        refusal = await edit(desk, current, quantity + 5)
        assert code_of(refusal) == Code.STALE_VALUE
        assert isinstance(refusal, Refusal) and f"the quantity is {quantity}" in refusal.detail
    assert (await row_of(desk, MALL)).quantity == quantity == await left_of(desk, MALL)


async def test_of_two_edits_at_once_one_is_stale(city: City, desk: Office) -> None:
    quantity = (await row_of(desk, MALL)).quantity

    async def one(by: str, target: int) -> Edited | Refusal:
        async with office(city, by) as seat:
            return await edit(seat, quantity, target)

    answers = await asyncio.gather(one(LI, quantity + 5), one(WANG, quantity + 7))
    assert sorted(str(code_of(answer)) for answer in answers) == ["None", "STALE_VALUE"]
    reached = (await row_of(desk, MALL)).quantity
    await edit(desk, reached, quantity)


async def test_down_to_what_is_out_and_not_below(city: City, desk: Office) -> None:
    """Also when the drain has not told the books yet: what counts is what the shards can still give."""
    stock = "life_r1_alipay"
    for n in range(4):
        assert (await city.claim(stock, person(n), signer="alipay")).status == 200
    refusal = await edit(desk, 10, 3, stock)
    assert rule_of(refusal) == "BELOW_ISSUED"
    assert isinstance(refusal, Refusal) and "4 of 10" in refusal.detail
    assert ((await row_of(desk, stock)).quantity, await left_of(desk, stock)) == (10, 6)
    await drain_all(city)
    assert rule_of(await edit(desk, 10, 3, stock)) == "BELOW_ISSUED"
    assert await edit(desk, 10, 4, stock) == Edited(stock_id=stock, quantity=4, replayed=False)
    assert (await city.claim(stock, person(9), signer="alipay")).code == Code.SOLD_OUT
    assert await edit(desk, 4, 5, stock) == Edited(stock_id=stock, quantity=5, replayed=False)
    async with asyncio.timeout(30):  # a worker that knows it to be sold out hears of it
        while (await city.claim(stock, person(9), signer="alipay")).status != 200:
            await asyncio.sleep(0.02)


async def test_up_to_the_rounds_budget_and_not_beyond(desk: Office) -> None:
    spent = sum(row.quantity for row in await desk.book.stocks(desk.now, "life") if row.round_id == "r1")
    quantity = (await row_of(desk, MALL)).quantity
    most = quantity + QUANTITY + 40 + 10 + ROOM - spent
    assert rule_of(await edit(desk, quantity, most + 1)) == "OVER_ROUND_BUDGET"
    assert isinstance(await edit(desk, quantity, most), Edited)
    assert rule_of(await edit(desk, most, most + 1)) == "OVER_ROUND_BUDGET"
    assert isinstance(await edit(desk, most, quantity), Edited)


async def test_up_to_what_budget_holds_and_not_beyond(city: City, desk: Office) -> None:
    """Money that an open round may still give out is spoken for."""
    pool = city.database.pool
    quantity = (await row_of(desk, LATER)).quantity
    room_fen = await pool.fetchval("SELECT budget_room_fen(2::smallint, 0::smallint, $1)", desk.now)
    await pool.execute("UPDATE round SET budget_fen = 1000000000 WHERE round_id = 'r2'")
    most = quantity + room_fen // FACE
    assert rule_of(await edit(desk, quantity, most + 1, LATER)) == "BUDGET_SHORT"
    assert isinstance(await edit(desk, quantity, most, LATER), Edited)
    assert isinstance(await edit(desk, most, quantity, LATER), Edited)


async def test_what_is_over_is_not_edited(city: City, desk: Office) -> None:
    late = msgspec.structs.replace(desk, now=NOON.replace(year=2021))
    for target in (1, 1_000):
        assert code_of(await edit(late, QUANTITY, target, LATER)) == Code.STATE_CONFLICT


async def test_before_it_is_published_only_the_books_change(desk: Office) -> None:
    row = await row_of(desk, LATER)
    assert [await desk.store.stocks(shard, [row.stock_no]) for shard in range(desk.shards)] == [{}, {}]
    for target in (row.quantity + 7, 3, row.quantity):
        before = (await row_of(desk, LATER)).quantity
        assert await edit(desk, before, target, LATER) == Edited(stock_id=LATER, quantity=target, replayed=False)


@pytest.mark.parametrize(
    ("left", "units", "plan"),
    [
        ({0: 5, 1: 5}, 4, {0: 2, 1: 2}),
        ({0: 9, 1: 1}, 4, {0: 4}),
        ({0: 9, 1: 1}, 9, {0: 8, 1: 1}),
        ({0: 9, 1: 2}, 10, {0: 8, 1: 2}),
        ({0: 3, 1: 0}, 9, {0: 3}),
        ({0: 0}, 1, {}),
        ({}, 1, {}),
    ],
)
async def test_the_richest_shards_give_first(left: dict[int, int], units: int, plan: dict[int, int]) -> None:
    assert plan_of(left, units) == plan
