"""What all benches share: where they take place, what was asked for, the stretches measured so far."""

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from stack.bench.crowd import signers
from stack.bench.helper import Helper
from stack.bench.phases import Course, Tell
from stack.bench.report import Report, Size
from stack.bench.world import World

Wish = TypeVar("Wish")


class Bench(ABC, Generic[Wish]):
    """One bench in a world of its own. `run` is called once."""

    def __init__(self, world: World, wish: Wish, tell: Tell) -> None:
        self._world = world
        self._wish = wish
        self._tell = tell
        self._course = Course()
        self._generator: Helper

    @abstractmethod
    async def run(self) -> Report:
        """The whole bench. StackError when something ended over it."""

    async def _open(self) -> None:
        """Starts the helpers that every stretch needs."""
        self._tell("starting")
        self._generator = await self._world.helper("generator")

    async def _size(self, *, items: int, people: int, connections: int, workers: int, keys: str) -> Size:
        stores = await self._world.durability()
        return Size(
            items=items,
            people=people,
            connections=connections,
            seconds=round(sum(phase.seconds for phase in self._course.phases), 1),
            workers=workers,
            keys=keys,
            valkey=stores.valkey,
            postgres=stores.postgres,
        )


class IssuerBench(Bench[Wish]):
    """A bench of the issuer: people sign claims, and some go straight through the script."""

    async def _open(self) -> None:
        await super()._open()
        self._signers = await signers(self._world)
        self._script = await self._world.helper("script", role="hanquan_issuer")
