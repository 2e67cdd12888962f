"""What a bench tells: one JSON object, or a table that lines up. Every bench has the same keys."""

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table

from stack.bench.phases import Phase
from stack.bench.storage import Stored

Bound = Literal["at least", "at most"]
Justify = Literal["left", "right"]


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How large a run was and on what."""

    items: int
    people: int
    connections: int
    seconds: float
    workers: int
    keys: str
    processors: int = os.cpu_count() or 1
    python: str = platform.python_version()
    valkey: str = ""
    postgres: str = ""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What was to be reached, and whether it was."""

    name: str
    bound: Bound
    target: float
    measured: float
    met: bool


class Report(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A whole run. `correct` is about the run, not about the targets: every win durable, nothing oversold."""

    bench: str
    rate_per_s: float
    limit_per_s: float
    ratio: float
    p50_ms: float
    p99_ms: float
    cpu_us_per_item: float
    correct: bool
    wrong: list[str]
    targets: list[Target]
    size: Size
    phases: list[Phase]
    cpu_us_issuer: float | None = None
    cpu_us_valkey: float | None = None
    cpu_us_limit: float | None = None
    """What one item costs the process that sets the limit."""
    cpu_us_drain: float | None = None
    cpu_us_postgres: float | None = None
    open_rate_per_s: float | None = None
    """At which rate p50_ms and p99_ms were taken, where arrivals were on an open schedule."""
    cpu_us_redemption: float | None = None
    ledger_only_per_s: float | None = None
    hot_rate_per_s: float | None = None
    hot_ratio: float | None = None
    bytes_per_voucher: float | None = None
    bytes_per_voucher_grown: float | None = None
    fill_s: float | None = None
    """How long it took to put the vouchers into the books."""
    storage: list[Stored] = []
    bytes_per_claim: float | None = None
    pace_bytes_per_claim: float | None = None
    flatness: float | None = None
    rush_per_s: float | None = None
    """The single-claim rate under which the lag was taken."""
    lag_p50_s: float | None = None
    lag_p99_s: float | None = None
    lag_max_s: float | None = None


def target(name: str, bound: Bound, wanted: float, measured: float, *, or_else: bool = False) -> Target:
    """A target held against a figure; `or_else`: it is met also when the figure misses it."""
    met = measured >= wanted if bound == "at least" else measured <= wanted
    return Target(name=name, bound=bound, target=wanted, measured=measured, met=met or or_else)


WORDS = {
    "rate_per_s": ("rate", "/s"),
    "limit_per_s": ("limit", "/s"),
    "ratio": ("ratio", ""),
    "ledger_only_per_s": ("rows alone", "/s"),
    "open_rate_per_s": ("open schedule", "/s"),
    "p50_ms": ("p50", "ms"),
    "p99_ms": ("p99", "ms"),
    "cpu_us_per_item": ("processor, an item", "us"),
    "cpu_us_issuer": ("  issuer", "us"),
    "cpu_us_valkey": ("  Valkey", "us"),
    "cpu_us_redemption": ("  redemption", "us"),
    "cpu_us_drain": ("  drain", "us"),
    "cpu_us_postgres": ("  PostgreSQL", "us"),
    "cpu_us_limit": ("  the limit's process", "us"),
    "bytes_per_claim": ("memory, a claim", "B"),
    "pace_bytes_per_claim": ("  of the gate, for two minutes", "B"),
    "hot_rate_per_s": ("rate, hot shops", "/s"),
    "hot_ratio": ("  all shops alike, over that", ""),
    "bytes_per_voucher": ("storage, a voucher", "B"),
    "bytes_per_voucher_grown": ("  before indexes are packed", "B"),
    "fill_s": ("table filled in", "s"),
    "flatness": ("cost, last to first", ""),
    "rush_per_s": ("single claims meanwhile", "/s"),
    "lag_p50_s": ("lag p50", "s"),
    "lag_p99_s": ("lag p99", "s"),
    "lag_max_s": ("lag max", "s"),
}


def render(report: Report, remarks: Mapping[str, str]) -> RenderableType:
    """Figures, then targets, then what was wrong. `remarks` say what a figure is, by its key."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(f"bench {report.bench}")
    table.add_column(justify="right")
    table.add_column()
    table.add_column()
    for key, (word, unit) in WORDS.items():
        figure = getattr(report, key)
        if figure is not None:
            table.add_row(word, _plain(figure), unit, remarks.get(key, ""))
    size = report.size
    table.add_row("items", f"{size.items:,}", "", f"{size.people:,} people, {size.connections} connections")
    table.add_row("workers", str(size.workers), "", f"{size.processors} processors, {size.keys} keys")
    table.add_row("measured", _plain(size.seconds), "s", _versions(size))
    storage: list[RenderableType] = [_storage(report.storage), ""] if report.storage else []
    wrong = [f"[red]wrong: {what}[/]" for what in report.wrong]
    right = "every redemption is durable, once" if report.storage else "every win is durable, once; nothing oversold"
    verdict = f"[green]{right}[/]" if report.correct else "[red]not correct[/]"
    return Group(table, "", *storage, _targets(report), "", *wrong, verdict)


def _storage(stored: Sequence[Stored]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("bytes of a voucher's life")
    for head in ("issued", "redeemed", "both", "packed"):
        table.add_column(head, justify="right")
    for one in stored:
        name = f"  {one.relation}" if one.is_index else one.relation
        table.add_row(name, *(f"{figure:.1f}" for figure in (one.voucher, one.redemption, one.grown, one.packed)))
    return table


def _targets(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    columns: tuple[Justify, ...] = ("left", "left", "right", "right", "left")
    for justify in columns:
        table.add_column(justify=justify)
    for one in report.targets:
        met = "[green]met[/]" if one.met else "[yellow]missed[/]"
        table.add_row(one.name, one.bound, _plain(one.target), _plain(one.measured), met)
    return table


def _versions(size: Size) -> str:
    return f"Python {size.python}, Valkey {size.valkey}, PostgreSQL {size.postgres}"


def _plain(figure: float) -> str:
    return f"{figure:,.0f}" if abs(figure) >= 1_000 or figure == int(figure) else f"{figure:,.3g}"
