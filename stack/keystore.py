"""The callers' side of keys, for examples and for signing by hand: keys.json in the data folder, owner only.

A partner keeps its own keys in its own vault; this file exists so that someone who tries Hanquan can sign.
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from kernel.signing import Algorithm, Signer
from stack.data_folder import write_atomically
from stack.errors import StackError


class _Entry(msgspec.Struct):
    holder_id: str
    serial_no: str
    algorithm: Algorithm
    secret: str
    """HMAC: hex. RSA: the private key as PEM."""


class KeyStore:
    """Signers by name. Reads and writes one small file."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "keys.json"

    def add(self, signers: Mapping[str, Signer]) -> None:
        """Keeps signers under names; a name that is there is replaced."""
        entries = self._read() | {name: _entry(signer) for name, signer in signers.items()}
        write_atomically(self._file, msgspec.json.format(msgspec.json.encode(entries)))

    def get(self, name: str) -> Signer:
        """The signer of a name. StackError lists the names there are."""
        entries = self._read()
        if name not in entries:
            raise StackError(f"no key is called {name!r}; there are: {', '.join(sorted(entries)) or 'none yet'}")
        return _signer(entries[name])

    def names(self) -> list[str]:
        """All names."""
        return sorted(self._read())

    def _read(self) -> dict[str, _Entry]:
        if not self._file.exists():
            return {}
        return msgspec.json.decode(self._file.read_bytes(), type=dict[str, _Entry])


def _entry(signer: Signer) -> _Entry:
    if isinstance(signer.secret, bytes):
        secret = signer.secret.hex()
    else:
        secret = signer.secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return _Entry(signer.holder_id, signer.serial_no, signer.algorithm, secret)


def _signer(entry: _Entry) -> Signer:
    secret: bytes | RSAPrivateKey
    if entry.algorithm is Algorithm.HMAC:
        secret = bytes.fromhex(entry.secret)
    else:
        loaded = load_pem_private_key(entry.secret.encode(), password=None)
        if not isinstance(loaded, RSAPrivateKey):
            raise StackError(f"key {entry.serial_no} is not an RSA key")
        secret = loaded
    return Signer(holder_id=entry.holder_id, serial_no=entry.serial_no, algorithm=entry.algorithm, secret=secret)
