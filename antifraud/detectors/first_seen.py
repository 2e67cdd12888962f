"""Who was first on each of millions of devices, in a few megabytes."""

from array import array

_LOW_32 = 0xFFFFFFFF


class FirstSeen:
    """Remembers one person for each device, by 32 bits of either, in a table of fixed size.

    Nearly all devices have one user, and keeping a Python object for each would cost a hundred times
    the room. Two devices that share a slot push each other out: a crowd is then noticed one person
    later, and never where there is none (but for one chance in 2^32).
    """

    def __init__(self, slots: int) -> None:
        """`slots`: a power of two; 8 bytes each."""
        self._mask = slots - 1
        self._slots = array("Q", bytes(8 * slots))

    def other_than(self, device: str, person: str) -> int | None:
        """32 bits of the person met first on this device, when it was somebody else; else None.

        device: 16 hex digits, person: 32 hex digits, both evenly spread.
        """
        number = int(device, 16)
        slot = number & self._mask
        held, mine = self._slots[slot], short_name(person)
        if held >> 32 == number >> 32:
            return None if held & _LOW_32 == mine else held & _LOW_32
        self._slots[slot] = number >> 32 << 32 | mine
        return None


def short_name(person: str) -> int:
    """The first 32 bits of a person's token."""
    return int(person[:8], 16)
