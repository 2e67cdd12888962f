"""The faults. Each breaks something, mends it where it does not mend itself, and returns the moment
(monotonic) at which it was over: from then on the stack has ten seconds. None: it missed, because what it
waits for did not happen (two faults at once can be in each other's way), and counts for nothing."""

import asyncio
import os
import resource
import signal
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from time import monotonic

from stack import leftovers
from stack.family import family_of
from stack.faults.field import Field, Wired
from stack.faults.wire import Where, Wire

Fault = Callable[[Field, Random], Awaitable[float | None]]

CLIENTS = 6
"""Clients of an ordinary round; a full pool gets ten times as many."""
SPRUNG_WITHIN_S = 1.0
GONE_WITHIN_S = 20.0
LOOK_S = 0.005


async def reply_lost(field: Field, random: Random) -> float | None:
    """Valkey decides claims, and its reply never arrives."""
    return await lose_replies(field.valkey, b"EVALSHA", random.randint(1, 4))


async def client_gone(field: Field, random: Random) -> float | None:
    """Clients close their connections in mid-request, while replies of the store take their time."""
    field.valkey.delay = lambda: random.random() * 0.02
    try:
        unsure = await field.crowd.go_away(random.randint(40, 120), 0.03)
    finally:
        field.valkey.delay = lambda: 0.0
    return monotonic() if unsure else None


async def pool_full(field: Field, random: Random) -> float:
    """Ten times as many clients, who do not pause."""
    async with field.crowd.claims_go_on(10 * CLIENTS, pause_s=0):
        await asyncio.sleep(random.uniform(0.3, 0.8))
    return monotonic()


async def connections_reset(field: Wired, random: Random) -> float:
    """Every connection to both stores is reset, several times."""
    for _ in range(random.randint(1, 4)):
        field.valkey.cut()
        field.postgres.cut()
        await asyncio.sleep(random.uniform(0, 0.2))
    return monotonic()


async def postgres_stopped(field: Wired, random: Random) -> float:
    """PostgreSQL with all its processes stands still for a while."""
    family = [*family_of(field.stack.pid("postgres"))]
    for pid in family:
        send(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(random.uniform(0.3, 1.5))
    finally:
        for pid in reversed(family):
            send(pid, signal.SIGCONT)
    return monotonic()


async def backend_killed(field: Wired, random: Random) -> float | None:
    """One backend of the workers' is killed: PostgreSQL breaks off all others and recovers."""
    backends = [pid for pid in family_of(field.stack.pid("postgres")) if field.role in _title(pid)]
    if not backends:
        return None
    send(random.choice(backends), signal.SIGKILL)
    return monotonic()


async def commit_reply_lost(field: Field, random: Random) -> float | None:
    """PostgreSQL commits what the drain carried over, and its reply never arrives."""
    return await lose_replies(field.postgres, b"COMMIT", random.randint(1, 3))


async def valkey_killed(field: Wired, random: Random) -> float:
    """Valkey is killed, once or twice."""
    for _ in range(random.randint(1, 2)):
        send(field.stack.pid("valkey"), signal.SIGKILL)
        await asyncio.sleep(random.uniform(0, 0.4))
    return monotonic()


async def disk_full(field: Field, random: Random) -> float | None:
    """No file of Valkey's may grow any more; after a while there is room again."""
    log, pid = field.stack.folder.path / "valkey" / "appendonlydir", field.stack.pid("valkey")
    started = leftovers.start_ticks(pid)
    size = max((file.stat().st_size for file in log.glob("*.incr.aof")), default=0) + random.randint(0, 20_000)
    until = monotonic() + random.uniform(0.5, 1.0)
    try:
        while monotonic() < until:
            _may_write(field.stack.pid("valkey"), size)  # a fresh process again and again: it ends at each failed write
            await asyncio.sleep(LOOK_S)
    finally:
        _may_write(field.stack.pid("valkey"), resource.RLIM_INFINITY)
    return monotonic() if leftovers.start_ticks(pid) != started else None


async def worker_killed(field: Wired, random: Random) -> float:
    """One of the workers is killed."""
    return await _end(field, random.choice(field.workers), signal.SIGKILL)


async def worker_stopped(field: Wired, random: Random) -> float:
    """One of the workers is asked to stop in the middle of the rush."""
    return await _end(field, random.choice(field.workers), signal.SIGTERM)


async def drain_killed(field: Field, random: Random) -> float | None:
    """The drain is killed around a COMMIT: before it, in it, or before it hears of it."""
    moment = random.choice(["before", "in", "after"])
    killed: list[float] = []

    def kill() -> bool:
        killed.append(monotonic())
        send(field.stack.pid("drain"), signal.SIGKILL)
        return moment == "in"

    field.postgres.trap(Where.REPLY_TO if moment == "after" else Where.REQUEST, b"COMMIT", kill)
    await sprung(field.postgres)
    return killed[0] if killed else None


FAULTS: Mapping[str, Fault] = {
    fault.__name__: fault
    for fault in (
        reply_lost,
        client_gone,
        pool_full,
        connections_reset,
        postgres_stopped,
        backend_killed,
        commit_reply_lost,
        valkey_killed,
        disk_full,
        worker_killed,
        worker_stopped,
        drain_killed,
    )
}
"""By name, as reports name them."""


def choose(
    seed: int, rounds: int, names: Sequence[str] = tuple(FAULTS), alone: Collection[str] = ()
) -> list[tuple[str, ...]]:
    """Which faults each round gets; the same for the same seed. Every fault comes before any comes again; one
    round in four has a second one at the same time, except where one must be `alone`."""
    random, bag, chosen = Random(seed), list[str](), list[tuple[str, ...]]()
    for _ in range(rounds):
        if not bag:
            bag = random.sample(list(names), len(names))
        first = bag.pop()
        others = [name for name in names if name not in {first, *alone}]
        paired = random.random() < 0.25 and first not in alone
        chosen.append((first, random.choice(others)) if paired else (first,))
    return chosen


async def lose_replies(wire: Wire, request: bytes, times: int) -> float | None:
    """Loses the replies to so many requests that hold these bytes; None when none came."""
    before = wire.sprung
    for _ in range(times):
        wire.lose_reply_to(request)
        await sprung(wire)
    return monotonic() if wire.sprung > before else None


async def sprung(wire: Wire) -> None:
    """Waits until the traps of a wire closed; those that did not are taken back."""
    deadline = monotonic() + SPRUNG_WITHIN_S
    while wire.armed and monotonic() < deadline:
        await asyncio.sleep(LOOK_S)
    wire.disarm()


async def _end(field: Wired, name: str, signal_number: signal.Signals) -> float:
    """Ends a process and waits until it is gone; the moment of the signal."""
    pid, at = field.stack.pid(name), monotonic()
    send(pid, signal_number)
    while field.stack.pid(name) == pid and monotonic() < at + GONE_WITHIN_S:
        await asyncio.sleep(LOOK_S)
    return at


def send(pid: int, signal_number: signal.Signals) -> None:
    """A signal to a process that may be gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal_number)


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _may_write(pid: int, bytes_max: int) -> None:
    """Files of a running process end there: a longer write fails, as on a full disk (EFBIG)."""
    with suppress(ProcessLookupError, PermissionError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (bytes_max, hard))
