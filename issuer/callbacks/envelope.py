"""Signed and encrypted, in the shape of WeChat Pay's v3 notifications.

The body names the event and carries its words under AES-256-GCM; the signature, over three lines each ended by
a newline (timestamp, nonce, body), comes in headers.

Signed with HMAC-SHA256, not RSA: the words are encrypted under a secret that both sides share anyway, so a pair
of keys would add nothing that the partner can check, and would cost a hundred times the processor time at noon.
The two halves of a key do one thing each. Proof towards third parties is what the ledger is for.
"""

import base64
import hmac
import os
import secrets
from collections.abc import Mapping

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from issuer.callbacks.event import Event, message
from kernel.clock import rfc3339
from kernel.codes import CodeBook

ALGORITHM = "AEAD_AES_256_GCM"
SCHEME = "HANQUAN-HMAC-SHA256"
HALF_BYTES = 32
_NONCE_BYTES = 12

_encode = msgspec.json.Encoder().encode


class CallbackKey(msgspec.Struct, frozen=True, kw_only=True):
    """What the city and one partner share."""

    serial_no: str
    signing: bytes
    encryption: bytes

    @classmethod
    def of(cls, serial_no: str, material: bytes) -> "CallbackKey":
        """The key whose two halves were kept as one secret of 64 bytes."""
        if len(material) != 2 * HALF_BYTES:
            raise ValueError(f"callback key {serial_no} has {len(material)} bytes")
        return cls(serial_no=serial_no, signing=material[:HALF_BYTES], encryption=material[HALF_BYTES:])

    @classmethod
    def fresh(cls) -> "CallbackKey":
        """A new key from the system's source."""
        return cls.of(secrets.token_hex(10).upper(), os.urandom(2 * HALF_BYTES))

    @property
    def material(self) -> bytes:
        """Both halves, to be sealed and kept."""
        return self.signing + self.encryption


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """The encrypted part. `nonce` and `ciphertext` are Base64; the tag is the ciphertext's last 16 bytes."""

    algorithm: str
    original_type: str
    nonce: str
    associated_data: str
    ciphertext: str


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """The body as it is sent."""

    id: str
    create_time: str
    event_type: str
    resource_type: str
    resource: Resource


def seal_event(event: Event, key: CallbackKey, codes: CodeBook) -> bytes:
    """The body of an event's message: new nonce, same id, however often it is made. Broken as `message`."""
    event_id = str(event.key)
    nonce = os.urandom(_NONCE_BYTES)
    plain = _encode(message(event, codes))
    sealed = AESGCM(key.encryption).encrypt(nonce, plain, event_id.encode())
    resource = Resource(
        algorithm=ALGORITHM,
        original_type="voucher",
        nonce=base64.b64encode(nonce).decode(),
        associated_data=event_id,
        ciphertext=base64.b64encode(sealed).decode(),
    )
    return _encode(
        Envelope(
            id=event_id,
            create_time=rfc3339(event.happened_at),
            event_type=f"VOUCHER.{event.key.kind}",
            resource_type="encrypt-resource",
            resource=resource,
        )
    )


def signed_headers(body: bytes, key: CallbackKey, timestamp_s: int) -> Mapping[str, str]:
    """The headers that let a partner tell that the body is the city's, whole and fresh."""
    nonce = secrets.token_hex(16)
    text = f"{timestamp_s}\n{nonce}\n".encode() + body + b"\n"
    return {
        "Content-Type": "application/json",
        "Hanquan-Serial": key.serial_no,
        "Hanquan-Timestamp": str(timestamp_s),
        "Hanquan-Nonce": nonce,
        "Hanquan-Signature-Type": SCHEME,
        "Hanquan-Signature": base64.b64encode(hmac.digest(key.signing, text, "sha256")).decode(),
    }
