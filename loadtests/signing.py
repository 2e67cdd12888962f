"""Signs requests to Hanquan's partner API, written from the API guide alone.

Five lines are signed, each ended by a newline: method, path with query, timestamp in seconds, nonce,
body. HMAC-SHA256 takes the secret as hex; RSA-2048 (PKCS #1 v1.5, SHA-256) a private key as PEM.
"""

import base64
import hmac
import secrets
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from loadtests.plan import Partner

Sign = Callable[[bytes], bytes]


class Signer:
    """Makes the Authorization header of one partner's requests."""

    def __init__(self, partner: Partner) -> None:
        self._head = f'HANQUAN-{partner.algorithm} mchid="{partner.partner_id}",nonce_str="'
        self._serial_no = partner.serial_no
        self._sign: Sign = _hmac(partner.secret) if partner.algorithm == "HMAC-SHA256" else _rsa(partner.secret)

    def header(self, method: str, path: str, body: bytes, timestamp_s: int) -> str:
        """`path` from the first slash on, query included; `timestamp_s` within 300 s of the server's clock."""
        nonce = secrets.token_hex(8)
        text = f"{method}\n{path}\n{timestamp_s}\n{nonce}\n".encode() + body + b"\n"
        signature = base64.b64encode(self._sign(text)).decode()
        rest = f'timestamp="{timestamp_s}",serial_no="{self._serial_no}",signature="{signature}"'
        return f'{self._head}{nonce}",{rest}'


def _hmac(secret_hex: str) -> Sign:
    secret = bytes.fromhex(secret_hex)
    return lambda text: hmac.digest(secret, text, "sha256")


def _rsa(private_pem: str) -> Sign:
    key = load_pem_private_key(private_pem.encode(), password=None)
    if not isinstance(key, RSAPrivateKey):
        raise ValueError("the secret of an RSA partner must be an RSA private key")
    padding, digest = PKCS1v15(), SHA256()
    return lambda text: key.sign(text, padding, digest)
