"""./hanquan psql"""

import os
from typing import Annotated
from urllib.parse import unquote, urlsplit

from cyclopts import Parameter

from stack.binaries import postgres_program
from stack.console import Data, PassedOn
from stack.data_folder import DEFAULT, DataFolder
from stack.errors import StackError
from stack.reach import Reach
from stack.stores import public

Role = Annotated[str | None, Parameter(help="Log in as this role, for example hanquan_auditor.")]


def psql(*arguments: PassedOn, data: Data = DEFAULT, role: Role = None) -> None:
    """Open the database with psql; arguments are passed on.

    Without --role it is the administrator who logs in.
    """
    reach = Reach(DataFolder(data))
    if role is not None and role not in reach.secrets.role_passwords:
        raise StackError(f"no role {role}; there are {', '.join(reach.secrets.role_passwords)}")
    dsn = reach.dsn(role)
    login = urlsplit(dsn)
    environment = {
        **os.environ,
        # Not in the arguments, where every user of the machine could read it.
        "PGPASSWORD": unquote(login.password or ""),
        "PGUSER": unquote(login.username or ""),
    }
    program = str(postgres_program("psql"))
    os.execve(program, [program, public(dsn), *arguments], environment)
