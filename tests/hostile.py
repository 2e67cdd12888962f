"""Requests that must be turned away whatever they ask for: badly signed, badly written, badly wrapped.

Each is made from a good request, so that nothing but the one flaw can be what turns it away.
"""

import gzip
import json
import re
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import sql
from kernel.keyring import Keyring
from kernel.sealing import seal
from kernel.signing import SCHEME, Algorithm, Signer
from kernel.web import KEYRING
from tests.city import MASTER_KEY, City, Reply, rsa_key

_enrol = sql.load("enrol")


@dataclass(frozen=True)
class Ask:
    """A good request: who sends what to which service of a city."""

    service: str
    signer: str
    method: str
    path: str
    body: Mapping[str, Any] | None = None

    def url(self, city: City) -> str:
        """Base URL of the service."""
        return str(getattr(city, self.service))

    @property
    def data(self) -> bytes:
        """The body as it is sent."""
        return b"" if self.body is None else json.dumps(self.body).encode()

    async def send(self, city: City, **changes: Any) -> Reply:
        """Sends it, with what `City.call` can change."""
        body, signer = changes.pop("body", self.data), changes.pop("signer", self.signer)
        return await city.call(self.url(city), signer, self.method, self.path, body, **changes)

    def authorization(self, city: City, data: bytes) -> str:
        """The header of a good signature over `data`."""
        now_s = int(city.clock.now().timestamp())
        signer = city.signers[self.signer]
        return signer.authorization(self.method, self.path, data, timestamp_s=now_s, nonce="abcdefgh12345678")


Flaw = Callable[[City, Ask], Awaitable[Reply]]


# ---------------------------------------------------------------- badly signed


async def _unsigned(city: City, ask: Ask) -> Reply:
    return await city.send(ask.url(city), ask.method, ask.path, ask.data)


def _signed_over(**sign: Any) -> Flaw:
    return lambda city, ask: ask.send(city, sign=sign)


def _shifted(seconds: int) -> Flaw:
    return lambda city, ask: ask.send(city, sign={"timestamp_s": int(city.clock.now().timestamp()) + seconds})


def _header(change: Callable[[str], str]) -> Flaw:
    return lambda city, ask: ask.send(city, headers={"Authorization": change(ask.authorization(city, ask.data))})


def _flipped(header: str) -> str:
    head, mark, signature = header.rpartition('signature="')
    return head + mark + ("B" if signature[0] == "A" else "A") + signature[1:]


def _other_scheme(header: str) -> str:
    hmac, rsa = SCHEME[Algorithm.HMAC], SCHEME[Algorithm.RSA]
    return header.replace(hmac, rsa) if header.startswith(hmac) else header.replace(rsa, hmac)


def _guessed(serial_no: str | None = None, secret: bytes = b"\x01" * 32) -> Flaw:
    def forge(city: City, ask: Ask) -> Awaitable[Reply]:
        own = city.signers[ask.signer]
        signer = Signer(
            holder_id=own.holder_id, serial_no=serial_no or own.serial_no, algorithm=Algorithm.HMAC, secret=secret
        )
        return ask.send(city, signer=signer)

    return forge


async def _public_half_as_secret(city: City, ask: Ask) -> Reply:
    public = rsa_key().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    own = city.signers["alipay"]
    signer = Signer(holder_id="alipay", serial_no=own.serial_no, algorithm=Algorithm.HMAC, secret=public)
    return await ask.send(city, signer=signer)


async def _other_kind(city: City, ask: Ask) -> Reply:
    return await ask.send(city, signer="NOODLES" if ask.service == "issuer" else "wechat")


def _twin(kind: str) -> Flaw:
    return lambda city, ask: ask.send(city, signer=f"{ask.signer} {kind}")


FORGERIES: Mapping[str, Flaw] = {
    "no signature at all": _unsigned,
    "a header of another scheme": _header(lambda _: "Bearer abcdef"),
    "an empty header": _header(lambda _: ""),
    "a header of which a part is missing": _header(lambda header: re.sub(',nonce_str="[^"]*"', "", header)),
    "a header with something after it": _header(lambda header: header + ',x="y"'),
    "a signature with one letter changed": _header(_flipped),
    "a signature that is no base64": _header(lambda header: header[:-5] + '===="'),
    "somebody else's name on one's own key": _header(lambda header: header.replace('mchid="', 'mchid="x')),
    "the other scheme's name": _header(_other_scheme),
    "a body that was changed on the way": _signed_over(body=b'{"changed": 1}'),
    "a method that was changed on the way": _signed_over(method="PUT"),
    "a path that was changed on the way": _signed_over(path="/v1/other"),
    "a timestamp older than five minutes": _shifted(-302),
    "a timestamp more than five minutes ahead": _shifted(302),
    "a guessed secret": _guessed(),
    "a key nobody knows": _guessed(serial_no="F" * 20),
    "a public key used as if it were a secret": _public_half_as_secret,
    "a key of the wrong kind of caller": _other_kind,
    "a key that has run out": _twin("expired"),
    "a key that was revoked": _twin("revoked"),
    "a key that is not valid yet": _twin("early"),
}
"""Every one answers 401 SIGN_ERROR. The last three need `add_bad_keys`."""

WITHIN_THE_WINDOW: Mapping[str, Flaw] = {"four minutes old": _shifted(-240), "four minutes ahead": _shifted(240)}
"""These are fine."""


async def add_bad_keys(city: City, *names: str) -> None:
    """For each signer a twin key that has run out, one that was revoked and one of tomorrow."""
    day, now = timedelta(days=1), city.clock.now()
    windows = {
        "expired": (now - 9 * day, now - day),
        "revoked": (now - day, now + day),
        "early": (now + day, now + 9 * day),
    }
    for name in names:
        own = city.signers[name]
        row = await city.database.pool.fetchrow("SELECT * FROM api_key WHERE serial_no = $1", own.serial_no)
        assert row is not None
        for number, (kind, (begin, end)) in enumerate(windows.items()):
            serial_no = f"{own.serial_no}{number}"
            secret = own.secret
            material = seal(MASTER_KEY, secret, serial_no) if isinstance(secret, bytes) else row["key_material"]
            await city.database.pool.execute(
                _enrol["insert_keys"],
                *([value] for value in (serial_no, row["holder_kind"], row["holder_id"], row["terminal_no"])),
                *([value] for value in (row["algorithm"], material, begin, end)),
            )
            twin = Signer(holder_id=own.holder_id, serial_no=serial_no, algorithm=own.algorithm, secret=secret)
            city.signers = {**city.signers, f"{name} {kind}": twin}
    await city.database.pool.execute(
        "UPDATE api_key SET revoked_at = $1 WHERE serial_no LIKE '%1' AND length(serial_no) = 21", now
    )
    for app in city.apps.values():
        keyring: Keyring = app[KEYRING]
        await keyring.reload()


# ---------------------------------------------------------------- badly written


def raw(data: bytes) -> Flaw:
    """Another body altogether."""
    return lambda city, ask: ask.send(city, body=data)


def changed(**fields: object) -> Flaw:
    """The body with fields changed or added."""
    return lambda city, ask: ask.send(city, body={**(ask.body or {}), **fields})


def without(field: str) -> Flaw:
    """The body without a field."""
    return lambda city, ask: ask.send(city, body={name: v for name, v in (ask.body or {}).items() if name != field})


def _packed(encoding: str, pack: Callable[[bytes], bytes]) -> Flaw:
    return lambda city, ask: ask.send(city, body=pack(ask.data), headers={"Content-Encoding": encoding})


MALFORMED: Mapping[str, Flaw] = {
    "no body": raw(b""),
    "not JSON": raw(b"out_request_no=1"),
    "half a JSON": raw(b'{"out_request_no": "abc'),
    "two JSONs": raw(b"{} {}"),
    "not UTF-8": raw(b'{"a": "\xff\xfe"}'),
    "half a surrogate pair": raw(b'{"a": "\\ud800"}'),
    "a list": raw(b"[]"),
    "a number": raw(b"7"),
    "null": raw(b"null"),
    "nothing in it": raw(b"{}"),
    "nested without end": raw(b"[" * 2_000),
    "a field nobody asked for": changed(surprise=1),
    "compressed with gzip": _packed("gzip", gzip.compress),
    "compressed with deflate": _packed("deflate", zlib.compress),
    "said to be compressed and not": _packed("br", bytes),
}
"""Every one answers 400 PARAM_ERROR at any address that takes a body."""


def bad_values(field: str, values: Mapping[str, object], *, may_lack: bool = False) -> dict[str, Flaw]:
    """One flaw for each bad value of a field, and one for leaving it out."""
    flaws = {f"{field}: {name}": changed(**{field: value}) for name, value in values.items()}
    return flaws if may_lack else flaws | {f"{field}: left out": without(field)}


BAD_NUMBERS: Mapping[str, object] = {
    "too short": "abcde",
    "too long": "a" * 41,
    "a blank": "abc def",
    "a line end after it": "abcdef\n",
    "a zero byte": "abcdef\x00",
    "wide digits": "１２３４５６",
    "a slash": "abc/def",
    "a number": 123456,
    "null": None,
    "a list": ["abcdef"],
}
BAD_TOKENS: Mapping[str, object] = {
    "too short": "a" * 31,
    "too long": "a" * 33,
    "upper case": "A" * 32,
    "not hex": "g" * 32,
    "a line end after it": "a" * 32 + "\n",
    "a number": 1,
}
BAD_AMOUNTS: Mapping[str, object] = {
    "zero": 0,
    "negative": -1,
    "too large": 10**12 + 1,
    "beyond 64 bits": 10**30,
    "a fraction": 7_500.5,
    "a whole float": 7_500.0,
    "text": "7500",
    "true": True,
    "null": None,
}


# ---------------------------------------------------------------- badly wrapped


def too_large(bytes_max: int) -> Mapping[str, Flaw]:
    """Bodies above a limit, said so in front and not: 413 BODY_TOO_LARGE."""

    async def in_pieces(city: City, ask: Ask) -> Reply:
        data = b" " * (bytes_max + 1)

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(data), 65_536):
                yield data[start : start + 65_536]

        headers = {"Authorization": ask.authorization(city, data)}
        async with city.session.request(ask.method, ask.url(city) + ask.path, data=pieces(), headers=headers) as answer:
            return Reply(answer.status, await answer.read(), answer.headers.copy())

    return {
        "one byte too many": raw(b" " * (bytes_max + 1)),
        "in pieces": in_pieces,
        "a million bytes": raw(b" " * 1_000_000),
    }


WRONG_DOORS = ["{path}/", "/{path}", "{path}%00", "{path}/../claims", "{upper}", "/", "/v1", "/v2{path}"]
"""Addresses that are none: 404."""
