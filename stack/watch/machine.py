"""How much of a core each of our processes uses, from /proc. A process's children count with it."""

import os
from collections.abc import Iterable
from pathlib import Path
from time import monotonic

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class CpuMeter:
    """Shares of a core between one look and the next."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[float, int]] = {}

    def look(self, pids: Iterable[int]) -> dict[int, float]:
        """Percent of a core by pid since the look before; without those seen for the first time or gone."""
        now, shares = monotonic(), {}
        ticks_by_pid = {pid: ticks for pid in pids if (ticks := cpu_ticks(pid)) is not None}
        for pid, ticks in ticks_by_pid.items():
            since, before = self._before.get(pid, (now, ticks))
            if now > since:
                shares[pid] = max(0, ticks - before) / _TICKS_A_SECOND / (now - since) * 100
        self._before = {pid: (now, ticks) for pid, ticks in ticks_by_pid.items()}
        return shares


def cpu_ticks(pid: int) -> int | None:
    """CPU time of a process and of all its children, those that ended included; None when it is gone."""
    own = _ticks(pid, with_ended=True)
    return None if own is None else own + sum(_ticks(child) or 0 for child in _children(pid))


def _ticks(pid: int, *, with_ended: bool = False) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name in brackets may hold anything
    return sum(map(int, fields[11 : 15 if with_ended else 13]))


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except OSError:
        return []
