"""The till code: twenty characters that a phone makes by itself, good for about a minute, and once.

    code = name + minute + proof        10 + 2 + 8 characters of Crockford base32

    name    version of the key (2 bits), the voucher's number scrambled (48 bits): tells nothing, buys nothing
    minute  the last 10 bits of the number of the minute for which the code was made
    proof   the first 40 bits of HMAC-SHA256(seed, number of the minute as 8 bytes), after RFC 6238

A phone is given name and seed once and then needs no connection. Nothing is stored: both follow from the voucher's
number and the code key (kernel/codes.py), so they are rotated with it. Why so: docs/adr/0019-till-codes.md.
"""

import hmac
import os
from collections.abc import Mapping
from datetime import datetime
from hashlib import blake2b
from typing import NamedTuple

from kernel.clock import to_ms
from kernel.codes import number_of, spelled
from kernel.ids import ID_BITS

WINDOW_S = 60
SKEW_WINDOWS = 1
"""A code counts in the minute it was made for, the one before and the one after: phones' clocks differ."""

MISTIMED_DAYS = 14
"""So long it is known of a code that it was right once."""

NAME_LENGTH, TAIL_LENGTH = 10, 10
CODE_LENGTH = NAME_LENGTH + TAIL_LENGTH
_MINUTE_BITS, _PROOF_BITS = 10, 40
_TAIL_BITS = _MINUTE_BITS + _PROOF_BITS
_MINUTES = 1 << _MINUTE_BITS
_PROOF_BYTES = _PROOF_BITS // 8
_TURNS_BACK = -(-MISTIMED_DAYS * 86_400 // (WINDOW_S * _MINUTES))
_HALF_BITS = ID_BITS // 2
_HALF = (1 << _HALF_BITS) - 1
_ROUNDS = 6


class TillSeed(NamedTuple):
    """What a phone is given for one voucher. `seed` is a secret of 32 bytes, `name` is not."""

    name: str
    seed: bytes


class Proved(NamedTuple):
    """A voucher that was named, and the minute for which the code was made."""

    voucher_id: int
    window: int


class _Keys(NamedTuple):
    names: bytes
    seeds: bytes


def window_of(moment: datetime) -> int:
    """The minute of a moment, counted from 1970."""
    return to_ms(moment) // (WINDOW_S * 1000)


def till_code(given: TillSeed, window: int) -> str:
    """What a phone shows in a minute."""
    tail = window % _MINUTES << _PROOF_BITS | int.from_bytes(_proof(given.seed, window))
    return given.name + spelled(tail, TAIL_LENGTH)


class _Read(NamedTuple):
    voucher_id: int
    seed: bytes
    minute: int
    proof: bytes
    is_ours: bool

    def proves(self, window: int) -> bool:
        return hmac.compare_digest(self.proof, _proof(self.seed, window)) and self.is_ours


class TillSeeds:
    """Makes names and seeds of vouchers and checks till codes. Takes the code keys by version, 0 to 3; the highest
    makes new seeds, and each that is still there proves old ones."""

    def __init__(self, code_keys: Mapping[int, bytes]) -> None:
        self._keys = {version: _derive(key) for version, key in code_keys.items()}
        self._current = max(code_keys)
        self._nobodys = _derive(os.urandom(16))  # a code of no key of ours takes the same way as any other

    def of(self, voucher_id: int) -> TillSeed:
        """A voucher's name and seed, under the newest key."""
        keys = self._keys[self._current]
        name = self._current << ID_BITS | _scramble(keys.names, voucher_id)
        return TillSeed(spelled(name, NAME_LENGTH), _seed(keys, voucher_id))

    def read(self, code: str, now_window: int) -> Proved | None:
        """The voucher and minute of a code as typed; None when it proves nothing in the minutes around now.
        Compares in constant time."""
        read = self._read(code)
        if read is None:
            return None
        window = _latest(read.minute, now_window + SKEW_WINDOWS)
        if not read.proves(window) or window < now_window - SKEW_WINDOWS:
            return None
        return Proved(read.voucher_id, window)

    def mistimed(self, code: str, now_window: int) -> int | None:
        """The voucher of a code that is right for some minute of the last MISTIMED_DAYS or, by a phone that is ahead,
        of the next 17 hours; None for every other, after the same time for all of them."""
        read = self._read(code)
        if read is None:
            return None
        latest = _latest(read.minute, now_window + _MINUTES - 1)
        windows = [max(latest - turn * _MINUTES, 0) for turn in range(_TURNS_BACK + 2)]
        return read.voucher_id if any([read.proves(window) for window in windows]) else None

    def _read(self, code: str) -> _Read | None:
        number = number_of(code, CODE_LENGTH)
        if number is None:
            return None
        name, tail = number >> _TAIL_BITS, number & (1 << _TAIL_BITS) - 1
        version = name >> ID_BITS
        keys = self._keys.get(version, self._nobodys)
        voucher_id = _unscramble(keys.names, name & (1 << ID_BITS) - 1)
        proof = (tail & (1 << _PROOF_BITS) - 1).to_bytes(_PROOF_BYTES)
        return _Read(voucher_id, _seed(keys, voucher_id), tail >> _PROOF_BITS, proof, version in self._keys)


def _latest(minute: int, until_window: int) -> int:
    """The last minute up to one that ends in these 10 bits."""
    return max(until_window - (until_window - minute) % _MINUTES, 0)


def _derive(code_key: bytes) -> _Keys:
    return _Keys(*(hmac.digest(code_key, label, "sha256") for label in (b"hanquan till names", b"hanquan till seeds")))


def _seed(keys: _Keys, voucher_id: int) -> bytes:
    return hmac.digest(keys.seeds, voucher_id.to_bytes(8), "sha256")


def _proof(seed: bytes, window: int) -> bytes:
    return hmac.digest(seed, window.to_bytes(8), "sha256")[:_PROOF_BYTES]


# A Feistel network over two halves of 24 bits: a keyed permutation of the 48 bits, and no bit longer.


def _scramble(key: bytes, number: int) -> int:
    left, right = number >> _HALF_BITS, number & _HALF
    for turn in range(_ROUNDS):
        left, right = right, left ^ _mix(key, turn, right)
    return left << _HALF_BITS | right


def _unscramble(key: bytes, number: int) -> int:
    left, right = number >> _HALF_BITS, number & _HALF
    for turn in reversed(range(_ROUNDS)):
        left, right = right ^ _mix(key, turn, left), left
    return left << _HALF_BITS | right


def _mix(key: bytes, turn: int, half: int) -> int:
    return int.from_bytes(blake2b((turn << _HALF_BITS | half).to_bytes(4), digest_size=3, key=key).digest())
