"""Enrols partners, merchants and operators, and hands out their keys.

A secret leaves this module once, in the Signer that is returned; the database keeps it sealed (HMAC)
or never had it (RSA: only the public half is stored).
"""

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import sql
from kernel.postgres import Connection
from kernel.sealing import seal
from kernel.signing import Algorithm, Signer
from redemption.merchants.keys import KEY_LIFE

_queries = sql.load("enrol")


class NewMerchant(msgspec.Struct, frozen=True, kw_only=True):
    """A merchant to enrol, with one terminal `T1`."""

    merchant_id: str
    name: str
    category: str
    district: str
    payee_name: str
    payee_account: str
    payee_bank: str


class NewKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key that was made. `material` is what the database keeps of it: a sealed secret, or a public key as DER."""

    kind: str
    terminal_no: int | None
    signer: Signer
    material: bytes


async def enrol_partner(
    conn: Connection, master_key: bytes, partner_id: str, algorithm: Algorithm, now: datetime
) -> Signer:
    """A new key for a partner that a campaign named; the partner signs with the Signer returned."""
    key = new_key(master_key, "partner", partner_id, algorithm)
    await _insert_keys(conn, [key], now)
    return key.signer


async def enrol_public_key(conn: Connection, partner_id: str, public: RSAPublicKey, now: datetime) -> str:
    """Takes a partner's own RSA public key; answers the serial number it will sign under."""
    serial_no = secrets.token_hex(10).upper()
    signer = Signer(holder_id=partner_id, serial_no=serial_no, algorithm=Algorithm.RSA, secret=b"")
    material = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    await _insert_keys(conn, [NewKey(kind="partner", terminal_no=None, signer=signer, material=material)], now)
    return serial_no


async def enrol_operator(
    conn: Connection, master_key: bytes, operator_id: str, name: str, now: datetime
) -> Signer | str:
    """A new HMAC key for an operator, by the name that will stand in the books; the name instead when the id is
    another's already. Raises asyncpg.UniqueViolationError when the name is."""
    async with conn.transaction():
        enrolled: str = await conn.fetchval(_queries["insert_operator"], operator_id, name)
        if enrolled != name:
            return enrolled
        key = new_key(master_key, "operator", operator_id, Algorithm.HMAC)
        await _insert_keys(conn, [key], now)
    return key.signer


async def enrol_merchants(
    conn: Connection, master_key: bytes, merchants: Sequence[NewMerchant], now: datetime
) -> list[Signer]:
    """Enrols merchants in one transaction, each with a terminal and its HMAC key; Signers in order."""
    async with conn.transaction():
        columns = zip(*(msgspec.structs.astuple(merchant) for merchant in merchants), strict=True)
        rows = await conn.fetch(_queries["insert_merchants"], *map(list, columns))
        numbers = {row["merchant_id"]: row["merchant_no"] for row in rows}
        ordered = [numbers[merchant.merchant_id] for merchant in merchants]
        terminals = await conn.fetch(_queries["insert_terminals"], ordered, ["T1"] * len(ordered))
        terminal_of = {row["merchant_no"]: row["terminal_no"] for row in terminals}
        keys = [
            new_key(master_key, "merchant", merchant.merchant_id, Algorithm.HMAC, terminal_of[number])
            for merchant, number in zip(merchants, ordered, strict=True)
        ]
        await _insert_keys(conn, keys, now)
    return [key.signer for key in keys]


async def set_quota(conn: Connection, partner_id: str, claims_per_s_max: int | None) -> bool:
    """How many claims a second a partner may send, over all workers; None: no limit. False: nobody knows it."""
    return await conn.fetchval(_queries["set_quota"], partner_id, claims_per_s_max) is not None


def new_key(
    master_key: bytes, kind: str, holder_id: str, algorithm: Algorithm, terminal_no: int | None = None
) -> NewKey:
    """A fresh key for a holder; in no database yet."""
    serial_no = secrets.token_hex(10).upper()
    if algorithm is Algorithm.HMAC:
        secret = secrets.token_bytes(32)
        signer = Signer(holder_id=holder_id, serial_no=serial_no, algorithm=algorithm, secret=secret)
        return NewKey(kind=kind, terminal_no=terminal_no, signer=signer, material=seal(master_key, secret, serial_no))
    private = generate_private_key(public_exponent=65537, key_size=2048)
    material = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    signer = Signer(holder_id=holder_id, serial_no=serial_no, algorithm=algorithm, secret=private)
    return NewKey(kind=kind, terminal_no=terminal_no, signer=signer, material=material)


async def _insert_keys(conn: Connection, keys: Sequence[NewKey], now: datetime) -> None:
    await conn.execute(
        _queries["insert_keys"],
        [key.signer.serial_no for key in keys],
        [key.kind for key in keys],
        [key.signer.holder_id for key in keys],
        [key.terminal_no for key in keys],
        [key.signer.algorithm.value for key in keys],
        [key.material for key in keys],
        [now - timedelta(minutes=5)] * len(keys),
        [now + KEY_LIFE] * len(keys),
    )
