"""Holds what the clients were told against the server (by HTTP, as they could) and against the ledger."""

import asyncio
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import asyncpg
import msgspec

from kernel.codes import CodeBook
from kernel.valkey import open_valkey
from stack.audit import AuditReport, ClientLogError, ClientLogReport, Told, audit, check_client_log, read_log
from stack.audit.claim_store import read_log_ends, read_stock_wins, wait_drained
from stack.audit.clientlog import ClaimTold
from stack.errors import StackError
from stack.load.prepare import Prepared
from stack.load.rush import ROOT, environment
from stack.reach import Reach
from stack.running import Stack

DRAIN_WITHIN_S = 60.0
SHOWN_MAX = 10


class Check(msgspec.Struct, kw_only=True):
    """One line of the clients' own audit."""

    id: str
    sentence: str
    examined: int
    violations: int
    shown: list[str]


class Figures(msgspec.Struct, kw_only=True):
    """What happened, as loadtests/audit.py counted it."""

    presses: int
    calls: int
    wins: int
    refusals: dict[str, int]
    lost_answers: int
    repeated_answers: int
    unknown_won: int
    unknown_not_won: int
    claims_per_s: int
    called_ms: dict[str, float]
    pressed_ms: dict[str, float]


class Clients(msgspec.Struct, kw_only=True):
    """The clients' own audit."""

    holds: bool
    figures: Figures
    checks: list[Check]

    def violations(self, *ids: str) -> int:
        """Of some of its checks together."""
        return sum(check.violations for check in self.checks if check.id in ids)


class Verdict(msgspec.Struct, kw_only=True):
    """What a run proved. All four counts must be zero, and nothing else may be wrong."""

    figures: Figures
    oversold: int
    undersold: int
    missing: int
    """Answers that neither the server nor the ledger bears out."""
    doubled: int
    examined: int
    """Rows and records that the audits looked at."""
    wrong: list[str]
    """Everything that does not hold, in words that find it."""

    @property
    def holds(self) -> bool:
        """Whether the run is sound."""
        return not (self.oversold or self.undersold or self.missing or self.doubled or self.wrong)


async def judge(stack: Stack | Reach, prepared: Prepared, logs: Sequence[Path]) -> Verdict:
    """Waits for the drain, then runs both audits. Raises StackError when one cannot be run."""
    conn = await asyncpg.connect(stack.dsn("hanquan_auditor"), timeout=10)
    valkey = open_valkey(stack.valkey_url)
    try:
        wins, ends = await read_stock_wins(conn, valkey), await read_log_ends(conn, valkey)
        if not await wait_drained(conn, ends, DRAIN_WITHIN_S):
            raise StackError(f"the drain did not catch up in {DRAIN_WITHIN_S:g} s; see {stack.folder.logs}/drain.log")
        clients = await _ask_clients(prepared, logs)
        demand = _demand(prepared, _records(logs))
        books = await audit(conn, stock_wins=wins, log_ends=ends, demand=demand)
        keys = {int(version): bytes.fromhex(key) for version, key in stack.secrets.code_keys.items()}
        told = await check_client_log(conn, _records(logs), CodeBook(keys))
    except (ClientLogError, OSError) as error:
        raise StackError(f"cannot read the clients' log: {error}") from error
    finally:
        await conn.close(timeout=5)
        await valkey.aclose()
    return weigh(clients, books, told)


def weigh(clients: Clients, books: AuditReport, told: ClientLogReport) -> Verdict:
    """Both audits as one verdict. Where both saw the same wrong, it counts once."""
    broken = {one.id: one.violations for one in books.statements if one.violations}
    undersold = broken.get("A1g", 0)  # A1g finds exactly the stocks of which `told` says the same
    wrong = [f"clients, {check.id}: {what}" for check in clients.checks for what in check.shown]
    wrong += [f"ledger, {one.id}: {what}" for one in books.statements for what in one.shown[:SHOWN_MAX]]
    wrong += [f"ledger, clients' log: {what}" for what in told.shown[:SHOWN_MAX]]
    return Verdict(
        figures=clients.figures,
        oversold=max(clients.violations("oversold"), broken.get("A1b", 0)),
        undersold=max(clients.violations("undersold"), undersold),
        missing=max(clients.violations("kept", "resolved"), told.violations - undersold),
        doubled=max(clients.violations("one-code", "one-owner", "limit"), broken.get("A2a", 0) + broken.get("A2b", 0)),
        examined=sum(check.examined for check in clients.checks) + books.examined + told.records,
        wrong=wrong,
    )


async def _ask_clients(prepared: Prepared, logs: Sequence[Path]) -> Clients:
    command = (sys.executable, "-m", "loadtests.audit", "--json", "--plan", str(prepared.plan), *map(str, logs))
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode not in (0, 1):
        raise StackError(f"the clients' audit failed: {err.decode(errors='replace').strip()[-500:]}")
    return msgspec.json.decode(out, type=Clients)


def _records(logs: Sequence[Path]) -> Iterator[Told]:
    return chain.from_iterable(read_log(path) for path in logs)


def _demand(prepared: Prepared, records: Iterator[Told]) -> dict[int, int]:
    """By stock number, people who asked and were allowed to. SOLD_OUT speaks for all who came before."""
    asked: dict[str, set[str]] = {stock_id: set() for stock_id in prepared.quantities}
    sold_out: set[str] = set()
    for told in records:
        if isinstance(told, ClaimTold) and told.outcome in ("GRANTED", "SOLD_OUT") and told.stock_id in asked:
            asked[told.stock_id].add(told.person_token)
            if told.outcome == "SOLD_OUT":
                sold_out.add(told.stock_id)
    return {
        prepared.stock_nos[stock_id]: max(len(people), prepared.quantities[stock_id] * (stock_id in sold_out))
        for stock_id, people in asked.items()
    }
