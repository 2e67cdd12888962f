"""Rounds of random faults against the claim service, and what came of them."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from time import monotonic

from stack.audit import audit_city, check_client_log, read_log
from stack.errors import StackError
from stack.faults.books import Weighed, read_entries, weigh
from stack.faults.campaign import PARTNER, stocks_of
from stack.faults.field import LOST_TOUCH, Field, Size, open_field
from stack.faults.kinds import CLIENTS, FAULTS, choose
from stack.faults.report import RECOVERY_MAX_S, Report

AUDIT_TRIES = 5


async def run_issuer(folder: Path, size: Size, seconds: float, advance: Callable[[int], None]) -> Report:
    """So many rounds over a stack of its own in `folder`. `seconds`: how long clients claim around each fault.

    Raises StackError when the stack does not start.
    """
    started = monotonic()
    chosen = choose(size.seed, size.rounds)
    async with open_field(folder, size) as field:
        drill = Drill(field, Random(size.seed), seconds)
        for turn, kinds in enumerate(chosen):
            await drill.round(turn, kinds)
            advance(1)
        await drill.audit()
    report = drill.report
    report.seed, report.rounds = size.seed, size.rounds
    report.elapsed_s = round(monotonic() - started, 1)
    return report


class Drill:
    """Plays rounds over a field and keeps the report."""

    def __init__(self, field: Field, random: Random, seconds: float) -> None:
        self._field = field
        self._random = random
        self._seconds = seconds
        self._recoveries: dict[str, list[float]] = defaultdict(list)
        self._rounds_s: list[float] = []
        self.report = Report(faults=dict.fromkeys(FAULTS, 0))

    async def round(self, turn: int, kinds: Sequence[str]) -> None:
        """Clients claim, something breaks, the stack recovers, and every win of the round is looked up."""
        crowd, random = self._field.crowd, Random(self._random.getrandbits(64))
        crowd.begin(turn + 1, stocks_of(turn))
        async with crowd.claims_go_on(CLIENTS):
            await asyncio.sleep(self._seconds * random.uniform(0.1, 0.9))
            over = await asyncio.gather(*(self._inject(name, Random(random.getrandbits(64))) for name in kinds))
            hits = {name: at for name, at in zip(kinds, over, strict=True) if at is not None}
            recovery_s = await self._field.recovered(max(hits.values(), default=monotonic()))
        where = f"round {turn + 1}, {' and '.join(hits) or 'all well'}"
        self._note_faults(where, kinds, hits, recovery_s)
        await crowd.resolve()
        self._note_books(where, await self._weigh())

    async def _inject(self, name: str, random: Random) -> float | None:
        return await FAULTS[name](self._field, random)

    def _note_faults(self, where: str, kinds: Sequence[str], hits: Collection[str], recovery_s: float) -> None:
        for name in kinds:
            self.report.count_fault(name, name in hits)
        for name in hits:
            self._recoveries[name].append(recovery_s)
        self._rounds_s.append(recovery_s)
        self.report.note_recovery(self._recoveries, self._rounds_s)
        if recovery_s > RECOVERY_MAX_S:
            self.report.add(f"{where}: recovery took {recovery_s:g} s")

    async def _weigh(self) -> Weighed:
        field, crowd = self._field, self._field.crowd
        if not await field.caught_up():  # what was resolved last is carried over, too
            self.report.add("the drain did not catch up")
        conn = await field.auditor()
        try:
            return weigh(crowd.asked, crowd.won, await read_entries(conn, PARTNER, crowd.asked, field.codes))
        finally:
            await conn.close(timeout=5)

    def _note_books(self, where: str, weighed: Weighed) -> None:
        crowd, report = self._field.crowd, self.report
        report.acknowledged += len(crowd.won)
        report.lost += len(weighed.lost)
        report.doubled += len(weighed.doubled)
        for what in (*weighed.lost, *weighed.doubled, *weighed.unasked):
            report.add(f"{where}: {what}")
        for what in crowd.wrong:
            report.add(f"{where}: {what}")
        report.violations += crowd.wrong_count - len(crowd.wrong)
        crowd.wrong_count = 0
        crowd.wrong.clear()

    async def audit(self) -> None:
        """Both audits over everything, at the end."""
        field, report = self._field, self.report
        report.outcomes = dict(field.crowd.outcomes)
        report.slowest_answer_s = round(field.crowd.slowest_s, 3)
        await field.caught_up()
        for _ in range(AUDIT_TRIES):
            with suppress(*LOST_TOUCH):
                await self._audit()
                return
            await asyncio.sleep(1)
        raise StackError(f"the audit could not be run; see {field.stack.folder.logs}")

    async def _audit(self) -> None:
        field, report = self._field, self.report
        conn = await field.auditor()
        try:
            async with field.claim_store() as valkey:
                books = await audit_city(conn, valkey)
            field.lines.flush()
            told = await check_client_log(conn, read_log(field.log), field.codes)
        finally:
            await conn.close(timeout=5)
        report.examined = books.examined + told.records
        for one in books.statements:
            report.add(*(f"ledger, {one.id}: {what}" for what in one.shown), count=one.violations)
        report.add(*(f"clients' log: {what}" for what in told.shown), count=told.violations)
