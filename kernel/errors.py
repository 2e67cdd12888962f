"""What can be answered instead of success, and what can go wrong.

    HanquanError
    ├── Rejected            a request that cannot be read or is not signed; carries the Refusal to answer
    ├── Unavailable         a store or queue cannot serve now; the caller may send the same request again
    │   ├── Overloaded      our own queue is full, or waited past its deadline
    │   └── StoreDown       PostgreSQL or Valkey did not answer, or broke off
    └── Broken              something that must never be; a bug or damaged data

A Refusal is a value, not an exception: the expected "no" of a use case. Codes follow WeChat Pay's
vocabulary where it has one, because partners' engineers already know it.
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum

import msgspec


class Retry(StrEnum):
    """What a caller should do with a refused request."""

    SAFE = "SAFE"
    """Send the same request again, same number; it can never count twice."""
    AFTER_CHANGE = "AFTER_CHANGE"
    """Mend what the detail names first."""
    NEVER = "NEVER"
    """The answer will not change."""


class Code(StrEnum):
    """Stable error codes of every interface."""

    PARAM_ERROR = "PARAM_ERROR"
    SIGN_ERROR = "SIGN_ERROR"
    RESOURCE_NOT_EXISTS = "RESOURCE_NOT_EXISTS"
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
    BODY_TOO_LARGE = "BODY_TOO_LARGE"
    RULE_LIMIT = "RULE_LIMIT"
    USER_ALREADY_CLAIMED = "USER_ALREADY_CLAIMED"
    SOLD_OUT = "SOLD_OUT"
    NOT_STARTED = "NOT_STARTED"
    PAUSED = "PAUSED"
    ENDED = "ENDED"
    REQUEST_BLOCKED = "REQUEST_BLOCKED"
    FREQUENCY_LIMITED = "FREQUENCY_LIMITED"
    IDEMPOTENCY_MISMATCH = "IDEMPOTENCY_MISMATCH"
    CONFIRMING = "CONFIRMING"
    USED_BY_ANOTHER_ORDER = "USED_BY_ANOTHER_ORDER"
    LOCKED_BY_ANOTHER_ORDER = "LOCKED_BY_ANOTHER_ORDER"
    TERMINAL_LOCKED = "TERMINAL_LOCKED"
    STATE_CONFLICT = "STATE_CONFLICT"
    STALE_VALUE = "STALE_VALUE"
    SYSTEM_BUSY = "SYSTEM_BUSY"
    SYSTEM_ERROR = "SYSTEM_ERROR"

    @property
    def http_status(self) -> int:
        return _MEANING[self][0]

    @property
    def retry(self) -> Retry:
        return _MEANING[self][1]

    @property
    def meaning(self) -> str:
        return _MEANING[self][2]


_MEANING = {
    Code.PARAM_ERROR: (400, Retry.AFTER_CHANGE, "The request is malformed"),
    Code.SIGN_ERROR: (401, Retry.AFTER_CHANGE, "The signature does not hold"),
    Code.RESOURCE_NOT_EXISTS: (404, Retry.NEVER, "There is no such thing, or it is not yours"),
    Code.METHOD_NOT_ALLOWED: (405, Retry.AFTER_CHANGE, "This address does not take this method"),
    Code.BODY_TOO_LARGE: (413, Retry.AFTER_CHANGE, "The body is too large"),
    Code.RULE_LIMIT: (403, Retry.AFTER_CHANGE, "A rule of the campaign forbids it"),
    Code.USER_ALREADY_CLAIMED: (409, Retry.NEVER, "The person already has their voucher of this round"),
    Code.SOLD_OUT: (409, Retry.NEVER, "All vouchers of this stock are taken"),
    Code.NOT_STARTED: (409, Retry.SAFE, "The round has not opened yet"),
    Code.PAUSED: (409, Retry.SAFE, "The stock is paused"),
    Code.ENDED: (409, Retry.NEVER, "The round is over"),
    Code.REQUEST_BLOCKED: (403, Retry.NEVER, "The claim was blocked for risk"),
    Code.FREQUENCY_LIMITED: (429, Retry.SAFE, "Too many attempts"),
    Code.IDEMPOTENCY_MISMATCH: (422, Retry.NEVER, "This request number was used for another request"),
    Code.CONFIRMING: (409, Retry.SAFE, "The voucher is being confirmed"),
    Code.USED_BY_ANOTHER_ORDER: (409, Retry.NEVER, "The voucher was used by another order"),
    Code.LOCKED_BY_ANOTHER_ORDER: (409, Retry.SAFE, "The voucher is held by another order"),
    Code.TERMINAL_LOCKED: (429, Retry.SAFE, "The terminal is locked for a while"),
    Code.STATE_CONFLICT: (409, Retry.AFTER_CHANGE, "The stock is not in a state in which this can be done"),
    Code.STALE_VALUE: (409, Retry.AFTER_CHANGE, "The current value is another than the one sent"),
    Code.SYSTEM_BUSY: (503, Retry.SAFE, "The system is busy"),
    Code.SYSTEM_ERROR: (500, Retry.SAFE, "The system has a fault"),
}


class Refusal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An expected "no". `rule` names the rule behind RULE_LIMIT; `pointer` the field that is wrong.

    facts   what words for people need to know: fen, moments, names; never sent as they are
    """

    code: Code
    detail: str
    rule: str | None = None
    pointer: str | None = None
    retry_after_s: int | None = None
    facts: Mapping[str, int | str | datetime] | None = None


class HanquanError(Exception):
    """Something went wrong in Hanquan."""


class Rejected(HanquanError):
    """The request cannot be read or its sender is not known."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.detail)
        self.refusal = refusal


class Unavailable(HanquanError):
    """Cannot serve now; the same request may be sent again."""

    retry_after_s = 1


class Overloaded(Unavailable):
    """More is asked than can be queued or answered in time."""


class StoreDown(Unavailable):
    """A store did not answer or broke off; what it did is unknown until the request is sent again."""


class Broken(HanquanError):
    """Something that must never be. Look at the data before anything else."""


def param_error(detail: str, pointer: str | None = None) -> Rejected:
    """The rejection of a request that is malformed."""
    return Rejected(Refusal(code=Code.PARAM_ERROR, detail=detail, pointer=pointer))
