"""What the clients can see for themselves after a run, without a look into the server.

    python -m loadtests.audit --plan plan.json logs/told-*.jsonl

Reads what they were told, asks the server about what they do not know, and prints a table. The exit
status is 0 when everything holds. Give it the logs of all processes: a lost file is a lost voucher.
"""

import argparse
import asyncio
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from loadtests.asking import ASKED_MAX, State, ask_states
from loadtests.client_log import GRANTED, UNKNOWN, Line, read_lines
from loadtests.latency import Histogram
from loadtests.plan import Plan, PlanError, read_plan

SHOWN_MAX = 10
UNSURE = {UNKNOWN, "SYSTEM_BUSY", "SYSTEM_ERROR"}
"""After these nobody knows what became of the request, until it is asked for."""

Number = tuple[str, str]
"""A request number, in the scope of its partner."""


class Check(msgspec.Struct, kw_only=True):
    """One thing that must hold."""

    id: str
    sentence: str
    examined: int = 0
    violations: int = 0
    shown: list[str] = msgspec.field(default_factory=list)

    def add(self, what: str, times: int = 1) -> None:
        """Counts violations and shows the first ones."""
        self.violations += times
        if len(self.shown) < SHOWN_MAX:
            self.shown.append(what)


class Figures(msgspec.Struct, kw_only=True):
    """What happened, in numbers."""

    presses: int = 0
    """Request numbers: one a tap on the button."""
    calls: int = 0
    """Times that one was sent."""
    wins: int = 0
    refusals: dict[str, int] = msgspec.field(default_factory=dict)
    lost_answers: int = 0
    repeated_answers: int = 0
    """Wins told again under the same number."""
    unknown_won: int = 0
    """Presses that nobody had an answer to, and that turned out to have won."""
    unknown_not_won: int = 0
    claims_per_s: int = 0
    """Answers in the busiest second."""
    called_ms: dict[str, float] = msgspec.field(default_factory=dict)
    pressed_ms: dict[str, float] = msgspec.field(default_factory=dict)


class Findings(msgspec.Struct, kw_only=True):
    """The whole audit."""

    holds: bool
    figures: Figures
    checks: list[Check]


class Press(msgspec.Struct):
    """What is known of one request number."""

    stock_id: str
    person_token: str
    code: str | None = None
    is_unsure: bool = False


class Book:
    """Everything that was told, put together. Memory grows with the number of presses."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.presses: dict[Number, Press] = {}
        self.figures = Figures()
        self.sold_out: set[str] = set()
        self._refusals: Counter[str] = Counter()
        self._seconds: Counter[int] = Counter()
        self._owners: dict[str, Number] = {}
        self._called, self._pressed = Histogram(), Histogram()
        self.one_code = Check(id="one-code", sentence="No request number was told two codes")
        self.one_owner = Check(id="one-owner", sentence="No code was told to two people, or for two claims")

    def read(self, lines: Iterable[Line]) -> None:
        """Takes in a log."""
        for line in lines:
            number = (line.partner_id, line.out_request_no)
            press = self.presses.setdefault(number, Press(line.stock_id, line.person_token))
            self.figures.calls += 1
            if line.outcome == UNKNOWN:
                self.figures.lost_answers += 1
            else:
                self._called.add(line.called_ms)
                self._pressed.add(line.pressed_ms)
                self._seconds[line.at_ms // 1000] += 1
            if line.outcome == GRANTED and line.voucher_code is not None:
                self.won(number, press, line.voucher_code)
            elif line.outcome in UNSURE:
                press.is_unsure = True
            if line.outcome == "SOLD_OUT":
                self.sold_out.add(line.stock_id)
            if line.outcome not in (GRANTED, UNKNOWN):
                self._refusals[line.outcome] += 1

    def won(self, number: Number, press: Press, code: str) -> None:
        """A claim was told a code."""
        self.one_code.examined += 1
        self.one_owner.examined += 1
        if press.code not in (None, code):
            self.one_code.add(f"{_name(number)}: {press.code} and {code}")
        if (owner := self._owners.setdefault(code, number)) != number:
            self.one_owner.add(f"{code}: {_name(owner)} and {_name(number)}")
        self.figures.repeated_answers += press.code is not None
        press.code = press.code or code

    def summed_up(self) -> Figures:
        """All figures."""
        figures = self.figures
        figures.presses = len(self.presses)
        figures.wins = sum(1 for press in self.presses.values() if press.code is not None)
        figures.refusals = dict(self._refusals.most_common())
        figures.claims_per_s = max(self._seconds.values(), default=0)
        figures.called_ms, figures.pressed_ms = self._called.summary_ms(), self._pressed.summary_ms()
        return figures


async def audit(plan: Plan, logs: Sequence[Path]) -> Findings:
    """Reads the logs, asks, judges."""
    book = Book(plan)
    for path in logs:
        book.read(read_lines(path))
    resolved, kept = await _resolve(book), await _ask_again(book)
    checks = [book.one_code, book.one_owner, resolved, kept, *check_stocks(book), check_limit(book)]
    return Findings(holds=not any(check.violations for check in checks), figures=book.summed_up(), checks=checks)


async def _resolve(book: Book) -> Check:
    check = Check(id="resolved", sentence="What no answer came to could be found out afterwards")
    unsure = [(number, press) for number, press in book.presses.items() if press.is_unsure and press.code is None]
    for number, state in zip(unsure, await _states(book, unsure), strict=True):
        check.examined += 1
        if state.code is not None:
            book.figures.unknown_won += 1
            book.won(*number, state.code)
        elif state.is_absent:
            book.figures.unknown_not_won += 1
        else:
            check.add(f"{_name(number[0])}: {state.trouble}")
    return check


async def _ask_again(book: Book) -> Check:
    check = Check(id="kept", sentence="Every code that was told is still known, under its number")
    told = [(number, press) for number, press in book.presses.items() if press.code is not None]
    sample = told[:: -(-len(told) // ASKED_MAX) or 1]
    for (number, press), state in zip(sample, await _states(book, sample), strict=True):
        check.examined += 1
        if state.code != press.code:
            check.add(f"{_name(number)}: told {press.code}, now {state.code or state.trouble}")
    return check


async def _states(book: Book, presses: Sequence[tuple[Number, Press]]) -> list[State]:
    return await ask_states(book.plan, [(*number, press.person_token) for number, press in presses])


def check_stocks(book: Book) -> tuple[Check, Check]:
    """Neither too many nor too few of any stock."""
    over = Check(id="oversold", sentence="No stock has more wins than vouchers")
    under = Check(id="undersold", sentence="Where SOLD_OUT was told, all vouchers are won")
    wins = Counter(press.stock_id for press in book.presses.values() if press.code is not None)
    for stock in book.plan.stocks:
        over.examined += 1
        won, words = wins[stock.stock_id], f"{stock.stock_id}: {wins[stock.stock_id]} of {stock.quantity}"
        if won > stock.quantity:
            over.add(words, won - stock.quantity)
        if stock.stock_id in book.sold_out:
            under.examined += 1
            if won < stock.quantity:
                under.add(words, stock.quantity - won)
    return over, under


def check_limit(book: Book) -> Check:
    """No person has too many."""
    check = Check(id="limit", sentence="Nobody has more of a platform than the round allows")
    have: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (partner_id, _), press in book.presses.items():
        if press.code is not None:
            have[partner_id, press.person_token].append(press.code)
    check.examined = len(have)
    for (partner_id, person), codes in have.items():
        if len(codes) > book.plan.per_person_limit:
            words = f"{partner_id}, person {person}: {', '.join(codes)}"
            check.add(words, len(codes) - book.plan.per_person_limit)
    return check


def _name(number: Number) -> str:
    return f"{number[0]}/{number[1]}"


def render(findings: Findings) -> Table:
    """Figures, then checks, then what is wrong."""
    figures = findings.figures
    table = Table("", "", box=None, pad_edge=False, show_header=False)
    rows = [("presses", figures.presses), ("calls", figures.calls), ("wins", figures.wins)]
    rows += [(f"refused {code}", count) for code, count in figures.refusals.items()]
    rows += [("lost answers", figures.lost_answers), ("  found to have won", figures.unknown_won)]
    rows += [("claims/s, busiest second", figures.claims_per_s)]
    for name, count in rows:
        table.add_row(name, f"{count:,}")
    for name, summary in (("call", figures.called_ms), ("scheduled press", figures.pressed_ms)):
        table.add_row(f"ms from the {name}", "  ".join(f"{what} {ms:,.1f}" for what, ms in summary.items()))
    for check in findings.checks:
        verdict = f"[bold red]{check.violations:,} VIOLATIONS[/]" if check.violations else "[green]holds[/]"
        table.add_row(check.sentence, f"{verdict} ({check.examined:,} examined)")
        for what in check.shown:
            table.add_row("", what, style="red")
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.audit", description="Audit a run from its client logs.")
    parser.add_argument("--plan", type=Path, required=True, help="the plan of the run")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("logs", type=Path, nargs="+", metavar="LOG", help="client logs of all processes")
    options = parser.parse_args(arguments)
    try:
        findings = asyncio.run(audit(read_plan(options.plan), options.logs))
    except (PlanError, msgspec.DecodeError, OSError) as error:
        sys.stderr.write(f"audit: {error}\n")
        return 2
    if options.json:
        sys.stdout.write(msgspec.json.encode(findings).decode() + "\n")
    else:
        Console(highlight=False).print(render(findings))
    return 0 if findings.holds else 1


if __name__ == "__main__":
    sys.exit(main())
