"""Imports the bank's answer: the whole file fits its batch, or nothing at all is changed."""

from datetime import datetime

import msgspec

import sql
from kernel.postgres import Connection
from redemption.settlement.answer_csv import BankAnswer, read_answer
from redemption.settlement.batch import Batch, fetch_one, get_batch
from redemption.settlement.refusals import Refused, Why, staff_name
from redemption.settlement.settle import as_refused

_queries = sql.load("settlement")


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """What a file brought about. `replayed`: it had been imported before, and nothing was booked again."""

    batch: Batch
    paid_count: int
    paid_fen: int
    rejected_count: int
    rejected_fen: int
    replayed: bool


async def answer(
    conn: Connection, batch_no: int, data: bytes, *, by: str, now: datetime, expected_sha256: bytes | None = None
) -> Answered | Refused:
    """Books a bank file: PAID takes a line SETTLING -> PAID, REJECTED brings it back to PAYABLE, bucket by bucket.

    One transaction; after a refusal the database is as it was. The file itself: WRONG_HASH,
    WRONG_TRAILER_COUNT, WRONG_TRAILER_AMOUNT, BAD_FILE. Against the batch: UNKNOWN_BATCH, WRONG_BATCH,
    NOT_APPROVED, WRONG_ORDER_HASH, UNKNOWN_LINE (also a held one), DUPLICATE_LINE, WRONG_AMOUNT, WRONG_PAYEE,
    ALREADY_ANSWERED. And BAD_NAME. The same file sent twice is no refusal but `replayed`.
    """
    name = staff_name(by)
    if isinstance(name, Refused):
        return name
    told = read_answer(data, expected_sha256)
    if isinstance(told, Refused):
        return told
    batch = await get_batch(conn, batch_no)
    if isinstance(batch, Refused):
        return batch
    if told.batch_id != batch.batch_id:
        return Refused(Why.WRONG_BATCH, f"the file answers {told.batch_id[:40]}, not {batch.batch_id}")
    return await _import(conn, batch_no, told, name, now)


async def keep_answer(conn: Connection, batch_no: int, told: BankAnswer, now: datetime) -> int:
    """Keeps a bank file and its rows, without booking anything; answers its number. Kept once: a file is its hash.

    The caller is in a transaction that holds the campaign's settlement lock.
    """
    known = await conn.fetchrow(_queries["find_bank_file"], told.sha256)
    if known is not None:
        kept: int = known["bank_file_no"]
        return kept
    file_no: int = await conn.fetchval(
        _queries["keep_bank_file"], batch_no, told.sha256, told.order_sha256, len(told.rows), told.amount_fen, now
    )
    columns = [list(column) for column in zip(*told.rows, strict=True)] or [[]] * 8
    await conn.execute(_queries["keep_bank_rows"], file_no, *columns)
    return file_no


async def _import(conn: Connection, batch_no: int, told: BankAnswer, name: str, now: datetime) -> Answered | Refused:
    transaction = conn.transaction()
    await transaction.start()
    try:
        await conn.execute(_queries["lock_batch"], batch_no)
        file_no = await keep_answer(conn, batch_no, told, now)
        row = await fetch_one(conn, _queries["answer"], file_no, name, now)
        replayed = row["refusal"] == "REPLAYED"
        refused = None if replayed else as_refused(row["refusal"], row["detail"])
        outcome = refused or await _outcome(conn, batch_no, file_no, replayed)
    except BaseException:
        await transaction.rollback()
        raise
    if refused:
        await transaction.rollback()
    else:
        await transaction.commit()
    return outcome


async def _outcome(conn: Connection, batch_no: int, file_no: int, replayed: bool) -> Answered | Refused:
    batch = await get_batch(conn, batch_no)
    if isinstance(batch, Refused):
        return batch
    counts = await fetch_one(conn, _queries["answered_by_file"], file_no)
    return Answered(batch=batch, replayed=replayed, **counts)
