"""The kinds of value a campaign file may hold: from the letters on the line to a typed value.

Values are read from the letters as they stand, not as YAML would take them: 12:00 is a time of
day here and not 720, and 20.50 without quotes is refused instead of becoming a binary fraction.
"""

import re
from collections.abc import Callable
from datetime import datetime, time
from typing import Generic, TypeVar

import msgspec
import yaml

from issuer.campaign.complaints import Code
from kernel.clock import CITY_ZONE
from kernel.money import AMOUNT_FEN_MAX, BP_WHOLE, FUND_FEN_MAX, parse_yuan

T = TypeVar("T")

ZONE = "Asia/Shanghai"
"""The only zone: business days, and with them settlement, are counted in it (kernel.clock)."""

END_OF_DAY = time(23, 59, 59)
"""The last second of a day, as vouchers print it; a voucher is good through it."""

TEXT_MAX = 200
"""Characters in one value; the longest that anything needs is a title."""

_FLOAT = "tag:yaml.org,2002:float"
_HUNDREDTHS = re.compile(r"[0-9]{1,3}(\.[0-9]{1,2})?")
_MOMENT = re.compile(
    r"(?P<day>20[0-9]{2}-[0-9]{2}-[0-9]{2})"
    r"(?:[ T](?P<time>[0-9]{2}:[0-9]{2}(?::[0-9]{2})?)\s?(?P<offset>Z|[+-][0-9]{2}:[0-9]{2})?)?"
)


class Unreadable(ValueError):
    """A value that is not of its kind; the message says in plain words what to write instead."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


class Kind(msgspec.Struct, Generic[T], frozen=True):
    """A kind of value. `read` raises Unreadable; `example` is what a complaint shows."""

    read: Callable[[str], T]
    example: str
    is_number: bool = False

    def of(self, node: yaml.ScalarNode) -> T:
        """The value of a scalar. Raises Unreadable."""
        text = node.value.strip()
        if len(text) > TEXT_MAX:
            raise Unreadable(Code.BAD_TEXT, f"this value has {len(text)} characters; at most {TEXT_MAX} are possible")
        if self.is_number and node.tag == _FLOAT:
            words = f'{text} is a decimal number without quotes; write it in quotes, "{text}"'
            raise Unreadable(Code.UNQUOTED_DECIMAL, words)
        return self.read(text)


def _amount_kind(fen_max: int) -> Kind[int]:
    def read(text: str) -> int:
        try:
            fen = parse_yuan(text, fen_max)
        except ValueError:
            raise Unreadable(Code.BAD_AMOUNT, _amount_advice(text, fen_max)) from None
        if fen == 0:
            raise Unreadable(Code.BAD_AMOUNT, "an amount must be more than 0")
        return fen

    return Kind(read, '"20.50"', is_number=True)


def _amount_advice(text: str, fen_max: int) -> str:
    if "," in text or "，" in text or "_" in text:
        return f"{text!r} has separators in it; write the digits alone, such as 500000000"
    if text.startswith("-"):
        return f"{text!r} is negative; an amount must be more than 0"
    if re.fullmatch(r"[0-9]{1,12}\.[0-9]{3,}", text):
        return f"{text!r} has more than two decimals; the smallest amount is one fen, 0.01"
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", text):
        return f"{text!r} is above the largest amount, {fen_max // 100} yuan"
    return f'{text!r} is not an amount in yuan; write digits alone, such as 20 or "20.50"'


AMOUNT_FEN = _amount_kind(AMOUNT_FEN_MAX)
"""Yuan with at most two decimals in the file, fen in the value; more than 0."""
FUND_FEN = _amount_kind(FUND_FEN_MAX)
"""The same, for what pays a whole campaign or round."""


def _read_percent_bp(text: str) -> int:
    if _HUNDREDTHS.fullmatch(text) is None or (bp := parse_yuan(text)) > BP_WHOLE:
        words = f'{text!r} is not a percentage; write a number from 0 to 100, such as 58 or "33.33", without a % sign'
        raise Unreadable(Code.BAD_NUMBER, words)
    return bp


PERCENT_BP = Kind(_read_percent_bp, "100", is_number=True)
"""A percentage with at most two decimals in the file, hundredths of a percent in the value."""


def format_percent(share_bp: int) -> str:
    """Hundredths of a percent as people write them: `5800` -> `"58"`, `3333` -> `"33.33"`."""
    percent, rest = divmod(share_bp, 100)
    return f"{percent}.{rest:02}" if rest else str(percent)


def whole(low: int, high: int) -> Kind[int]:
    """A whole number from `low` to `high`."""

    def read(text: str) -> int:
        if re.fullmatch(r"[0-9]{1,12}", text) is None or not low <= int(text) <= high:
            words = f"{text!r} is not a whole number from {low} to {high}; write digits alone, without separators"
            raise Unreadable(Code.BAD_NUMBER, words)
        return int(text)

    return Kind(read, str(max(low, 1)), is_number=True)


def one_of(*choices: str) -> Kind[str]:
    """One of a few words."""
    either = " or ".join(choices)

    def read(text: str) -> str:
        if text not in choices:
            raise Unreadable(Code.BAD_CHOICE, f"{text!r} is not known here; write {either}")
        return text

    return Kind(read, choices[0])


def ident(pattern: str, words: str, example: str) -> Kind[str]:
    """A name that machines use."""

    def read(text: str) -> str:
        if re.fullmatch(pattern, text, re.ASCII) is None:
            raise Unreadable(Code.BAD_ID, f"{text!r} cannot be an id; write {words}, such as {example}")
        return text

    return Kind(read, example)


PARTNER_ID = ident("[a-z0-9_-]{2,32}", "2 to 32 small letters, digits, hyphens and underscores", "wechat")
CATEGORY_ID = ident("[a-z0-9-]{2,32}", "2 to 32 small letters, digits and hyphens", "dining")


MERCHANT_ID = ident("[A-Za-z0-9_-]{4,32}", "4 to 32 letters, digits, hyphens and underscores", "NOODLES-0001")


def _read_title(text: str) -> str:
    if not 1 <= len(text) <= 80 or "\n" in text:
        raise Unreadable(Code.BAD_TEXT, f"a name has 1 to 80 characters on one line; this one has {len(text)}")
    return text


TITLE = Kind(_read_title, "江城消费券")
"""A name that people read."""
DISTRICT = Kind(_read_title, "Jiang'an")
"""A district as merchants are enrolled with it."""


def _read_flag(text: str) -> bool:
    if text.lower() not in ("true", "yes", "false", "no"):
        raise Unreadable(Code.BAD_CHOICE, f"{text!r} is neither yes nor no; write yes or no")
    return text.lower() in ("true", "yes")


FLAG = Kind(_read_flag, "yes")


def _read_time_of_day(text: str) -> time:
    try:
        if re.fullmatch(r"[0-9]{2}:[0-9]{2}", text):
            return time.fromisoformat(text)
    except ValueError:
        pass
    raise Unreadable(Code.BAD_TIME, f"{text!r} is not a time of day; write hours and minutes, such as 12:00")


TIME_OF_DAY = Kind(_read_time_of_day, "12:00")


def _read_moment(text: str, *, date_alone: time | None) -> datetime:
    match = _MOMENT.fullmatch(text)
    if match is None:
        raise Unreadable(Code.BAD_TIME, f"{text!r} is not a time; write date and time, such as 2020-04-23 12:00")
    if match["time"] is None and date_alone is None:
        raise Unreadable(Code.BAD_TIME, f"{text!r} lacks the time of day; write it too, such as {text} 12:00")
    clock_time = match["time"] or (date_alone.isoformat() if date_alone else "")
    try:
        moment = datetime.fromisoformat(f"{match['day']}T{clock_time}").replace(tzinfo=CITY_ZONE)
    except ValueError:
        words = f"{text!r} is a day or a time that does not exist; hours go from 00 to 23"
        raise Unreadable(Code.BAD_TIME, words) from None
    if match["offset"] and datetime.fromisoformat(f"{moment:%FT%T}{match['offset']}").utcoffset() != moment.utcoffset():
        words = f"{text!r} is not a time in {ZONE} (+08:00); write {moment:%F %R}, the time on clocks there"
        raise Unreadable(Code.NOT_OF_ZONE, words)
    return moment


MOMENT = Kind[datetime](lambda text: _read_moment(text, date_alone=None), "2020-04-23 12:00")
"""A moment in ZONE, aware; an offset may be written and must then be the zone's."""

LAST_MOMENT = Kind[datetime](lambda text: _read_moment(text, date_alone=END_OF_DAY), "2020-04-29")
"""A last moment in ZONE; a date alone means its last second."""


def _read_zone(text: str) -> str:
    if text != ZONE:
        words = f"{text!r} is not supported, because days of settlement are counted in {ZONE}; write that"
        raise Unreadable(Code.NOT_OF_ZONE, words)
    return text


ZONE_NAME = Kind(_read_zone, ZONE)
