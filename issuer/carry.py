"""Wins on their way into the books: rows for COPY, and what each ISSUE transfer stands for.

A drain handles a hundred thousand wins a second, so rows are packed here as PostgreSQL's binary COPY reads them
(PostgreSQL documentation, COPY, "Binary Format"), and not one by one through a driver.
"""

import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256

import msgspec

from issuer.catalogue import Catalogue
from issuer.record import Win
from kernel.partitions import PARTITIONS

COLUMNS = (
    "voucher_id",
    "claimed_at",
    "request_key",
    "person",
    "stock_no",
    "bucket",
    "pack_no",
    "out_request_no",
)
_SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_ROW = struct.Struct(">hiqiqiii16siiih")
"""Count of fields, then length and value of each: voucher_id, claimed_at, request_key, person, stock_no, bucket."""
_NUMBER = struct.Struct(">ii")
_NULL = struct.pack(">i", -1)
_EPOCH_MS = 946_684_800_000
"""PostgreSQL counts its microseconds from 2000-01-01."""


class Chunk(msgspec.Struct):
    """What one ISSUE transfer stands for: the vouchers of one bucket and campaign."""

    amount_fen: int
    latest_ms: int
    voucher_ids: list[int]


class Load(msgspec.Struct):
    """Wins, ready to be stored.

    rows     what COPY reads
    chunks   by bucket and campaign
    issued   by stock
    """

    rows: bytes
    chunks: Mapping[tuple[int, int], Chunk]
    issued: Mapping[int, int]


def load_of(wins: Sequence[Win], catalogue: Catalogue) -> Load:
    """All of a log's entries that were read at once. KeyError for a stock that the catalogue does not know."""
    rows: dict[int, list[bytes]] = defaultdict(list)  # by partition, so in order of voucher_id: see below
    ids: dict[tuple[int, int], list[int]] = defaultdict(list)
    latest_ms: dict[tuple[int, int], int] = {}
    packs, buckets = _packs(catalogue), catalogue.buckets
    pack_row = _ROW.pack
    for win in wins:
        partition, number = win.partition, win.out_request_no.encode()
        bucket = partition * buckets // PARTITIONS
        at_us = (win.claimed_ms - _EPOCH_MS) * 1000
        rest = packs.get((win.round_no, win.slot), _NULL) + len(number).to_bytes(4) + number
        append = rows[partition].append
        for voucher_id, stock_no in win.vouchers():
            append(
                pack_row(8, 8, voucher_id, 8, at_us, 4, win.request_key, 16, win.person, 4, stock_no, 2, bucket) + rest
            )
            ids[bucket, stock_no].append(voucher_id)
            latest_ms[bucket, stock_no] = win.claimed_ms
    return Load(_copied(rows), _chunks(ids, latest_ms, catalogue), _issued(ids))


def _copied(rows: Mapping[int, list[bytes]]) -> bytes:
    """What COPY reads. Where neighbours in the index come one after the other, PostgreSQL splits a page behind them
    and leaves it full; in the order of the claims its pages stay half empty."""
    return b"".join([_SIGNATURE, *(row for partition in sorted(rows) for row in rows[partition]), _TRAILER])


def hash_of(voucher_ids: Iterable[int]) -> bytes:
    """SHA-256 over the voucher numbers of a chunk in ascending order, eight bytes each; an auditor can
    tell by it which vouchers an ISSUE transfer stands for."""
    ordered = sorted(voucher_ids)
    return sha256(struct.pack(f">{len(ordered)}q", *ordered)).digest()


def _packs(catalogue: Catalogue) -> Mapping[tuple[int, int], bytes]:
    return {
        (offer.round.round_no, offer.slot): _NUMBER.pack(4, offer.pack_no)
        for offer in catalogue.offers.values()
        if offer.pack_no is not None
    }


def _chunks(
    ids: Mapping[tuple[int, int], list[int]], latest_ms: Mapping[tuple[int, int], int], catalogue: Catalogue
) -> Mapping[tuple[int, int], Chunk]:
    chunks: dict[tuple[int, int], Chunk] = {}
    for (bucket, stock_no), numbers in ids.items():
        stock = catalogue.stocks[stock_no]
        campaign_no = catalogue.rounds[stock.round_no].campaign_no
        chunk = chunks.setdefault((bucket, campaign_no), Chunk(0, 0, []))
        chunk.amount_fen += stock.funded_fen * len(numbers)
        chunk.latest_ms = max(chunk.latest_ms, latest_ms[bucket, stock_no])
        chunk.voucher_ids += numbers
    return chunks


def _issued(ids: Mapping[tuple[int, int], list[int]]) -> Mapping[int, int]:
    issued: dict[int, int] = defaultdict(int)
    for (_, stock_no), numbers in ids.items():
        issued[stock_no] += len(numbers)
    return issued
