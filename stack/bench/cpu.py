"""What processes cost, read from /proc."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from stack.errors import StackError
from stack.family import family_of

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pids: Sequence[int]) -> float:
    """Processor seconds so far of all threads of these processes and of all below them, also those that ended.

    Counted in ticks of (mostly) 10 ms. StackError when one of these processes is gone.
    """
    return sum(_ticks_of_family(pid) for pid in pids) / _TICKS_PER_S


def _ticks_of_family(pid: int) -> int:
    try:
        ticks = _ticks(pid)
    except OSError as error:
        raise StackError(f"process {pid} ended while it was measured") from error
    for child in [*family_of(pid)][1:]:
        with suppress(OSError):  # it ended meanwhile
            ticks += _ticks(child)
    return ticks


def _ticks(pid: int) -> int:
    # The name, second field, may hold blanks and brackets: what follows its last bracket is regular.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return sum(map(int, fields[11:15]))
