"""What anti-fraud keeps in Valkey: verdicts of the gate, households, pace, and the stream of signals."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC

from antifraud.gate import GateLimits, shard_tag
from antifraud.signals import STREAM
from kernel.clock import SystemClock, from_ms, to_ms
from kernel.valkey import guard
from stack.retention.desk import Advance, Custodian, Done, Line

LIMITS = GateLimits()
PAGE = 512
SAMPLED = 64
"""One small hash of so many is looked at to tell about how many households there are."""
DAY_MS = 86_400_000


class Verdicts:
    """`af:risk`: who is refused. A verdict that is over goes when its person asks next; this removes the others. One
    that is written anew at this very moment is copied back by the worker within five minutes."""

    async def look(self, desk: Custodian) -> Line:
        items = due = 0
        async for _, fields in _verdicts(desk):
            items += len(fields)
            due += len(_over(fields, to_ms(desk.now)))
        return Line(
            family="verdicts",
            where="Valkey af:risk",
            rule="until the verdict ends, 30 days at most",
            unit="people",
            items=items,
            due=due,
        )

    async def apply(self, desk: Custodian, advance: Advance) -> Done:
        removed = 0
        async for key, fields in _verdicts(desk):
            over = _over(fields, to_ms(desk.now))
            if over:
                removed += int(await guard(desk.valkey.hdel(key, *over)))
                advance(removed, removed)
        return Done(family="verdicts", unit="people", items=removed)


class Households:
    """`af:device`: who won on a device. Each ends by itself."""

    async def look(self, desk: Custodian) -> Line:
        items = 0
        for shard in range(desk.shards):
            pipe = desk.valkey.pipeline(transaction=False)
            for bucket in range(0, LIMITS.device_buckets, SAMPLED):
                pipe.hlen(f"af:device:{shard_tag(shard)}:{bucket}")
            items += SAMPLED * sum(await guard(pipe.execute()))
        days = LIMITS.device_ttl_s // 86_400
        return Line(
            family="households",
            where="Valkey af:device",
            rule=f"ends by itself {days} days after the last win in its small hash",
            unit="devices (about)",
            items=items,
        )

    async def apply(self, desk: Custodian, advance: Advance) -> Done:
        return Done(family="households", unit="devices")


class Signals:
    """`af:signal`: who claimed and used what, for the detectors. The writer bounds its length, this its age."""

    async def look(self, desk: Custodian) -> Line:
        first = await guard(desk.valkey.xrange(STREAM, count=1))
        oldest_ms = int(first[0][0].partition(b"-")[0]) if first else None
        return Line(
            family="signals",
            where=f"Valkey {STREAM}",
            rule=f"{desk.keep_days['signals']} days, and some 20,000 entries at most",
            unit="entries",
            items=int(await guard(desk.valkey.xlen(STREAM))),
            oldest=None if oldest_ms is None else from_ms(oldest_ms).astimezone(UTC),
            due=int(oldest_ms is not None and oldest_ms < _edge_ms(desk)),
        )

    async def apply(self, desk: Custodian, advance: Advance) -> Done:
        removed = await guard(desk.valkey.xtrim(STREAM, minid=_edge_ms(desk), approximate=False))
        return Done(family="signals", unit="entries", items=int(removed))


def _edge_ms(desk: Custodian) -> int:
    """Entries are numbered by the store's own time, whatever the campaign's clock says."""
    return SystemClock().now_ms() - desk.keep_days["signals"] * DAY_MS


async def _verdicts(desk: Custodian) -> AsyncIterator[tuple[str, dict[bytes, bytes]]]:
    for shard in range(desk.shards):
        tag = shard_tag(shard)
        for start in range(0, LIMITS.risk_buckets, PAGE):
            names = [f"af:risk:{tag}:{bucket}" for bucket in range(start, min(start + PAGE, LIMITS.risk_buckets))]
            pipe = desk.valkey.pipeline(transaction=False)
            for name in names:
                pipe.hgetall(name)
            for name, fields in zip(names, await guard(pipe.execute()), strict=True):
                if fields:
                    yield name, fields


def _over(fields: dict[bytes, bytes], now_ms: int) -> Sequence[bytes]:
    """Verdicts are a letter, or a letter, @ and the ms at which they end."""
    return [who for who, verdict in fields.items() if len(verdict) > 2 and int(verdict[2:]) <= now_ms]
