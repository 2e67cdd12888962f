"""Secrets at rest: sealed with the installation's master key (AES-256-GCM)."""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kernel.errors import Broken

_NONCE_BYTES = 12


def seal(master_key: bytes, secret: bytes, label: str) -> bytes:
    """Encrypts a secret for storage. `label` (say, a key's serial number) must be given again to open it."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(master_key).encrypt(nonce, secret, label.encode())


def unseal(master_key: bytes, sealed: bytes, label: str) -> bytes:
    """The secret again. Broken when it was changed, moved to another label or sealed under another key."""
    try:
        return AESGCM(master_key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], label.encode())
    except InvalidTag:
        raise Broken(f"the sealed secret of {label} does not open with this master key") from None
