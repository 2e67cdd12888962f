"""What the demonstration has to show, and the table a person reads."""

from collections.abc import Mapping, Sequence

import msgspec
from rich.table import Table

from kernel.money import format_yuan


class DemoResult(msgspec.Struct, kw_only=True):
    """One demonstration. Money in fen, times in seconds or milliseconds; `ok` decides the exit status."""

    ok: bool = False
    round: str = ""
    seed: int = 0
    citizens: int = 0
    merchants: int = 0
    stocks: int = 0
    vouchers_offered: int = 0
    vouchers_issued: int = 0
    oversold: int = 0
    undersold: int = 0
    claims_answered: int = 0
    claims_lost: int = 0
    claims_refused: Mapping[str, int] = {}
    replays_wrong: int = 0
    claim_p50_ms: float = 0.0
    claim_p99_ms: float = 0.0
    claims_per_s: float = 0.0
    redeemed: int = 0
    refunded: int = 0
    tills_refused: Mapping[str, int] = {}
    till_p50_ms: float = 0.0
    till_p99_ms: float = 0.0
    face_issued_fen: int = 0
    subsidy_redeemed_fen: int = 0
    bills_fen: int = 0
    settled_fen: int = 0
    payable_fen: int = 0
    settling_fen: int = 0
    returned_to_city_fen: int = 0
    held_lines: int = 0
    breaks_planted: int = 0
    breaks_found: int = 0
    breaks_wrong: int = 0
    abusers_planted: int = 0
    abusers_flagged: int = 0
    honest_flagged: int = 0
    audit_violations: int = 0
    audit_broken: Sequence[str] = ()
    audit_examined: int = 0
    log_records: int = 0
    elapsed_s: float = 0.0

    def judge(self) -> None:
        """Good only when the audit is clean, nothing is over- or under-issued, and breaks found = planted."""
        self.ok = (
            self.oversold == self.undersold == self.audit_violations == self.breaks_wrong == self.replays_wrong == 0
            and self.breaks_found == self.breaks_planted
            and self.vouchers_issued > 0
        )


def table(result: DemoResult) -> Table:
    """The demonstration in the words of finance."""
    grid = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    grid.add_column()
    grid.add_column(justify="right")
    grid.add_column(style="dim")
    for rows in (_noon(result), _week(result), _money(result), _proof(result)):
        for row in rows:
            grid.add_row(*row)
        grid.add_row()
    return grid


Row = tuple[str, str, str]


def _noon(r: DemoResult) -> list[Row]:
    refusals = sorted(r.claims_refused.items(), key=lambda item: -item[1])
    return [
        ("[bold]Noon[/bold]", "", r.round),
        ("Citizens who pressed", f"{r.citizens:,}", "on three platforms"),
        ("Vouchers offered", f"{r.vouchers_offered:,}", f"{r.stocks} stocks, seed {r.seed}"),
        ("Vouchers issued", f"{r.vouchers_issued:,}", f"oversold {r.oversold}, undersold {r.undersold}"),
        ("Claims answered", f"{r.claims_answered:,}", f"{r.claims_per_s:,.0f} a second; lost {r.claims_lost}"),
        *((f"  refused: {_WORDS.get(code, code.lower())}", f"{count:,}", "") for code, count in refusals),
        ("Wait for a claim", f"{r.claim_p50_ms:,.1f} ms", f"half; 99 in 100 within {r.claim_p99_ms:,.1f} ms"),
    ]


_WORDS = {
    "SOLD_OUT": "sold out",
    "USER_ALREADY_CLAIMED": "has one already",
    "NOT_STARTED": "before noon",
    "RULE_LIMIT": "crowd on one phone",
    "FREQUENCY_LIMITED": "too often",
    "REQUEST_BLOCKED": "blocked",
}


def _week(r: DemoResult) -> list[Row]:
    return [
        ("[bold]Week[/bold]", "", f"{r.merchants:,} merchants, seven days"),
        ("Vouchers used", f"{r.redeemed:,}", ""),
        ("Purchases taken back", f"{r.refunded:,}", ""),
        ("Wait at a till", f"{r.till_p50_ms:,.1f} ms", f"half; 99 in 100 within {r.till_p99_ms:,.1f} ms"),
    ]


def _money(r: DemoResult) -> list[Row]:
    return [
        ("[bold]Money[/bold], in yuan", "", ""),
        ("Face of vouchers issued", format_yuan(r.face_issued_fen), ""),
        ("Bills paid with vouchers", format_yuan(r.bills_fen), ""),
        ("Subsidy redeemed", format_yuan(r.subsidy_redeemed_fen), "refunds taken off"),
        ("Paid to shops", format_yuan(r.settled_fen), "two people, the bank's answer"),
        ("On its way at the bank", format_yuan(r.settling_fen), ""),
        ("Still owed to shops", format_yuan(r.payable_fen), f"{r.held_lines} lines held, or sent back"),
        ("Back to the city", format_yuan(r.returned_to_city_fen), "vouchers that nobody used"),
    ]


def _proof(r: DemoResult) -> list[Row]:
    right = r.breaks_found == r.breaks_planted and not r.breaks_wrong
    audit = "clean" if not r.audit_violations else "BROKEN: " + ", ".join(r.audit_broken)
    return [
        ("[bold]Proof[/bold]", "", ""),
        ("Differences planted / found", f"{r.breaks_planted} / {r.breaks_found}", "just these" if right else "OTHERS"),
        (
            "Cheats planted / flagged",
            f"{r.abusers_planted} / {r.abusers_flagged}",
            f"honest flagged {r.honest_flagged}",
        ),
        ("Answers held to the books", f"{r.log_records:,}", "of platforms and tills"),
        ("Audit violations", f"{r.audit_violations}", f"{audit}, {r.audit_examined:,} rows examined"),
        ("Time", f"{r.elapsed_s:,.1f} s", ""),
    ]
