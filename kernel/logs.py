"""Structured logs, one JSON object a line, on standard error.

Every line has event, level, service, pid and timestamp, and the request_id of the request it is about. Nobody
is to log what names a person, or a secret; and whatever comes along by accident (in the text of an exception,
in a number that a client chose) is taken out here, for every line, before it is written.
"""

import logging
import os
import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from time import monotonic
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

LINES_A_SECOND_MAX = 50
"""Of one event. A flood of bad requests must not fill a disk."""
TEXT_MAX = 8_000
"""Characters of one value."""

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The request under way. Set once a request (56 ns), read only when a line is written."""


def configure_logs(service: str) -> None:
    """Call once, at the start of a process."""
    structlog.configure(
        processors=processors(service),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_FromLibraries()], level=logging.WARNING, force=True)


def processors(service: str) -> list[Processor]:
    """What happens to a line, in order."""
    return [
        Bounded(),
        structlog.contextvars.merge_contextvars,
        _whose(service),
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _cleaned,
        structlog.processors.JSONRenderer(ensure_ascii=False),
    ]


class _FromLibraries(logging.Handler):
    """What libraries log goes the same way; aiohttp, for one, quotes requests that it cannot read."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        log.log(record.levelno, "library", logger=record.name, message=record.getMessage(), exc_info=record.exc_info)


class Bounded:
    """Lets so many lines of one event pass a second; the first line of a later second says how many it left out.
    Names of events stand in the code, so there are few."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, int]] = {}

    def __call__(self, logger: object, method: str, event: EventDict) -> EventDict:
        second, name = int(monotonic()), str(event["event"])
        since, count = self._seen.get(name, (second, 0))
        if since == second:
            self._seen[name] = since, count + 1
            if count >= LINES_A_SECOND_MAX:
                raise structlog.DropEvent
            return event
        self._seen[name] = second, 1
        if count > LINES_A_SECOND_MAX:
            event["left_out"] = count - LINES_A_SECOND_MAX
        return event


def _whose(service: str) -> Processor:
    pid = os.getpid()

    def add(logger: object, method: str, event: EventDict) -> EventDict:
        event["service"], event["pid"] = service, pid
        if (number := request_id.get()) is not None:
            event.setdefault("request_id", number)
        return event

    return add


# ---------------------------------------------------------------- what must not be written

_PRIVATE = {
    "person", "person_token", "device", "device_token", "phone", "id_number", "voucher_code", "authorization",
    "signature", "secret", "password", "key", "master_key", "dsn", "body",
}  # fmt: skip
"""Names of values that are never written, whatever they hold."""

_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?i)(authorization\W{1,4})[^\r\n]*"), r"\1[removed]"),
    (re.compile(r"(?i)HANQUAN-[A-Z0-9-]+ +mchid[^\r\n]*"), "[authorization]"),
    (re.compile(r'(?i)(signature\W{0,3}=\W{0,3})[A-Za-z0-9+/=]{16,}'), r"\1[removed]"),
    (re.compile(r"://[^@/\s]*@"), "://[login]@"),
    (re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"), "[token]"),
    (re.compile(r"[0-9a-fA-F]{32,}"), "[token]"),
    # A voucher's code as it is printed or typed: 26 letters and digits, or groups of four.
    (re.compile(r"(?<![0-9A-Za-z])(?:[0-9A-TV-Za-tv-z]{26}|(?:[0-9A-TV-Za-tv-z]{4}(?:-|\s|%20)){6}"
                r"[0-9A-TV-Za-tv-z]{2})(?![0-9A-Za-z])"), "[code]"),
    (re.compile(r"(?<!\d)\d{17}[\dXx](?!\d)"), "[id number]"),
    (re.compile(r"(?<!\d)1[3-9]\d[- ]?\d{4}[- ]?\d{4}(?!\d)"), "[phone]"),
)  # fmt: skip


_OWN_NUMBER = re.compile(r"(?=.*[a-f])[0-9a-f]{16}")
"""A request's number as we make it; one in a thousand has a run of digits like a phone number's."""


def clean(text: str) -> str:
    """The text without anything that looks like a token, a code, a phone or document number, or a secret."""
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text if len(text) <= TEXT_MAX else text[:TEXT_MAX] + " ..."


def _cleaned(logger: object, method: str, event: EventDict) -> EventDict:
    return {
        name: "[removed]" if name.lower() in _PRIVATE else value if _is_own(name, value) else _clean_value(value)
        for name, value in event.items()
    }


def _is_own(name: str, value: Any) -> bool:
    return name == "request_id" and isinstance(value, str) and _OWN_NUMBER.fullmatch(value) is not None


def _clean_value(value: Any) -> Any:
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return clean(value)
        case Mapping():
            return {clean(str(name)): _clean_value(item) for name, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_clean_value(item) for item in value]
        case _:
            return clean(repr(value))
