"""The expected "no" of settlement and reconciliation, as values."""

from enum import StrEnum

import msgspec

from kernel.staff import STAFF_NAME_LENGTH_MAX, tidy_staff_name


class Why(StrEnum):
    """Stable reasons. Nothing at all was changed when one of them is the answer."""

    BAD_NAME = "BAD_NAME"
    """Nobody signed, or with a name that is no name."""
    UNKNOWN_CAMPAIGN = "UNKNOWN_CAMPAIGN"
    UNKNOWN_MERCHANT = "UNKNOWN_MERCHANT"
    UNKNOWN_PARTNER = "UNKNOWN_PARTNER"
    UNKNOWN_BATCH = "UNKNOWN_BATCH"
    UNKNOWN_BREAK = "UNKNOWN_BREAK"

    DAY_NOT_OVER = "DAY_NOT_OVER"
    """A day can be settled or reconciled once it is over."""
    DAY_NOT_EXACT = "DAY_NOT_EXACT"
    """A later day is closed already; settle that day, it includes this one."""
    UNDECIDED_BATCH = "UNDECIDED_BATCH"
    """The campaign's last batch is neither approved nor rejected."""
    NOTHING_TO_PAY = "NOTHING_TO_PAY"
    LEDGER_MISMATCH = "LEDGER_MISMATCH"
    """A balance is not what its history adds up to. Run the audit before anything else."""

    ALREADY_DECIDED = "ALREADY_DECIDED"
    SAME_PERSON = "SAME_PERSON"
    NO_REASON = "NO_REASON"
    NOT_APPROVED = "NOT_APPROVED"
    EXPORT_DIFFERS = "EXPORT_DIFFERS"
    """The file would not be the one made before, for example because the payer is another."""

    BAD_FILE = "BAD_FILE"
    """The file cannot be read; the detail names the line."""
    WRONG_HASH = "WRONG_HASH"
    WRONG_TRAILER_COUNT = "WRONG_TRAILER_COUNT"
    WRONG_TRAILER_AMOUNT = "WRONG_TRAILER_AMOUNT"
    WRONG_BATCH = "WRONG_BATCH"
    WRONG_ORDER_HASH = "WRONG_ORDER_HASH"
    """The bank answers a file that we never made."""
    UNKNOWN_LINE = "UNKNOWN_LINE"
    DUPLICATE_LINE = "DUPLICATE_LINE"
    WRONG_AMOUNT = "WRONG_AMOUNT"
    WRONG_PAYEE = "WRONG_PAYEE"
    ALREADY_ANSWERED = "ALREADY_ANSWERED"

    BAD_REFERENCE = "BAD_REFERENCE"
    NOT_ENOUGH = "NOT_ENOUGH"
    REFERENCE_USED = "REFERENCE_USED"
    WRONG_CAMPAIGN = "WRONG_CAMPAIGN"
    WRONG_DAY = "WRONG_DAY"
    TWO_FILES = "TWO_FILES"
    """Two files of one partner in one run."""
    ALREADY_CLOSED = "ALREADY_CLOSED"


class Refused(msgspec.Struct, frozen=True):
    """An expected "no": why, and in one plain line what is wrong."""

    why: Why
    detail: str


def staff_name(name: str) -> str | Refused:
    """A name as it is signed: compatibility-normalised, single blanks, up to 64 characters."""
    words = f"a name of 1 to {STAFF_NAME_LENGTH_MAX} printable characters must sign this"
    return tidy_staff_name(name) or Refused(Why.BAD_NAME, words)
