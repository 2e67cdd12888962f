"""Rounds of random faults against the claim service, and what came of them."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from random import Random
from time import monotonic

from stack.faults.books import read_entries, weigh
from stack.faults.campaign import PARTNER, stocks_of
from stack.faults.drill import Drill, Weighed
from stack.faults.field import Field, Size, open_field
from stack.faults.kinds import CLIENTS, FAULTS, choose
from stack.faults.report import Report


async def run_issuer(folder: Path, size: Size, seconds: float, advance: Callable[[int], None]) -> Report:
    """So many rounds over a stack of its own in `folder`. `seconds`: how long clients claim around each fault.

    Raises StackError when the stack does not start.
    """
    started = monotonic()
    chosen = choose(size.seed, size.rounds)
    async with open_field(folder, size) as field:
        drill = IssuerDrill(field, Random(size.seed), seconds)
        for turn, kinds in enumerate(chosen):
            await drill.round(turn, kinds)
            advance(1)
        await drill.audit()
    return drill.report.over(size.seed, size.rounds, monotonic() - started)


class IssuerDrill(Drill):
    """Plays rounds over a field."""

    def __init__(self, field: Field, random: Random, seconds: float) -> None:
        super().__init__(field, field.crowd, FAULTS, random, seconds)
        self._field = field

    async def _begin(self, turn: int) -> None:
        self._field.crowd.begin(turn + 1, stocks_of(turn))

    def _load(self) -> AbstractAsyncContextManager[None]:
        return self._field.crowd.claims_go_on(CLIENTS)

    async def _inject(self, name: str, random: Random) -> float | None:
        return await FAULTS[name](self._field, random)

    async def _recovered(self, since: float) -> float:
        return await self._field.recovered(since)

    async def _resolve(self) -> None:
        await self._field.crowd.resolve()

    async def _weigh(self) -> tuple[int, Weighed]:
        field, crowd = self._field, self._field.crowd
        if not await field.caught_up():  # what was resolved last is carried over, too
            self.report.add("the drain did not catch up")
        conn = await field.auditor()
        try:
            entries = await read_entries(conn, PARTNER, crowd.asked, field.codes)
        finally:
            await conn.close(timeout=5)
        return len(crowd.won), weigh(crowd.asked, crowd.won, entries)
