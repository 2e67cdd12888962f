"""Find a voucher again: by its code, or by the request number that brought it."""

from typing import Any

import msgspec

import sql
from issuer.claim import ClaimAnswer, ClaimDesk, state_of
from issuer.record import body_digest, request_key
from issuer.stock import StockStore
from kernel.clock import Clock, rfc3339
from kernel.codes import CodeBook
from kernel.errors import Code, Refusal
from kernel.ids import unpack_voucher_id
from kernel.partitions import bucket_of, partition_of, shard_of
from kernel.postgres import READ_DEADLINE_S, Pool, connected, within

_queries = sql.load("issuer")
_ROUNDS_ASKED = 32
"""The newest rounds are asked; older ones were drained long ago."""


class VoucherAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A voucher as its partner sees it."""

    voucher_code: str
    state: str
    stock_id: str = ""
    out_request_no: str = ""
    face_value_fen: int = 0
    transaction_minimum_fen: int = 0
    claimed_at: str = ""
    valid_from: str = ""
    valid_until: str = ""


class Finder:
    """Looks in PostgreSQL, and for the last moments before the drain in Valkey."""

    def __init__(self, pool: Pool, store: StockStore, desk: ClaimDesk, codes: CodeBook, clock: Clock) -> None:
        self._pool = pool
        self._store = store
        self._desk = desk
        self._codes = codes
        self._clock = clock

    async def by_request(self, partner_no: int, out_request_no: str, person: bytes) -> VoucherAnswer | Refusal:
        """What a request number brought a person; RESOURCE_NOT_EXISTS when nothing."""
        catalogue = self._desk.catalogue
        partition = partition_of(person)
        row = await self._row(
            "voucher_by_request",
            bucket_of(partition, catalogue.buckets),
            request_key(partner_no, out_request_no),
            person.hex(),
            out_request_no,
        )
        stock = None if row is None else catalogue.by_no.get(row["stock_no"])
        if stock is not None and stock.partner_no == partner_no:
            return self._word(row)
        return await self._not_drained(partner_no, out_request_no, person)

    async def by_code(self, partner_no: int, code: str) -> VoucherAnswer | Refusal:
        """The voucher of a code. One answer for codes that never were and codes of other partners."""
        voucher_id = self._codes.decode(code)
        if voucher_id is None:
            return _NOT_FOUND
        bucket = bucket_of(unpack_voucher_id(voucher_id).partition, self._desk.catalogue.buckets)
        row = await self._row("voucher_by_id", bucket, voucher_id)
        stock = None if row is None else self._desk.catalogue.by_no.get(row["stock_no"])
        if stock is None:  # not drained yet, or of a round that this worker has not read yet
            return VoucherAnswer(voucher_code=self._codes.encode(voucher_id), state="CONFIRMING")
        return self._word(row) if stock.partner_no == partner_no else _NOT_FOUND

    async def _row(self, name: str, *args: object) -> Any:
        return await within(READ_DEADLINE_S, self._fetch_row(name, *args))

    async def _fetch_row(self, name: str, *args: object) -> Any:
        async with connected(self._pool) as conn:
            return await conn.fetchrow(_queries[name], *args)

    async def _not_drained(self, partner_no: int, out_request_no: str, person: bytes) -> VoucherAnswer | Refusal:
        catalogue = self._desk.catalogue
        shard = shard_of(partition_of(person), catalogue.shards)
        for round_no, stocks in sorted(catalogue.rounds().items(), reverse=True)[:_ROUNDS_ASKED]:
            told = await self._store.told(shard, round_no, partner_no, out_request_no)
            for stock in stocks if told else ():
                if told and stock.partner_no == partner_no and told[0] == body_digest(stock.stock_no, person):
                    return _confirming(self._desk.answer(stock, person, out_request_no, told[1]))
        return _NOT_FOUND

    def _word(self, row: Any) -> VoucherAnswer:
        stock = self._desk.catalogue.by_no[row["stock_no"]]
        return VoucherAnswer(
            voucher_code=self._codes.encode(row["voucher_id"]),
            state=state_of(stock.valid_until, self._clock.now(), row["was_used"], row["credit"]),
            stock_id=stock.stock_id,
            out_request_no=row["out_request_no"],
            face_value_fen=stock.face_value_fen,
            transaction_minimum_fen=stock.transaction_minimum_fen,
            claimed_at=rfc3339(row["claimed_at"]),
            valid_from=rfc3339(stock.valid_from),
            valid_until=rfc3339(stock.valid_until),
        )


def _confirming(answer: ClaimAnswer) -> VoucherAnswer:
    return msgspec.convert(msgspec.structs.asdict(answer) | {"state": "CONFIRMING"}, VoucherAnswer)


_NOT_FOUND = Refusal(code=Code.RESOURCE_NOT_EXISTS, detail="there is no such voucher, or it is not yours")
