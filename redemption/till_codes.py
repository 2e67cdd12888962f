"""What is presented at a till: the printed code, or the till code of the citizen's phone."""

from datetime import datetime
from typing import NamedTuple

from kernel.codes import CodeBook
from kernel.till_codes import SKEW_WINDOWS, TillSeeds, window_of


class Presented(NamedTuple):
    """A voucher whose code is right. `window` is the minute of a till code; None: the printed code."""

    voucher_id: int
    window: int | None


class TillCodes:
    """Reads codes of both kinds, as typed or scanned; asks no store."""

    def __init__(self, codes: CodeBook, seeds: TillSeeds) -> None:
        self._codes = codes
        self._seeds = seeds

    def read(self, text: str, now: datetime) -> Presented | None:
        """What was presented at a moment; None for every code that is not right, whatever is wrong with it."""
        voucher_id = self._codes.decode(text)
        if voucher_id is not None:
            return Presented(voucher_id, None)
        proved = self._seeds.read(text, window_of(now))
        return None if proved is None else Presented(*proved)

    def mistimed(self, text: str, now: datetime) -> int | None:
        """The voucher of a till code that is right for another time, up to days ago; ask when `read` answers None.

        Such a code redeems nothing, and is no guess either: the screen is old, or the phone's clock is wrong, or a till
        asks again for an answer that was lost. None for every other code.
        """
        return self._seeds.mistimed(text, window_of(now))


def is_spent(window: int | None, last_at: datetime | None) -> bool:
    """Whether a till code may have been used in the voucher's last attempt (held or redeemed at `last_at`).

    At that moment the newest code that counted was that of the minute after it, so every code up to there is spent.
    The printed code is never spent: what it may do, the voucher's state says.
    """
    return window is not None and last_at is not None and window <= window_of(last_at) + SKEW_WINDOWS
