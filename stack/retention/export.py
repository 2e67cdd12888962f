"""Rounds as files, before they are detached."""

import os
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from stack.errors import StackError
from stack.retention.desk import Custodian, queries

COPY_S = 3_600.0


async def export(desk: Custodian, round_no: int, folder: Path) -> bytes:
    """Writes every table of a round to a CSV file, readable by its owner only, and the files' SHA-256 beside them as
    sha256sum writes them; the hash of that list. Raises StackError when the folder cannot be written to."""
    lines = []
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for row in await desk.conn.fetch(queries["export_tables"], round_no):
            name = f"{row['name']}_r{round_no}.csv"
            lines.append(f"{await _copy(desk, row['statement'], folder / name)}  {name}\n")
        sums = "".join(lines).encode()
        with _private(folder / f"SHA256SUMS_r{round_no}") as file:
            file.write(sums)
    except OSError as error:
        raise StackError(f"cannot export to {folder}: {error.strerror}") from error
    return sha256(sums).digest()


async def _copy(desk: Custodian, statement: str, path: Path) -> str:
    """SHA-256 of the file, in hex."""
    digest = sha256()
    with _private(path) as file:

        async def write(data: bytes) -> None:
            digest.update(data)
            file.write(data)

        await desk.conn.copy_from_query(statement, output=write, format="csv", header=True, timeout=COPY_S)
    return digest.hexdigest()


def _private(path: Path) -> BinaryIO:
    """A file of mode 600, also where one was there before."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
