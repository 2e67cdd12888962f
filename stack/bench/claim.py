"""`bench claim`: signed single claims, one worker, beside a bare worker that answers a constant."""

from contextlib import AsyncExitStack

import msgspec

from kernel.signing import Algorithm
from stack.bench import check
from stack.bench.base import IssuerBench
from stack.bench.crowd import Crowd, fill
from stack.bench.generator import Rush, Told
from stack.bench.phases import Phase, Tell, measured
from stack.bench.report import Report, Target, target
from stack.bench.world import Workers, World

RATIOS = {Algorithm.HMAC: 0.5, Algorithm.RSA: 0.35}
P99_MS, FLATNESS = 25.0, 1.2
OPEN_SHARE = 0.6
SPARE = 1.25
"""Requests signed for a stretch, as a multiple of what the trial says it may use."""
TRIAL_PER_S = 2_500
FILL_PAGE = 100_000
REMARKS = {
    "rate_per_s": "signed claims, durable when answered",
    "limit_per_s": "a bare worker answers a constant to the same POSTs",
    "open_rate_per_s": "60 % of the highest rate; latency counts from the scheduled time",
    "flatness": "of the issuer and Valkey, per claim, less what the machine became slower for the bare worker",
}


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """`pairs` of stretches of so many `seconds`. The last claims are measured when the round holds `claims`."""

    algorithm: Algorithm = Algorithm.HMAC
    seconds: float = 5.0
    connections: int = 64
    pairs: int = 3
    claims: int = 300_000


async def bench_claim(world: World, wish: Wish, tell: Tell) -> Report:
    """The whole bench. StackError when something ended over it."""
    return await _Claims(world, wish, tell).run()


class _Claims(IssuerBench[Wish]):
    _issuer: Workers
    _bare: Workers

    async def run(self) -> Report:
        world, wish = self._world, self._wish
        await self._open()
        trial_size = int(TRIAL_PER_S * wish.seconds)
        trial = Crowd(world, await world.open_round(trial_size + 1, wish.algorithm), self._signers, wish.algorithm)
        async with AsyncExitStack() as exits:
            self._issuer = await exits.enter_async_context(world.workers(1))
            answer = await world.knock(trial.ground, self._issuer.port, wish.algorithm)
            self._bare = await exits.enter_async_context(world.bare(answer))
            rate = await self._try_out(trial, trial_size)
            each = max(int(rate * wish.seconds * SPARE), 1)
            need = each * (2 * wish.pairs + 2) + 1  # the open schedule takes less than two of them
            ground = await world.open_round(need + wish.claims, wish.algorithm)
            crowd = Crowd(world, ground, self._signers, wish.algorithm)
            await world.knock(ground, self._issuer.port, wish.algorithm)
            await self._alternate(crowd, each, "bare", "claim")
            await self._on_schedule(crowd)
            await self._last_ones(crowd, each)
        return await self._report(trial, crowd)

    async def _try_out(self, trial: Crowd, count: int) -> float:
        self._tell("trying out")
        files = await trial.sign(count)
        limit = (await self._send("trial of bare", self._bare, files, again=True)).rate_per_s
        rate = (await self._send("trial", self._issuer, files)).rate_per_s
        return max(rate, limit * RATIOS[self._wish.algorithm])  # one slow trial must not cut all stretches short

    async def _alternate(self, crowd: Crowd, each: int, bare: str, real: str) -> None:
        """Pairs of stretches, of the bare worker and of the issuer, under these names."""
        for pair in range(self._wish.pairs):
            self._tell(f"pair {pair + 1} of {self._wish.pairs}: signing {each:,} claims")
            files = await crowd.sign(each)
            self._tell(f"pair {pair + 1} of {self._wish.pairs}: measuring")
            for name in (bare, real) if pair % 2 == 0 else (real, bare):
                await self._send(name, self._bare if name == bare else self._issuer, files, again=name == bare)

    async def _on_schedule(self, crowd: Crowd) -> None:
        rate = self._course.rate("claim") * OPEN_SHARE
        seconds = self._wish.seconds * 2
        count = max(int(rate * seconds), 1)
        self._tell(f"open schedule: signing {count:,} claims")
        files = await crowd.sign(count)
        self._tell(f"open schedule at {rate:,.0f} claims/s")
        await self._send("open", self._issuer, files, rate_per_s=rate)

    async def _last_ones(self, crowd: Crowd, each: int) -> None:
        """Fills the round with other people's claims and measures the last ones again."""
        if not self._wish.claims:
            return
        while (missing := self._wish.claims - self._wins()) > 0:
            self._tell(f"filling the round: {self._wins():,} of {self._wish.claims:,}")
            await fill(self._course, self._script, crowd, min(FILL_PAGE, missing))
        await self._alternate(crowd, each, "last of bare", "last")

    def _wins(self) -> int:
        """In the round that counts, with the one at the door."""
        return 1 + sum(phase.items for phase in self._course.phases if phase.name in ("claim", "open", "fill", "last"))

    async def _send(
        self, name: str, to: Workers, files: list[str], *, again: bool = False, rate_per_s: float | None = None
    ) -> Phase:
        job = Rush(
            port=to.port,
            files=files,
            connections=self._wish.connections,
            seconds=self._wish.seconds if rate_per_s is None else self._wish.seconds * 4,
            again=again,
            rate_per_s=rate_per_s,
        )
        served = {"bare": to.pids} if to is self._bare else {"issuer": to.pids, "valkey": self._world.valkey_pids}
        pids = served | {"generator": [self._generator.pid]}
        return self._course.add(await measured(name, pids, lambda: self._generator.ask(job, Told)))

    async def _report(self, trial: Crowd, crowd: Crowd) -> Report:
        course, wish = self._course, self._wish
        await check.carry_over(self._world, self._tell)
        at_trial = 1 + sum(phase.items for phase in course.named("trial"))
        wins = self._wins()
        self._tell("counting vouchers")
        wrong = course.wrong() + await check.wrongs(self._world, [(trial.ground, at_trial), (crowd.ground, wins)])
        issuer, valkey = course.cpu_us("claim", "issuer"), course.cpu_us("claim", "valkey")
        times = course.latency("open")
        rate, limit = course.rate("claim"), course.rate("bare")
        grown = course.grown("claim", "last", ("issuer", "valkey"))
        flat = round(grown / course.grown("bare", "last of bare", ["bare"]), 3) if grown else None
        return Report(
            bench="claim",
            rate_per_s=rate,
            limit_per_s=limit,
            ratio=round(rate / limit, 3),
            p50_ms=times.p50_ms,
            p99_ms=times.p99_ms,
            cpu_us_per_item=round(issuer + valkey, 2),
            cpu_us_issuer=issuer,
            cpu_us_valkey=valkey,
            cpu_us_limit=course.cpu_us("bare", "bare"),
            open_rate_per_s=round(rate * OPEN_SHARE, 1),
            flatness=flat,
            correct=not wrong,
            wrong=wrong,
            targets=self._targets(rate / limit, times.p99_ms, flat),
            size=await self._size(
                items=sum(phase.items for phase in course.named("claim")),
                people=wins,
                connections=wish.connections,
                workers=1,
                keys=wish.algorithm,
            ),
            phases=course.phases,
        )

    def _targets(self, ratio: float, p99_ms: float, flat: float | None) -> list[Target]:
        return [
            target(f"ratio, {self._wish.algorithm}", "at least", RATIOS[self._wish.algorithm], round(ratio, 3)),
            target("p99 on an open schedule, ms", "at most", P99_MS, p99_ms),
            *([] if flat is None else [target("cost, last to first", "at most", FLATNESS, flat)]),
        ]
