"""./hanquan reset"""

import sys
from typing import Annotated

from cyclopts import Parameter

from stack import cleanup
from stack.console import Data, out, run
from stack.data_folder import DEFAULT, DataFolder
from stack.errors import StackError


def reset(
    *,
    data: Data = DEFAULT,
    yes: Annotated[bool, Parameter(negative=(), help="Do not ask.")] = False,
) -> None:
    """Delete a data folder and everything in it: vouchers, money, keys. There is no way back."""
    folder = DataFolder(data)
    folder.check_removable()
    if not yes and not _agreed(folder):
        raise StackError("nothing was removed")
    run(cleanup.stop_leftovers(folder))
    folder.remove()
    out.print(f"removed {folder.path}")


def _agreed(folder: DataFolder) -> bool:
    if not sys.stdin.isatty():
        raise StackError("say --yes to remove without being asked")
    answer = out.input(f"Remove {folder.path} with all vouchers, money and keys in it? [y/N] ")
    return answer.strip().lower() in {"y", "yes"}
