"""The faults of the checkout; what is said in kinds.py holds here, too."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from random import Random
from time import monotonic

from stack.family import family_of
from stack.faults.field import LOST_TOUCH, serves
from stack.faults.kinds import (
    CLIENTS,
    backend_killed,
    connections_reset,
    postgres_stopped,
    send,
    sprung,
    worker_killed,
    worker_stopped,
)
from stack.faults.till_asks import HOLD_TTL_S
from stack.faults.town import Town

Fault = Callable[[Town, Random], Awaitable[float | None]]

TILLS_AT_ONE = 100
GOES_ON_WITHIN_S = 4.0
"""How long a redemption may take while a store is away that tills do not need."""


async def commit_reply_lost(town: Town, random: Random) -> float | None:
    """PostgreSQL commits redemptions, and its reply never arrives."""
    before = town.postgres.sprung
    for _ in range(random.randint(1, 3)):
        town.postgres.lose(b"DONE")
        await sprung(town.postgres)
    return monotonic() if town.postgres.sprung > before else None


async def replies_delayed(town: Town, random: Random) -> float | None:
    """Replies of PostgreSQL take their time, and tills give up in mid-request."""
    town.postgres.delay = lambda: random.random() * 0.1
    try:
        unsure = await town.tills.go_away(random.randint(40, 120), 0.2)
    finally:
        town.postgres.delay = lambda: 0.0
    return monotonic() if unsure else None


async def postgres_killed(town: Town, random: Random) -> float:
    """PostgreSQL is killed with all its processes, as when the power goes."""
    family = [*family_of(town.stack.pid("postgres"))]
    for pid in family:
        send(pid, signal.SIGKILL)
    return monotonic()


async def valkey_away(town: Town, random: Random) -> float:
    """Valkey stands still: vouchers are used all the same."""
    pid = town.stack.pid("valkey")
    send(pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(GOES_ON_WITHIN_S):
            await asyncio.gather(*(serves(town.tills.probe, address) for address in town.tills.addresses))
        await asyncio.sleep(random.uniform(0, 0.5))
    except TimeoutError:
        town.tills.complain(f"no voucher could be used for {GOES_ON_WITHIN_S:g} s while Valkey was away")
    finally:
        send(pid, signal.SIGCONT)
    return monotonic()


async def pool_full(town: Town, random: Random) -> float:
    """Ten times as many tills, who do not pause."""
    async with town.tills.sales_go_on(10 * CLIENTS, pause_s=0):
        await asyncio.sleep(random.uniform(0.2, 0.5))
    return monotonic()


async def clock_jumped(town: Town, random: Random) -> float:
    """One worker's clock jumps: within what signatures allow, or beyond; and back."""
    clock, ahead = town.clocks[random.choice(town.workers)], random.choice((-1, 1))
    jump = timedelta(seconds=random.choice((random.randint(5, 250), random.randint(400, 3_000))) * ahead)
    clock.move_to(town.clock.now() + jump)
    try:
        await asyncio.sleep(random.uniform(0.3, 1.0))
    finally:
        clock.move_to(town.clock.now())
    return monotonic()


async def one_voucher_wanted(town: Town, random: Random) -> float:
    """A hundred tills want one voucher at once."""
    await town.tills.contest(TILLS_AT_ONE)
    return monotonic()


async def holds_ran_out(town: Town, random: Random) -> float:
    """The time of holds ends while their payments go through, and while others want their vouchers."""
    passing = timedelta(seconds=HOLD_TTL_S + 1)
    await town.tills.holds_that_run_out(random.randint(10, 30), lambda: town.time_passes(passing))
    return monotonic()


async def day_closed(town: Town, random: Random) -> float | None:
    """Finance closes the day while tills are at work."""
    return await _over(town.close_next_day())


async def settled_in_refunds(town: Town, random: Random) -> float | None:
    """The day is closed and paid while purchases of it are taken back."""
    refunds = asyncio.create_task(town.tills.take_back_many(random.randint(20, 60)))
    await asyncio.sleep(random.random() * 0.05)
    over = await _over(town.settle_next_day())
    await refunds
    return over


async def stock_expired(town: Town, random: Random) -> float | None:
    """A stock's time is up while its vouchers are being used, and an hour later finance takes back their money."""
    return await _over(town.expire(town.tills.stocks[-1]))


async def _over(work: Awaitable[None]) -> float | None:
    """When finance was done; None when another fault came in its way."""
    with suppress(*LOST_TOUCH):
        await work
        return monotonic()
    return None


TILL_FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        commit_reply_lost,
        replies_delayed,
        connections_reset,
        pool_full,
        postgres_stopped,
        postgres_killed,
        backend_killed,
        worker_killed,
        worker_stopped,
        valkey_away,
        clock_jumped,
        one_voucher_wanted,
        holds_ran_out,
        day_closed,
        settled_in_refunds,
        stock_expired,
    )
}
"""By name, as reports name them."""
ALONE = frozenset({"valkey_away", "stock_expired", "holds_ran_out"})
"""They assert what tills can do, which a second fault may well prevent; or make time pass in a moment, which no
worker's clock may lag behind."""
