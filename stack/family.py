"""Processes and what they started."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def family_of(pid: int) -> Iterator[int]:
    """A process and all below it, as they are now."""
    yield pid
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
            yield from family_of(int(child))
