"""What a voucher takes on disk over its whole life, by relation: issued, then redeemed, with all indexes.

    voucher      what a relation grew by while vouchers came in, over the vouchers
    redemption   what it grew by while they were redeemed over HTTP, over the redemptions
    packed       both, times what REINDEX leaves of the relation: an index as tight as it can be

Growth is of whole relations (pg_table_size with TOAST and maps, indexes apart), so it holds row headers,
padding, free space and half-full pages. WAL is no part of it.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

import sql
from kernel.postgres import Connection

SHOWN_FROM_B = 0.05
"""Relations that take less than so many bytes a voucher are told in the sums only."""

_queries = sql.load("bench")


class Name(NamedTuple):
    """A table without its indexes, or one index. Partitions go under their parent's name."""

    relation: str
    is_index: bool


Sizes = Mapping[Name, int]


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of one relation for each voucher that is issued and redeemed."""

    relation: str
    is_index: bool
    voucher: float
    redemption: float
    packed: float

    @property
    def whole(self) -> float:
        """As grown."""
        return self.voucher + self.redemption


async def read_sizes(conn: Connection) -> Sizes:
    """Bytes of every relation now."""
    rows = await conn.fetch(_queries["sizes"])
    return {Name(row["relation"], row["is_index"]): row["bytes"] for row in rows}


def growth(before: Sizes, after: Sizes) -> Sizes:
    """What each relation grew by."""
    return {name: size - before.get(name, 0) for name, size in after.items()}


def added(growths: Iterable[Sizes]) -> Sizes:
    """Several growths as one."""
    whole: dict[Name, int] = {}
    for each in growths:
        for name, size in each.items():
            whole[name] = whole.get(name, 0) + size
    return whole


def shares(
    at_fill: Sizes, vouchers: int, at_tills: Sizes, redemptions: int, loose: Sizes, packed: Sizes
) -> list[Stored]:
    """Bytes each, largest first. `loose` and `packed`: sizes just before and after the indexes were built anew."""
    found = [
        Stored(
            relation=name.relation,
            is_index=name.is_index,
            voucher=(voucher := at_fill.get(name, 0) / vouchers),
            redemption=(redemption := at_tills.get(name, 0) / redemptions),
            packed=(voucher + redemption) * (packed[name] / loose[name] if name.is_index and loose[name] else 1.0),
        )
        for name in loose
    ]
    return sorted(found, key=lambda stored: -stored.whole)


def shown(stored: Iterable[Stored]) -> list[Stored]:
    """Those worth a line, rounded."""
    return [
        msgspec.structs.replace(
            each, voucher=round(each.voucher, 2), redemption=round(each.redemption, 2), packed=round(each.packed, 2)
        )
        for each in stored
        if each.whole >= SHOWN_FROM_B
    ]
