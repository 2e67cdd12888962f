"""`bench drain`: the drain beside a raw COPY of the same rows; and its lag at the highest single-claim rate."""

import msgspec

from kernel.signing import Algorithm
from stack.bench import check
from stack.bench.base import IssuerBench
from stack.bench.crowd import Crowd, fill
from stack.bench.drainer import Carried, Carry
from stack.bench.generator import Rush, Told
from stack.bench.helper import Helper
from stack.bench.lag import Lag, lag_of, watching
from stack.bench.phases import Phase, Tell, measured
from stack.bench.presign import Ground
from stack.bench.report import Report, target
from stack.bench.world import Workers, World

RATIO, LAG_S = 0.6, 1.0
ASSUMED_PER_S = 20_000
"""So many requests are signed for each second of the rush; it ends when it is over, not when they are used up."""
REMARKS = {
    "rate_per_s": "vouchers from Valkey's log into the ledger",
    "limit_per_s": "a raw COPY of the same rows into the same table",
    "p50_ms": "lag: from the claim until PostgreSQL shows the voucher",
    "cpu_us_per_item": "of the drain and its connection's process",
    "lag_p99_s": "while one worker takes single claims as fast as it can",
}


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """So many `vouchers` in all, in `steps`, `per_entry` wins a log entry; then a rush of so many `seconds`."""

    vouchers: int = 500_000
    steps: int = 4
    per_entry: int = 100
    seconds: float = 8.0
    connections: int = 64


async def bench_drain(world: World, wish: Wish, tell: Tell) -> Report:
    """The whole bench. StackError when something ended over it."""
    return await _Drains(world, wish, tell).run()


class _Drains(IssuerBench[Wish]):
    _drainer: Helper

    def __init__(self, world: World, wish: Wish, tell: Tell) -> None:
        super().__init__(world, wish, tell)
        self._told: list[tuple[Ground, int]] = []

    async def run(self) -> Report:
        world, wish = self._world, self._wish
        await self._open()
        self._drainer = await world.helper("drainer", role="hanquan_issuer")
        each, rush = wish.vouchers // wish.steps, int(ASSUMED_PER_S * wish.seconds)
        grounds = [await world.open_round(each, rounds=2) for _ in range(wish.steps)] + [await world.open_round(rush)]
        crowds = [Crowd(world, ground, self._signers, Algorithm.HMAC) for ground in grounds]
        async with world.workers(1) as issuer:
            for step, crowd in enumerate(crowds[:-1], start=1):
                await self._step(crowd, each, f"step {step} of {wish.steps}")
            lag = await self._rush(issuer, crowds[-1], rush)
        return await self._report(lag)

    async def _step(self, crowd: Crowd, count: int, where: str) -> None:
        """One round's worth: filled, drained, copied into the storage of its twin."""
        self._tell(f"{where}: {count:,} wins into the log")
        filled = await fill(self._course, self._script, crowd, count, per_call=self._wish.per_entry)
        self._told.append((crowd.ground, filled.items))
        self._tell(f"{where}: drain")
        await self._carry(Carry(kind="drain", round_no=crowd.ground.round_no))
        self._tell(f"{where}: copy")
        await self._carry(Carry(kind="copy", round_no=crowd.ground.round_no))

    async def _carry(self, job: Carry) -> None:
        done = await self._drainer.ask(job, Carried)
        costs = {"drain": done.cpu_s, "postgres": done.postgres_cpu_s}
        self._course.add(
            Phase(
                name=job.kind,
                items=done.vouchers,
                seconds=round(done.seconds, 3),
                rate_per_s=round(done.vouchers / done.seconds, 1),
                cpu_us={who: round(cost * 1e6 / max(done.vouchers, 1), 2) for who, cost in costs.items()},
                busy={who: round(cost / done.seconds, 2) for who, cost in costs.items()},
            )
        )

    async def _rush(self, issuer: Workers, crowd: Crowd, count: int) -> Lag:
        self._tell(f"signing {count:,} claims")
        files = await crowd.sign(count)
        job = Rush(port=issuer.port, files=files, connections=self._wish.connections, seconds=self._wish.seconds)
        async with self._world.drain() as drain, watching(self._world) as moves:
            self._tell("claims as fast as they go, with the drain behind them")
            pids = {"issuer": issuer.pids, "valkey": self._world.valkey_pids, "drain": [drain]}
            rush = self._course.add(await measured("rush", pids, lambda: self._generator.ask(job, Told)))
            await check.carried_over(self._world)
        self._told.append((crowd.ground, rush.items))
        return lag_of(moves)

    async def _report(self, lag: Lag) -> Report:
        course, wish = self._course, self._wish
        self._tell("counting vouchers")
        wrong = course.wrong() + await check.wrongs(self._world, self._told)
        rate, limit = course.rate("drain"), course.rate("copy")
        drain, postgres = course.cpu_us("drain", "drain"), course.cpu_us("drain", "postgres")
        return Report(
            bench="drain",
            rate_per_s=rate,
            limit_per_s=limit,
            ratio=round(rate / limit, 3),
            p50_ms=round(lag.p50_s * 1000, 1),
            p99_ms=round(lag.p99_s * 1000, 1),
            cpu_us_per_item=round(drain + postgres, 2),
            cpu_us_drain=drain,
            cpu_us_postgres=postgres,
            cpu_us_limit=round(course.cpu_us("copy", "drain") + course.cpu_us("copy", "postgres"), 2),
            cpu_us_issuer=course.cpu_us("rush", "issuer"),
            cpu_us_valkey=course.cpu_us("rush", "valkey"),
            lag_p50_s=lag.p50_s,
            lag_p99_s=lag.p99_s,
            lag_max_s=lag.max_s,
            rush_per_s=course.rate("rush"),
            correct=not wrong,
            wrong=wrong,
            targets=[
                target("ratio", "at least", RATIO, round(rate / limit, 3)),
                target("lag p99, s", "at most", LAG_S, lag.p99_s),
            ],
            size=await self._size(
                items=sum(phase.items for phase in course.named("drain")),
                people=sum(wins for _, wins in self._told),
                connections=wish.connections,
                workers=1,
                keys=Algorithm.HMAC,
            ),
            phases=course.phases,
        )
