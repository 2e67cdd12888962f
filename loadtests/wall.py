"""The shape of noon: a quiet trickle, a wall, a plateau, a tail.

    people      |            _______________
    with the    |           |               |__
    app open    |           |                  |__
                |___________|                     |__
                            ^ noon - 3 s  noon + 75 %  noon + `seconds`

They open the app in the last moments, all at once, and press when the clock strikes: four of five within a
second and a half, most of those at once; the others during the plateau, a few only in the tail.
"""

import math
from random import Random

import msgspec

OPEN_BEFORE_S = 3.0
EARLY_PER_CITIZENS = 100
"""One in so many cannot wait, and presses before noon."""
EARLY_S = 4.0
RUSH_S = 1.5
RUSH_SHARE, PLATEAU_SHARE = 0.80, 0.15
PLATEAU = 0.75
"""The part of the run from noon on that is plateau; the rest is tail."""
TAIL_STEPS = 4


class Wall(msgspec.Struct, frozen=True, kw_only=True):
    """Times are seconds after noon; before it they are negative."""

    citizens: int
    seconds: int

    @property
    def early(self) -> int:
        """How many press before noon: those with the lowest numbers."""
        return -(-self.citizens // EARLY_PER_CITIZENS)

    def people_at(self, now_s: float) -> int:
        """How many have the app open; none any more when the run is over."""
        if now_s < -OPEN_BEFORE_S:
            return self.early
        if now_s >= self.seconds:
            return 0
        tail_s = now_s - self.seconds * PLATEAU
        if tail_s < 0:
            return self.citizens
        step = int(tail_s * TAIL_STEPS / (self.seconds * (1 - PLATEAU)))
        return self.citizens * (TAIL_STEPS - step) // (TAIL_STEPS + 1)

    def press_s(self, number: int, random: Random) -> float:
        """When a citizen means to press, whatever the server and this machine are busy with."""
        if number < self.early:
            return -EARLY_S * random.random()
        which, share = random.random(), random.random()
        rush_s, plateau_s = min(RUSH_S, self.seconds / 2), self.seconds * PLATEAU
        if which < RUSH_SHARE:
            return rush_s * (1 - math.sqrt(1 - share))
        if which < RUSH_SHARE + PLATEAU_SHARE:
            return rush_s + (plateau_s - rush_s) * share
        return plateau_s + (self.seconds - plateau_s) * share
