"""Rounds of random faults against the checkout, and what came of them."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from random import Random
from time import monotonic

from stack.faults.drill import Drill, Weighed
from stack.faults.field import Size
from stack.faults.kinds import CLIENTS, choose
from stack.faults.report import Report
from stack.faults.till_books import read_entries, weigh
from stack.faults.till_kinds import ALONE, TILL_FAULTS
from stack.faults.town import Town, open_town


async def run_checkout(folder: Path, size: Size, seconds: float, advance: Callable[[int], None]) -> Report:
    """So many rounds over a city of its own in `folder`. `seconds`: how long tills are at work around each fault.

    Raises StackError when the city does not start.
    """
    started = monotonic()
    chosen = choose(size.seed, size.rounds, [*TILL_FAULTS], ALONE)
    async with open_town(folder, size) as town:
        drill = CheckoutDrill(town, Random(size.seed), seconds)
        for turn, kinds in enumerate(chosen):
            await drill.round(turn, kinds)
            advance(1)
        await drill.audit()
    return drill.report.over(size.seed, size.rounds, monotonic() - started)


class CheckoutDrill(Drill):
    """Plays rounds over a town."""

    def __init__(self, town: Town, random: Random, seconds: float) -> None:
        super().__init__(town, town.tills, TILL_FAULTS, random, seconds)
        self._town = town

    async def _begin(self, turn: int) -> None:
        await self._town.begin(turn)

    def _load(self) -> AbstractAsyncContextManager[None]:
        return self._town.tills.sales_go_on(CLIENTS)

    async def _inject(self, name: str, random: Random) -> float | None:
        return await TILL_FAULTS[name](self._town, random)

    async def _recovered(self, since: float) -> float:
        return await self._town.recovered(since)

    async def _resolve(self) -> None:
        await self._town.tills.resolve()

    async def _weigh(self) -> tuple[int, Weighed]:
        town, tills = self._town, self._town.tills
        conn = await town.auditor()
        try:
            entries = await read_entries(conn, (ask.code for ask in tills.asked.values()), town.codes)
        finally:
            await conn.close(timeout=5)
        return len(tills.done), weigh(tills.asked, tills.done, tills.refused, entries)
