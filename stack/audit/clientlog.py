"""What clients asked and what they were told: the other half of the proof, kept outside the city.

One record an answer, in the order in which the answers came; one JSON object a line in a file. A
client that got no answer writes UNKNOWN. The records of one request are told apart from those of
another by its number, so a request that was sent again is two records of one number.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec

UNKNOWN = "UNKNOWN"
"""The outcome when the client does not know: no answer, or one that says that nothing is known."""

_UNSURE = {UNKNOWN, "SYSTEM_BUSY", "SYSTEM_ERROR"}


class _Told(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind"):
    """`outcome`: the word of success, a refusal's code, or UNKNOWN."""

    outcome: str

    @property
    def is_unknown(self) -> bool:
        """Whether the request may or may not have been carried out."""
        return self.outcome in _UNSURE


class ClaimTold(_Told, frozen=True, kw_only=True, tag="claim"):
    """A claim and its answer. Success is GRANTED, with the voucher's code."""

    partner_id: str
    person_token: str
    stock_id: str
    out_request_no: str
    voucher_code: str | None = None


class RedeemTold(_Told, frozen=True, kw_only=True, tag="redeem"):
    """A redemption and its answer. Success is REDEEMED, with the subsidy."""

    merchant_id: str
    use_request_no: str
    order_no: str
    voucher_code: str
    bill_fen: int
    subsidy_fen: int | None = None


class RefundTold(_Told, frozen=True, kw_only=True, tag="refund"):
    """A refund and its answer. Success is REFUNDED, with the subsidy that goes back."""

    merchant_id: str
    refund_request_no: str
    use_request_no: str
    refund_fen: int
    subsidy_fen: int | None = None


Told = ClaimTold | RedeemTold | RefundTold

_decoder = msgspec.json.Decoder(Told)


class ClientLogError(Exception):
    """A client's log cannot be read; the message says where."""


def read_log(path: Path) -> Iterator[Told]:
    """The records of a JSON Lines file, one at a time; of a folder, those of all its *.jsonl files.

    Raises ClientLogError, or OSError.
    """
    if path.is_dir():
        files = sorted(path.glob("*.jsonl"))
        if not files:
            raise ClientLogError(f"{path} holds no *.jsonl file")
        for file in files:
            yield from _read_file(file)
    else:
        yield from _read_file(path)


def _read_file(file: Path) -> Iterator[Told]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield _decoder.decode(line)
            except msgspec.DecodeError as error:
                raise ClientLogError(f"{file}, line {number}: {error}") from error
