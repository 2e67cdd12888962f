"""./hanquan faults: breaks a stack of its own at random, under load, and proves that nothing was lost."""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import App, Parameter
from cyclopts.validators import Number

from stack.console import err, out, run

app = App(name="faults", version_flags=(), help="Break a stack of its own at random and prove that nothing was lost.")


@app.command
def issuer(
    *,
    rounds: Annotated[int, Parameter(validator=Number(gte=1, lte=100_000))] = 24,
    seed: int = 1,
    seconds: Annotated[float, Parameter(validator=Number(gt=0, lte=60))] = 1.0,
    workers: Annotated[int, Parameter(validator=Number(gte=1, lte=16))] = 2,
    shards: Annotated[int, Parameter(validator=Number(gte=1, lte=16))] = 2,
    json: Annotated[bool, Parameter(negative=(), help="Print one JSON object.")] = False,
    keep: Annotated[bool, Parameter(negative=(), help="Keep the folder with data and logs.")] = False,
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
    import uvloop

    from stack.demo.progress import Progress
    from stack.faults.field import Size
    from stack.faults.issuer import run_issuer
    from stack.faults.report import render

    uvloop.install()
    folder = Path(tempfile.mkdtemp(prefix="hanquan-faults-"))
    size = Size(rounds=rounds, seed=seed, workers=workers, shards=shards)
    try:
        with Progress(err).bar("Faults", rounds) as advance:
            report = run(run_issuer(folder, size, seconds, advance))
    finally:
        if keep:
            err.print(f"kept: {folder}", markup=False, soft_wrap=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if report is None:
        return 130
    if json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        out.print(render(report))
    return 0 if report.holds else 1
