"""./hanquan demo"""

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from stack.console import err, out, run
from stack.errors import StackError

VOUCHERS = 100_000
CITIZENS_PER_VOUCHER = 1.25
MERCHANTS_MIN_VOUCHERS = 2_000

Vouchers = Annotated[int, Parameter(help="Vouchers on offer, over twelve stocks.")]
Citizens = Annotated[int | None, Parameter(help="Citizens who press the button; default: 5 for every 4 vouchers.")]
Keep = Annotated[bool, Parameter(help="Keep the data folder, to look around in it afterwards.")]
Json = Annotated[bool, Parameter(help="Print one JSON object instead of the table.")]


def demo(
    *,
    vouchers: Vouchers = VOUCHERS,
    citizens: Citizens = None,
    seed: int = 2020,
    json: Json = False,
    keep: Keep = False,
) -> int:
    """Play a real Thursday of 2020: grab, redeem, settle, reconcile, audit."""
    import uvloop

    from stack.demo.play import Options, play
    from stack.demo.progress import Progress
    from stack.demo.result import table

    if vouchers < MERCHANTS_MIN_VOUCHERS:
        raise StackError(f"the demonstration needs at least {MERCHANTS_MIN_VOUCHERS:,} vouchers to be one")
    options = Options(vouchers=vouchers, citizens=citizens or int(vouchers * CITIZENS_PER_VOUCHER), seed=seed)
    folder = Path(tempfile.mkdtemp(prefix="hanquan-demo-"))
    try:
        result = run(play(folder, options, Progress(err)), loop_factory=uvloop.new_event_loop)
    finally:
        if keep:
            err.print(f"kept: ./hanquan up --data {folder}", markup=False)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if result is None:
        return 130
    if json:
        print(msgspec.json.encode(result).decode())
    else:
        out.print()
        out.print(table(result))
    return 0 if result.ok else 1
