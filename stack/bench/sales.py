"""The redemptions of a run: who holds which voucher, and at which shop each is used.

The n-th voucher and the n-th sale follow from the run and n, so that helpers agree without talking: one
stores vouchers, others sign sales, another books them without HTTP.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import NamedTuple

import msgspec

from kernel.ids import pack_voucher_id
from kernel.partitions import partition_of
from stack.bench.presign import Ground, Key, person

STRIDE = 2_147_483_647
"""A prime above every number of vouchers: sales in steps of it meet each voucher once, far from the last one."""
ZIPF = 1.0


class Shop(msgspec.Struct, frozen=True, kw_only=True):
    """One merchant with its only terminal and its key."""

    merchant_no: int
    terminal_no: int
    key: Key


class Market(msgspec.Struct, frozen=True, kw_only=True):
    """A stock whose `vouchers` are out, and the shops that take them (Shop, JSON, in a file)."""

    ground: Ground
    stock_no: int
    vouchers: int
    buckets: int
    bill_fen: int
    subsidy_fen: int
    shops_file: str
    shops: int


class Sales(msgspec.Struct, frozen=True, kw_only=True):
    """Sales `first` to `first` + `count`. `skewed`: shops draw customers by Zipf's law, else all alike."""

    market: Market
    first: int
    count: int
    skewed: bool = False


class Sale(NamedTuple):
    """One voucher used at one shop (its place among them)."""

    shop: int
    voucher_id: int
    use_request_no: str
    order_no: str


def out_request_no(ground: Ground, number: int) -> str:
    """The number under which the n-th voucher was claimed: 20 characters."""
    return f"{ground.run_id}-{number:011}"


def use_request_no(market: Market, place: int) -> str:
    """The till's number of a sale: 18 characters."""
    return f"{market.ground.run_id}-{place:09}"


def order_no(market: Market, place: int) -> str:
    """The shop's payment of a sale: 18 characters."""
    return f"{market.ground.run_id}P{place:09}"


def voucher_id(ground: Ground, number: int) -> int:
    """The n-th voucher, from 0."""
    return pack_voucher_id(ground.round_no, partition_of(person(ground, number)), number + 1)


def sold(market: Market, place: int) -> int:
    """The voucher that is used in a sale."""
    return voucher_id(market.ground, place * STRIDE % market.vouchers)


def shops_of(sales: Sales) -> list[int]:
    """The shop, from 0, of each sale."""
    random = Random(f"{sales.market.ground.run_id} {sales.first} {sales.skewed}")
    shops = sales.market.shops
    if not sales.skewed:
        return random.choices(range(shops), k=sales.count)
    return random.choices(range(shops), cum_weights=_zipf(shops), k=sales.count)


def sales_of(sales: Sales) -> Iterator[Sale]:
    """Each sale."""
    for place, shop in enumerate(shops_of(sales), start=sales.first):
        yield Sale(
            shop=shop,
            voucher_id=sold(sales.market, place),
            use_request_no=use_request_no(sales.market, place),
            order_no=order_no(sales.market, place),
        )


@cache
def read_shops(file: str) -> Sequence[Shop]:
    """The shops of a market."""
    return msgspec.json.decode(Path(file).read_bytes(), type=list[Shop])


@cache
def _zipf(shops: int) -> Sequence[float]:
    return list(accumulate(1 / rank**ZIPF for rank in range(1, shops + 1)))
