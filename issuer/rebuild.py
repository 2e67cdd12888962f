"""What a shard that has lost a round must be given back, read from PostgreSQL: who won what, and how much is left."""

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import sql
from issuer.card import Card, card_of
from issuer.catalogue import Catalogue, Round
from issuer.record import NO_DEVICE, claim_of
from issuer.stock import PublishedRound, Remembered, StockStore
from kernel.clock import to_ms
from kernel.errors import StoreDown
from kernel.ids import SERIAL_MAX, pack_voucher_id, unpack_voucher_id
from kernel.partitions import PARTITIONS
from kernel.postgres import Connection

PAGE = 5_000
LOOKS_MAX = 50

_queries = sql.load("issuer")


async def remember_wins(
    conn: Connection, store: StockStore, catalogue: Catalogue, round_: PublishedRound, shard: int
) -> tuple[int, Counter[int]]:
    """Puts the wins of a round back into a shard, one partition after the other, so that all wins of a person come
    together. Answers the highest serial, and the vouchers by stock."""
    cards = _cards(catalogue, round_.round_no)
    serial, issued = 0, Counter[int]()
    async for rows in _by_partition(conn, round_.round_no, shard, catalogue.shards):
        await store.remember(shard, round_, _wins(rows, cards))
        serial = max(serial, *(unpack_voucher_id(row["voucher_id"]).serial for row in rows))
        issued.update(row["stock_no"] for row in rows)
    return serial, issued


async def remember_faces(conn: Connection, store: StockStore, catalogue: Catalogue, round_: Round, shard: int) -> None:
    """Puts back, once, what people have claimed in a campaign that caps it. In a transaction."""
    campaign_no = round_.campaign_no
    if round_.face_fen_per_person_max is None or await store.knows_faces(shard, campaign_no):
        return
    await conn.execute(_queries["lock_publishing"], -campaign_no)  # rounds are above zero
    if await store.knows_faces(shard, campaign_no):
        return
    rows = await conn.fetch(_queries["faces_of_campaign"], campaign_no, *partitions_of(shard, catalogue.shards))
    for start in range(0, len(rows), PAGE):
        faces = [(row["person"].bytes, row["face_fen"]) for row in rows[start : start + PAGE]]
        await store.remember_faces(shard, campaign_no, faces)
    await store.mark_faces(shard, campaign_no)


async def units_elsewhere(
    store: StockStore, round_no: int, stock_nos: Sequence[int], shards: Sequence[int], all_shards: int
) -> Mapping[int, int]:
    """By stock: units that these shards hold or gave out, and units on their way. True at one time, because it is
    read until two readings agree; StoreDown when they never do."""
    before: tuple[Any, ...] | None = None
    for _ in range(LOOKS_MAX):
        on_the_way = await store.moves.on_the_way(round_no, all_shards)
        held = [await store.stocks(shard, stock_nos) for shard in shards]
        allotted = [{no: stock.allotted for no, stock in each.items()} for each in held]
        if (allotted, on_the_way) == before:
            units = Counter({no: 0 for no in stock_nos})
            for each in allotted:
                units.update(each)
            units.update(Counter({move.stock_no: 0 for move in on_the_way}))
            for move in on_the_way:
                units[move.stock_no] += move.units
            return units
        before = (allotted, on_the_way)
    raise StoreDown("units of this round are on the move")


def partitions_of(shard: int, shards: int) -> tuple[int, int]:
    """The first partition of a shard, and the first one after it."""
    return -(-shard * PARTITIONS // shards), -(-(shard + 1) * PARTITIONS // shards)


def ids_of(round_no: int) -> tuple[int, int]:
    """The range of a round's voucher numbers; the end is not in it."""
    return pack_voucher_id(round_no, 0, 1), pack_voucher_id(round_no, PARTITIONS - 1, SERIAL_MAX) + 1


async def _by_partition(conn: Connection, round_no: int, shard: int, shards: int) -> AsyncIterator[list[Any]]:
    first, end = partitions_of(shard, shards)
    first_id, below = ids_of(round_no)
    after, rows = first_id - 1, list[Any]()
    while True:
        page = await conn.fetch(_queries["vouchers_of_round"], after, below, PAGE, first, end)
        for row in page:
            if rows and unpack_voucher_id(row["voucher_id"]).partition != _partition(rows):
                yield rows
                rows = []
            rows.append(row)
        if len(page) < PAGE:
            break
        after = page[-1]["voucher_id"]
    if rows:
        yield rows


def _partition(rows: Sequence[Any]) -> int:
    return unpack_voucher_id(rows[0]["voucher_id"]).partition


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
