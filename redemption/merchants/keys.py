"""Keys of terminals: the first one, rotation with an overlap, revocation.

A terminal has one key, and two while one follows the other: both sign until the overlap ends. Operators hand out
secrets (HMAC) or take public keys; a merchant itself registers RSA public keys only, with the key it has (`register`).
No secret is ever made or sent over HTTP: whoever reads along, now or in a log, learns nothing that signs.
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta

import asyncpg
import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

from kernel.errors import Code, Refusal
from kernel.signing import Algorithm
from redemption.merchants.book import MerchantBook
from redemption.merchants.office import Office, conflict, find_merchant, no_such

KEY_LIFE = timedelta(days=365)
OVERLAP = timedelta(days=7)
OVERLAP_MAX = timedelta(days=90)
RSA_BITS = 2048
"""What the header of a signed request has room for, and what its scheme says."""


class KeyMaterial(msgspec.Struct, frozen=True, kw_only=True):
    """What the books keep of a key. `material`: a sealed secret (HMAC), or a public key as DER (RSA)."""

    serial_no: str
    algorithm: Algorithm
    material: bytes


class KeyAdded(msgspec.Struct, frozen=True, kw_only=True):
    """A key that signs now, and until when the old one still does. `replayed`: it was added before."""

    merchant_id: str
    terminal_id: str
    serial_no: str
    not_after: datetime
    old_serial_no: str | None = None
    old_not_after: datetime | None = None
    replayed: bool = False


def public_key_material(pem: bytes) -> KeyMaterial | Refusal:
    """An RSA public key as the books keep it. Its serial number is made of the key itself, so that a key sent twice
    is one key."""
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, RSAPublicKey) or key.key_size != RSA_BITS or key.public_numbers().e != 65_537:
        detail = f"public_key is an RSA public key of {RSA_BITS} bits with exponent 65537, as PEM"
        return Refusal(code=Code.PARAM_ERROR, detail=detail, pointer="public_key")
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    serial_no = hashlib.sha256(der).hexdigest()[:40].upper()
    return KeyMaterial(serial_no=serial_no, algorithm=Algorithm.RSA, material=der)


def text_of_proof(merchant_id: str, old_serial_no: str, new_serial_no: str) -> bytes:
    """What a merchant signs with its new key to show that it has it: four lines."""
    return f"hanquan-keys-rotate\n{merchant_id}\n{old_serial_no}\n{new_serial_no}\n".encode()


def is_proven(key: KeyMaterial, proof: bytes, text: bytes) -> bool:
    """Whether the owner of a public key signed a text (PKCS#1 v1.5, SHA-256)."""
    public = load_der_public_key(key.material)
    assert isinstance(public, RSAPublicKey)
    try:
        public.verify(proof, text, PKCS1v15(), SHA256())
    except InvalidSignature:
        return False
    return True


async def issue(office: Office, merchant_id: str, terminal_id: str, key: KeyMaterial) -> KeyAdded | Refusal:
    """The first key of a terminal, or the first after all others ended."""
    return await _add(office, merchant_id, terminal_id, key, None, OVERLAP)


async def rotate(
    office: Office, merchant_id: str, terminal_id: str, key: KeyMaterial, overlap: timedelta = OVERLAP
) -> KeyAdded | Refusal:
    """The key after the one that a terminal has, which then signs until the overlap ends and not longer."""
    if not timedelta() <= overlap <= OVERLAP_MAX:
        return Refusal(code=Code.PARAM_ERROR, detail=f"an overlap has 0 to {OVERLAP_MAX.days} days")
    terminal_no = await _terminal_no(office, merchant_id, terminal_id)
    if isinstance(terminal_no, Refusal):
        return terminal_no
    merchant_no = await find_merchant(office, merchant_id)
    assert isinstance(merchant_no, int)
    live = [one for one in await office.book.keys(merchant_no, office.now) if one.terminal_no == terminal_no]
    if not live:
        return conflict("NO_KEY", f"terminal {terminal_id} of {merchant_id} has no key; issue one")
    return await _add(office, merchant_id, terminal_id, key, live[-1].serial_no, overlap)


async def revoke(office: Office, serial_no: str, why: str) -> Sequence[str] | Refusal:
    """Revokes a key at once, with every key that the merchant registered with it; their serial numbers. None of them
    comes back."""
    if not why:
        return conflict("NO_REASON", "say why")
    owner = await office.book.key_owner(serial_no)
    if owner is None:
        return no_such(f"merchant's key {serial_no}")
    async with office.conn.transaction():
        await office.book.lock("terminal", owner["terminal_no"])  # nobody registers one more with it meanwhile
        return await office.book.revoke(serial_no, office.by, why, office.now)


async def register(
    book: MerchantBook, merchant_id: str, terminal_id: str, old_serial_no: str, key: KeyMaterial, now: datetime
) -> KeyAdded | Refusal:
    """A merchant's own new public key, for the terminal that asks, with the key that asks. Refused while the merchant,
    the store or the terminal is suspended."""
    row = await book.register_own_key(old_serial_no, key.serial_no, key.material, now)
    return _told(row, merchant_id, terminal_id, key, old_serial_no)


async def _add(
    office: Office, merchant_id: str, terminal_id: str, key: KeyMaterial, old: str | None, overlap: timedelta
) -> KeyAdded | Refusal:
    terminal_no = await _terminal_no(office, merchant_id, terminal_id)
    if isinstance(terminal_no, Refusal):
        return terminal_no
    values = (key.serial_no, key.algorithm.value, key.material, office.by, overlap, KEY_LIFE, office.now)
    row = await office.book.add_key(terminal_no, old, *values)
    return _told(row, merchant_id, terminal_id, key, old)


async def _terminal_no(office: Office, merchant_id: str, terminal_id: str) -> int | Refusal:
    merchant_no = await find_merchant(office, merchant_id)
    if isinstance(merchant_no, Refusal):
        return merchant_no
    number = await office.book.terminal_no(merchant_no, terminal_id)
    return no_such(f"terminal {terminal_id} of {merchant_id}") if number is None else number


def _told(
    row: asyncpg.Record, merchant_id: str, terminal_id: str, key: KeyMaterial, old_serial_no: str | None
) -> KeyAdded | Refusal:
    if row["outcome"] not in ("ADDED", "REPLAYED"):
        return Refusal(code=Code.RULE_LIMIT, rule=row["outcome"], detail=_WHY_NOT[row["outcome"]])
    return KeyAdded(
        merchant_id=merchant_id,
        terminal_id=terminal_id,
        serial_no=key.serial_no,
        not_after=row["not_after"],
        old_serial_no=old_serial_no,
        old_not_after=row["old_not_after"],
        replayed=row["outcome"] == "REPLAYED",
    )


_WHY_NOT = {
    "NO_TERMINAL": "the key that asks is no terminal's",
    "KEY_TAKEN": "this key was registered before, here or elsewhere; make a new one",
    "SUSPENDED": "a merchant or terminal that is suspended registers no keys; ask the city",
    "NOT_LIVE": "the old key does not sign any more; ask the city for a new one",
    "HAS_KEY": "the terminal has another key that still signs; wait until it ends, rotate it, or have it revoked",
}
