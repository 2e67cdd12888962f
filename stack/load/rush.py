"""Runs Locust as processes of their own, and tells how far it is from what the clients have written down."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic

from stack.child import launched
from stack.errors import StackError
from stack.load.prepare import Prepared, Size
from stack.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
GRACE_S = 60.0
"""So long after its last second Locust must have ended."""
LOOK_EVERY_S = 0.25
STOP_WITHIN_S = 15.0

Tick = Callable[[int], None]
"""Told how many answers the clients have had so far."""


async def run_rush(prepared: Prepared, size: Size, log: Path, tick: Tick) -> list[Path]:
    """The client logs of a whole run. Raises StackError when Locust fails or does not end."""
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *launched(_command(prepared, size), death_signal=signal.SIGTERM),
            cwd=ROOT,
            env=environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        await _watch(process, prepared.folder, size, tick)
    finally:
        await _stop(process)
    if process.returncode != 0:
        raise StackError(f"locust failed ({process.returncode}); see {log}")
    logs = sorted(prepared.folder.glob("told-*.jsonl"))
    if len(logs) != size.processes:
        raise StackError(f"{len(logs)} of {size.processes} processes of locust wrote a client log; see {log}")
    return logs


def environment() -> dict[str, str]:
    """For programs in loadtests/: they find their own modules and nothing that is ours to keep."""
    ours = {name for name in os.environ if name.startswith(("HANQUAN_", "LOCUST_"))}
    return {name: value for name, value in os.environ.items() if name not in ours} | {"PYTHONPATH": str(ROOT)}


def _command(prepared: Prepared, size: Size) -> tuple[str, ...]:
    port = str(free_port())
    several = ("--processes", str(size.processes), "--master-host", "127.0.0.1", "--master-port", port)
    return (
        *(sys.executable, "-m", "locust", "-f", str(ROOT / "loadtests" / "noon_rush.py")),
        *("--headless", "--only-summary", "--exit-code-on-error", "0"),
        *("--plan", str(prepared.plan), "--client-logs", str(prepared.folder)),
        *((*several, "--master-bind-host", "127.0.0.1", "--master-bind-port", port) if size.processes > 1 else ()),
    )


async def _watch(process: asyncio.subprocess.Process, folder: Path, size: Size, tick: Tick) -> None:
    deadline, answers = monotonic() + size.lead_s + size.seconds + GRACE_S, _Answers(folder)
    while process.returncode is None:
        if monotonic() > deadline:
            raise StackError("locust did not end in time")
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), LOOK_EVERY_S)
        tick(answers.count())


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Ends the whole group: Locust's workers are children of its first process."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal_number)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_WITHIN_S)
            return


class _Answers:
    """Counts the lines of growing files, each byte once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}
        self._lines = 0

    def count(self) -> int:
        for path in self._folder.glob("told-*.jsonl"):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                fresh = file.read()
            self._read[path] = self._read.get(path, 0) + len(fresh)
            self._lines += fresh.count(b"\n")
        return self._lines
