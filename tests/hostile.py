"""Requests that must be turned away whatever they ask for: badly signed, badly written, badly wrapped.

Each is made from a good request, so that nothing but the one flaw can be what turns it away.
"""

import gzip
import json
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kernel.errors import Code
from kernel.signing import Algorithm, Signer
from tests.city import City, Reply, rsa_key

HALF_WINDOW_S = 299


@dataclass(frozen=True)
class Ask:
    """A good request: who sends what where."""

    service: str
    signer: str
    method: str
    path: str
    body: Mapping[str, Any] | None = None

    async def send(self, city: City, **changes: Any) -> Reply:
        """Sends it, with what `City.call` can change."""
        body = changes.pop("body", self.body)
        signer = changes.pop("signer", self.signer)
        service = getattr(city, self.service)
        return await city.call(service, signer, changes.pop("method", self.method), self.path, body, **changes)


Flaw = Callable[[City, Ask], Awaitable[Reply]]


def _now_s(city: City) -> int:
    return int(city.clock.now().timestamp())


def _authorization(city: City, ask: Ask, change: Callable[[str], str]) -> Mapping[str, str]:
    data = b"" if ask.body is None else json.dumps(ask.body).encode()
    header = city.signers[ask.signer].authorization(
        ask.method, ask.path, data, timestamp_s=_now_s(city), nonce="abcdefgh12345678"
    )
    return {"Authorization": change(header)}


def _signed(**sign: Any) -> Flaw:
    return lambda city, ask: ask.send(city, sign=sign)


def _shifted(seconds: int) -> Flaw:
    return lambda city, ask: ask.send(city, sign={"timestamp_s": _now_s(city) + seconds})


def _header(change: Callable[[str], str]) -> Flaw:
    return lambda city, ask: ask.send(city, headers=_authorization(city, ask, change))


def _as(change: Callable[[City, Signer], Signer]) -> Flaw:
    return lambda city, ask: ask.send(city, signer=change(city, city.signers[ask.signer]))


async def _unsigned(city: City, ask: Ask) -> Reply:
    data = None if ask.body is None else json.dumps(ask.body).encode()
    return await city.send(getattr(city, ask.service), ask.method, ask.path, data)


def _other(city: City, ask: Ask) -> Signer:
    """Somebody of the other kind: a shop where a partner is asked for, and the other way round."""
    return city.signers["NOODLES" if ask.service == "issuer" else "wechat"]


def _flip(header: str) -> str:
    head, _, signature = header.rpartition('signature="')
    return head + 'signature="' + ("B" if signature[0] == "A" else "A") + signature[1:]


_STRANGER = b"\x01" * 32

FORGERIES: Mapping[str, Flaw] = {
    "no signature at all": _unsigned,
    "a header of another scheme": _header(lambda _: "Bearer abcdef"),
    "an empty header": _header(lambda _: ""),
    "a signature with one letter changed": _header(_flip),
    "a signature that is no base64": _header(lambda header: header[:-5] + '===="'),
    "a header with something after it": _header(lambda header: header + ',x="y"'),
    "another partner's name on one's own key": _header(lambda header: header.replace('mchid="', 'mchid="x')),
    "the other scheme's name": _header(
        lambda h: h.replace("HMAC-SHA256", "X").replace("RSA-2048-SHA256", "HMAC-SHA256").replace("X", "RSA-2048-SHA256")
    ),
    "a body that was changed on the way": _signed(body=b'{"changed": 1}'),
    "a method that was changed on the way": _signed(method="PUT"),
    "a path that was changed on the way": _signed(path="/v1/other"),
    "a timestamp older than five minutes": _shifted(-302),
    "a timestamp more than five minutes ahead": _shifted(302),
    "a guessed secret": _as(
        lambda _, who: Signer(
            holder_id=who.holder_id, serial_no=who.serial_no, algorithm=Algorithm.HMAC, secret=_STRANGER
        )
    ),
    "a key nobody knows": _as(
        lambda _, who: Signer(
            holder_id=who.holder_id, serial_no="F" * 20, algorithm=Algorithm.HMAC, secret=_STRANGER
        )
    ),
    "a public key used as if it were a secret": _as(
        lambda city, who: Signer(
            holder_id="alipay",
            serial_no=city.signers["alipay"].serial_no,
            algorithm=Algorithm.HMAC,
            secret=_public_key(),
        )
    ),
    "a key of the wrong kind": lambda city, ask: ask.send(city, signer=_other(city, ask)),
    "a key that has run out": lambda city, ask: ask.send(city, signer="expired"),
    "a key that was revoked": lambda city, ask: ask.send(city, signer="revoked"),
    "a key that is not valid yet": lambda city, ask: ask.send(city, signer="early"),
}
"""Every one answers 401 SIGN_ERROR."""


def _public_key() -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return rsa_key().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _packed(encoding: str, pack: Callable[[bytes], bytes]) -> Flaw:
    async def send(city: City, ask: Ask) -> Reply:
        data = pack(json.dumps(ask.body).encode())
        return await ask.send(city, body=data, headers={"Content-Encoding": encoding})

    return send


def _raw(data: bytes) -> Flaw:
    return lambda city, ask: ask.send(city, body=data)


def _without(name: str) -> Flaw:
    return lambda city, ask: ask.send(city, body={k: v for k, v in (ask.body or {}).items() if k != name})


def _with(**more: object) -> Flaw:
    return lambda city, ask: ask.send(city, body={**(ask.body or {}), **more})


MALFORMED: Mapping[str, Flaw] = {
    "no body": _raw(b""),
    "not JSON": _raw(b"out_request_no=1"),
    "half a JSON": _raw(b'{"out_request_no": "abc'),
    "two JSONs": _raw(b"{} {}"),
    "not UTF-8": _raw(b'{"a": "\xff\xfe"}'),
    "half a surrogate pair": _raw(b'{"a": "\\ud800"}'),
    "a list": _raw(b"[]"),
    "a number": _raw(b"7"),
    "null": _raw(b"null"),
    "nothing in it": _raw(b"{}"),
    "nested without end": _raw(b"[" * 2_000),
    "a field nobody asked for": _with(surprise=1),
    "compressed with gzip": _packed("gzip", gzip.compress),
    "compressed with deflate": _packed("deflate", zlib.compress),
    "said to be compressed and not": _packed("br", lambda data: data),
}
"""Every one answers 400 PARAM_ERROR, for any endpoint with a body."""


def bad_values(field: str, values: Mapping[str, object]) -> dict[str, Flaw]:
    """One flaw for each bad value of a field, and one for leaving it out."""
    flaws = {f"{field}: {name}": _with(**{field: value}) for name, value in values.items()}
    return flaws | {f"{field}: left out": _without(field)}


BAD_NUMBERS: Mapping[str, object] = {
    "too short": "abcde",
    "too long": "a" * 41,
    "a blank": "abc def",
    "a line end after it": "abcdef\n",
    "a zero byte": "abcdef\x00",
    "Chinese digits": "１２３４５６",
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


def too_large(bytes_max: int) -> Mapping[str, Flaw]:
    """Bodies above a limit, said so in front and not: 413 BODY_TOO_LARGE."""

    async def chunked(city: City, ask: Ask) -> Reply:
        data = b"{" + b" " * bytes_max
        header = city.signers[ask.signer].authorization(
            ask.method, ask.path, data, timestamp_s=_now_s(city), nonce="abcdefgh12345678"
        )

        async def pieces() -> Any:
            for start in range(0, len(data), 65_536):
                yield data[start : start + 65_536]

        url = getattr(city, ask.service) + ask.path
        async with city.session.request(
            ask.method, url, data=pieces(), headers={"Authorization": header}
        ) as answer:
            return Reply(answer.status, await answer.read(), answer.headers.copy())

    return {
        "one byte too many": _raw(b"{" + b" " * bytes_max),
        "in pieces": chunked,
        "more than any body may have": _raw(b" " * ((1 << 20) + 1)),
    }


def wrong_doors(path: str, *methods: str) -> list[tuple[str, str, Code]]:
    """Methods an address does not take, and addresses that are none."""
    return [(method, path, Code.METHOD_NOT_ALLOWED) for method in methods] + [
        ("POST", path + "/", Code.RESOURCE_NOT_EXISTS),
        ("POST", path.upper(), Code.RESOURCE_NOT_EXISTS),
        ("POST", "/" + path, Code.RESOURCE_NOT_EXISTS),
        ("POST", path + "%00", Code.RESOURCE_NOT_EXISTS),
    ]


async def add_bad_keys(city: City) -> None:
    """Gives every holder's key a twin that has run out, one that was revoked and one of tomorrow.

    They stand in `city.signers` as expired, revoked, early; each opens nothing.
    """
    changes = {
        "expired": "not_before = not_before - interval '9 days', not_after = not_before - interval '8 days'",
        "revoked": "revoked_at = now()",
        "early": "not_before = not_before + interval '1 day'",
    }
    for name, change in changes.items():
        serial_no = city.signers["alipay"].serial_no[:-1] + name[0].upper().replace("R", "B")
        await city.database.pool.execute(
            "INSERT INTO api_key SELECT (k).* FROM (SELECT jsonb_populate_record(a, jsonb_build_object('serial_no', $1::text))"
            " AS k FROM api_key a WHERE serial_no = $2) AS twin",
            serial_no,
            city.signers["alipay"].serial_no,
        )
        await city.database.pool.execute(f"UPDATE api_key SET {change} WHERE serial_no = $1", serial_no)
        city.signers = {**city.signers, name: replace_serial(city.signers["alipay"], serial_no)}


def replace_serial(signer: Signer, serial_no: str) -> Signer:
    """The same key under another serial number."""
    return Signer(
        holder_id=signer.holder_id, serial_no=serial_no, algorithm=signer.algorithm, secret=signer.secret
    )


__all__ = ["BAD_AMOUNTS", "FORGERIES", "MALFORMED", "Ask", "replace"]
