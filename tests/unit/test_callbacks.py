"""Callbacks without stores: words, envelopes, schedule, addresses."""

import base64
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from issuer.callbacks.endpoint import complaint_about, is_public
from issuer.callbacks.envelope import CallbackKey, seal_event, signed_headers
from issuer.callbacks.event import Back, Event, EventKey, Kind, Use, Voucher, message, parse_event_id
from issuer.callbacks.retry import DEFAULT_RETRY_AFTER_S, next_attempt
from kernel.clock import CITY_ZONE
from kernel.errors import Broken
from kernel.ids import pack_voucher_id
from stack.commands.callbacks import redeliver, rotate, subscribe
from stack.errors import StackError
from tests.callback_world import CODES, as_keys, read_callback

NOW = datetime(2020, 4, 23, 20, 21, 5, 120_000, tzinfo=CITY_ZONE)
NOW_S = int(NOW.timestamp())
KEY = CallbackKey.fresh()
VOUCHER = Voucher(stock_id="dining", out_request_no="grab-0001", face_value_fen=2_000, valid_until=NOW)
USE = Use(merchant_id="M000777", use_request_no="use-0001", bill_fen=8_000, subsidy_fen=2_000)


def event(kind: Kind, credit: str = "ISSUED") -> Event:
    attempt = 0 if kind in (Kind.CLAIMED, Kind.EXPIRED) else 1
    return Event(
        key=EventKey(pack_voucher_id(1, 10, 1), attempt, kind),
        bucket=0,
        tries=1,
        happened_at=NOW,
        voucher=VOUCHER,
        use=USE if attempt else None,
        back=Back(refund_request_no="back-0001", refund_fen=6_000, credit=credit) if kind is Kind.REFUNDED else None,
    )


# ---------------------------------------------------------------- words


def test_each_kind_tells_what_belongs_to_it() -> None:
    claimed = message(event(Kind.CLAIMED), CODES)
    assert (claimed.voucher_state, claimed.merchant_id, claimed.bill_fen) == ("EFFECTIVE", None, None)
    used = message(event(Kind.USED), CODES)
    assert (used.voucher_state, used.bill_fen, used.subsidy_fen, used.refund_fen) == ("USED", 8_000, 2_000, None)
    back = message(event(Kind.REFUNDED), CODES)
    assert (back.voucher_state, back.use_request_no, back.refund_fen) == ("EFFECTIVE", "use-0001", 6_000)
    assert message(event(Kind.REFUNDED, "RETURNED"), CODES).voucher_state == "RETURNED"
    assert message(event(Kind.EXPIRED), CODES).voucher_state == "EXPIRED"
    assert CODES.decode(used.voucher_code) == event(Kind.USED).key.voucher_id


def test_an_event_whose_rows_are_gone_is_told_by_nobody() -> None:
    whole = event(Kind.USED)
    for rows in ({"voucher": None, "use": None}, {"use": None}):
        missing = Event(**{name: getattr(whole, name) for name in Event.__struct_fields__} | rows)
        with pytest.raises(Broken, match="are gone"):
            message(missing, CODES)


def test_an_id_names_its_event() -> None:
    key = event(Kind.USED).key
    assert str(key) == "0040A0000001-1-USED"
    assert parse_event_id(str(key)) == key
    for text in ("", "x", str(key).lower(), str(key) + "\n", str(key) + "X", "0" * 13 + "-0-CLAIMED"):
        assert parse_event_id(text) is None


# ---------------------------------------------------------------- envelopes


def sealed(kind: Kind = Kind.USED) -> tuple[dict[str, str], bytes]:
    body = seal_event(event(kind), KEY, CODES)
    return dict(signed_headers(body, KEY, NOW_S)), body


def test_the_guide_reads_what_is_sent() -> None:
    headers, body = sealed()
    envelope, voucher = read_callback(headers, body, as_keys(KEY), NOW_S)
    assert (envelope["id"], envelope["event_type"]) == (str(event(Kind.USED).key), "VOUCHER.USED")
    assert envelope["create_time"] == "2020-04-23T20:21:05.120+08:00"
    assert voucher == {
        "voucher_code": CODES.encode(event(Kind.USED).key.voucher_id),
        "voucher_state": "USED",
        "stock_id": "dining",
        "out_request_no": "grab-0001",
        "occurred_at": "2020-04-23T20:21:05.120+08:00",
        "face_value_fen": 2_000,
        "valid_until": "2020-04-23T20:21:05.120+08:00",
        "merchant_id": "M000777",
        "use_request_no": "use-0001",
        "bill_fen": 8_000,
        "subsidy_fen": 2_000,
    }


def test_nothing_of_the_voucher_is_readable_on_the_way() -> None:
    headers, body = sealed()
    for secret in (CODES.encode(event(Kind.USED).key.voucher_id), "grab-0001", "M000777", "8000"):
        assert secret not in body.decode() + json.dumps(headers)


def test_sent_again_it_has_the_same_id_and_nothing_else_of_before() -> None:
    (one_headers, one), (two_headers, two) = sealed(), sealed()
    first, second = json.loads(one), json.loads(two)
    assert first["id"] == second["id"]
    for name in ("nonce", "ciphertext"):
        assert first["resource"][name] != second["resource"][name]
    for name in ("Hanquan-Nonce", "Hanquan-Signature"):
        assert one_headers[name] != two_headers[name]


def changed(name: str, value: str) -> Callable[[dict[str, str], bytes], tuple[dict[str, str], bytes]]:
    return lambda headers, body: (headers | {name: value}, body)


def edited(old: bytes, new: bytes) -> Callable[[dict[str, str], bytes], tuple[dict[str, str], bytes]]:
    return lambda headers, body: (headers, body.replace(old, new, 1))


TAMPERINGS = {
    "another kind": edited(b"VOUCHER.USED", b"VOUCHER.LOST"),
    "another id": edited(b'"id":"0', b'"id":"1'),
    "a blank more": edited(b",", b", "),
    "a letter of the ciphertext": edited(b'"ciphertext":"', b'"ciphertext":"A'),
    "nothing of it": lambda headers, body: (headers, b""),
    "another time": changed("Hanquan-Timestamp", str(NOW_S + 1)),
    "another nonce": changed("Hanquan-Nonce", "0" * 32),
    "another signature": changed("Hanquan-Signature", base64.b64encode(bytes(32)).decode()),
    "no signature": changed("Hanquan-Signature", ""),
    "another key": changed("Hanquan-Serial", "0" * 20),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_tampering_is_noticed(tampering: str) -> None:
    headers, body = TAMPERINGS[tampering](*sealed())
    with pytest.raises((ValueError, KeyError)):
        read_callback(headers, body, as_keys(KEY), NOW_S)


def test_without_the_check_of_the_signature_a_changed_envelope_passes() -> None:
    """The control: decryption alone does not cover what stands around the ciphertext."""
    _, body = TAMPERINGS["another kind"](*sealed())
    envelope = json.loads(body)
    resource = envelope["resource"]
    nonce, ciphertext = base64.b64decode(resource["nonce"]), base64.b64decode(resource["ciphertext"])
    assert AESGCM(KEY.encryption).decrypt(nonce, ciphertext, resource["associated_data"].encode())
    assert envelope["event_type"] == "VOUCHER.LOST"


@pytest.mark.parametrize("off_s", [-301, 301])
def test_an_old_message_is_refused(off_s: int) -> None:
    headers, body = sealed()
    assert read_callback(headers, body, as_keys(KEY), NOW_S + 299)
    with pytest.raises(ValueError, match="300 s off"):
        read_callback(headers, body, as_keys(KEY), NOW_S + off_s)


def test_the_ciphertext_of_one_event_does_not_pass_for_another() -> None:
    """A partner's own mix-up: each half of the key does its part."""
    resource = json.loads(sealed()[1])["resource"]
    nonce, ciphertext = base64.b64decode(resource["nonce"]), base64.b64decode(resource["ciphertext"])
    for key, label in ((KEY.encryption, b"004000000002-1-USED"), (KEY.signing, resource["associated_data"].encode())):
        with pytest.raises(InvalidTag):
            AESGCM(key).decrypt(nonce, ciphertext, label)


# ---------------------------------------------------------------- schedule


def test_the_schedule_is_the_one_in_the_guide() -> None:
    moment, waits = NOW, []
    tries = 1
    while (after := next_attempt(DEFAULT_RETRY_AFTER_S, tries, moment)) is not None:
        waits.append(int((after - moment).total_seconds()))
        moment, tries = after, tries + 1
    minute, hour = 60, 3_600
    assert waits == [
        *(15, 15, 30, 3 * minute, 10 * minute, 20 * minute, 30 * minute, 30 * minute, 30 * minute),
        *(60 * minute, 3 * hour, 3 * hour, 3 * hour, 6 * hour, 6 * hour),
    ]
    assert (tries, moment - NOW) == (16, timedelta(hours=24, minutes=4))


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    "url",
    ["https://example.com/told", "https://example.com:8443/", "https://8.8.8.8/x?y=1", "https://[2606:4700::1]/x"],
)
def test_an_honest_url_is_taken(url: str) -> None:
    assert complaint_about(url, may_be_private=False) is None


BAD_URLS: list[Any] = [
    *("http://example.com/", "ftp://example.com/", "example.com", "", "https://", "https:///x", "//example.com/"),
    *("https://user@example.com/", "https://user:word@example.com/", "https://example.com/#part"),
    *("https://example.com/a b", "https://example.com/\n", "https://例.com/", "https://example.com:99999/"),
    *("https://127.0.0.1/", "https://10.0.0.1/", "https://169.254.169.254/latest", "https://[::1]/"),
    *("https://[::ffff:127.0.0.1]/", "https://0.0.0.0/", "https://224.0.0.1/", "https://[fe80::1]/"),
    "https://example.com/" + "x" * 500,
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_bad_url_is_refused(url: str) -> None:
    assert complaint_about(url, may_be_private=False)


def test_a_private_address_can_be_allowed() -> None:
    for url in ("http://127.0.0.1:9/x", "http://partner.internal/x", "https://10.0.0.1/"):
        assert complaint_about(url, may_be_private=True) is None
    assert complaint_about("ftp://127.0.0.1/", may_be_private=True)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *(("8.8.8.8", True), ("2606:4700::1", True), ("127.0.0.1", False), ("192.168.1.1", False), ("::1", False)),
        *(("::ffff:10.0.0.1", False), ("::ffff:8.8.8.8", True), ("fe80::1%eth0", False), ("100.64.0.1", False)),
        ("224.0.0.1", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


# ---------------------------------------------------------------- the operator's words


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (partial(subscribe, "wechat", "https://x/", events="lost"), "takes CLAIMED, USED, REFUNDED, EXPIRED"),
        (partial(subscribe, "wechat", "https://x/", schedule="soon"), "--schedule takes seconds"),
        (partial(rotate, "wechat", in_hours=-1), "0 hours or more"),
        (redeliver, "name events by their ids, or --partner with --since"),
        (partial(redeliver, partner="wechat"), "name events by their ids, or --partner with --since"),
        (partial(redeliver, ["x"], partner="wechat", since="2020-04-23"), "name events by their ids"),
        (partial(redeliver, partner="wechat", since="noon"), "--since takes a day"),
    ],
)
def test_a_wrong_word_is_refused_before_anything_is_asked(command: Callable[[], None], why: str) -> None:
    with pytest.raises(StackError, match=why):
        command()
