"""`./hanquan faults checkout`, small; and the same drill over a city without one of its guards, which is found out."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from random import Random

import pytest
import pytest_asyncio

from stack.errors import StackError
from stack.faults.checkout import CheckoutDrill
from stack.faults.field import Size
from stack.faults.till_kinds import TILL_FAULTS, postgres_killed
from stack.faults.town import Town, open_town
from tests import stores

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Town]:
    async with open_town(tmp_path_factory.mktemp("town"), Size(rounds=6, seed=3)) as made:
        yield made


async def played(town: Town, *rounds: Sequence[str]) -> CheckoutDrill:
    drill = CheckoutDrill(town, Random(1), 0.2)
    for turn, kinds in enumerate(rounds):
        await drill.round(turn, kinds)
    return drill


async def test_some_rounds_lose_and_double_nothing(town: Town) -> None:
    drill = await played(
        town,
        ("commit_reply_lost", "day_closed"),
        ("one_voucher_wanted", "settled_in_refunds"),
        ("replies_delayed", "worker_killed"),
        ("clock_jumped", "backend_killed"),
        ("stock_expired",),
    )
    await drill.audit()
    report = drill.report
    assert (report.lost, report.doubled, report.violations, report.wrong) == (0, 0, 0, [])
    assert report.holds and report.examined > 1_000
    assert report.acknowledged > 100
    assert sum(report.faults.values()) + sum(report.missed.values()) == 9
    assert 0 < report.recovery_s_p50 <= report.recovery_s_max <= 10


async def killed_after_some_sales(town: Town, random: Random) -> float:
    """PostgreSQL is killed when tills were told of some sales."""
    told = len(town.tills.done)
    while len(town.tills.done) < told + 20:
        await asyncio.sleep(0.005)
    return await postgres_killed(town, random)


async def test_control_an_early_acknowledgement_is_found_out(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tills are told before it lasts, and then PostgreSQL is killed."""
    monkeypatch.setitem(TILL_FAULTS, "postgres_killed", killed_after_some_sales)
    admin = town.stack.dsn()
    await stores.command(admin, "ALTER ROLE hanquan_redemption SET synchronous_commit = off")
    await stores.command(admin, "ALTER SYSTEM SET wal_writer_delay = '10s'")
    await stores.command(admin, "SELECT pg_reload_conf()")
    town.postgres.cut()  # the setting is of new connections
    report = (await played(town, ("postgres_killed",))).report
    await stores.command(admin, "ALTER ROLE hanquan_redemption RESET synchronous_commit")
    town.postgres.cut()
    assert report.lost > 0 and report.violations >= report.lost
    assert any("not there as told" in what for what in report.wrong)
    assert not report.holds


async def test_control_a_ledger_without_lock_and_key_is_found_out(town: Town) -> None:
    """No bucket's lock, no unique index, and a pause between looking and booking: two tills have one voucher."""
    await stores.command(
        town.stack.dsn(),
        """ALTER TABLE redemption DROP CONSTRAINT redemption_pkey CASCADE;
           CREATE INDEX ON redemption (voucher_id, bucket);
           CREATE OR REPLACE FUNCTION lock_bucket(p_bucket smallint) RETURNS void LANGUAGE sql AS 'SELECT';
           CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END';
           CREATE TRIGGER pause BEFORE INSERT ON redemption FOR EACH STATEMENT EXECUTE FUNCTION pause()""",
    )
    report = (await played(town, ("one_voucher_wanted",), ("one_voucher_wanted",))).report
    assert report.doubled > 0 and not report.holds
    assert any("tills had it" in what for what in report.wrong), report.wrong


async def test_it_leaves_stores_of_ones_own_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANQUAN_POSTGRES_DSN", "postgresql://127.0.0.1:1/x")
    with pytest.raises(StackError, match="HANQUAN_POSTGRES_DSN must not be set"):
        async with open_town(tmp_path, Size(rounds=1, seed=1)):
            pass
