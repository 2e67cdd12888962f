"""./hanquan load: a rush of real clients against a stack, and the proof that it went well."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import msgspec
from cyclopts import App, Parameter
from cyclopts.validators import Number

from stack.console import err, out, run
from stack.data_folder import DEFAULT, DataFolder
from stack.load.noon import NoonReport, render, run_noon
from stack.load.prepare import Size, write_plan
from stack.reach import Reach
from stack.running import Stack

app = App(name="load", version_flags=(), help="Send a rush of real clients to a stack and audit what they were told.")

Many = Annotated[int, Parameter(validator=Number(gte=1, lte=1_000_000))]
Seconds = Annotated[int, Parameter(validator=Number(gte=2, lte=600))]
Lead = Annotated[int, Parameter(validator=Number(gte=8, lte=3_600))]
Data = Annotated[Path, Parameter(help="Folder of the stack to load.")]
CITIZENS, VOUCHERS, SECONDS = 12_000, 3_000, 8


@app.command
def noon(
    *,
    citizens: Many = CITIZENS,
    vouchers: Many = VOUCHERS,
    seconds: Seconds = SECONDS,
    processes: Annotated[int, Parameter(validator=Number(gte=1, lte=64))] = 1,
    lead: Lead = 12,
    seed: int = 1,
    data: Data = DEFAULT,
    json: Annotated[bool, Parameter(negative=(), help="Print one JSON object.")] = False,
) -> int:
    """Everyone presses the button at noon; afterwards two audits say whether anything went wrong.

    Loads a campaign of its own into the stack that runs in the data folder, with a round that opens
    a few seconds later. Where none runs, starts one in a temporary folder and removes it afterwards.
    The exit status is 0 only when nothing was oversold, undersold, missing or given out twice.

    Parameters
    ----------
    citizens
        How many people there are. Most press within a second and a half.
    vouchers
        How many vouchers there are, over 12 stocks of 3 platforms.
    seconds
        How long people come, from noon on.
    processes
        Processes of clients.
    lead
        Seconds from loading the round to its opening; a slow machine needs more.
    seed
        The same seed makes the same crowd.
    """
    size = Size(citizens=citizens, vouchers=vouchers, seconds=seconds, processes=processes, lead_s=lead, seed=seed)
    report = run(_noon(DataFolder(data), size))
    if report is None:
        return 130
    if json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        out.print(render(report))
    return 0 if report.holds else 1


@app.command
def plan(
    file: Path,
    /,
    *,
    citizens: Many = CITIZENS,
    vouchers: Many = VOUCHERS,
    seconds: Seconds = SECONDS,
    lead: Lead = 60,
    seed: int = 1,
    data: Data = DEFAULT,
) -> None:
    """Load a campaign as `noon` does, and only write the plan for clients that you run yourself.

    loadtests/README.md tells how. The plan holds keys, good for a day: keep it to yourself.

    Parameters
    ----------
    file
        Where to write the plan (mode 600).
    """
    size = Size(citizens=citizens, vouchers=vouchers, seconds=seconds, processes=1, lead_s=lead, seed=seed)
    made = run(write_plan(Reach(DataFolder(data)), size, file))
    if made is not None:
        out.print(f"{file}: run {made.run_id}, noon in {lead} s", soft_wrap=True)


async def _noon(folder: DataFolder, size: Size) -> NoonReport:
    if folder.is_locked():
        return await run_noon(Reach(folder), size)
    with TemporaryDirectory(prefix="hanquan-load-") as temporary:
        err.print(f"no stack runs in {folder.path}; starting one in {temporary} for this run", soft_wrap=True)
        async with Stack(Path(temporary) / "data") as stack:
            return await run_noon(stack, size)
