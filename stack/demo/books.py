"""The finance side of the week: settle each day, hear from the bank, reconcile three ways, take back what expired.

Differences are planted on purpose, a few on each side; the reconciliation must find exactly those.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import date, timedelta
from typing import TypeVar

import msgspec

import sql
from kernel.clock import Clock
from kernel.postgres import Connection
from redemption.reconciliation.breaks import list_breaks
from redemption.reconciliation.flow_file import FlowFile, FlowRow, read_flow_file, write_flow_file
from redemption.reconciliation.reconcile import reconcile
from redemption.settlement.answer import answer
from redemption.settlement.answer_csv import AnswerRow, write_answer
from redemption.settlement.batch import Batch, Line, get_lines
from redemption.settlement.expire import ReturnTo, expire_over, return_unused
from redemption.settlement.export import Format, Order, Payer, export
from redemption.settlement.refusals import Refused, Why
from redemption.settlement.settle import approve, propose
from stack.demo.week import Booked
from stack.errors import StackError

PROPOSER, APPROVER = "Li Na", "Wang Wei"
PAYER = Payer("City of Wuhan, consumption vouchers", "4200000000000001", "Bank of Hankou")
BANK_REFUSES_EVERY = 400
"""The bank turns down one line in so many; its money goes back to what the shop is owed."""

Answer = TypeVar("Answer")
Rows = list[FlowRow]

_queries = sql.load("demo")


class Planted(msgspec.Struct, frozen=True, order=True):
    """A difference that was put in: from whom, of which kind, about which row."""

    source: str
    kind: str
    key: str


class Books:
    """Plays finance for one campaign."""

    def __init__(self, conn: Connection, clock: Clock, campaign_no: int, campaign_id: str) -> None:
        self._conn = conn
        self._clock = clock
        self._campaign_no = campaign_no
        self._campaign_id = campaign_id
        self._flows: dict[date, list[FlowFile]] = {}
        self.planted: set[Planted] = set()
        self.held_lines = 0

    async def settle(self, day: date, *, late: bool = False, unanswered: bool = False) -> None:
        """T+1: one person proposes, another approves, the bank is told and answers."""
        now = self._clock.now()
        batch = await propose(self._conn, self._campaign_no, day, PROPOSER, now)
        if isinstance(batch, Refused) and batch.why is Why.NOTHING_TO_PAY:
            return
        batch = _must(await approve(self._conn, _must(batch).batch_no, APPROVER, now))
        self.held_lines += batch.held_count
        if batch.line_count == 0:
            return
        order = _must(await export(self._conn, batch.batch_no, payer=PAYER, form=Format.CSV, by=APPROVER, now=now))
        lines = [line for line in await get_lines(self._conn, batch.batch_no) if line.state == "SETTLING"]
        data = self._bank_says(batch, order, lines, late=late, unanswered=unanswered)
        _must(await answer(self._conn, batch.batch_no, data, by=PROPOSER, now=now))

    def _bank_says(self, batch: Batch, order: Order, lines: Sequence[Line], *, late: bool, unanswered: bool) -> bytes:
        booked_on = batch.day + timedelta(days=1)
        rows = [_bank_row(i, line, booked_on) for i, line in enumerate(lines, start=1)]
        if late:
            rows[1] = rows[1]._replace(booked_on=booked_on + timedelta(days=5))
            self.planted.add(Planted("BANK", "LATE", f"{batch.batch_id}/{rows[1].line_no}"))
        if unanswered:
            gone = rows.pop(2)
            self.planted.add(Planted("BANK", "MISSING_THERE", f"{batch.batch_id}/{gone.line_no}"))
        return write_answer(batch.batch_id, order.sha256, rows)

    async def reconcile_week(self, days: Sequence[date], booked: Sequence[Booked]) -> None:
        """Reads every partner's file of every day and compares three ways."""
        told = _by_partner_and_day(booked)
        self._plant(told, days)
        for day in days:
            flows = [self._file(partner_id, day, parts[day]) for partner_id, parts in told.items()]
            self._flows[day] = flows
            await self._reconcile(day, flows)

    async def reconcile_again(self, day: date) -> None:
        """The last day once more, when the bank has had its time."""
        await self._reconcile(day, self._flows[day])

    async def _reconcile(self, day: date, flows: Sequence[FlowFile]) -> None:
        run = await reconcile(self._conn, self._campaign_no, day, flows=flows, by=PROPOSER, now=self._clock.now())
        _must(run)

    def _file(self, partner_id: str, day: date, rows: Sequence[FlowRow]) -> FlowFile:
        """The file as the partner sends it, read as we read it."""
        data = write_flow_file(partner_id, self._campaign_id, day, rows)
        return _must(read_flow_file(data, None))

    def _plant(self, told: Mapping[str, Mapping[date, Rows]], days: Sequence[date]) -> None:
        first, second, third = list(told)[:3]
        self._tell("MISSING_THERE", told[first][days[0]].pop(5))
        self._change("AMOUNT", told[second][days[1]], 3, lambda row: row._replace(subsidy_fen=row.subsidy_fen + 100))
        twice = told[third][days[2]][4]
        told[third][days[2]].append(twice)
        self._tell("DUPLICATE", twice)
        invented = told[first][days[2]][0]._replace(use_request_no="use-nobody-knows")
        told[first][days[2]].append(invented)
        self._tell("MISSING_HERE", invented)
        late = told[second][days[0]].pop(7)
        told[second][days[1]].append(late)
        self._tell("LATE", late)
        self._change("STATE", told[third][days[3]], 6, lambda row: row._replace(out_request_no="grab-another"))

    def _change(self, kind: str, rows: Rows, at: int, change: Callable[[FlowRow], FlowRow]) -> None:
        rows[at] = change(rows[at])
        self._tell(kind, rows[at])

    def _tell(self, kind: str, row: FlowRow) -> None:
        key = " ".join(filter(None, (row.kind, row.merchant_id, row.use_request_no, row.refund_request_no)))
        self.planted.add(Planted("PARTNER", kind, key))

    async def found(self) -> set[Planted]:
        """The differences that stand open."""
        breaks = await list_breaks(self._conn, self._campaign_no, self._clock.now(), limit=10_000)
        return {Planted(one.source, one.kind, one.key) for one in breaks}

    async def close_campaign(self) -> None:
        """Unused vouchers expire; what the fund has left goes back to the city."""
        now = self._clock.now()
        await expire_over(self._conn, now)
        left = await self._conn.fetchval(_queries["returned_fen"], self._campaign_no)
        if left:
            reference = f"return {self._campaign_id}"
            _must(
                await return_unused(self._conn, self._campaign_no, ReturnTo.CITY_FUND, left, PROPOSER, reference, now)
            )


def _bank_row(row_no: int, line: Line, booked_on: date) -> AnswerRow:
    refused = row_no % BANK_REFUSES_EVERY == 0
    return AnswerRow(
        row_no=row_no,
        line_no=line.line_no,
        payee_account=line.payee_account,
        amount_fen=line.amount_fen,
        result="REJECTED" if refused else "PAID",
        booked_on=booked_on,
        bank_reference=f"B{booked_on:%Y%m%d}{row_no:06}",
        reason="account closed" if refused else "",
    )


def _by_partner_and_day(booked: Sequence[Booked]) -> Mapping[str, Mapping[date, Rows]]:
    told: dict[str, dict[date, Rows]] = defaultdict(lambda: defaultdict(list))
    for one in booked:
        told[one.partner_id][one.day].append(one.row)
    return dict(sorted(told.items()))


def _must(outcome: Answer | Refused) -> Answer:
    if isinstance(outcome, Refused):
        raise StackError(f"finance was refused: {outcome.why}: {outcome.detail}")
    return outcome
