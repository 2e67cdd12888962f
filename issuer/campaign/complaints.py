"""What is wrong with a campaign file: each complaint has a line, a code and plain words."""

from enum import StrEnum
from typing import Self

import msgspec


class Code(StrEnum):
    """Stable names of what can be wrong. The first group stops the reading at once."""

    TOO_BIG = "TOO_BIG"
    NOT_UTF8 = "NOT_UTF8"
    ODD_CHARACTER = "ODD_CHARACTER"
    TAB = "TAB"
    FULL_WIDTH_COLON = "FULL_WIDTH_COLON"
    NOT_YAML = "NOT_YAML"
    ANCHOR = "ANCHOR"
    TAG = "TAG"
    TOO_DEEP = "TOO_DEEP"
    SECOND_DOCUMENT = "SECOND_DOCUMENT"
    EMPTY = "EMPTY"

    DUPLICATE_KEY = "DUPLICATE_KEY"
    UNKNOWN_FIELD = "UNKNOWN_FIELD"
    MISSING_FIELD = "MISSING_FIELD"
    WRONG_SHAPE = "WRONG_SHAPE"
    UNQUOTED_DECIMAL = "UNQUOTED_DECIMAL"
    BAD_AMOUNT = "BAD_AMOUNT"
    BAD_NUMBER = "BAD_NUMBER"
    BAD_TEXT = "BAD_TEXT"
    BAD_ID = "BAD_ID"
    BAD_TIME = "BAD_TIME"
    BAD_CHOICE = "BAD_CHOICE"
    NOT_OF_ZONE = "NOT_OF_ZONE"

    DUPLICATE_ID = "DUPLICATE_ID"
    DUPLICATE_STOCK = "DUPLICATE_STOCK"
    UNKNOWN_PARTNER = "UNKNOWN_PARTNER"
    UNKNOWN_CATEGORY = "UNKNOWN_CATEGORY"
    NAME_TOO_LONG = "NAME_TOO_LONG"
    TOO_MANY = "TOO_MANY"
    FUNDING_NOT_WHOLE = "FUNDING_NOT_WHOLE"
    FACE_OUT_OF_RANGE = "FACE_OUT_OF_RANGE"
    NOTHING_FUNDED = "NOTHING_FUNDED"
    MINIMUM_TOO_LOW = "MINIMUM_TOO_LOW"
    NO_STOCKS = "NO_STOCKS"
    WRONG_HOUR = "WRONG_HOUR"
    CLOSES_TOO_EARLY = "CLOSES_TOO_EARLY"
    VALIDITY_TOO_SHORT = "VALIDITY_TOO_SHORT"
    ROUNDS_OVERLAP = "ROUNDS_OVERLAP"
    BUDGET_TOO_SMALL = "BUDGET_TOO_SMALL"
    BUDGET_OVER_FUND = "BUDGET_OVER_FUND"
    BUDGETS_OVER_FUND = "BUDGETS_OVER_FUND"
    EXPOSURE_OVER_FUND = "EXPOSURE_OVER_FUND"
    PLAN_OVER_FUND = "PLAN_OVER_FUND"

    UNKNOWN_GROUP = "UNKNOWN_GROUP"
    UNUSED_GROUP = "UNUSED_GROUP"
    LIMIT_TOO_LOW = "LIMIT_TOO_LOW"
    PACK_WITHOUT_STOCK = "PACK_WITHOUT_STOCK"
    PACK_TOO_LARGE = "PACK_TOO_LARGE"
    PACK_OF_GRANTED = "PACK_OF_GRANTED"
    STAGES_NOT_RISING = "STAGES_NOT_RISING"
    STAGES_NOT_WHOLE = "STAGES_NOT_WHOLE"
    STAGE_TOO_LATE = "STAGE_TOO_LATE"
    UNKNOWN_SCOPE = "UNKNOWN_SCOPE"
    UNUSED_SCOPE = "UNUSED_SCOPE"
    DUPLICATE_CAP = "DUPLICATE_CAP"


class Spot(msgspec.Struct, frozen=True, order=True):
    """A place in the file. `line` counts from 1; `path` is like ``rounds[3].budget``, from 0."""

    line: int
    path: str


class Complaint(msgspec.Struct, frozen=True, order=True):
    """One thing that is wrong: where, what, and what to write instead."""

    line: int
    path: str
    message: str
    code: Code

    @classmethod
    def at(cls, spot: Spot, code: Code, message: str) -> Self:
        """The complaint about a place."""
        return cls(spot.line, spot.path, message, code)


class Complaints:
    """Gathers complaints while a file is read."""

    def __init__(self) -> None:
        self._complaints: list[Complaint] = []

    def add(self, spot: Spot, code: Code, message: str) -> None:
        self._complaints.append(Complaint.at(spot, code, message))

    def __len__(self) -> int:
        return len(self._complaints)

    def in_order(self) -> tuple[Complaint, ...]:
        """All of them, by line."""
        return tuple(sorted(self._complaints))
