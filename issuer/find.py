"""Find a voucher again: by its code, or by the request number that brought it."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import msgspec

import sql
from issuer.card import card_of
from issuer.catalogue import Stock
from issuer.claim import ClaimDesk
from issuer.record import NO_DEVICE, claim_of, request_key
from issuer.stock import StockStore
from issuer.words import ClaimAnswer, state_of
from kernel.clock import Clock, rfc3339
from kernel.codes import CodeBook
from kernel.errors import Code, Refusal
from kernel.ids import unpack_voucher_id
from kernel.partitions import bucket_of, partition_of, shard_of
from kernel.postgres import READ_DEADLINE_S, Pool, connected, within
from kernel.till_codes import WINDOW_S, TillSeeds

_queries = sql.load("issuer")
_DRAINED_AFTER = timedelta(days=1)
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


class PackAnswer(msgspec.Struct, frozen=True):
    """A pack as its partner sees it: each voucher stands for itself."""

    out_request_no: str
    stock_id: str
    claimed_at: str
    vouchers: tuple[VoucherAnswer, ...]


class SeedAnswer(msgspec.Struct, frozen=True):
    """What a phone needs to show till codes of a voucher; `seed` is a secret, hex."""

    name: str
    seed: str
    window_s: int


class Finder:
    """Looks in PostgreSQL, and for the last moments before the drain in Valkey."""

    def __init__(
        self, pool: Pool, store: StockStore, desk: ClaimDesk, codes: CodeBook, seeds: TillSeeds, clock: Clock
    ) -> None:
        self._pool = pool
        self._store = store
        self._desk = desk
        self._codes = codes
        self._seeds = seeds
        self._clock = clock

    async def by_request(
        self, partner_no: int, out_request_no: str, person: bytes
    ) -> VoucherAnswer | PackAnswer | Refusal:
        """What a request number brought a person; RESOURCE_NOT_EXISTS when nothing."""
        catalogue = self._desk.catalogue
        rows = await self._rows(
            "vouchers_by_request",
            bucket_of(partition_of(person), catalogue.buckets),
            request_key(partner_no, out_request_no),
            person.hex(),
            out_request_no,
        )
        stock = catalogue.stocks.get(rows[0]["stock_no"]) if rows else None
        if stock is None or stock.partner_no != partner_no:
            return await self._not_drained(partner_no, out_request_no, person)
        if rows[0]["pack_no"] is None:
            return self._word(rows[0])
        return self._word_pack(rows)

    async def by_code(self, partner_no: int, code: str) -> VoucherAnswer | Refusal:
        """The voucher of a code. One answer for codes that never were and codes of other partners."""
        voucher_id = self._codes.decode(code)
        if voucher_id is None:
            return _NOT_FOUND
        row, stock = await self._by_id(voucher_id)
        if stock is None and self._is_long_over(voucher_id):
            return _NOT_FOUND
        if stock is None:
            return VoucherAnswer(voucher_code=self._codes.encode(voucher_id), state="CONFIRMING")
        return self._word(row) if stock.partner_no == partner_no else _NOT_FOUND

    async def till_seed(self, partner_no: int, code: str) -> SeedAnswer | Refusal:
        """The seed of the voucher of a code, for the phone of who holds it; answers no other partner than its own.
        CONFIRMING while the voucher is on its way into the ledger: until then nobody knows whose it is."""
        voucher_id = self._codes.decode(code)
        if voucher_id is None:
            return _NOT_FOUND
        _, stock = await self._by_id(voucher_id)
        if stock is None:
            return _NOT_FOUND if self._is_long_over(voucher_id) else _CONFIRMING
        if stock.partner_no != partner_no:
            return _NOT_FOUND
        given = self._seeds.of(voucher_id)
        return SeedAnswer(name=given.name, seed=given.seed.hex(), window_s=WINDOW_S)

    async def _by_id(self, voucher_id: int) -> tuple[Any, Stock | None]:
        """A voucher and its stock; no stock when it is not drained yet, or of a round that this worker has not read."""
        bucket = bucket_of(unpack_voucher_id(voucher_id).partition, self._desk.catalogue.buckets)
        rows = await self._rows("voucher_by_id", bucket, voucher_id)
        return (rows[0], self._desk.catalogue.stocks.get(rows[0]["stock_no"])) if rows else (None, None)

    def _is_long_over(self, voucher_id: int) -> bool:
        """Whether whatever was won in the voucher's round has long been in the books; what is not there was never won,
        or is in the archive."""
        round_ = self._desk.catalogue.rounds.get(unpack_voucher_id(voucher_id).round_no)
        return round_ is not None and self._clock.now() > round_.closes_at + _DRAINED_AFTER

    async def _rows(self, name: str, *args: object) -> Any:
        return await within(READ_DEADLINE_S, self._fetch(name, *args))

    async def _fetch(self, name: str, *args: object) -> Any:
        async with connected(self._pool) as conn:
            return await conn.fetch(_queries[name], *args)

    async def _not_drained(
        self, partner_no: int, out_request_no: str, person: bytes
    ) -> VoucherAnswer | PackAnswer | Refusal:
        catalogue = self._desk.catalogue
        shard = shard_of(partition_of(person), catalogue.shards)
        for round_no in sorted(catalogue.rounds, reverse=True)[:_ROUNDS_ASKED]:
            cards = [card_of(offer) for offer in catalogue.offers_of(round_no) if offer.partner_no == partner_no]
            claims = [claim_of(card, person, NO_DEVICE, out_request_no) for card in cards]
            told = await self._store.told(shard, claims) if claims else None
            if told is not None:
                return _confirming(self._desk.words.answer(*told))
        return _NOT_FOUND

    def _word_pack(self, rows: Sequence[Any]) -> PackAnswer:
        first = rows[0]
        packs = (offer for offer in self._desk.catalogue.offers.values() if offer.pack_no == first["pack_no"])
        return PackAnswer(
            out_request_no=first["out_request_no"],
            stock_id=next(packs).offer_id,
            claimed_at=rfc3339(first["claimed_at"]),
            vouchers=tuple(map(self._word, rows)),
        )

    def _word(self, row: Any) -> VoucherAnswer:
        stock = self._desk.catalogue.stocks[row["stock_no"]]
        ends_at = stock.ends_at(row["claimed_at"])
        return VoucherAnswer(
            voucher_code=self._codes.encode(row["voucher_id"]),
            state=state_of(ends_at, self._clock.now(), row["was_used"], row["credit"]),
            stock_id=stock.stock_id,
            out_request_no=row["out_request_no"],
            face_value_fen=stock.face_value_fen,
            transaction_minimum_fen=stock.transaction_minimum_fen,
            claimed_at=rfc3339(row["claimed_at"]),
            valid_from=rfc3339(stock.valid_from),
            valid_until=rfc3339(ends_at),
        )


def _confirming(answer: ClaimAnswer) -> VoucherAnswer | PackAnswer:
    if not answer.vouchers:
        return msgspec.convert(msgspec.structs.asdict(answer) | {"state": "CONFIRMING"}, VoucherAnswer)
    vouchers = tuple(
        msgspec.convert(
            msgspec.structs.asdict(voucher)
            | {"state": "CONFIRMING", "out_request_no": answer.out_request_no, "claimed_at": answer.claimed_at},
            VoucherAnswer,
        )
        for voucher in answer.vouchers
    )
    return PackAnswer(answer.out_request_no, answer.stock_id, answer.claimed_at, vouchers)


_CONFIRMING = Refusal(
    code=Code.CONFIRMING, detail="the voucher was won a moment ago; send the same request again", retry_after_s=1
)
_NOT_FOUND = Refusal(code=Code.RESOURCE_NOT_EXISTS, detail="there is no such voucher, or it is not yours")
