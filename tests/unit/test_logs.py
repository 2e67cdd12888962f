"""What a log line holds, and what never gets into one."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import structlog

from kernel.codes import CodeBook, grouped
from kernel.logs import LINES_A_SECOND_MAX, TEXT_MAX, clean, processors, request_id
from kernel.signing import Algorithm, Signer
from tests.city_plan import person

ROOT = Path(__file__).parents[2]
CODE = CodeBook({1: bytes(range(16))}).encode(12_345_678)
PHONE, ID_NUMBER = "13812345678", "42010619900101123X"


@pytest.fixture
def said() -> Iterator[StringIO]:
    """Where `say` writes."""
    yield StringIO()


def a_log(said: StringIO) -> Any:
    return structlog.wrap_logger(
        structlog.PrintLogger(said),
        processors=processors("issuer"),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )


def lines(said: StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said.getvalue().splitlines()]


def test_a_line_says_who_when_what_and_for_which_request(said: StringIO) -> None:
    log = a_log(said)
    log.info("listening", port=8701)
    token = request_id.set("4a4c4dca904f914e")
    try:
        log.warning("signature_refused", holder_id="wechat")
    finally:
        request_id.reset(token)
    first, second = lines(said)
    assert {"event": "listening", "level": "info", "service": "issuer", "port": 8701}.items() <= first.items()
    assert isinstance(first["pid"], int)
    assert first["timestamp"].endswith("Z")
    assert "request_id" not in first
    assert second["request_id"] == "4a4c4dca904f914e"
    assert second["level"] == "warning"


@pytest.mark.parametrize(
    "text",
    [
        person(1),
        person(1).upper(),
        "01234567-89ab-cdef-0123-456789abcdef",
        PHONE,
        "+86 138 1234 5678",
        "user13812345678",
        ID_NUMBER,
        ID_NUMBER.lower(),
        CODE,
        CODE.lower(),
        grouped(CODE),
        grouped(CODE).replace("-", " "),
        "postgresql://hanquan:pa55word-of-ours@db:5432/hanquan",
    ],
)
def test_personal_data_and_secrets_are_taken_out_wherever_they_stand(said: StringIO, text: str) -> None:
    log = a_log(said)
    log.info("a", value=text)
    log.info("b", value=f"key (person)=({text}) exists")
    log.info("c", value={"deep": ["down", text]})
    log.info("d", value=ValueError(text))
    log.info(f"event {text}")
    try:
        raise KeyError(f"/v1/vouchers/{text}")
    except KeyError:
        log.exception("e")
    token = request_id.set(text)
    log.info("f")
    request_id.reset(token)
    assert len(lines(said)) == 7
    secret = "pa55word-of-ours" if "pa55word" in text else text
    assert secret not in said.getvalue()


def test_a_number_of_ours_stays_whole_and_a_clients_does_not(said: StringIO) -> None:
    for number in ("4a13812345678fff", "id-13812345678-x", "6222021001116241"):
        token = request_id.set(number)
        a_log(said).info("x")
        request_id.reset(token)
    assert [line["request_id"] for line in lines(said)] == ["4a13812345678fff", "id-[phone]-x", "6222021001116241"]


def test_an_authorization_header_is_taken_out_whole(said: StringIO) -> None:
    signer = Signer(holder_id="wechat", serial_no="A" * 20, algorithm=Algorithm.HMAC, secret=bytes(32))
    header = signer.authorization("POST", "/v1/claims", b"{}", timestamp_s=1_587_614_400, nonce="abcdefgh12345678")
    signature = header.split('signature="')[1].rstrip('"')
    log = a_log(said)
    log.error("library", message=f"Invalid header: b'Authorization: {header}'")
    log.error("library", message=header)
    log.error("library", authorization=header, headers={"Authorization": header})
    log.error("library", message=f'signature="{signature}"')
    assert signature not in said.getvalue()
    assert "abcdefgh12345678" not in said.getvalue()


@pytest.mark.parametrize("name", ["person_token", "device", "voucher_code", "secret", "password", "body"])
def test_some_names_are_never_written(said: StringIO, name: str) -> None:
    a_log(said).info("x", **{name: "harmless"})
    assert lines(said)[0][name] == "[removed]"


@pytest.mark.parametrize(
    "text",
    [
        "1587614400000-0",  # the id of a log entry
        "68719476737",  # a voucher's number
        "wuhan-2020_r02_wechat_dining",
        "4a4c4dca904f914e",
        "2020-04-23T12:00:00.031+08:00",
        "ConnectionRefusedError: [Errno 111] Connect call failed ('127.0.0.1', 5432)",
        "F3A0C6E1B2D4958677AA",  # the serial number of a key
        "shard 0 log 1587614400000-0 campaign 3",
        "InsufficientPrivilegeError",
        "postgresql://127.0.0.1:5432/hanquan",
    ],
)
def test_what_an_operator_needs_stays(text: str) -> None:
    assert clean(text) == text


def test_no_value_is_without_end() -> None:
    assert len(clean("x" * 1_000_000)) < TEXT_MAX + 10


def test_a_flood_of_one_event_does_not_fill_the_disk(said: StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("kernel.logs.monotonic", lambda: now[0])
    log = a_log(said)
    for _ in range(1_000):
        log.info("signature_refused")
    log.info("something_else")
    now[0] = 101.5
    log.info("signature_refused")
    log.info("signature_refused")
    *flood, other, last, after = lines(said)
    assert len(flood) == LINES_A_SECOND_MAX
    assert other["event"] == "something_else"
    assert last["left_out"] == 1_000 - LINES_A_SECOND_MAX
    assert "left_out" not in after


LIBRARY = """
import logging
from kernel.logs import configure_logs
configure_logs("issuer")
try:
    raise ValueError("Invalid header: b'X: 13812345678'")
except ValueError as error:
    logging.getLogger("aiohttp.server").error("Error handling request from %s", "127.0.0.1", exc_info=error)
logging.getLogger("asyncio").debug("not this")
"""


def test_what_libraries_say_is_a_line_like_the_others() -> None:
    done = subprocess.run([sys.executable, "-c", LIBRARY], cwd=ROOT, capture_output=True, text=True, check=True)
    [line] = [json.loads(line) for line in done.stderr.splitlines()]
    assert line["event"] == "library"
    assert line["logger"] == "aiohttp.server"
    assert line["level"] == "error"
    assert line["message"] == "Error handling request from 127.0.0.1"
    assert "ValueError" in line["exception"]
    assert "13812345678" not in done.stderr
