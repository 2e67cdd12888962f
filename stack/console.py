"""What every command shares: its options, how it prints, how it ends."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

from cyclopts import Parameter
from rich.console import Console

from stack.errors import StackError

T = TypeVar("T")

Data = Annotated[Path, Parameter(name="--data", help="Folder that holds the stack's data.")]
PassedOn = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]

out = Console(highlight=False)
"""Answers: what the user asked for."""

err = Console(stderr=True, highlight=False)
"""Remarks: what goes on, what is wrong."""


def run(
    main: Coroutine[Any, Any, T], *, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> T | None:
    """Run a command's coroutine. Ctrl-C or SIGTERM cancels it once, so that it cleans up.

    Returns its value, or None when it was cancelled that way. More signals during the clean-up
    are ignored: every step of it has a deadline. `loop_factory`: say uvloop's, for commands that send a lot.
    """
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(_cancelled_by_signals(main))


async def _cancelled_by_signals(main: Coroutine[Any, Any, T]) -> T | None:
    task = asyncio.ensure_future(main)
    asked_to_stop = False

    def stop() -> None:
        nonlocal asked_to_stop
        if not asked_to_stop:
            asked_to_stop = True
            task.cancel()

    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signal_number, stop)
    try:
        return await task
    except asyncio.CancelledError:
        if asked_to_stop:
            return None
        raise


def exit_status(command: Callable[[], object]) -> int:
    """Run the command line: expected trouble becomes one line and status 1, not a traceback."""
    try:
        result = command()
    except StackError as error:
        err.print(f"hanquan: {error}", style="red", soft_wrap=True, markup=False)
        return 1
    except KeyboardInterrupt:
        return 130
    return result if isinstance(result, int) else 0
