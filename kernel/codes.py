"""The printed voucher code: 26 Crockford base32 characters that only the city can make.

One AES block over the voucher's number (48 bits) and 80 bits of zeros, the key's version in front.
Whoever guesses must hit 80 bits; a code that does not decrypt to the zeros was never issued, and no
store is asked. Nothing is kept anywhere: number and code turn into each other.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from kernel.ids import ID_BITS

CODE_LENGTH = 26
_BLOCK_BITS = 128
_REDUNDANCY_BITS = _BLOCK_BITS - ID_BITS
_HALVES = struct.Struct(">QQ")
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]
_DIGITS = "0123456789abcdefghijklmnopqrstuv"
"""The same 32 values as `int` reads them."""
# What people type for what was printed: Crockford's rules, and dashes or blanks between groups.
_SEEN = _ALPHABET + _ALPHABET.lower() + "OoIiLl"
_MEANT = _DIGITS + _DIGITS + "001111"
_READ = bytes(dict(zip(_SEEN.encode(), _MEANT.encode(), strict=True)).get(byte, ord("!")) for byte in range(256))
_BETWEEN = b"- "


class _Key(NamedTuple):
    encrypt: CipherContext
    decrypt: CipherContext


class CodeBook:
    """Turns voucher numbers into codes and back. Keys by version, 0 to 3; the highest makes new codes."""

    def __init__(self, keys: Mapping[int, bytes]) -> None:
        if not keys or any(version not in range(4) for version in keys):
            raise ValueError("code keys need versions from 0 to 3, at least one")
        self._keys = {version: _open(key) for version, key in keys.items()}
        self._current = max(keys)

    def encode(self, voucher_id: int) -> str:
        """The code of a voucher number, under the newest key."""
        return self.encode_all((voucher_id,))[0]

    def encode_all(self, voucher_ids: Sequence[int]) -> list[str]:
        """The codes of many numbers; one call of the cipher for all of them."""
        blocks = b"".join([(voucher_id << _REDUNDANCY_BITS).to_bytes(16) for voucher_id in voucher_ids])
        sealed = self._keys[self._current].encrypt.update(blocks)
        return [self._spell(high, low) for high, low in _HALVES.iter_unpack(sealed)]

    def _spell(self, high: int, low: int) -> str:
        # Version 2 bits, then 128 bits in two halves, as 13 pairs of characters: 5 + 2 + 6 of them.
        top = (self._current << 64 | high) >> 16
        mid = (high & 0xFFFF) << 4 | low >> 60
        return "".join(
            [_PAIRS[top >> shift & 1023] for shift in (40, 30, 20, 10, 0)]
            + [_PAIRS[mid >> 10], _PAIRS[mid & 1023]]
            + [_PAIRS[low >> shift & 1023] for shift in (50, 40, 30, 20, 10, 0)]
        )

    def decode(self, code: str) -> int | None:
        """The voucher number of a code as typed, or None when the city never made such a code."""
        number = number_of(code, CODE_LENGTH)
        if number is None:
            return None
        key = self._keys.get(number >> _BLOCK_BITS)
        if key is None:
            return None
        block = int.from_bytes(key.decrypt.update((number & (1 << _BLOCK_BITS) - 1).to_bytes(16)))
        return None if block & (1 << _REDUNDANCY_BITS) - 1 else block >> _REDUNDANCY_BITS


def number_of(code: str, length: int) -> int | None:
    """What a code of so many characters says, five bits each, as people type it; None when it is no such code."""
    text = code.encode("ascii", "replace").translate(_READ, _BETWEEN)
    try:
        return int(text, 32) if len(text) == length else None
    except ValueError:
        return None


def spelled(number: int, length: int) -> str:
    """A number in so many characters, five bits each."""
    return "".join([_ALPHABET[number >> shift & 31] for shift in range(5 * (length - 1), -1, -5)])


def grouped(code: str) -> str:
    """A code as it is printed: groups of four, easier on the eye."""
    return "-".join(code[i : i + 4] for i in range(0, len(code), 4))


def _open(key: bytes) -> _Key:
    # ECB of single blocks is what is wanted here: a keyed permutation of 128 bits, used once a number.
    cipher = Cipher(algorithms.AES(key), modes.ECB())
    return _Key(cipher.encryptor(), cipher.decryptor())
