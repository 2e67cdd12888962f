"""Signed requests, in the shape of WeChat Pay's API v3.

The text that is signed is five lines, each ended by a newline: method, path with query, timestamp in
seconds, nonce, body. The header names who signed, and with which key:

    Authorization: HANQUAN-HMAC-SHA256 mchid="wechat",nonce_str="...",timestamp="...",serial_no="...",signature="..."

A captured request can be sent again within the time window; it gets the answer it got before, because
every verb is idempotent by its caller's number. So nonces are signed but not remembered.
Source: WeChat Pay API v3, "signature generation" and "signature verification".
"""

import base64
import hmac
import re
from datetime import datetime
from enum import StrEnum
from typing import assert_never

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256

from kernel.errors import Code, Refusal

CLOCK_WINDOW_S = 300
"""Timestamps further off than this are refused (as WeChat Pay does)."""


class Algorithm(StrEnum):
    HMAC = "HMAC-SHA256"
    RSA = "RSA-2048-SHA256"


SCHEME = {Algorithm.HMAC: "HANQUAN-HMAC-SHA256", Algorithm.RSA: "HANQUAN-RSA-2048-SHA256"}

_AUTHORIZATION = re.compile(
    r"(HANQUAN-HMAC-SHA256|HANQUAN-RSA-2048-SHA256) +"
    r'mchid="([A-Za-z0-9_-]{2,32})",nonce_str="([A-Za-z0-9]{8,32})",timestamp="(\d{10})",'
    r'serial_no="([0-9A-F]{16,40})",signature="([A-Za-z0-9+/]{43,344}={0,2})"'
)


_PADDING, _DIGEST = PKCS1v15(), SHA256()  # made once: making them takes a quarter of the time to verify


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who signed: a partner, or a merchant through one of its terminals."""

    kind: str
    """`partner` or `merchant`."""
    holder_id: str
    holder_no: int
    terminal_no: int = 0


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """One key of one caller, ready to verify with."""

    serial_no: str
    caller: Caller
    algorithm: Algorithm
    secret: bytes | RSAPublicKey
    not_before: datetime
    not_after: datetime


class Signed(msgspec.Struct, frozen=True):
    """A parsed Authorization header."""

    scheme: str
    holder_id: str
    nonce: str
    timestamp: str
    serial_no: str
    signature: str


def parse_authorization(header: str | None) -> Signed | Refusal:
    """The header's parts, or why it cannot be read."""
    if header is None:
        return _refuse("there is no Authorization header")
    match = _AUTHORIZATION.fullmatch(header)
    if match is None:
        return _refuse(
            "the Authorization header must read: "
            'SCHEME mchid="..",nonce_str="..",timestamp="..",serial_no="..",signature=".."'
        )
    return Signed(*match.groups())


def text_to_sign(method: str, path: str, timestamp: str, nonce: str, body: bytes) -> bytes:
    """The five lines. `path` is the address from the first slash on, query included, as sent."""
    return f"{method}\n{path}\n{timestamp}\n{nonce}\n".encode() + body + b"\n"


def verify(signed: Signed, key: ApiKey | None, text: bytes, now: datetime) -> Caller | Refusal:
    """The caller when the signature holds; else why not. Unknown key and wrong holder answer alike."""
    if abs(now.timestamp() - int(signed.timestamp)) > CLOCK_WINDOW_S:
        return _refuse(
            f"the timestamp is more than {CLOCK_WINDOW_S} s away from the server's time, {int(now.timestamp())}"
        )
    if key is None or key.caller.holder_id != signed.holder_id or signed.scheme != SCHEME[key.algorithm]:
        return _refuse("no such key: check mchid, serial_no and the scheme")
    if not key.not_before <= now < key.not_after:
        return _refuse("the key is not valid at this time")
    if not _holds(key, _unbase64(signed.signature), text):
        return _refuse("the signature does not match the five lines: method, path with query, timestamp, nonce, body")
    return key.caller


class Signer(msgspec.Struct, frozen=True, kw_only=True):
    """A caller's side: signs requests with one of its keys."""

    holder_id: str
    serial_no: str
    algorithm: Algorithm
    secret: bytes | RSAPrivateKey

    def authorization(self, method: str, path: str, body: bytes, *, timestamp_s: int, nonce: str) -> str:
        """The Authorization header of one request."""
        text = text_to_sign(method, path, str(timestamp_s), nonce, body)
        signature = base64.b64encode(self._sign(text)).decode()
        return (
            f'{SCHEME[self.algorithm]} mchid="{self.holder_id}",nonce_str="{nonce}",'
            f'timestamp="{timestamp_s}",serial_no="{self.serial_no}",signature="{signature}"'
        )

    def _sign(self, text: bytes) -> bytes:
        if isinstance(self.secret, bytes):
            return hmac.digest(self.secret, text, "sha256")
        return self.secret.sign(text, _PADDING, _DIGEST)


def _holds(key: ApiKey, signature: bytes, text: bytes) -> bool:
    match key.algorithm:
        case Algorithm.HMAC:
            assert isinstance(key.secret, bytes)
            return hmac.compare_digest(hmac.digest(key.secret, text, "sha256"), signature)
        case Algorithm.RSA:
            assert isinstance(key.secret, RSAPublicKey)
            try:
                key.secret.verify(signature, text, _PADDING, _DIGEST)
            except InvalidSignature:
                return False
            return True
        case _:
            assert_never(key.algorithm)


def _unbase64(signature: str) -> bytes:
    try:
        return base64.b64decode(signature)
    except ValueError:
        return b""  # never a valid signature


def _refuse(detail: str) -> Refusal:
    return Refusal(code=Code.SIGN_ERROR, detail=detail)
