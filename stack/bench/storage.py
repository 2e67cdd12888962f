"""What a voucher takes on disk over its whole life, by relation: issued, then redeemed, with all indexes.

    voucher      what a relation grew by while all vouchers came in, over the vouchers
    redemption   what it grew by while all of them were redeemed
    packed       what it takes at the end, when `./hanquan retention` has packed the indexes of the round

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
    """Bytes of one relation for each voucher."""

    relation: str
    is_index: bool
    voucher: float
    redemption: float
    packed: float

    @property
    def grown(self) -> float:
        """When all are redeemed."""
        return self.voucher + self.redemption


async def read_sizes(conn: Connection) -> Sizes:
    """Bytes of every relation now."""
    rows = await conn.fetch(_queries["sizes"])
    return {Name(row["relation"], row["is_index"]): row["bytes"] for row in rows}


class Life(NamedTuple):
    """Sizes of everything at four moments."""

    before: Sizes
    issued: Sizes
    redeemed: Sizes
    packed: Sizes

    def stored(self, vouchers: int) -> list[Stored]:
        """Bytes each of so many vouchers, largest first."""
        found = [self._stored(name, vouchers) for name in self.redeemed]
        return sorted(found, key=lambda stored: -stored.grown)

    def _stored(self, name: Name, vouchers: int) -> Stored:
        before, issued, redeemed, packed = (sizes.get(name, 0) for sizes in self)
        return Stored(
            relation=name.relation,
            is_index=name.is_index,
            voucher=(issued - before) / vouchers,
            redemption=(redeemed - issued) / vouchers,
            packed=(packed - before) / vouchers,
        )


def shown(stored: Iterable[Stored]) -> list[Stored]:
    """Those worth a line, rounded."""
    return [
        msgspec.structs.replace(
            each, voucher=round(each.voucher, 2), redemption=round(each.redemption, 2), packed=round(each.packed, 2)
        )
        for each in stored
        if each.grown >= SHOWN_FROM_B
    ]
