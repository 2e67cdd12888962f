"""Signed requests: what is accepted, and every way not to be."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from kernel.errors import Code, Refusal
from kernel.signing import Algorithm, ApiKey, Caller, Signer, parse_authorization, text_to_sign, verify

NOW = datetime(2020, 4, 23, 4, 0, tzinfo=UTC)
NOW_S = int(NOW.timestamp())
CALLER = Caller(kind="partner", holder_id="wechat", holder_no=1)
SERIAL = "0123456789ABCDEF0123"
RSA = generate_private_key(public_exponent=65537, key_size=2048)
BODY = b'{"a":1}'


def pair(algorithm: Algorithm) -> tuple[Signer, ApiKey]:
    secret = b"s" * 32
    is_rsa = algorithm is Algorithm.RSA
    signer = Signer(holder_id="wechat", serial_no=SERIAL, algorithm=algorithm, secret=RSA if is_rsa else secret)
    key = ApiKey(
        serial_no=SERIAL,
        caller=CALLER,
        algorithm=algorithm,
        secret=RSA.public_key() if is_rsa else secret,
        not_before=NOW - timedelta(days=1),
        not_after=NOW + timedelta(days=1),
    )
    return signer, key


def check(
    header: str | None,
    key: ApiKey | None,
    *,
    method: str = "POST",
    path: str = "/v1/claims",
    body: bytes = BODY,
    now: datetime = NOW,
) -> Caller | Refusal:
    signed = parse_authorization(header)
    if isinstance(signed, Refusal):
        return signed
    return verify(signed, key, text_to_sign(method, path, signed.timestamp, signed.nonce, body), now)


def header_of(signer: Signer, timestamp_s: int = NOW_S) -> str:
    return signer.authorization("POST", "/v1/claims", BODY, timestamp_s=timestamp_s, nonce="abcdef0123456789")


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_good_signature_names_its_caller(algorithm: Algorithm) -> None:
    signer, key = pair(algorithm)
    assert check(header_of(signer), key) == CALLER


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize(
    "change",
    [{"method": "PUT"}, {"path": "/v1/claims?x=1"}, {"body": b'{"a":2}'}, {"body": b""}, {"path": "/v1/refunds"}],
)
def test_a_changed_request_is_refused(algorithm: Algorithm, change: dict[str, object]) -> None:
    signer, key = pair(algorithm)
    refusal = check(header_of(signer), key, **change)  # type: ignore[arg-type]
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.SIGN_ERROR


@pytest.mark.parametrize(("offset_s", "good"), [(-301, False), (-300, True), (300, True), (301, False)])
def test_the_clock_window_is_five_minutes_either_way(offset_s: int, good: bool) -> None:
    signer, key = pair(Algorithm.HMAC)
    assert isinstance(check(header_of(signer, NOW_S + offset_s), key), Caller) is good


def test_a_key_before_or_after_its_time_an_unknown_key_and_anothers_are_refused() -> None:
    signer, key = pair(Algorithm.HMAC)
    header = header_of(signer)
    other = Signer(holder_id="alipay", serial_no=SERIAL, algorithm=Algorithm.HMAC, secret=b"s" * 32)
    rsa_signer, _ = pair(Algorithm.RSA)
    for got in (
        check(header_of(signer, NOW_S + 86_400), key, now=NOW + timedelta(days=1)),
        check(header_of(signer, NOW_S - 2 * 86_400), key, now=NOW - timedelta(days=2)),
        check(header, None),
        check(header_of(other), key),
        check(header_of(rsa_signer), key),
    ):
        assert isinstance(got, Refusal)
        assert got.code is Code.SIGN_ERROR


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer x",
        "HANQUAN-HMAC-SHA256",
        'HANQUAN-HMAC-SHA256 mchid="wechat"',
        "HANQUAN-HMAC-SHA256 " + "A" * 10_000,
    ],
)
def test_a_header_that_cannot_be_read_is_refused(header: str | None) -> None:
    assert isinstance(check(header, None), Refusal)


def test_a_flipped_bit_in_the_signature_is_refused() -> None:
    for algorithm in Algorithm:
        signer, key = pair(algorithm)
        header = header_of(signer)
        at = header.index('signature="') + len('signature="')
        flipped = header[:at] + ("B" if header[at] != "B" else "C") + header[at + 1 :]
        assert isinstance(check(flipped, key), Refusal)
