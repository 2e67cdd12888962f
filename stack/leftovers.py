"""Finds and stops processes that a killed supervisor left in a data folder.

A process id alone proves nothing, because ids are used again. A process is ours only if it
also works in our folder (PostgreSQL and Valkey change into their data folder) or carries the
mark that the supervisor puts into the environment of its services.
"""

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path
from time import monotonic

from stack.errors import StackError

MARK = "HANQUAN_DATA"


def works_in(pid: int, folder: Path, program: str) -> bool:
    """Is `pid` a running `program` whose working folder is `folder`?"""
    try:
        cwd = os.readlink(f"/proc/{pid}/cwd")
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return False
    return Path(cwd) == folder.resolve() and name == program and not _is_dead(pid)


def is_marked(pid: int, folder: Path) -> bool:
    """Is `pid` a running service that a supervisor of data folder `folder` started?"""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"{MARK}={folder.resolve()}".encode() in environment and not _is_dead(pid)


def start_ticks(pid: int) -> int | None:
    """When the process started (clock ticks after boot), or None when it does not run.

    With the pid it names a process for good: a pid used again has another start.
    """
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


async def stop(pid: int, what: str, *signals: signal.Signals, each_within_s: float = 10.0) -> None:
    """Send the signals in turn until the process is gone. Raises StackError if it stays."""
    started = start_ticks(pid)
    for signal_number in signals:
        if started is None or start_ticks(pid) != started:
            return
        with suppress(ProcessLookupError):
            os.kill(pid, signal_number)
            os.kill(pid, signal.SIGCONT)  # one that was paused could not obey
        if await _gone(pid, started, each_within_s):
            return
    raise StackError(f"{what} of an earlier run (pid {pid}) does not stop; stop it by hand")


async def _gone(pid: int, started: int, within_s: float) -> bool:
    deadline = monotonic() + within_s
    while start_ticks(pid) == started:
        if monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True


def _is_dead(pid: int) -> bool:
    return start_ticks(pid) is None


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()  # the name in brackets may hold anything
