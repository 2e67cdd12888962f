"""./hanquan faults: breaks a stack of its own at random, under load, and proves that nothing was lost."""

import shutil
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import App, Parameter
from cyclopts.validators import Number

from stack.console import err, out, run
from stack.faults.report import Report, render

app = App(name="faults", version_flags=(), help="Break a stack of its own at random and prove that nothing was lost.")


Rounds = Annotated[int, Parameter(validator=Number(gte=1, lte=100_000))]
Seconds = Annotated[float, Parameter(validator=Number(gt=0, lte=60))]
Few = Annotated[int, Parameter(validator=Number(gte=1, lte=16))]
Json = Annotated[bool, Parameter(negative=(), help="Print one JSON object.")]
Keep = Annotated[bool, Parameter(negative=(), help="Keep the folder with data and logs.")]


@app.command
def issuer(
    *,
    rounds: Rounds = 24,
    seed: int = 1,
    seconds: Seconds = 1.0,
    workers: Few = 2,
    shards: Few = 2,
    json: Json = False,
    keep: Keep = False,
) -> int:
    """Break the claim service and its stores at random while people claim.

    Starts a stack in a temporary folder. In each round clients claim, something breaks (a reply is lost, a
    process killed or stopped, a disk full, a connection cut, ...), the time until everything works again is
    measured, what clients do not know is asked again, and every win they were told is looked up. At the end
    come both audits. The exit status is 0 only when nothing was lost or doubled, no statement is broken and
    every recovery took at most ten seconds.

    Parameters
    ----------
    rounds
        How many; each takes about three seconds.
    seed
        The same seed chooses the same faults.
    seconds
        How long clients claim before the fault of a round, about.
    workers
        Processes of the claim service.
    shards
        Shards of the claim store.
    """
    from stack.faults.field import Size
    from stack.faults.issuer import run_issuer

    size = Size(rounds=rounds, seed=seed, workers=workers, shards=shards)
    return _drill(
        lambda folder, advance: run_issuer(folder, size, seconds, advance), rounds, keep_folder=keep, as_json=json
    )


@app.command
def checkout(
    *,
    rounds: Rounds = 24,
    seed: int = 1,
    seconds: Seconds = 1.0,
    workers: Few = 2,
    json: Json = False,
    keep: Keep = False,
) -> int:
    """Break the checkout and its stores at random while tills use vouchers and take purchases back.

    Starts a city in a temporary folder. In each round tills are at work, something happens (a reply is lost, a
    process killed or stopped, a clock jumps, a hundred tills want one voucher, a day is closed and paid, a stock
    expires, ...), the time until everything works again is measured, what tills do not know is asked again, and
    everything they were told is looked up. At the end come both audits. The exit status is 0 only when nothing
    was lost or doubled, no statement is broken and every recovery took at most ten seconds.

    Parameters
    ----------
    rounds
        How many; each takes about three seconds.
    seed
        The same seed chooses the same faults.
    seconds
        How long tills are at work before the fault of a round, about.
    workers
        Processes of the checkout.
    """
    from stack.faults.checkout import run_checkout
    from stack.faults.field import Size

    size = Size(rounds=rounds, seed=seed, workers=workers, shards=1)
    return _drill(
        lambda folder, advance: run_checkout(folder, size, seconds, advance), rounds, keep_folder=keep, as_json=json
    )


def _drill(
    play: Callable[[Path, Callable[[int], None]], Coroutine[None, None, Report]],
    rounds: int,
    *,
    keep_folder: bool,
    as_json: bool,
) -> int:
    import uvloop

    from stack.demo.progress import Progress

    folder = Path(tempfile.mkdtemp(prefix="hanquan-faults-"))
    try:
        with Progress(err).bar("Faults", rounds) as advance:
            report = run(play(folder, advance), loop_factory=uvloop.new_event_loop)
    finally:
        if keep_folder:
            err.print(f"kept: {folder}", markup=False, soft_wrap=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if report is None:
        return 130
    if as_json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        out.print(render(report))
    return 0 if report.holds else 1
