"""The requests of a till: what it sends, and the line of the clients' log that it makes of an answer."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from random import Random
from typing import Any, NamedTuple

from kernel.clock import Clock
from stack.audit.clientlog import RedeemTold, RefundTold, Told

FACE_FEN = 2_000
REDEEM, OFFLINE, REFUND = "/v1/redemptions", "/v1/redemptions:offline", "/v1/refunds"
HOLD, CONFIRM, CANCEL = "/v1/holds", "/v1/holds/confirm", "/v1/holds/cancel"
HOLD_TTL_S = 10
TAKEN_BEFORE = timedelta(minutes=20)
"""An offline till took its redemptions at most so long ago."""


class Key(NamedTuple):
    """Which request: of which merchant, for what (redeem, refund, hold or cancel), under which number."""

    shop: str
    verb: str
    number: str


class Ask(NamedTuple):
    """One request of a till. `code`: the voucher it is about; `fen`: its bill, or what a refund gives back."""

    key: Key
    path: str
    code: str
    fen: int
    body: Mapping[str, Any]
    order_no: str = ""


class Forms:
    """Fills in requests, each under a number of its own. Shops are picked at random."""

    def __init__(self, shops: Sequence[str], clock: Clock, random: Random) -> None:
        self._shops = shops
        self._clock = clock
        self._random = random
        self._numbers = 0

    def sale(self, code: str, *, is_offline: bool = False) -> Ask:
        """A voucher is used at some shop; offline, it was some time ago."""
        number, bill_fen = self._number("use"), self._bill_fen()
        order_no = f"order-{number}"
        body = {"use_request_no": number, "voucher_code": code, "order_no": order_no, "bill_fen": bill_fen}
        if is_offline:
            body["taken_at"] = (self._clock.now() - TAKEN_BEFORE * self._random.random()).isoformat()
        path = OFFLINE if is_offline else REDEEM
        return Ask(Key(self._random.choice(self._shops), "redeem", number), path, code, bill_fen, body, order_no)

    def back(self, sold: Ask, refund_fen: int | None = None) -> Ask:
        """A purchase is taken back, in full unless told."""
        number = self._number("back")
        fen = sold.fen - FACE_FEN if refund_fen is None else refund_fen
        body = {"refund_request_no": number, "use_request_no": sold.key.number, "refund_fen": fen}
        return Ask(Key(sold.key.shop, "refund", number), REFUND, sold.code, fen, body)

    def hold(self, code: str) -> Ask:
        """A voucher is kept for a payment at some shop."""
        number, bill_fen = self._number("hold"), self._bill_fen()
        order_no = f"order-{number}"
        body = {
            "hold_request_no": number,
            "voucher_code": code,
            "order_no": order_no,
            "bill_fen": bill_fen,
            "hold_ttl_s": HOLD_TTL_S,
        }
        return Ask(Key(self._random.choice(self._shops), "hold", number), HOLD, code, bill_fen, body, order_no)

    def confirm(self, hold: Ask) -> Ask:
        """A hold becomes a use."""
        number = self._number("use")
        body = {"use_request_no": number, "hold_request_no": hold.key.number}
        return Ask(Key(hold.key.shop, "redeem", number), CONFIRM, hold.code, hold.fen, body, hold.order_no)

    def cancel(self, hold: Ask) -> Ask:
        """A hold is given up."""
        number = self._number("cancel")
        body = {"cancel_request_no": number, "hold_request_no": hold.key.number}
        return Ask(Key(hold.key.shop, "cancel", number), CANCEL, hold.code, hold.fen, body)

    def _bill_fen(self) -> int:
        return 3 * FACE_FEN + self._random.randrange(5_000)

    def _number(self, what: str) -> str:
        self._numbers += 1
        return f"{what}-{self._numbers:08}"


def told_of(ask: Ask, outcome: str, subsidy_fen: int | None) -> Told | None:
    """The line of the clients' log; none of what moves no money."""
    if ask.key.verb == "redeem":
        return RedeemTold(
            outcome=outcome,
            merchant_id=ask.key.shop,
            use_request_no=ask.key.number,
            order_no=ask.order_no,
            voucher_code=ask.code,
            bill_fen=ask.fen,
            subsidy_fen=subsidy_fen,
        )
    if ask.key.verb == "refund":
        return RefundTold(
            outcome=outcome,
            merchant_id=ask.key.shop,
            refund_request_no=ask.key.number,
            use_request_no=ask.body["use_request_no"],
            refund_fen=ask.fen,
            subsidy_fen=subsidy_fen,
        )
    return None
