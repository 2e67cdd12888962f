"""What clients were told is held against the books: every honest answer passes, every lie is named."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from kernel.codes import CodeBook
from stack.audit import (
    ClaimTold,
    ClientLogError,
    ClientLogReport,
    RedeemTold,
    RefundTold,
    Told,
    check_client_log,
    read_log,
)
from tests import stores
from tests.integration.audit_world import DINING, MALL, SECOND, claim_no, person, voucher_of

CODES = CodeBook({1: b"sixteen  bytes  "})

CLAIMS = (
    "SELECT partner_id, person, coalesce(pack_id, stock_id) AS stock_id, out_request_no, voucher_id"
    " FROM voucher v JOIN stock s USING (stock_no) JOIN partner p USING (partner_no)"
    " LEFT JOIN pack k ON k.pack_no = v.pack_no"
)
USES = (
    "SELECT merchant_id, use_request_no, order_no, voucher_id, bill_fen, subsidy_fen"
    " FROM redemption JOIN merchant USING (merchant_no)"
)
REFUNDS = (
    "SELECT merchant_id, f.refund_request_no, r.use_request_no, f.refund_fen, f.subsidy_fen"
    " FROM refund f JOIN redemption r USING (bucket, voucher_id, attempt)"
    " JOIN merchant m ON m.merchant_no = f.merchant_no"
)


async def honest_log(city: stores.Database) -> list[Told]:
    """What every client of the honest world was told, had all of them been told."""
    async with city.connection() as connection:
        claims = [ClaimTold(outcome="GRANTED", **_claim(row)) for row in await connection.fetch(CLAIMS)]
        uses = [RedeemTold(outcome="REDEEMED", **_coded(row)) for row in await connection.fetch(USES)]
        refunds = [RefundTold(outcome="REFUNDED", **row) for row in await connection.fetch(REFUNDS)]
    return [*claims, *uses, *refunds]


def _coded(row: asyncpg.Record) -> dict[str, Any]:
    fields = dict(row)
    return {"voucher_code": CODES.encode(fields.pop("voucher_id")), **fields}


def _claim(row: asyncpg.Record) -> dict[str, Any]:
    fields = _coded(row)
    return {"person_token": fields.pop("person").hex, **fields}


async def checked(city: stores.Database, log: Sequence[Told]) -> ClientLogReport:
    """The check as the auditor."""
    async with city.connection("hanquan_auditor") as connection:
        return await check_client_log(connection, log, CODES)


def claim(number: int, outcome: str, *, stock_no: int = 4, voucher_id: int | None = None) -> ClaimTold:
    """What a person who asked for stock four was told."""
    return ClaimTold(
        outcome=outcome,
        partner_id="pay-a",
        person_token=person(number).hex(),
        stock_id=f"stock-{stock_no}",
        out_request_no=claim_no(SECOND, number),
        voucher_code=None if voucher_id is None else CODES.encode(voucher_id),
    )


def use(outcome: str, *, bill_fen: int = 6_500, subsidy_fen: int | None = None) -> RedeemTold:
    """What the till was told that redeemed voucher 21 of stock four."""
    return RedeemTold(
        outcome=outcome,
        merchant_id="shop-1",
        use_request_no="use-4-21",
        order_no="order-4-21",
        voucher_code=CODES.encode(voucher_of(SECOND, 21)),
        bill_fen=bill_fen,
        subsidy_fen=subsidy_fen,
    )


def refund(outcome: str, *, number: str = "refund-2-10", subsidy_fen: int | None = None) -> RefundTold:
    """What the till was told that refunded voucher 10 of stock two."""
    return RefundTold(
        outcome=outcome,
        merchant_id="shop-2",
        refund_request_no=number,
        use_request_no="use-2-10",
        refund_fen=4_500,
        subsidy_fen=subsidy_fen,
    )


async def test_honest_answers_hold(honest_city: stores.Database) -> None:
    log = await honest_log(honest_city)
    report = await checked(honest_city, [*log, *log])  # answers may be given twice
    assert (report.shown, report.holds) == ([], True)
    assert (report.records, report.acknowledged) == (2 * len(log), 2 * len(log))
    assert {type(told) for told in log} == {ClaimTold, RedeemTold, RefundTold}


@pytest.mark.parametrize(
    ("log", "named"),
    [
        (
            [claim(99, "GRANTED", voucher_id=voucher_of(SECOND, 99))],
            "claim claim-4-99 of partner pay-a, stock stock-4, told GRANTED: not there",
        ),
        ([claim(21, "GRANTED", voucher_id=voucher_of(SECOND, 22))], "told GRANTED: there, but not as answered"),
        ([claim(21, "GRANTED", voucher_id=voucher_of(SECOND, 21), stock_no=1)], "told GRANTED: not there"),
        ([claim(21, "USER_ALREADY_CLAIMED")], "told USER_ALREADY_CLAIMED: there all the same"),
        (
            [claim(21, "GRANTED", voucher_id=voucher_of(SECOND, 21)), claim(21, "ENDED")],
            "told ENDED: there all the same",
        ),
        ([claim(99, "SOLD_OUT")], "stock stock-4: SOLD_OUT was answered, but 6 of 15 vouchers are out"),
        (
            [use("REDEEMED", bill_fen=6_501)],
            "redemption use-4-21 of merchant shop-1, told REDEEMED: there, but not as answered",
        ),
        ([use("REDEEMED", subsidy_fen=1_799)], "there, but not as answered"),
        ([use("USED_BY_ANOTHER_ORDER")], "told USED_BY_ANOTHER_ORDER: there all the same"),
        (
            [refund("REFUNDED", subsidy_fen=1)],
            "refund refund-2-10 of merchant shop-2, told REFUNDED: there, but not as answered",
        ),
        ([refund("REFUNDED", number="refund-2-99")], "refund refund-2-99 of merchant shop-2, told REFUNDED: not there"),
        ([refund("RULE_LIMIT")], "told RULE_LIMIT: there all the same"),
    ],
)
async def test_lie_is_named(honest_city: stores.Database, log: list[Told], named: str) -> None:
    report = await checked(honest_city, log)
    assert report.violations == 1
    assert named in report.shown[0]


@pytest.mark.parametrize(
    "log",
    [
        [claim(99, "NOT_STARTED"), claim(99, "SOLD_OUT", stock_no=1)],
        [claim(21, "NOT_STARTED"), claim(21, "GRANTED", voucher_id=voucher_of(SECOND, 21))],
        [claim(21, "UNKNOWN"), claim(21, "NOT_STARTED")],
        [claim(21, "SYSTEM_BUSY"), claim(99, "UNKNOWN")],
        [use("CONFIRMING"), use("REDEEMED", subsidy_fen=1_800)],
        [use("IDEMPOTENCY_MISMATCH", bill_fen=7_000)],
        [refund("SYSTEM_BUSY"), refund("REFUNDED", subsidy_fen=1_800)],
    ],
    ids=["refused", "refused, then granted", "unknown, then refused", "unknown", "waited", "misused", "busy"],
)
async def test_honest_troubles_hold(honest_city: stores.Database, log: list[Told]) -> None:
    report = await checked(honest_city, log)
    assert report.shown == []


async def test_unknown_is_resolved(honest_city: stores.Database) -> None:
    report = await checked(honest_city, [claim(21, "UNKNOWN"), claim(99, "UNKNOWN"), use("UNKNOWN")])
    assert (report.unknown, report.unknown_carried_out, report.violations) == (3, 2, 0)


async def test_rows_that_vanish_are_missed(honest_city: stores.Database) -> None:
    log = await honest_log(honest_city)
    async with honest_city.connection() as connection:
        await connection.execute("SET session_replication_role = replica")
        for table, voucher in (("voucher", voucher_of(DINING, 9)), ("refund", voucher_of(MALL, 10))):
            await connection.execute(f"DELETE FROM {table} WHERE voucher_id = $1", voucher)
    report = await checked(honest_city, log)
    assert sorted(report.shown) == [
        "claim claim-1-9 of partner pay-a, stock stock-1, told GRANTED: not there",
        "refund refund-2-10 of merchant shop-2, told REFUNDED: not there",
    ]


async def test_a_win_booked_twice_is_seen(honest_city: stores.Database) -> None:
    async with honest_city.connection() as connection:
        await connection.execute(
            "INSERT INTO voucher SELECT voucher_id + 50, claimed_at, request_key, person, stock_no, bucket,"
            " out_request_no FROM voucher WHERE voucher_id = $1",
            voucher_of(SECOND, 21),
        )
    report = await checked(honest_city, [claim(21, "UNKNOWN")])
    assert report.shown == ["claim claim-4-21 of partner pay-a, stock stock-4, told UNKNOWN: there 2 times"]


async def test_log_is_read_from_a_file_or_a_stream(honest_city: stores.Database, tmp_path: Path) -> None:
    log = await honest_log(honest_city)
    file = tmp_path / "told.jsonl"
    file.write_bytes(b"".join(msgspec.json.encode(told) + b"\n" for told in log))
    assert list(read_log(file)) == list(read_log(tmp_path)) == log

    async def stream() -> AsyncIterator[Told]:
        for told in log:
            yield told

    async with honest_city.connection("hanquan_auditor") as connection:
        report = await check_client_log(connection, stream(), CODES)
    assert (report.holds, report.records) == (True, len(log))


def test_unreadable_log_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "told.jsonl"
    file.write_bytes(msgspec.json.encode(use("REDEEMED")) + b'\n{"kind": "claim"}\n')
    with pytest.raises(ClientLogError, match="line 2"):
        list(read_log(file))


def test_folder_without_a_log_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(ClientLogError, match="holds no"):
        list(read_log(tmp_path))
