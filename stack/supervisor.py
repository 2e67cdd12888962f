"""Keeps child processes running: starts them in order, restarts the crashed, stops in reverse."""

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic

from kernel.tasks import end
from stack.child import Child, Program
from stack.errors import StackError

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 2.0  # whoever waits for a crashed process waits ten seconds at most
CALM_AFTER_S = 60.0  # a program that ran this long starts again with the first backoff


class Supervisor:
    """Runs programs until `stop`.

    A crashed program is started again for ever, at most every BACKOFF_MAX_S: a store whose disk
    is full comes back by itself once there is room. `on_change` is called after each start,
    `on_event` with a plain line about each crash and return.
    """

    def __init__(self, on_change: Callable[[], None], on_event: Callable[[str], None]) -> None:
        self._on_change = on_change
        self._say = on_event
        self._children: dict[str, Child] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._restarts: dict[str, int] = {}

    @property
    def pids(self) -> dict[str, int]:
        """Process id by name, in the order of starting."""
        return {name: child.pid for name, child in self._children.items()}

    @property
    def restarts(self) -> dict[str, int]:
        """How often each program was started again after a crash."""
        return dict(self._restarts)

    async def start(self, programs: Sequence[Program]) -> None:
        """Start programs side by side and wait until all are ready.

        Raises StackError when one is not; the caller then stops what runs.
        """
        for program in programs:
            self._children[program.name] = Child(program)
            self._restarts[program.name] = 0
        self._on_change()
        await asyncio.gather(*(self._children[program.name].ready() for program in programs))
        for program in programs:
            self._keepers[program.name] = asyncio.create_task(self._keep(program))

    async def stop(self, *names: str) -> None:
        """Stop the named programs, or all, in the reverse order of starting."""
        for name in [*reversed(self._children)]:
            if not names or name in names:
                await self._stop_one(name)

    async def _stop_one(self, name: str) -> None:
        keeper = self._keepers.pop(name, None)
        if keeper is not None:
            await end(keeper)
        # Only now: the keeper may just have started another child.
        await self._children.pop(name).stop()

    async def _keep(self, program: Program) -> None:
        delay_s = BACKOFF_FIRST_S
        while True:
            started = monotonic()
            status = await self._children[program.name].exited()
            if monotonic() - started > CALM_AFTER_S:
                delay_s = BACKOFF_FIRST_S
            words = self._children[program.name].last_words()
            self._say(f"{program.name} crashed (exit status {status}): {words}")
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, BACKOFF_MAX_S)
            await self._restart(program)

    async def _restart(self, program: Program) -> None:
        self._restarts[program.name] += 1
        try:
            self._children[program.name] = child = Child(program)
        except OSError as error:  # no memory, no processes left: try again later
            self._say(f"{program.name} cannot be started: {error}")
            return
        self._on_change()
        try:
            await child.ready()
        except StackError as error:
            self._say(str(error))
            await child.stop()
        else:
            self._say(f"{program.name} runs again (pid {child.pid})")
