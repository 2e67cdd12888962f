"""What a shard that has lost a round must be given back, read from PostgreSQL: who won what, and how much is left."""

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec

import sql
from issuer.card import Card, card_of
from issuer.catalogue import Catalogue, Round
from issuer.moves import Move
from issuer.record import NO_DEVICE, claim_of
from issuer.stock import PublishedRound, Remembered, StockStore
from kernel.clock import to_ms
from kernel.errors import StoreDown
from kernel.ids import SERIAL_MAX, pack_voucher_id, unpack_voucher_id
from kernel.partitions import PARTITIONS, bucket_of
from kernel.postgres import Connection

LOOKS_MAX = 50

_queries = sql.load("issuer")


async def remember_wins(
    conn: Connection, store: StockStore, catalogue: Catalogue, round_: PublishedRound, shard: int
) -> tuple[int, Counter[int]]:
    """Puts the wins of a round back into a shard, one partition after the other, so that all wins of a person come
    together. Answers the highest serial, and the vouchers by stock. Of a round whose time to be remembered is over
    (docs/privacy.md) nothing is put back; it is counted all the same."""
    cards = _cards(catalogue, round_.round_no)
    is_forgotten = await conn.fetchval(_queries["is_forgotten"], round_.round_no)
    serial, issued = 0, Counter[int]()
    async for rows in _by_partition(conn, catalogue, round_.round_no, shard):
        if not is_forgotten:
            await store.remember(shard, round_, _wins(rows, cards))
        serial = max(serial, *(unpack_voucher_id(row["voucher_id"]).serial for row in rows))
        issued.update(row["stock_no"] for row in rows)
    return serial, issued


async def remember_faces(conn: Connection, store: StockStore, catalogue: Catalogue, round_: Round, shard: int) -> None:
    """Puts back, once, what people have claimed in a campaign that caps it. In a transaction."""
    campaign_no = round_.campaign_no
    if round_.face_fen_per_person_max is None or await store.knows_faces(shard, campaign_no):
        return
    if await conn.fetchval(_queries["is_forgotten"], round_.round_no):
        return  # and no limit of it is looked at any more
    await conn.execute(_queries["lock_publishing"], -campaign_no)  # rounds are above zero
    if await store.knows_faces(shard, campaign_no):
        return
    for partition in range(*partitions_of(shard, catalogue.shards)):
        bucket = bucket_of(partition, catalogue.buckets)
        rows = await conn.fetch(_queries["faces_of_partition"], bucket, partition, campaign_no)
        await store.remember_faces(shard, campaign_no, [(row["person"].bytes, row["face_fen"]) for row in rows])
    await store.mark_faces(shard, campaign_no)


class Elsewhere(msgspec.Struct, frozen=True):
    """What other shards hold of a round.

    units   by stock: units that they hold or gave out, and units on their way between them
    moves   by shard: the numbers that the lost shard goes on with (PublishedRound.moves)
    """

    units: Mapping[int, int]
    moves: Mapping[int, tuple[int, int]]


async def look_elsewhere(
    store: StockStore, round_no: int, stock_nos: Sequence[int], lost: int, published: Sequence[int], shards: int
) -> Elsewhere:
    """What the shards that hold a round say of it, true at one time, because it is read until two readings agree;
    StoreDown when they never do. Units on their way to or from a shard that lost the round are nowhere: they are
    dealt again, and the numbers see to it that they never arrive."""
    ins = await store.moves.fence(round_no, lost, published)
    before: tuple[Any, ...] | None = None
    for _ in range(LOOKS_MAX):
        outs = await store.moves.outs(round_no, shards)
        moves = [
            move for move in await store.moves.on_the_way(round_no, shards) if {move.giver, move.taker} <= {*published}
        ]
        held = [await store.stocks(shard, stock_nos) for shard in published]
        allotted = [{no: stock.allotted for no, stock in each.items()} for each in held]
        if (allotted, moves, outs) == before:
            numbers = {one: (int(outs[one].get(b"n:%d" % lost, 0)), ins[one]) for one in published}
            return Elsewhere(_sum(allotted, moves), numbers)
        before = (allotted, moves, outs)
    raise StoreDown("units of this round are on the move")


def _sum(allotted: Sequence[Mapping[int, int]], moves: Sequence[Move]) -> Mapping[int, int]:
    units: dict[int, int] = defaultdict(int)
    for each in allotted:
        for no, count in each.items():
            units[no] += count
    for move in moves:
        units[move.stock_no] += move.units
    return units


def partitions_of(shard: int, shards: int) -> tuple[int, int]:
    """The first partition of a shard, and the first one after it."""
    return -(-shard * PARTITIONS // shards), -(-(shard + 1) * PARTITIONS // shards)


def ids_of(round_no: int) -> tuple[int, int]:
    """The range of a round's voucher numbers; the end is not in it."""
    return pack_voucher_id(round_no, 0, 1), pack_voucher_id(round_no, PARTITIONS - 1, SERIAL_MAX) + 1


async def _by_partition(conn: Connection, catalogue: Catalogue, round_no: int, shard: int) -> AsyncIterator[list[Any]]:
    for partition in range(*partitions_of(shard, catalogue.shards)):
        first, last = pack_voucher_id(round_no, partition, 1), pack_voucher_id(round_no, partition, SERIAL_MAX)
        bucket = bucket_of(partition, catalogue.buckets)
        rows = await conn.fetch(_queries["vouchers_of_partition"], bucket, first, last)
        if rows:
            yield rows


def _cards(catalogue: Catalogue, round_no: int) -> Mapping[tuple[int | None, int], Card]:
    """Cards by pack, or by stock where there is no pack."""
    cards = {}
    for offer in catalogue.offers_of(round_no):
        stock_no = 0 if offer.pack_no is not None else offer.parts[0].stock.stock_no
        cards[offer.pack_no, stock_no] = card_of(offer)
    return cards


def _wins(rows: Sequence[Any], cards: Mapping[tuple[int | None, int], Card]) -> list[Remembered]:
    """One win for all vouchers of a pack that came together; rows are in the order of their serials."""
    claims: dict[tuple[Any, str, int | None], list[Any]] = defaultdict(list)
    for row in rows:
        claims[row["person"], row["out_request_no"], row["pack_no"]].append(row)
    wins = []
    for (person, number, pack_no), vouchers in claims.items():
        first = vouchers[0]
        card = cards[pack_no, 0 if pack_no is not None else first["stock_no"]]
        claim = claim_of(card, person.bytes, NO_DEVICE, number)
        wins.append(Remembered(claim, unpack_voucher_id(first["voucher_id"]).serial, to_ms(first["claimed_at"])))
    return wins
