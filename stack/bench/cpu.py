"""What processes cost, read from /proc."""

import os
from collections.abc import Sequence
from pathlib import Path

from stack.errors import StackError

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pids: Sequence[int]) -> float:
    """Processor seconds so far of all threads of these processes and of their children that ended.

    Counted in ticks of (mostly) 10 ms. StackError when a process is gone.
    """
    return sum(_ticks(pid) for pid in pids) / _TICKS_PER_S


def _ticks(pid: int) -> int:
    # The name, second field, may hold blanks and brackets: what follows its last bracket is regular.
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError as error:
        raise StackError(f"process {pid} ended while it was measured") from error
    return sum(map(int, fields[11:15]))
