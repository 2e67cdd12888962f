"""What a person sees on the way: bars on a terminal, plain lines elsewhere. Always on standard error."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

Advance = Callable[[int], None]


class Progress:
    """Steps of unknown length and bars of known length, one under the other."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Bars | None = None
        self._task: TaskID | None = None

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Something that takes a while."""
        with self._showing(title, None):
            yield

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Advance]:
        """Something that goes forward; call what you get with how much."""
        with self._showing(title, total):
            yield self._advance

    def set_total(self, total: int) -> None:
        """Tells the present bar its length."""
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, total=total)

    def _advance(self, by: int) -> None:
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task, by)

    @contextmanager
    def _showing(self, title: str, total: int | None) -> Iterator[None]:
        started = time.perf_counter()
        if self._console.is_terminal:
            with _bars(self._console, total) as self._bars:
                self._task = self._bars.add_task(title, total=total)
                yield
                if total is None:
                    self._bars.update(self._task, total=1, completed=1)
            self._bars = None
        else:
            yield
            self._console.print(f"{title}: {time.perf_counter() - started:.1f} s", markup=False)


def _bars(console: Console, total: int | None) -> Bars:
    columns = [SpinnerColumn(finished_text="[green]✓[/green]"), TextColumn("{task.description}")]
    counts = [] if total is None else [BarColumn(), MofNCompleteColumn()]
    return Bars(*columns, *counts, TimeElapsedColumn(), console=console)
