"""Numbers that name things."""

import re
from typing import Annotated, NamedTuple

import msgspec

# (?!\n): in Python a bare $ would also let a line end pass, and these numbers go into files.
REQUEST_NO_PATTERN = r"^[A-Za-z0-9_-]{6,40}(?!\n)$"
REQUEST_NO = re.compile(REQUEST_NO_PATTERN)
RequestNo = Annotated[str, msgspec.Meta(pattern=REQUEST_NO_PATTERN)]
"""A caller's own number for one request (WeChat Pay's `out_request_no` and its like)."""

TOKEN_PATTERN = r"^[0-9a-f]{32}(?!\n)$"
TOKEN = re.compile(TOKEN_PATTERN)
Token = Annotated[str, msgspec.Meta(pattern=TOKEN_PATTERN)]
"""A keyed token of a person or a device: 128 bits, lowercase hex."""

ROUND_BITS, PARTITION_BITS, SERIAL_BITS = 10, 10, 28
ID_BITS = ROUND_BITS + PARTITION_BITS + SERIAL_BITS
SERIAL_MAX = (1 << SERIAL_BITS) - 1


class VoucherId(NamedTuple):
    """The parts of a voucher's number. Ordered so that one round is one range of numbers."""

    round_no: int
    partition: int
    serial: int


def pack_voucher_id(round_no: int, partition: int, serial: int) -> int:
    """The 48-bit number of a voucher. ValueError when a part does not fit."""
    if not (0 < round_no < 1 << ROUND_BITS and 0 <= partition < 1 << PARTITION_BITS and 0 < serial <= SERIAL_MAX):
        raise ValueError(f"no voucher id for round {round_no}, partition {partition}, serial {serial}")
    return round_no << PARTITION_BITS + SERIAL_BITS | partition << SERIAL_BITS | serial


def unpack_voucher_id(voucher_id: int) -> VoucherId:
    """The parts again."""
    return VoucherId(
        voucher_id >> PARTITION_BITS + SERIAL_BITS,
        voucher_id >> SERIAL_BITS & (1 << PARTITION_BITS) - 1,
        voucher_id & SERIAL_MAX,
    )
