"""./hanquan down"""

import asyncio
import os
import signal
from time import monotonic

from stack import cleanup, leftovers
from stack.console import Data, out, run
from stack.data_folder import DEFAULT, DataFolder
from stack.errors import StackError

STOP_WITHIN_S = 120.0


def down(*, data: Data = DEFAULT) -> None:
    """Stop the stack that runs in a data folder."""
    run(_down(DataFolder(data)))


async def _down(folder: DataFolder) -> None:
    if folder.is_locked():
        await _stop_supervisor(folder)
        out.print("stopped")
    elif await cleanup.stop_leftovers(folder):
        out.print("stopped what an earlier run had left")
    else:
        out.print(f"nothing runs in {folder.path}")


async def _stop_supervisor(folder: DataFolder) -> None:
    run_state = folder.read_run()
    if run_state is None:
        raise StackError(f"the stack in {folder.path} is just starting; try again in a moment")
    supervisor = run_state.supervisor
    if leftovers.start_ticks(supervisor.pid) == supervisor.start_ticks:
        os.kill(supervisor.pid, signal.SIGTERM)
    deadline = monotonic() + STOP_WITHIN_S
    while folder.is_locked():
        if monotonic() > deadline:
            raise StackError(f"process {supervisor.pid} did not stop in {STOP_WITHIN_S:g} s")
        await asyncio.sleep(0.05)
