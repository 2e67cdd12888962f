"""./hanquan migrate"""

from collections.abc import Sequence

from sql import migrate as migrator
from stack.console import Data, out, run
from stack.data_folder import DEFAULT, DataFolder
from stack.reach import Reach
from stack.running import Stack
from stack.stores import administrator


def migrate(*, data: Data = DEFAULT) -> None:
    """Bring the database to the newest schema.

    Also while the stack runs. When it does not, the stores are started for it.
    """
    applied = run(_migrate(DataFolder(data)))
    for one in applied or ():
        out.print(f"applied migration {one.version:04} {one.name}")
    if applied == []:
        out.print("nothing to do: the schema is the newest")


async def _migrate(folder: DataFolder) -> Sequence[migrator.Migration]:
    if folder.is_locked():
        async with administrator(Reach(folder).dsn()) as connection:
            return await migrator.migrate(connection)
    async with Stack(folder.path, services=()) as stack:
        return stack.applied
