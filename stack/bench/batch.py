"""`bench batch`: the batch endpoint beside the script called directly; memory; cost that stays flat."""

from contextlib import AsyncExitStack

import msgspec

from kernel.signing import Algorithm
from stack.bench import check, memory
from stack.bench.base import IssuerBench
from stack.bench.crowd import Crowd, fill
from stack.bench.generator import Rush, Told
from stack.bench.memory import Memory
from stack.bench.phases import Phase, Tell, flatness, measured
from stack.bench.report import Report, target
from stack.bench.world import Workers, World

PER_CALL = 1_000
RATE_PER_S, RATIO, BYTES, FLATNESS = 100_000.0, 0.6, 32.0, 1.2
TRIAL = 20
"""The trial is one part in so many of the people."""
REMARKS = {
    "rate_per_s": "claims by POST /v1/claims:batch, 1,000 a call, durable when answered",
    "limit_per_s": "the same claims straight through the script, 1,000 a call",
    "p50_ms": "of a call",
    "bytes_per_claim": "in Valkey, with the log drained",
    "flatness": "of the issuer and Valkey, per claim",
}


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """All of `people` claim, in `steps`; in each, half of them by the endpoint and half straight."""

    people: int = 1_000_000
    connections: int = 4
    workers: int = 1
    steps: int = 10


async def bench_batch(world: World, wish: Wish, tell: Tell) -> Report:
    """The whole bench. StackError when something ended over it."""
    return await _Batches(world, wish, tell).run()


class _Batches(IssuerBench[Wish]):
    _issuer: Workers

    async def run(self) -> Report:
        world, wish = self._world, self._wish
        await self._open()
        few = max(wish.people // TRIAL, 2)
        trial, crowd = [
            Crowd(world, await world.open_round(count), self._signers, Algorithm.HMAC) for count in (few, wish.people)
        ]
        async with AsyncExitStack() as exits:
            self._issuer = await exits.enter_async_context(world.workers(wish.workers))
            await self._step(trial, few, "trial ", is_script_first=False)
            before = await self._drained_memory()
            for step in range(wish.steps):
                self._tell(f"step {step + 1} of {wish.steps}, {crowd.next - 1:,} people so far")
                count = wish.people * (step + 1) // wish.steps - (crowd.next - 1)
                await self._step(crowd, count, "", is_script_first=step % 2 == 1)
            after = await self._drained_memory()
        return await self._report(trial, crowd, before, after)

    async def _step(self, crowd: Crowd, count: int, prefix: str, *, is_script_first: bool) -> None:
        half = count // 2
        files = await crowd.sign(half, PER_CALL)
        if not is_script_first:
            await self._send(f"{prefix}batch", files)
        pids = {"script": [self._script.pid], "valkey": self._world.valkey_pids}
        await fill(self._course, self._script, crowd, count - half, name=f"{prefix}script", pids=pids)
        if is_script_first:
            await self._send(f"{prefix}batch", files)

    async def _send(self, name: str, files: list[str]) -> Phase:
        job = Rush(port=self._issuer.port, files=files, connections=self._wish.connections, per_call=PER_CALL)
        pids = {
            "issuer": self._issuer.pids,
            "valkey": self._world.valkey_pids,
            "generator": [self._generator.pid],
        }
        return self._course.add(await measured(name, pids, lambda: self._generator.ask(job, Told)))

    async def _drained_memory(self) -> Memory:
        await check.carry_over(self._world, self._tell)
        self._tell("measuring memory")
        return await memory.measure(self._world.valkey)

    def _wins(self, prefix: str) -> int:
        names = (f"{prefix}batch", f"{prefix}script")
        return sum(phase.items for phase in self._course.phases if phase.name in names)

    async def _report(self, trial: Crowd, crowd: Crowd, before: Memory, after: Memory) -> Report:
        course, wish = self._course, self._wish
        self._tell("counting vouchers")
        wins = self._wins("")
        told = [(trial.ground, self._wins("trial ")), (crowd.ground, wins)]
        wrong = course.wrong() + await check.wrongs(self._world, told)
        rate, limit, times = course.rate("batch"), course.rate("script"), course.latency("batch")
        issuer, valkey = course.cpu_us("batch", "issuer"), course.cpu_us("batch", "valkey")
        flat = flatness(course.named("batch"))
        size_b = round((after.lasting - before.lasting) / wins, 2)
        either = rate >= RATE_PER_S or rate / limit >= RATIO
        return Report(
            bench="batch",
            rate_per_s=rate,
            limit_per_s=limit,
            ratio=round(rate / limit, 3),
            p50_ms=times.p50_ms,
            p99_ms=times.p99_ms,
            cpu_us_per_item=round(issuer + valkey, 2),
            cpu_us_issuer=issuer,
            cpu_us_valkey=valkey,
            cpu_us_limit=round(course.cpu_us("script", "script") + course.cpu_us("script", "valkey"), 2),
            bytes_per_claim=size_b,
            pace_bytes_per_claim=round(after.pace / wins, 2),
            flatness=flat,
            correct=not wrong,
            wrong=wrong,
            targets=[
                target("claims/s, or else the ratio", "at least", RATE_PER_S, rate, or_else=either),
                target("ratio, or else claims/s", "at least", RATIO, round(rate / limit, 3), or_else=either),
                target("memory, B a claim", "at most", BYTES, size_b),
                target("cost, last to first", "at most", FLATNESS, flat),
            ],
            size=await self._size(
                items=sum(phase.items for phase in course.named("batch")),
                people=wins,
                connections=wish.connections,
                workers=wish.workers,
                keys=Algorithm.HMAC,
            ),
            phases=course.phases,
        )
