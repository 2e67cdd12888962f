"""How much of the fund rounds tie up at one time."""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from issuer.campaign.model import Round


class Exposure(msgspec.Struct, frozen=True):
    """The budgets of all rounds whose vouchers can still be claimed or used at a moment."""

    at: datetime
    rounds: tuple[Round, ...]

    @property
    def budget_fen(self) -> int:
        return sum(each.budget_fen for each in self.rounds)


def exposures(rounds: Sequence[Round]) -> list[Exposure]:
    """What is live as each round opens, in order of time; between two openings it only falls.

    A round is live from its opening through the last second of its vouchers.
    """
    live: list[Round] = []
    found: list[Exposure] = []
    for opening in sorted(rounds, key=lambda each: each.opens_at):
        live = [each for each in live if each.valid_until >= opening.opens_at]
        live.append(opening)
        found.append(Exposure(opening.opens_at, tuple(live)))
    return found


def largest_exposure(rounds: Sequence[Round]) -> Exposure | None:
    """The moment at which most money is live; the first of several, None without rounds."""
    return max(exposures(rounds), key=lambda each: each.budget_fen, default=None)
