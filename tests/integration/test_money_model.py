"""The checkout against a small pure model of it and of the money: any requests, in any order, whatever fails meanwhile.

After each step every answer and every balance is the model's, the funds add up, and ISSUED is the face of the live
vouchers; what is refused changes no row; from time to time every row is compared, and the whole audit is held.

    ./hanquan test tests/integration/test_money_model.py

plays some thousands of steps: stories of hypothesis, which shrinks what goes wrong, and worlds of a seeded generator.

    HANQUAN_MODEL_STEPS=1000000 HANQUAN_MODEL_SEED=1 ./hanquan test tests/integration/test_money_model.py -k worlds -rP

plays a million, in fifty parts (docs/results/model.md). A failure is told as the
shortest list of operations that was found to fail the same way.
"""

import asyncio
import os
from collections.abc import Callable
from datetime import timedelta
from time import perf_counter
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from redemption import holds, numbers, refund
from tests import money_city, money_till, stores
from tests.money_draw import HABITS, WEIGHTS, Draw, Drawn, Seeded, left_out
from tests.money_play import Ask, Claim, Close, Expire, Operation, Pass, PayOut, Played, World, replayed, shortened
from tests.money_requests import Cancel, Confirm, Lock, Redeem, Refund
from tests.money_terms import VALID_UNTIL, voucher_id_of

STEPS = int(os.environ.get("HANQUAN_MODEL_STEPS", "1200"))
SEED = os.environ.get("HANQUAN_MODEL_SEED", "1")
PARTS = max(2, STEPS // 20_000)
"""Tests among which the steps are shared out, each with its own seed: one takes a minute or so."""
WORLD_LENGTH = 300
"""Operations of a world of the generator."""
AUDIT_EVERY, VACUUM_EVERY = 10, 20
"""Worlds."""
STORIES, STORY_LENGTH = 30, 20
STORY_STEPS_MIN = 1_000
WRONG = (AssertionError, asyncpg.PostgresError, ExceptionGroup)


class Stage:
    """A city in a database of its own, and what was played there."""

    def __init__(self, database: stores.Database, funds_fen: dict[int, int]) -> None:
        self.funds_fen = funds_fen
        self.city = money_till.City(database.dsn(), database.dsn("hanquan_redemption"))
        self.played = Played()

    def world(self) -> World:
        """A new world."""
        if self.played.worlds % VACUUM_EVERY == VACUUM_EVERY - 1:
            self.city.vacuum()
        return World(self.city, self.funds_fen, self.played)

    def play(self, seed: str, steps: int, *, audits: bool = True) -> None:
        """Worlds of one seed after the other, until there were so many steps."""
        number = 0
        while self.played.total < steps:
            world, source = self.world(), Seeded(f"{seed}/{number}")
            try:
                _live(world, Draw(world, source, left_out(source)))
                if audits and number % AUDIT_EVERY == 0:
                    world.audit()
            except WRONG as error:
                raise AssertionError(self._told(f"{seed}/{number}", world.log, error)) from error
            number += 1

    def _told(self, name: str, log: list[Operation], error: Exception) -> str:
        """What went wrong, with a short way to it."""
        likeness = str(error)[:24]

        def fails(operations: Any) -> bool:
            return str(replayed(self.city, self.funds_fen, operations) or "")[:24] == likeness

        short = shortened(log, fails, SHORTER_TRIES) if fails(log) else log
        steps = "".join(f"\n    {operation}" for operation in short)
        return f"world {name}: {error}\n{len(short)} of its {len(log)} operations are enough:{steps}"


SHORTER_TRIES = 150


def _live(world: World, draw: Draw) -> None:
    for operation in draw.begin():
        world.run(operation)
    while len(world.log) < WORLD_LENGTH:
        for operation in draw.next():
            world.run(operation)
    world.look()


async def on_stage(database: stores.Database, act: Callable[[Stage], None]) -> Stage:
    """Plays in a thread, for hypothesis and the city have an event loop of their own."""
    funds_fen = await money_city.found(database)

    def run() -> Stage:
        stage = Stage(database, funds_fen)
        try:
            act(stage)
        finally:
            stage.city.close()
        return stage

    return await asyncio.to_thread(run)


# ---------------------------------------------------------------- stories that shrink


class Story(RuleBasedStateMachine):
    """What the generator draws, drawn by hypothesis."""

    stage: Stage

    @initialize(without=st.sets(st.sampled_from([*WEIGHTS, *HABITS]), max_size=8), data=st.data())
    def begin(self, without: set[str], data: Any) -> None:
        self.world = self.stage.world()
        self.draw = Draw(self.world, Drawn(data), sorted(without))
        for operation in self.draw.begin():
            self.world.run(operation)

    @rule(data=st.data())
    def step(self, data: Any) -> None:
        """Something happens."""
        self.draw.source = Drawn(data)
        for operation in self.draw.next():
            self.world.run(operation)

    def teardown(self) -> None:
        if hasattr(self, "draw"):
            self.world.look()


SETTINGS = settings(
    max_examples=STORIES,
    stateful_step_count=STORY_LENGTH,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)


async def test_stories_go_as_the_model_says(database: stores.Database) -> None:
    def act(stage: Stage) -> None:
        machine = type("OneStory", (Story,), {"stage": stage})
        run_state_machine_as_test(machine, settings=SETTINGS)

    stage = await on_stage(database, act)
    assert stage.played.total >= STORY_STEPS_MIN


# ---------------------------------------------------------------- worlds of the generator


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", range(PARTS))
async def test_worlds_go_as_the_model_says(database: stores.Database, part: int) -> None:
    started = perf_counter()
    stage = await on_stage(database, lambda stage: stage.play(f"{SEED}.{part}", STEPS // PARTS))
    played = stage.played
    print(f"{played.total} steps in {played.worlds} worlds, {played.cuts} lines cut, {played.audits} audits, "
          f"{perf_counter() - started:.0f} s")  # fmt: skip
    for kinds in (played.steps, played.answers):
        print(", ".join(f"{kind} {times}" for kind, times in kinds.most_common()))
    assert played.total >= STEPS // PARTS


# ---------------------------------------------------------------- what went wrong once

A, B = voucher_id_of(1, 5, 1), voucher_id_of(4, 5, 2)
HOUR = 3_600
LATE = Pass(12 * 24 * HOUR)
ONCE: dict[str, list[Operation]] = {
    "a shop's debt at one campaign was covered by what another owes it, which was then paid out": [
        Claim(1, ((5, 1),)),
        Claim(4, ((5, 2),)),
        Ask((Redeem(1, "use-000001", A, "order-000001", 12_001),)),
        Close(1, 0),
        PayOut(1, 1, 1),
        Pass(24 * HOUR),
        Ask((Refund(1, "back-000001", "use-000001", 3_087),)),
        Ask((Redeem(1, "use-000002", B, "order-000002", 15_001),)),
        Close(1, 0),
        Ask((Refund(1, "back-000002", "use-000002", 6_000),)),
        PayOut(1, 3, 1),
    ],
    "a number was bound to an upload that came after the stock's money had gone back": [
        Claim(1, ((5, 1), (3, 3))),
        LATE,
        Expire(1, 1),
        *(
            Ask((Redeem(1, f"use-{n:06}", A, f"order-{n:06}", 6_000, VALID_UNTIL - timedelta(hours=1)),))
            for n in range(4)
        ),
    ],
    "a number that stood for something else was told as a payment that did": [
        Claim(1, ((5, 1), (5, 2))),
        *(
            operation
            for n in range(4)
            for operation in (
                Claim(1, ((5, 10 + n), (5, 20 + n))),
                Ask((Redeem(1, f"use-{n:06}", voucher_id_of(1, 5, 10 + n), f"order-{n:06}", 6_000),)),
                Ask((Redeem(1, f"use-1{n:05}", voucher_id_of(1, 5, 20 + n), f"order-1{n:05}", 6_000),)),
                Ask((Redeem(1, f"use-{n:06}", voucher_id_of(1, 5, 10 + n), f"order-1{n:05}", 6_000),)),
            )
        ),
    ],
    "the cancel of a hold that had run out was told otherwise the second time": [
        Claim(1, ((5, 1),)),
        Ask((Lock(1, "hold-000001", A, "order-000001", 6_000, 10),)),
        Pass(HOUR),
        Ask((Cancel(1, "cancel-000001", "hold-000001"),)),
        Ask((Cancel(1, "cancel-000001", "hold-000001"),)),
        Ask((Confirm(1, "use-000001", "hold-000001"),)),
    ],
    "a number was bound to the confirming of a hold that was over, though a clock lagged": [
        Claim(1, ((5, 1),)),
        Ask((Lock(1, "hold-000001", A, "order-000001", 6_000, 60),)),
        Pass(60),
        Ask((Lock(1, "hold-000002", A, "order-000002", 6_000, 60),)),
        Pass(-30),
        *(Ask((Confirm(1, f"use-{n:06}", "hold-000001"),)) for n in range(4)),
    ],
    "the number of a refund was bound though the shop may not owe so much": [
        Claim(1, ((5, 1),)),
        Ask((Redeem(2, "use-000001", A, "order-000001", 6_000),)),
        Close(1, 0),
        PayOut(1, 1, 2),
        Ask((Refund(2, "back-000001", "use-000001", 4_000),)),
    ],
}
"""Found by worlds of the generator, and shortened."""


async def _wrong_again(database: stores.Database) -> list[str]:
    wrong: list[str] = []

    def act(stage: Stage) -> None:
        wrong.extend(what for what, log in ONCE.items() if replayed(stage.city, stage.funds_fen, log))

    await on_stage(database, act)
    return wrong


async def test_what_went_wrong_once(database: stores.Database) -> None:
    assert await _wrong_again(database) == []


async def test_control_a_debt_that_hides_behind_another_campaign(database: stores.Database) -> None:
    per_campaign = "sum(least(0, a.credits_fen - a.debits_fen))"
    await _patched(database, "refund_room_fen", per_campaign, "least(0, sum(a.credits_fen - a.debits_fen))")
    assert await _wrong_again(database) == [next(iter(ONCE))]


# ---------------------------------------------------------------- controls: what is broken is found

SQL_DEFECTS = {
    "a cap counts no holds": ("is_use_live", "h.expires_at > p_at AND", "false AND h.expires_at > p_at AND"),
    "days reopen": ("first_open_day", "SELECT greatest(p_day, ", "SELECT coalesce(p_day, "),
}
"""Function, and what in it becomes what."""
STATEMENTS = {
    "money is not posted": "ALTER TABLE transfer DISABLE TRIGGER post_to_accounts",
    "rows change": "ALTER TABLE redemption DISABLE TRIGGER append_only",
    "accounts are overdrawn": "ALTER TABLE account DROP CONSTRAINT not_overdrawn",
}


async def _patched(database: stores.Database, function: str, old: str, new: str) -> None:
    """The function, with one thing in it changed."""
    text = await database.pool.fetchval("SELECT pg_get_functiondef($1::regproc)", function)
    assert text.count(old) == 1, f"{function} has changed: {old!r} stands in it {text.count(old)} times"
    await database.pool.execute(text.replace(old, new))


async def _is_found(database: stores.Database) -> None:
    """Within as many steps as the worlds above have in a usual run."""

    def act(stage: Stage) -> None:
        with pytest.raises(AssertionError, match=r"of its .* operations are enough"):
            stage.play("c", CONTROL_STEPS, audits=False)

    await on_stage(database, act)


CONTROL_STEPS = 2_000


@pytest.fixture
def told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads the short way to what a control broke."""
    monkeypatch.setattr(f"{__name__}.SHORTER_TRIES", 0)


@pytest.mark.usefixtures("told_at_once")
@pytest.mark.parametrize("what", SQL_DEFECTS)
async def test_control_a_broken_function_is_found(database: stores.Database, what: str) -> None:
    await _patched(database, *SQL_DEFECTS[what])
    await _is_found(database)


@pytest.mark.usefixtures("told_at_once")
@pytest.mark.parametrize("what", STATEMENTS)
async def test_control_a_broken_table_is_found(database: stores.Database, what: str) -> None:
    await database.pool.execute(STATEMENTS[what])
    await _is_found(database)


@pytest.mark.usefixtures("told_at_once")
async def test_control_a_hold_that_ran_out_is_confirmed(
    database: stores.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holds, "HOLD_RUN_OUT", None)  # the desk does not tell, and the books do not look
    await _patched(database, "end_holds", "h.expires_at <= p_at OR is_stock", "is_stock")
    await _is_found(database)


@pytest.mark.usefixtures("told_at_once")
async def test_control_a_part_rounded_up_is_found(database: stores.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def rounded_up(policy: str, *, paid_fen: int, subsidy_fen: int, refunded_before_fen: int,
                   subsidy_back_before_fen: int, refund_fen: int) -> int:  # fmt: skip
        refunded_fen = refunded_before_fen + refund_fen
        if policy == "RETURN_TO_BUDGET" or refunded_fen == paid_fen:
            return subsidy_fen - subsidy_back_before_fen
        return -(-subsidy_fen * refunded_fen // paid_fen) - subsidy_back_before_fen

    monkeypatch.setattr(refund, "taken_back", rounded_up)
    await _is_found(database)


@pytest.mark.usefixtures("told_at_once")
async def test_control_a_number_without_its_merchant_is_found(
    database: stores.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_merchant = numbers._key_bytes
    monkeypatch.setattr(numbers, "_key_bytes", lambda scope, merchant_no, text: of_merchant(scope, 0, text))
    await _is_found(database)


# ---------------------------------------------------------------- how a failure is told


async def test_a_failure_is_told_in_a_few_operations(
    database: stores.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.WORLD_LENGTH", 60)
    await _patched(database, *SQL_DEFECTS["a cap counts no holds"])

    def act(stage: Stage) -> None:
        with pytest.raises(AssertionError, match=r"world c/\d+: .*\n([1-9]|1\d) of its \d+ operations are enough"):
            stage.play("c", CONTROL_STEPS, audits=False)

    await on_stage(database, act)


def test_every_operation_may_be_left_out() -> None:
    """Swarm testing: but for those without which nothing happens."""
    drawn = [set(left_out(Seeded(seed))) for seed in range(60)]
    assert set.union(*drawn) == {*WEIGHTS, *HABITS} - {"redeem", "claim", "tick"}
    assert all(not any(kind in out for out in drawn) for kind in ("redeem", "claim", "tick"))
