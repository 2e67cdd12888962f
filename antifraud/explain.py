"""Flags as small tables that a clerk can read aloud."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from rich.table import Table
from rich.text import Text

from antifraud.finding import Reason
from antifraud.review import BlockView, FlagView
from kernel.clock import CITY_ZONE


def explain(flag: FlagView) -> Table:
    """Everything about one flag, a line each."""
    reason = flag.reason
    lines = [
        ("flag", str(flag.flag_id)),
        (flag.subject_kind, _subject(flag)),
        ("seen", f"{reason.code}: {reason.value}, threshold {reason.threshold}, within {_span(reason.window_s)}"),
        ("points", f"{flag.points} ({flag.family})"),
        ("reason", f"{reason.zh}\n{reason.en}"),
        ("evidence", ", ".join(reason.evidence) or "-"),
        ("since", _time(flag.seen_from)),
        ("opened", _time(flag.opened_at)),
        ("state", _state(flag)),
        ("rules", reason.rule_set),
    ]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in lines:
        table.add_row(name, Text(value))
    return table


def flags_table(flags: Sequence[FlagView]) -> Table:
    """Many flags, one a line."""
    table = Table("flag", "opened", "subject", "detector", box=None, pad_edge=False)
    table.add_column("value", justify="right")
    table.add_column("points", justify="right")
    table.add_column("state")
    for flag in flags:
        value = f"{flag.reason.value} / {flag.reason.threshold}"
        table.add_row(
            *(str(flag.flag_id), _time(flag.opened_at), Text(f"{flag.subject_kind} {_subject(flag)}")),
            *(flag.detector, value, str(flag.points), Text(_state(flag))),
        )
    return table


def blocks_table(blocks: Iterable[BlockView]) -> Table:
    """People who are refused, one a line."""
    table = Table("block", "person", "until", box=None, pad_edge=False)
    table.add_column("points", justify="right")
    table.add_column("seen")
    for block in blocks:
        seen = ", ".join(_brief(reason) for reason in block.reason)
        table.add_row(str(block.block_id), str(block.person), _time(block.expires_at), str(block.points), seen)
    return table


def _subject(flag: FlagView) -> str:
    if flag.merchant_id is None:
        return flag.subject
    return f"{flag.merchant_id} {flag.merchant_name}"


def _state(flag: FlagView) -> str:
    if flag.closed_at is not None:
        note = f": {flag.note}" if flag.note else ""
        return f"{(flag.outcome or '').lower()} by {flag.closed_by}{note}"
    return "open, payment held" if flag.is_held else "open"


def _brief(reason: Reason) -> str:
    return f"{reason.code} {reason.value}"


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(CITY_ZONE):%Y-%m-%d %H:%M:%S}"


def _span(seconds: int) -> str:
    for unit_s, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= unit_s and seconds % unit_s == 0:
            return f"{seconds // unit_s} {name}"
    return f"{seconds} s"
