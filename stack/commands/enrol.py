"""./hanquan enrol partner, merchants, operator, quota"""

import csv
from pathlib import Path
from typing import Annotated

import asyncpg
import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.table import Table

from kernel.clock import SystemClock
from kernel.signing import Algorithm, Signer
from stack.console import Data, err, out, run
from stack.data_folder import DEFAULT, DataFolder
from stack.enrol import NewMerchant, enrol_merchants, enrol_operator, enrol_partner, enrol_public_key, set_quota
from stack.errors import StackError
from stack.keystore import KeyStore
from stack.operating import staff_name
from stack.reach import Reach

RSA_BITS_MIN = 2048

app = App(name="enrol", help="Enrol a partner's key, merchants with a terminal and a key each, or an operator.")


@app.command
def partner(
    partner_id: Annotated[str, Parameter(help="The partner's id in the campaign file.")],
    *,
    public_key: Annotated[
        Path | None, Parameter(help="The partner's RSA public key (PEM). Without it an HMAC key is made.")
    ] = None,
    data: Data = DEFAULT,
) -> None:
    """Give a partner a key. A made secret is kept in the data folder's keys.json under the partner's id."""
    run(_partner(Reach(DataFolder(data)), partner_id, public_key))


@app.command
def merchants(
    file: Annotated[
        Path, Parameter(help="CSV: merchant_id,name,category,district,payee_name,payee_account,payee_bank")
    ],
    *,
    data: Data = DEFAULT,
) -> None:
    """Enrol the merchants of a CSV file; each terminal's key goes to keys.json under the merchant's id."""
    run(_merchants(Reach(DataFolder(data)), read_merchants(file)))


@app.command
def operator(
    operator_id: Annotated[str, Parameter(help="What the operator signs as: 2 to 32 letters, digits, _ or -.")],
    *,
    name: Annotated[str, Parameter(help="The person's name, as it will stand in the books.")],
    data: Data = DEFAULT,
) -> None:
    """Give an operator a key for the operator service. The secret is kept in keys.json under the operator's id."""
    run(_operator(Reach(DataFolder(data)), operator_id, staff_name(name)))


@app.command
def quota(
    partner_id: Annotated[str, Parameter(help="The partner's id in the campaign file.")],
    claims_per_s_max: Annotated[
        int, Parameter(help="Claims a second that it may send, over all workers; 0: no limit.", validator=Number(gte=0))
    ],
    *,
    data: Data = DEFAULT,
) -> None:
    """Limit what a partner may send, so that its flood slows nobody else. Holds within two seconds."""
    run(_quota(Reach(DataFolder(data)), partner_id, claims_per_s_max or None))


def read_merchants(file: Path) -> list[NewMerchant]:
    """The rows of a merchants' file. StackError names the line that cannot be read."""
    fields = NewMerchant.__struct_fields__
    try:
        with file.open(encoding="utf-8-sig", newline="") as source:
            rows = csv.DictReader(source)
            if rows.fieldnames is None or set(rows.fieldnames) != set(fields):
                raise StackError(f"{file}: the first line must be {','.join(fields)}")
            return [_merchant(file, rows.line_num, row) for row in rows]
    except (OSError, UnicodeDecodeError) as error:
        raise StackError(f"cannot read {file}: {error}") from error


def _merchant(file: Path, line: int, row: dict[str, str | None]) -> NewMerchant:
    if None in row or not all(row.values()):
        raise StackError(f"{file}, line {line}: every column needs a value, and no more columns than the first line")
    return msgspec.convert(row, NewMerchant)


async def _partner(reach: Reach, partner_id: str, public_key: Path | None) -> None:
    now = SystemClock().now()
    conn = await asyncpg.connect(reach.dsn("hanquan_operator"))
    try:
        if public_key is not None:
            serial_no = await enrol_public_key(conn, partner_id, _read_key(public_key), now)
        else:
            master_key = bytes.fromhex(reach.secrets.master_key)
            signer = await enrol_partner(conn, master_key, partner_id, Algorithm.HMAC, now)
            KeyStore(reach.folder.path).add({partner_id: signer})
            serial_no = signer.serial_no
    finally:
        await conn.close()
    out.print(f"{partner_id} signs with serial_no {serial_no}")


async def _operator(reach: Reach, operator_id: str, name: str) -> None:
    conn = await asyncpg.connect(reach.dsn("hanquan_operator"))
    try:
        master_key = bytes.fromhex(reach.secrets.master_key)
        signer = await enrol_operator(conn, master_key, operator_id, name, SystemClock().now())
    except asyncpg.IntegrityConstraintViolationError as error:
        raise StackError(f"nobody was enrolled: {error}") from error
    finally:
        await conn.close()
    if isinstance(signer, str):
        raise StackError(f"{operator_id} is {signer} already; choose another id")
    KeyStore(reach.folder.path).add({operator_id: signer})
    out.print(f"{operator_id} ({name}) signs with serial_no {signer.serial_no}", markup=False)


async def _quota(reach: Reach, partner_id: str, claims_per_s_max: int | None) -> None:
    conn = await asyncpg.connect(reach.dsn("hanquan_operator"))
    try:
        is_known = await set_quota(conn, partner_id, claims_per_s_max)
    finally:
        await conn.close()
    if not is_known:
        raise StackError(f"no campaign names a partner {partner_id}")
    limit = "as many claims as it likes" if claims_per_s_max is None else f"up to {claims_per_s_max} claims a second"
    out.print(f"{partner_id} may send {limit}")


async def _merchants(reach: Reach, rows: list[NewMerchant]) -> None:
    conn = await asyncpg.connect(reach.dsn("hanquan_operator"))
    try:
        signers = await enrol_merchants(conn, bytes.fromhex(reach.secrets.master_key), rows, SystemClock().now())
    except asyncpg.IntegrityConstraintViolationError as error:
        raise StackError(f"nothing was enrolled: {error}") from error
    finally:
        await conn.close()
    KeyStore(reach.folder.path).add({signer.holder_id: signer for signer in signers})
    _show(signers)
    err.print(f"enrolled {len(signers)} merchants; their keys are in {reach.folder.path / 'keys.json'}")


def _show(signers: list[Signer]) -> None:
    table = Table("merchant", "terminal", "serial_no", box=None, pad_edge=False)
    for signer in signers:
        table.add_row(signer.holder_id, "T1", signer.serial_no)
    out.print(table)


def _read_key(file: Path) -> RSAPublicKey:
    try:
        key = load_pem_public_key(file.read_bytes())
    except (OSError, ValueError) as error:
        raise StackError(f"cannot read a public key from {file}: {error}") from error
    if not isinstance(key, RSAPublicKey) or key.key_size < RSA_BITS_MIN:
        raise StackError(f"{file} must hold an RSA public key of at least {RSA_BITS_MIN} bits")
    return key
