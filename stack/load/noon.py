"""One load test from end to end: prepare, rush, judge; and how it is told."""

from collections.abc import Callable

import msgspec
from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from kernel.clock import Clock, SystemClock
from stack.console import err
from stack.errors import StackError
from stack.load.prepare import Prepared, Size, prepared
from stack.load.rush import run_rush
from stack.load.verdict import Figures, Verdict, judge
from stack.reach import Reach
from stack.running import Stack

READY_BEFORE_S = 5.0
"""Locust needs so long to start and to send out its first people."""


class NoonReport(msgspec.Struct, kw_only=True):
    """A whole run. `holds` is what counts."""

    run_id: str
    size: Size
    figures: Figures
    oversold: int
    undersold: int
    missing: int
    doubled: int
    examined: int
    wrong: list[str]
    holds: bool


async def run_noon(stack: Stack | Reach, size: Size) -> NoonReport:
    """Everything that `./hanquan load noon` does on a stack that runs. Raises StackError."""
    async with prepared(stack, size) as run:
        clock = SystemClock()
        if (run.opens_at - clock.now()).total_seconds() < READY_BEFORE_S:
            raise StackError(f"this machine needs more than {size.lead_s} s to prepare; try again with a larger --lead")
        with _progress() as progress:
            logs = await run_rush(run, size, stack.folder.logs / "load.log", _ticker(progress, run, size, clock))
        with err.status("waiting for the drain, then auditing ..."):
            verdict = await judge(stack, run, logs)
    return _report(run, size, verdict)


def _report(run: Prepared, size: Size, verdict: Verdict) -> NoonReport:
    return NoonReport(
        run_id=run.run_id,
        size=size,
        figures=verdict.figures,
        oversold=verdict.oversold,
        undersold=verdict.undersold,
        missing=verdict.missing,
        doubled=verdict.doubled,
        examined=verdict.examined,
        wrong=verdict.wrong,
        holds=verdict.holds,
    )


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(40), TextColumn("{task.fields[answers]:,} answers"))
    return Progress(*columns, console=err, transient=True)


def _ticker(progress: Progress, run: Prepared, size: Size, clock: Clock) -> Callable[[int], None]:
    started = clock.now()
    total_s = (run.opens_at - started).total_seconds() + size.seconds
    line = progress.add_task("", total=total_s, answers=0)

    def tick(answers: int) -> None:
        now = clock.now()
        words = _when((now - run.opens_at).total_seconds())
        progress.update(line, completed=(now - started).total_seconds(), description=words, answers=answers)

    return tick


def _when(after_noon_s: float) -> str:
    if after_noon_s < 0:
        return f"noon in {-after_noon_s:4.1f} s"
    return f"noon + {after_noon_s:5.1f} s"


def render(report: NoonReport) -> RenderableType:
    """One aligned table."""
    figures = report.figures
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    _row(table, "citizens", report.size.citizens, f"run {report.run_id}, client processes: {report.size.processes}")
    _row(table, "vouchers", report.size.vouchers, "in 12 stocks of 3 platforms")
    _row(table, "presses", figures.presses, f"sent in {figures.calls:,} calls")
    _row(table, "wins", figures.wins, f"told again {figures.repeated_answers:,} times")
    for code, count in figures.refusals.items():
        _row(table, f"  {code}", count, "")
    _row(table, "lost answers", figures.lost_answers, f"{figures.unknown_won:,} turned out to have won")
    _row(table, "claims/s", figures.claims_per_s, "answered in the busiest second")
    for name, ms in (("call", figures.called_ms), ("scheduled press", figures.pressed_ms)):
        for share in ("p50", "p99", "max"):
            table.add_row(f"{share}, ms", f"{ms[share]:,.1f}", f"from the {name}" if share == "p50" else "")
    for word, count in (
        ("oversold", report.oversold),
        ("undersold", report.undersold),
        ("missing", report.missing),
        ("doubled", report.doubled),
    ):
        table.add_row(word, f"[{'bold red' if count else 'green'}]{count:,}[/]", "")
    _row(table, "examined", report.examined, "rows and records, by both audits")
    for what in report.wrong:
        table.add_row("[red]wrong[/]", "", what)
    return table


def _row(table: Table, word: str, count: int, remark: str) -> None:
    table.add_row(word, f"{count:,}", remark)
