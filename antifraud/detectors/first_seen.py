"""Who was last on each of millions of one-person devices, in a table of fixed size."""

import struct
from typing import NamedTuple

_RECORD = struct.Struct("<I16sI")
_SECOND_MS = 1_000


class Seen(NamedTuple):
    """A person's token and when they were on the device, to the second below."""

    person: str
    at_ms: int


class FirstSeen:
    """Remembers one person for each device, 24 bytes each.

    Nearly all devices have one user, and a Python object for each would take ten times the room. Two
    devices that share a slot push each other out, so that a crowd may be noticed one person later;
    one is seen where there is none for one pair of devices in 2^32.
    """

    def __init__(self, slots: int) -> None:
        """`slots`: a power of two."""
        self._mask = slots - 1
        self._table = bytearray(_RECORD.size * slots)

    def other_than(self, device: str, person: str, at_ms: int) -> Seen | None:
        """Who was on this device, when it was somebody else; otherwise notes this person and says None.

        device: 16 hex digits, person: 32 hex digits, both evenly spread.
        """
        number = int(device, 16)
        place, check = (number & self._mask) * _RECORD.size, number >> 32
        held, token, at_s = _RECORD.unpack_from(self._table, place)
        if held == check and at_s and token != bytes.fromhex(person):
            return Seen(token.hex(), at_s * _SECOND_MS)
        _RECORD.pack_into(self._table, place, check, bytes.fromhex(person), at_ms // _SECOND_MS & 0xFFFFFFFF)
        return None
