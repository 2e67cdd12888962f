"""A round as it is brought into Valkey: its window and limits, and what each shard gets of its stocks."""

from collections.abc import Mapping, Sequence
from datetime import timedelta

from issuer.catalogue import Catalogue, Round, Stock
from issuer.record import pack_slots
from issuer.stock import PublishedRound, StockOnShard
from kernel.clock import to_ms

HASH_ENTRIES = 160
"""How full a small hash of a round gets; well below Valkey's listpack limit, so that an entry costs its bytes."""
SERIAL_GAP = 1 << 20
"""Serials passed over when a round is published late or again: numbers of wins that were lost before the drain saw
them. Somebody may hold such a code; it must never become another person's voucher."""
STATES = {"SCHEDULED": "RUN", "ENDED": "ENDED", "CLOSED": "ENDED"}
"""How a stock stands for the script; in every other state it is held back."""
_NOT_YET = timedelta(microseconds=999)


def state_on_shard(stock: Stock) -> str:
    """RUN, PAUSED or ENDED."""
    return STATES.get(stock.state, "PAUSED")


def unpublished_round(catalogue: Catalogue, round_: Round, offset_ms: int) -> PublishedRound:
    """A round without its stocks, alike on every shard. `offset_ms`: campaign time less the store's."""
    stages = ",".join(f"{after_s * 1000}:{share_bp}" for after_s, share_bp in round_.stages)
    units = sum(stock.quantity for stock in catalogue.stocks_of(round_.round_no))
    return PublishedRound(
        round_no=round_.round_no,
        opens_ms=to_ms(round_.opens_at + _NOT_YET),  # rounded up: not a part of a millisecond too early
        hash_buckets=units // (catalogue.shards * HASH_ENTRIES)
        | 1,  # odd: bucket and field then tell most people apart
        fields={
            "closes_ms": to_ms(round_.closes_at),
            "offset_ms": offset_ms,
            "partner_limit": round_.per_person_and_partner_limit,
            "person_limit": round_.per_person_limit or 0,
            "face_max": round_.face_fen_per_person_max or 0,
            "campaign_no": round_.campaign_no,
            "stages": stages,
            "slots": pack_slots(catalogue.offers_of(round_.round_no)),
        },
    )


def deal(
    stocks: Sequence[Stock],
    shard: int,
    missing: Mapping[int, Mapping[int, int]],
    elsewhere: Mapping[int, int],
) -> dict[int, StockOnShard]:
    """What a shard gets of each stock, so that all of a stock is somewhere, whoever lost what.

    missing    shards without the round, this one among them -> what is in the books of them, by stock
    elsewhere  by stock: units that other shards hold or gave out, and units on their way
    """
    dealt = {}
    for stock in stocks:
        no = stock.stock_no
        issued = {one: books.get(no, 0) for one, books in missing.items()}
        unclaimed = max(stock.quantity - elsewhere.get(no, 0) - sum(issued.values()), 0)
        left = share_of(unclaimed, sorted(issued).index(shard), len(issued))
        total = left + issued[shard]
        dealt[no] = StockOnShard(left=left, total=total, state=state_on_shard(stock), adjusted=stock.adjust_no)
    return dealt


def share_of(quantity: int, index: int, parts: int) -> int:
    """One part of a quantity; the parts add up."""
    return quantity * (index + 1) // parts - quantity * index // parts
