"""Draws a view for a terminal of 80 columns and 24 lines, or a larger one."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kernel.clock import CITY_ZONE
from stack.watch.view import Quantiles, RoundLine, StockLine, Store, View

LABEL = 12
BAR = 20
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_STEPS = "▁▂▃▄▅▆▇█"
_STATE = {"OPEN": ("OPEN, closes in", "closes_at"), "NEXT": ("opens in", "opens_at"), "OVER": ("over", "")}


def render(view: View, width: int, height: int) -> RenderableType:
    """The frame: never wider or higher than asked, whatever there is to show."""
    head = [*_head(view), Text(), *_figures(view, width), Text()]
    rounds = _rounds(view, height - len(head))
    for line in head:
        line.truncate(width, overflow="ellipsis")
    return Group(*head, *rounds)


# ---------------------------------------------------------------- figures


def _head(view: View) -> Iterator[Text]:
    line = Text("HANQUAN  ", style="bold")
    line.append(f"{view.now.astimezone(CITY_ZONE):%Y-%m-%d %H:%M:%S} campaign time", style="default")
    if view.next_opening is not None:
        line.append(f"   next round in {clock(view.next_opening - view.now)}", style="yellow")
    yield line


def _figures(view: View, width: int) -> Iterator[Text]:
    yield from _claims(view, width)
    http, store = view.http_ms, view.store_ms
    yield _line("latency", f"p50 {_ms(http.p50)}  p99 {_ms(http.p99)}", f"claim store {_pair(store)}")
    gathered = view.coalescing
    yield _line(
        "batches",
        f"{_decimal(gathered.mean_batch)} claims on average",
        f"p99 {_decimal(gathered.p99_batch)}",
        f"{gathered.calls_per_s:,.0f} calls/s",
        f"{gathered.waiting:,.0f} waiting",
    )
    drain = view.draining
    yield _line(
        "log",
        "not known" if drain.log_entries is None else f"{drain.log_entries:,} entries",
        f"oldest {_seconds(drain.oldest_s)}",
        f"drained {drain.drained_per_s:,.0f}/s",
        f"lag {_seconds(drain.lag_s)}",
    )
    yield _line("stores", _store("PostgreSQL", view.postgres), _store("Valkey", view.valkey))
    yield _up(view)
    busy = sorted(view.workers, key=lambda one: -(one.cpu_percent or 0))
    yield _line(
        "cpu %", *([f"{one.name} {one.cpu_percent:.0f}" for one in busy if one.cpu_percent is not None] or ["-"])
    )


def _claims(view: View, width: int) -> Iterator[Text]:
    claims, refused = view.claims, sum(view.claims.refused_per_s.values())
    yield _line(
        "claims/s",
        f"{claims.per_s:,.0f}",
        f"granted {claims.granted_per_s:,.0f}",
        f"replayed {claims.replayed_per_s:,.0f}",
        f"refused {refused:,.0f}",
        f"{claims.total:,.0f} so far",
    )
    peak = max(claims.last_minute_per_s, default=0)
    room = max(10, width - LABEL - 18)
    line = _line("", sparkline(claims.last_minute_per_s[-room:], peak).ljust(min(room, 60)))
    yield line.append(f"  peak {peak:,.0f}", style="dim")
    unread = {"over quota": claims.over_quota_per_s, "turned away": claims.turned_away_per_s}
    codes = [f"{code} {rate:,.0f}" for code, rate in (*claims.refused_per_s.items(), *unread.items()) if rate]
    if claims.from_memory_per_s:
        codes.append(f"({claims.from_memory_per_s:,.0f} from memory)")
    yield _line("refused/s", *(codes or ["-"]))


def _up(view: View) -> Text:
    """What is not whole comes first, then what has most workers; the rest may be cut off."""
    line = Text("up".ljust(LABEL), style="dim")
    asked, up = Counter(one.service for one in view.workers), Counter(one.service for one in view.workers if one.is_up)
    if view.signals_dropped:
        line.append(f"{view.signals_dropped:,.0f} signals dropped   ", style="yellow")
    for service, count in sorted(asked.items(), key=lambda pair: (up[pair[0]] == pair[1], -pair[1])):
        style = "default" if up[service] == count else "bold red"
        line.append(f"{service} {up[service]}/{count}   ", style=style)
    return line


def _store(name: str, store: Store) -> str:
    if store.answer_ms is None:
        return f"{name} does not answer"
    words = [f"{name} {_ms(store.answer_ms)}"]
    words += [] if store.memory_bytes is None else [f"{store.memory_bytes / 1e6:,.0f} MB"]
    words += [] if store.operations_per_s is None else [f"{store.operations_per_s:,.0f}/s"]
    return "  ".join(words)


def _line(label: str, *words: str) -> Text:
    line = Text(label.ljust(LABEL), style="dim", no_wrap=True)
    style = "bold red" if any("does not answer" in word for word in words) else "default"
    return line.append("   ".join(words), style=style)


def sparkline(values: Sequence[float], peak: float) -> str:
    """A letter a value, the highest for the peak; a blank where there was nothing."""
    if peak <= 0:
        return " " * len(values)
    return "".join(_STEPS[min(7, int(value / peak * 8))] if value > 0 else " " for value in values)


# ---------------------------------------------------------------- rounds


def _rounds(view: View, lines: int) -> Iterator[RenderableType]:
    """As many lines as there are; each round has a heading, and stocks as long as there is room."""
    if not view.rounds:
        yield Text("no round is open, next, or just over", style="dim")
        return
    rest = lines
    for place, line in enumerate(view.rounds):
        if rest <= 0:
            return
        yield _heading(line, view.now)
        rest -= 1
        headings_below = min(rest, len(view.rounds) - place - 1)
        shown = line.stocks if line.state != "OVER" else []
        table, used = _stocks(line, shown, max(0, rest - headings_below))
        if used:
            yield table
            rest -= used


def _heading(line: RoundLine, now: datetime) -> Text:
    words, moment = _STATE[line.state]
    heading = Text(no_wrap=True, overflow="ellipsis")
    heading.append(f"{line.title_zh} {line.round_id}", style="bold")
    when = f"{words} {clock(getattr(line, moment) - now)}" if moment else words
    heading.append(f"  {when}", style="green" if line.state == "OPEN" else "yellow" if line.state == "NEXT" else "dim")
    quantity = sum(one.quantity for one in line.stocks)
    left = _sum_left(line.stocks)
    heading.append(f"  {quantity:,} vouchers" if left is None else f"  {left:,} of {quantity:,} left", style="dim")
    return heading


def _stocks(line: RoundLine, stocks: Sequence[StockLine], lines: int) -> tuple[Table, int]:
    """A table of so many lines at most, and how many it has."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, expand=True, show_header=False)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for _ in range(3):
        table.add_column(justify="right", no_wrap=True, min_width=9)
    table.add_column(no_wrap=True, width=BAR)
    if lines < 2 or not stocks:
        return table, 0
    table.add_row(*(Text(word, style="dim") for word in ("  stock", "quantity", "left", "issued", "")))
    fits = len(stocks) <= lines - 1
    shown, hidden = (stocks, []) if fits else (stocks[: lines - 2], stocks[lines - 2 :])
    for one in shown:
        table.add_row(*_stock_row(f"  {_short(line, one)}", [one], "paused" if one.paused else ""))
    if hidden:
        table.add_row(*_stock_row(f"  {len(hidden)} more", hidden, ""))
    return table, 1 + len(shown) + bool(hidden)


def _stock_row(name: str, stocks: Sequence[StockLine], mark: str) -> Iterable[Text]:
    quantity, issued = sum(one.quantity for one in stocks), sum(one.issued for one in stocks)
    left = _sum_left(stocks)
    gone = issued if left is None else max(quantity - left, issued)
    yield Text(name)
    yield Text(f"{quantity:,}")
    yield Text("-" if left is None else f"{left:,}", style="bold red" if left == 0 else "default")
    yield Text(f"{issued:,}")
    yield Text(mark, style="yellow") if mark else Text(bar(gone, quantity), style="red" if left == 0 else "green")


def _sum_left(stocks: Sequence[StockLine]) -> int | None:
    known = [one.left for one in stocks if one.left is not None]
    return sum(known) if len(known) == len(stocks) and stocks else None


def bar(part: int, whole: int, width: int = BAR) -> str:
    """A bar in eighths of a letter."""
    eighths = min(width * 8, part * width * 8 // whole) if whole else 0
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


def _short(line: RoundLine, stock: StockLine) -> str:
    """Stocks are mostly named after their campaign and round, which the heading says already."""
    return stock.stock_id.removeprefix(f"{line.campaign_id}_{line.round_id}_")


# ---------------------------------------------------------------- words


def clock(span: timedelta) -> str:
    """`7:59:53`, `2 d 3:00:00`; nothing below zero."""
    seconds = max(0, int(span.total_seconds()))
    days, seconds = divmod(seconds, 86_400)
    text = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{days} d {text}" if days else text


def _pair(quantiles: Quantiles) -> str:
    return f"p50 {_ms(quantiles.p50)}  p99 {_ms(quantiles.p99)}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f} ms" if value < 100 else f"{value:,.0f} ms"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f} s"


def _decimal(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"
