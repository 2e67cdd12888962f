"""What hangs does not keep a service, a sender or a supervisor from its end."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path

import pytest
from aiohttp import web

from issuer.callbacks.outbox import Outbox, Subscription
from issuer.callbacks.sender import Sender
from kernel import web as kernel_web
from kernel.clock import ManualClock, SystemClock
from kernel.codes import CodeBook
from kernel.web import new_app, serving
from stack.child import Program
from stack.supervisor import Supervisor


class Deaf:
    """Forgets the first cancellation that it meets, as asyncpg's wait_for may."""

    def __init__(self) -> None:
        self.met = asyncio.Event()
        self.forgot = False

    async def wait(self) -> None:
        """For ever, or until the second cancellation."""
        self.met.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if self.forgot:
                raise
            self.forgot = True


async def ends(work: Coroutine[None, None, None]) -> None:
    """Fails when it does not end by itself. (A timeout would cancel it once more, and so help it.)"""
    task = asyncio.create_task(work)
    await asyncio.wait([task], timeout=10)
    if not task.done():
        task.cancel()
        raise AssertionError("it hangs")
    await task


async def test_a_cleanup_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_web, "STOP_S", 0.1)
    monkeypatch.setattr(kernel_web, "CLEANUP_S", 0.1)
    app, cancelled = new_app(SystemClock()), asyncio.Event()

    async def hanging(_: web.Application) -> AsyncIterator[None]:
        yield
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    async def serve() -> None:
        async with serving(app, "127.0.0.1", [0]):
            pass

    app.cleanup_ctx.append(hanging)
    await ends(serve())
    assert cancelled.is_set()


async def test_listeners_close_however_the_block_ends() -> None:
    with pytest.raises(ZeroDivisionError):
        async with serving(new_app(SystemClock()), "127.0.0.1", [0]) as [port]:
            raise ZeroDivisionError
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


class DeafOutbox(Outbox):
    """Nobody is told; looking for expiries forgets to be cancelled."""

    def __init__(self) -> None:
        self.deaf = Deaf()

    async def subscriptions(self) -> list[Subscription]:
        return []

    async def unfold(self, rows: int) -> bool:
        await self.deaf.wait()
        return False


async def test_a_sender_ends_though_a_cancellation_is_forgotten() -> None:
    outbox = DeafOutbox()

    async def send() -> None:
        async with Sender(outbox, CodeBook({1: bytes(16)}), ManualClock(SystemClock().now())).running():
            await outbox.deaf.met.wait()

    await ends(send())
    assert outbox.deaf.forgot


async def test_a_supervisor_stops_though_a_cancellation_is_forgotten(tmp_path: Path) -> None:
    """A program that crashed is just being started again: whether it is ready yet forgets to be cancelled."""
    deaf, starts = Deaf(), 0

    async def is_ready() -> bool:
        if starts > 1:
            await deaf.wait()
        return True

    def started() -> None:
        nonlocal starts
        starts += 1

    supervisor = Supervisor(started, lambda text: None)
    sleeper = Program(
        name="sleeper",
        argv=("/bin/sleep", "60"),
        env={},
        folder=tmp_path,
        log=tmp_path / "log",
        is_ready=is_ready,
    )
    await supervisor.start([sleeper])
    supervisor._children["sleeper"].kill()
    await deaf.met.wait()
    await ends(supervisor.stop())
    assert deaf.forgot
