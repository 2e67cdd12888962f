"""A reconciliation run: our rows, the partners' files and the bank's answers, three ways.

A run keeps the files it is given, finds every difference anew from the rows on both sides, and adds
what the runs before it did not know; a break that is gone is closed. So the order in which files arrive
does not matter, and the same files again change nothing.
"""

from collections.abc import Mapping, Sequence
from datetime import date, datetime

import msgspec

import sql
from kernel.clock import business_day
from kernel.postgres import Connection
from redemption.reconciliation.breaks import BreakTotal, total_breaks
from redemption.reconciliation.flow_file import FlowFile
from redemption.settlement.answer import keep_answer
from redemption.settlement.answer_csv import BankAnswer
from redemption.settlement.batch import fetch_one
from redemption.settlement.refusals import Refused, Why, staff_name

TOLERANCE_DAYS = 1
"""A row that a partner booked one day before or after us is LATE, and beyond that missing."""
BANK_DAYS = 2
"""Days after approval within which the bank answers."""

FLOW_COLUMNS = (
    "file_no", "line_no", "kind", "merchant_id", "use_request_no", "refund_request_no", "out_request_no", "stock_id",
    "voucher_state", "bill_fen", "subsidy_fen", "occurred_at",
)  # fmt: skip

_queries = sql.load("reconciliation")
_bank = sql.load("settlement")


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """How far apart both sides may be before it is a break."""

    tolerance_days: int = TOLERANCE_DAYS
    bank_days: int = BANK_DAYS


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What a run did. `repeated`: files and findings were those of an earlier run, so nothing was written.

    `missing_files`: partners with sales on the day from whom no file came, so nothing could be compared.
    `totals`: the day's open breaks now.
    """

    run_no: int
    campaign_id: str
    day: date
    repeated: bool
    added: int
    gone: int
    missing_files: list[str]
    totals: list[BreakTotal]


class _Repeated(Exception):
    """Takes a run back that brought nothing new."""


async def reconcile(
    conn: Connection,
    campaign_no: int,
    day: date,
    *,
    flows: Sequence[FlowFile],
    banks: Sequence[BankAnswer] = (),
    by: str,
    now: datetime,
    rules: Rules = Rules(),  # noqa: B008
) -> Run | Refused:
    """One run over a day that is closed. One transaction, one run of a campaign at a time.

    With a bank file that settlement refused to import, this tells line by line what is wrong with it.
    BAD_NAME, UNKNOWN_CAMPAIGN, DAY_NOT_OVER (not closed in every bucket), WRONG_CAMPAIGN, WRONG_DAY,
    UNKNOWN_PARTNER, TWO_FILES, UNKNOWN_BATCH (of a bank file): nothing was written.
    """
    name = staff_name(by)
    if isinstance(name, Refused):
        return name
    campaign_id = await conn.fetchval(_queries["campaign_id"], campaign_no)
    partners = {row["partner_id"]: row["partner_no"] for row in await conn.fetch(_queries["partners"])}
    refused = await _unfit(conn, campaign_id, day, flows, partners)
    if refused:
        return refused
    batches = {bank.batch_id: await conn.fetchval(_bank["batch_no"], bank.batch_id) for bank in banks}
    for batch_id, batch_no in batches.items():
        if batch_no is None:
            return Refused(Why.UNKNOWN_BATCH, f"a bank file answers {batch_id[:40]}, and there is no such batch")
    run = _Run(conn, campaign_no, campaign_id, day, name, now, rules)
    return await run.make(
        [(partners[flow.partner_id], flow) for flow in flows], [(batches[b.batch_id], b) for b in banks]
    )


async def _unfit(
    conn: Connection, campaign_id: str | None, day: date, flows: Sequence[FlowFile], partners: Mapping[str, int]
) -> Refused | None:
    if campaign_id is None:
        return Refused(Why.UNKNOWN_CAMPAIGN, "there is no such campaign")
    if not await conn.fetchval(_queries["is_closed"], day):
        return Refused(Why.DAY_NOT_OVER, f"{day} is not closed in every bucket; settle it first")
    for flow in flows:
        if flow.campaign_id != campaign_id:
            return Refused(Why.WRONG_CAMPAIGN, f"the file of {flow.partner_id} is about campaign {flow.campaign_id}")
        if flow.day != day:
            return Refused(Why.WRONG_DAY, f"the file of {flow.partner_id} is about {flow.day}, not {day}")
        if flow.partner_id not in partners:
            return Refused(Why.UNKNOWN_PARTNER, f"there is no partner {flow.partner_id}")
    if len({flow.partner_id for flow in flows}) < len(flows):
        return Refused(Why.TWO_FILES, "a partner has one file a day in a run")
    return None


class _Run:
    """One run in the making."""

    def __init__(
        self, conn: Connection, campaign_no: int, campaign_id: str, day: date, by: str, now: datetime, rules: Rules
    ) -> None:
        self._conn, self._campaign_no, self._campaign_id = conn, campaign_no, campaign_id
        self._day, self._by, self._now, self._rules = day, by, now, rules

    async def make(self, flows: Sequence[tuple[int, FlowFile]], banks: Sequence[tuple[int, BankAnswer]]) -> Run:
        """The run, written; or, when it brought nothing new, the one before it."""
        added = gone = 0
        repeated = False
        try:
            async with self._conn.transaction():
                await self._conn.execute(_queries["lock"], self._campaign_no)
                is_new = await self._start(flows, banks)
                added, gone = await self._compare()
                if not (is_new or added or gone):
                    raise _Repeated
        except _Repeated:
            repeated = True
        last = await fetch_one(self._conn, _queries["last_run"], self._campaign_no, self._day)
        missing = await self._conn.fetch(_queries["missing_files"], self._campaign_no, self._day)
        return Run(
            run_no=last["run_no"],
            campaign_id=self._campaign_id,
            day=self._day,
            repeated=repeated,
            added=added,
            gone=gone,
            missing_files=[row["partner_id"] for row in missing],
            totals=await total_breaks(self._conn, self._campaign_no, self._day),
        )

    async def _start(self, flows: Sequence[tuple[int, FlowFile]], banks: Sequence[tuple[int, BankAnswer]]) -> bool:
        """Keeps the files and notes the run. True if any of it is news to this day."""
        is_new = await self._conn.fetchrow(_queries["last_run"], self._campaign_no, self._day) is None
        flow_nos, bank_nos = [], []
        for partner_no, flow in flows:
            in_force = await self._conn.fetchval(_queries["file_in_force"], self._campaign_no, partner_no, self._day)
            flow_nos.append(await self._keep_flow(partner_no, flow))
            is_new = is_new or flow_nos[-1] != in_force
        for batch_no, bank in banks:
            bank_nos.append(await keep_answer(self._conn, batch_no, bank, self._now))
            is_new = is_new or not await self._conn.fetchval(_queries["was_bank_file_seen"], bank_nos[-1])
        limits = self._rules.tolerance_days, self._rules.bank_days
        self._run_no: int = await self._conn.fetchval(
            _queries["start_run"], self._campaign_no, self._day, *limits, self._by, self._now
        )
        await self._conn.execute(_queries["run_saw_flows"], self._run_no, flow_nos)
        await self._conn.execute(_queries["run_saw_banks"], self._run_no, sorted(set(bank_nos)))
        return is_new

    async def _keep_flow(self, partner_no: int, flow: FlowFile) -> int:
        """The number of a file that is kept, with its rows. Kept once: a file is its hash."""
        known: int | None = await self._conn.fetchval(_queries["find_flow_file"], flow.sha256)
        if known is not None:
            return known
        frame = partner_no, self._campaign_no, self._day, len(flow.rows), flow.amount_fen, flow.sha256, self._now
        file_no: int = await self._conn.fetchval(_queries["keep_flow_file"], *frame)
        records = ((file_no, line, *row) for line, row in zip(flow.lines, flow.rows, strict=True))
        await self._conn.copy_records_to_table("flow_row", records=records, columns=FLOW_COLUMNS)
        return file_no

    async def _compare(self) -> tuple[int, int]:
        """Brings breaks to what the rows on both sides say now: how many came, how many went.

        The days around this one too: a row that came late may be what one of them missed.
        """
        added = gone = 0
        reach = self._rules.tolerance_days
        for near in await self._conn.fetch(_queries["days_to_compare"], self._campaign_no, self._day, reach):
            row = await fetch_one(
                self._conn, _queries["file_partner_breaks"],
                self._run_no, self._campaign_no, near["partner_no"], near["day"], reach,
            )  # fmt: skip
            added, gone = added + row["added"], gone + row["gone"]
        row = await fetch_one(
            self._conn, _queries["file_bank_breaks"],
            self._run_no, self._campaign_no, self._day, business_day(self._now), self._rules.bank_days,
        )  # fmt: skip
        return added + row["added"], gone + row["gone"]
