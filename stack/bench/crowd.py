"""The people of a round, dealt out so that nobody claims twice, and signed for with all processors."""

import asyncio
import os

from kernel.signing import Algorithm
from stack.bench.helper import Helper
from stack.bench.phases import Course, Phase, Pids, measured
from stack.bench.presign import Ground, Written
from stack.bench.script import Fill, Filled
from stack.bench.world import PERSON_AT_THE_DOOR, World

SIGNERS_MAX = 4


async def signers(world: World, module: str = "presign", *, role: str | None = None) -> list[Helper]:
    """Helpers that sign, one a processor."""
    count = min(os.cpu_count() or 1, SIGNERS_MAX)
    return [await world.helper(module, f"{module}-{n}", role=role) for n in range(count)]


class Crowd:
    """People of one round. Files of signed requests are written over by the next."""

    def __init__(self, world: World, ground: Ground, helpers: list[Helper], algorithm: Algorithm) -> None:
        self.ground = ground
        self.next = PERSON_AT_THE_DOOR + 1
        self._world = world
        self._helpers = helpers
        self._algorithm = algorithm

    def take(self, count: int) -> int:
        """The first of `count` people who did not claim yet."""
        first, self.next = self.next, self.next + count
        return first

    async def sign(self, count: int, per_call: int = 1) -> list[str]:
        """Files with the requests of `count` people, whole calls a file."""
        calls = -(-count // per_call)
        share = -(-calls // len(self._helpers)) * per_call
        jobs = []
        for place, helper in enumerate(self._helpers):
            here = min(share, count - place * share)
            if here > 0:
                file = self._world.folder / f"requests-{place}"
                job = self._world.signing(
                    self.ground, self.take(here), here, file, per_call=per_call, algorithm=self._algorithm
                )
                jobs.append((helper, job))
        await asyncio.gather(*(helper.ask(job, Written) for helper, job in jobs))
        return [job.file for _, job in jobs]


async def fill(
    course: Course,
    script: Helper,
    crowd: Crowd,
    count: int,
    *,
    name: str = "fill",
    per_call: int = 1_000,
    pids: Pids | None = None,
) -> Phase:
    """So many new people claim straight through the script."""
    job = Fill(ground=crowd.ground, first=crowd.take(count), count=count, per_call=per_call)
    return course.add(await measured(name, pids or {}, lambda: script.ask(job, Filled)))
