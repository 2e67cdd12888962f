"""./hanquan bench: what issuer and checkout do, beside the limit measured in the same run."""

import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import msgspec
from cyclopts import App, Parameter
from cyclopts.validators import Number

from kernel.signing import Algorithm
from stack.bench import batch as batches
from stack.bench import checkout as checkouts
from stack.bench import claim as claims
from stack.bench import drain as drains
from stack.bench.phases import Tell
from stack.bench.report import Report, render
from stack.bench.world import World, open_world
from stack.console import err, out, run
from stack.new_city import BUCKETS

app = App(
    name="bench",
    version_flags=(),
    help="Measure issuer and checkout beside their limits, in one run, on durable stores.",
)

Seconds = Annotated[float, Parameter(validator=Number(gte=0.5, lte=120))]
Connections = Annotated[int, Parameter(validator=Number(gte=1, lte=1_000))]
Few = Annotated[int, Parameter(validator=Number(gte=1, lte=100))]
Json = Annotated[bool, Parameter(negative=(), help="Print one JSON object.")]
Bench = Callable[[World, Tell], Awaitable[Report]]


@app.command
def claim(
    *,
    keys: Literal["hmac", "rsa"] = "hmac",
    seconds: Seconds = 5.0,
    connections: Connections = 64,
    pairs: Few = 3,
    claims_: Annotated[int, Parameter(name="--claims", validator=Number(gte=0, lte=20_000_000))] = 300_000,
    json: Json = False,
) -> int:
    """Signed single claims with one worker, beside a bare worker that answers a constant to the same POSTs.

    In turn, for so many seconds each: the bare worker, the claim service. Then 60 % of the highest rate on
    an open schedule. Then the round is filled up and the last claims are measured again.

    Parameters
    ----------
    keys
        What the partner signs with. RSA signatures are made before the clock starts; that takes a while.
    seconds
        Length of one stretch.
    connections
        Connections of the load generator, one request under way on each.
    pairs
        How often the two are measured in turn; medians are told.
    claims_
        How many claims the round holds when the last ones are measured; 0 leaves that out.
    """
    algorithm = Algorithm.RSA if keys == "rsa" else Algorithm.HMAC
    wish = claims.Wish(algorithm=algorithm, seconds=seconds, connections=connections, pairs=pairs, claims=claims_)
    return _bench(lambda world, tell: claims.bench_claim(world, wish, tell), claims.REMARKS, json)


@app.command
def batch(
    *,
    people: Annotated[int, Parameter(validator=Number(gte=1_000, lte=20_000_000))] = 1_000_000,
    connections: Connections = 4,
    workers: Few = 1,
    steps: Few = 10,
    json: Json = False,
) -> int:
    """The batch endpoint, 1,000 claims a call, beside the same claims straight through the script.

    Also what a claim takes of Valkey's memory when its log is drained, and whether the last claims cost
    what the first did.

    Parameters
    ----------
    people
        How many claim, once each: half by the endpoint, half straight.
    connections
        Calls under way at once.
    workers
        Processes of the claim service.
    steps
        How often the two are measured in turn; medians are told.
    """
    wish = batches.Wish(people=people, connections=connections, workers=workers, steps=steps)
    return _bench(lambda world, tell: batches.bench_batch(world, wish, tell), batches.REMARKS, json)


@app.command
def drain(
    *,
    vouchers: Annotated[int, Parameter(validator=Number(gte=1_000, lte=10_000_000))] = 500_000,
    steps: Few = 4,
    per_entry: Annotated[int, Parameter(validator=Number(gte=1, lte=1_000))] = 100,
    seconds: Seconds = 8.0,
    connections: Connections = 64,
    json: Json = False,
) -> int:
    """The drain beside a raw COPY of the same rows; then its lag behind single claims at their highest rate.

    Parameters
    ----------
    vouchers
        How many wins the drain carries over, in all steps together.
    steps
        How often the two are measured in turn; medians are told.
    per_entry
        Wins an entry of the log: as many as one call of the script granted.
    seconds
        Length of the rush behind which the lag is measured.
    connections
        Connections of the load generator in that rush.
    """
    wish = drains.Wish(vouchers=vouchers, steps=steps, per_entry=per_entry, seconds=seconds, connections=connections)
    return _bench(lambda world, tell: drains.bench_drain(world, wish, tell), drains.REMARKS, json)


@app.command
def checkout(
    *,
    vouchers: Annotated[int, Parameter(validator=Number(gte=1_000, lte=50_000_000))] = 3_000_000,
    rounds: Annotated[int, Parameter(validator=Number(gte=2, lte=100))] = 15,
    shops: Annotated[int, Parameter(validator=Number(gte=1, lte=100_000))] = 30_000,
    seconds: Seconds = 5.0,
    connections: Connections = 256,
    pairs: Few = 3,
    workers: Few = 1,
    buckets: Few = BUCKETS,
    json: Json = False,
) -> int:
    """Signed redemptions of many shops, beside the ledger's function called one sale a transaction.

    First the table is filled. Then in turn, for so many seconds each: shops that are all alike, shops of
    which few draw most customers (Zipf's law), the function alone from 64 clients. Then 60 % of the highest
    rate on an open schedule. Storage is measured over a voucher's whole life, relation by relation.

    Parameters
    ----------
    vouchers
        How many the table holds.
    rounds
        Weekly rounds of the campaign; the vouchers are of the middle one.
    shops
        Merchants, each with a till and its key.
    seconds
        Length of one stretch.
    connections
        Connections of the load generator, one request under way on each.
    pairs
        How often the three are measured in turn; medians are told.
    workers
        Processes of the checkout service.
    buckets
        Into how many the city is cut; what a stack has unless told.
    """
    wish = checkouts.Wish(
        vouchers=vouchers,
        rounds=rounds,
        shops=shops,
        seconds=seconds,
        connections=connections,
        pairs=pairs,
        workers=workers,
    )
    return _bench(
        lambda world, tell: checkouts.bench_checkout(world, wish, tell), checkouts.REMARKS, json, buckets=buckets
    )


def _bench(bench: Bench, remarks: Mapping[str, str], json: bool, *, buckets: int = BUCKETS) -> int:
    report = run(_in_a_world(bench, buckets))
    if report is None:
        return 130
    if json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        out.print(render(report, remarks))
    return 0 if report.correct else 1


async def _in_a_world(bench: Bench, buckets: int) -> Report:
    with TemporaryDirectory(prefix="hanquan-bench-") as folder, _telling() as tell:
        async with open_world(Path(folder), buckets=buckets) as world:
            return await bench(world, tell)


@contextmanager
def _telling() -> Iterator[Tell]:
    with err.status("starting the stores") as status:
        yield status.update
