"""Helper: people, their claims, and requests signed before the clock starts.

The n-th person of a run has one token and one request number, so whoever knows the run and n can make
the claim again: as a signed request here, as a claim for the script in script.py.
"""

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from kernel.ids import PARTITION_BITS, SERIAL_BITS
from kernel.signing import Algorithm, Signer
from stack.bench.helper import Work, serve

SINGLE, BATCH = "/v1/claims", "/v1/claims:batch"
LENGTH_BYTES = 4


class Ground(msgspec.Struct, frozen=True, kw_only=True):
    """A stock to claim from, and the run whose people claim it."""

    run_id: str
    stock_id: str
    round_no: int
    quantity: int


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A partner's key on its way to a helper. `secret`: HMAC as it is, RSA as DER."""

    holder_id: str
    serial_no: str
    algorithm: Algorithm
    secret: bytes

    @classmethod
    def of(cls, signer: Signer) -> "Key":
        """The key of a signer."""
        secret = signer.secret
        if isinstance(secret, RSAPrivateKey):
            secret = secret.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        return cls(holder_id=signer.holder_id, serial_no=signer.serial_no, algorithm=signer.algorithm, secret=secret)

    def signer(self) -> Signer:
        """The signer of a key."""
        secret: bytes | RSAPrivateKey = self.secret
        if self.algorithm is Algorithm.RSA:
            loaded = load_der_private_key(self.secret, None)
            assert isinstance(loaded, RSAPrivateKey)
            secret = loaded
        return Signer(holder_id=self.holder_id, serial_no=self.serial_no, algorithm=self.algorithm, secret=secret)


class Signing(msgspec.Struct, frozen=True, kw_only=True):
    """Requests for people `first` to `first` + `count`, `per_call` of them a request; 1: single claims."""

    ground: Ground
    key: Key
    first: int
    count: int
    per_call: int
    timestamp_s: int
    file: str


class Written(msgspec.Struct, frozen=True):
    """So many requests lie in the file."""

    requests: int


def ids_of(round_no: int) -> tuple[int, int]:
    """The range of a round's voucher numbers; the end is not in it."""
    bits = PARTITION_BITS + SERIAL_BITS
    return round_no << bits, round_no + 1 << bits


def person(ground: Ground, number: int) -> bytes:
    """The token, 16 bytes, of the n-th person of a run."""
    return sha256(f"{ground.run_id} person {number}".encode()).digest()[:16]


def request_no(ground: Ground, number: int) -> str:
    """The number under which the n-th person claims."""
    return f"{ground.run_id}-{number:09}"


def requests(job: Signing) -> Iterator[bytes]:
    """Whole HTTP requests, signed."""
    signer, path = job.key.signer(), SINGLE if job.per_call == 1 else BATCH
    for first in range(job.first, job.first + job.count, job.per_call):
        bodies = [
            f'{{"out_request_no":"{request_no(job.ground, n)}","stock_id":"{job.ground.stock_id}",'
            f'"person_token":"{person(job.ground, n).hex()}"}}'
            for n in range(first, min(first + job.per_call, job.first + job.count))
        ]
        body = (bodies[0] if job.per_call == 1 else f'{{"claims":[{",".join(bodies)}]}}').encode()
        yield signed_post(signer, path, body, job.timestamp_s, first)


def signed_post(signer: Signer, path: str, body: bytes, timestamp_s: int, nonce: int) -> bytes:
    """A whole HTTP request."""
    header = signer.authorization("POST", path, body, timestamp_s=timestamp_s, nonce=f"{nonce:016x}")
    return (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        f"Authorization: {header}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def read_requests(files: list[str]) -> list[bytes]:
    """All requests of the files, in order."""
    found = []
    for file in files:
        data, at = Path(file).read_bytes(), 0
        while at < len(data):
            end = at + LENGTH_BYTES + int.from_bytes(data[at : at + LENGTH_BYTES])
            found.append(data[at + LENGTH_BYTES : end])
            at = end
    return found


def write_requests(file: str, ready: Iterable[bytes]) -> Written:
    """Puts requests into a file; what was in it is gone."""
    count = 0
    with Path(file).open("wb") as out:
        for request in ready:
            out.write(len(request).to_bytes(LENGTH_BYTES) + request)
            count += 1
    return Written(count)


@asynccontextmanager
async def _opened() -> AsyncIterator[Work[Signing]]:
    async def work(job: Signing) -> Written:
        return write_requests(job.file, requests(job))

    yield work


if __name__ == "__main__":
    serve(Signing, _opened)
