"""What a partner is told of a claim, in words that are the same each time."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from functools import lru_cache

import msgspec

from issuer.catalogue import Offered, Part, Stock
from issuer.record import Claim
from issuer.stock import Denied, Granted
from kernel.clock import Clock, from_ms, rfc3339
from kernel.codes import CodeBook
from kernel.errors import Code, Refusal
from kernel.ids import pack_voucher_id


class VoucherOfPack(msgspec.Struct, frozen=True):
    """One voucher of a pack."""

    stock_id: str
    voucher_code: str
    face_value_fen: int
    transaction_minimum_fen: int
    valid_from: str
    valid_until: str


class ClaimAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A granted claim as the partner is told, every time it asks.

    stock_id   what was claimed: a stock, or a pack, which has `vouchers` and no code of its own
    """

    out_request_no: str
    stock_id: str
    state: str
    face_value_fen: int
    claimed_at: str
    voucher_code: str = ""
    transaction_minimum_fen: int = 0
    valid_from: str = ""
    valid_until: str = ""
    vouchers: tuple[VoucherOfPack, ...] = ()


SHARD_AWAY = Denied(Code.SYSTEM_BUSY, "SHARD_AWAY")
"""Nothing is left here, and what other shards have cannot be seen."""
SOLD_OUT = Refusal(code=Code.SOLD_OUT, detail="all vouchers of this stock are taken")
_read = msgspec.json.Decoder(ClaimAnswer).decode
_write = msgspec.json.Encoder().encode


class Told(msgspec.Struct, frozen=True):
    """A granted claim's answer as it is sent (JSON), and whether it was given before."""

    body: bytes
    replayed: bool

    @property
    def answer(self) -> ClaimAnswer:
        """The answer, read: for programs on this side of the wire."""
        return _read(self.body)


class Words:
    """Words the answers to claims. Their letters are set by hand: of nine fields, seven are the same for everybody."""

    def __init__(self, codes: CodeBook, clock: Clock) -> None:
        self._codes = codes
        self._clock = clock

    def answers(self, claims: Sequence[Claim], outcomes: Sequence[Granted | Denied]) -> list[Told | Refusal]:
        """The words for each outcome, in order."""
        granted = [
            (claim, outcome)
            for claim, outcome in zip(claims, outcomes, strict=True)
            if isinstance(outcome, Granted) and claim.card.offer.pack_no is None
        ]
        codes = iter(self._codes.encode_all([_voucher_id(claim, outcome.serial) for claim, outcome in granted]))
        return [self._word(claim, outcome, codes) for claim, outcome in zip(claims, outcomes, strict=True)]

    def answer(self, claim: Claim, granted: Granted) -> ClaimAnswer:
        """The answer to one granted claim."""
        told = self.answers([claim], [granted])[0]
        assert isinstance(told, Told)
        return told.answer

    def _word(self, claim: Claim, outcome: Granted | Denied, codes: Iterator[str]) -> Told | Refusal:
        if isinstance(outcome, Denied):
            return self.refusal(claim.card.offer, outcome)
        if claim.card.offer.pack_no is not None:
            return Told(_write(self._pack(claim, outcome)), outcome.replayed)
        before, between, after = claim.card.letters
        if claim.card.days is not None:
            after = f'{after}{_end(claim.card.days, outcome.claimed_ms)}","claimed_at":"'
        text = f'{before}{claim.out_request_no}{between}{next(codes)}{after}{_at(outcome.claimed_ms)}"}}'
        return Told(text.encode(), outcome.replayed)

    def _pack(self, claim: Claim, granted: Granted) -> ClaimAnswer:
        offer = claim.card.offer
        parts = [part for part in offer.parts for _ in range(part.quantity)]
        ids = [_voucher_id(claim, granted.serial + i) for i in range(len(parts))]
        return ClaimAnswer(
            out_request_no=claim.out_request_no,
            stock_id=offer.offer_id,
            state="EFFECTIVE",
            face_value_fen=offer.face_value_fen,
            claimed_at=_at(granted.claimed_ms),
            vouchers=tuple(
                _voucher(part, code, granted.claimed_ms)
                for part, code in zip(parts, self._codes.encode_all(ids), strict=True)
            ),
        )

    def refusal(self, offer: Offered, denied: Denied) -> Refusal:
        """The words for a claim that was refused."""
        now, round_ = self._clock.now(), offer.round
        # Rounds are published shortly before they open, and not again when their vouchers have run out.
        unpublished = denied.code is Code.SYSTEM_BUSY and denied.rule is None
        if denied.code is Code.NOT_STARTED or (unpublished and now < round_.opens_at):
            return not_yet(Code.NOT_STARTED, f"the round opens at {rfc3339(round_.opens_at)}", round_.opens_at, now)
        if denied.code is Code.ENDED or (unpublished and now >= round_.closes_at):
            return Refusal(code=Code.ENDED, detail=_ended(offer, now))
        if denied.again_ms:
            again = from_ms(denied.again_ms)
            words = f"all vouchers released so far are taken; more are released at {rfc3339(again)}"
            return not_yet(Code.SOLD_OUT, words, again, now)
        if denied.code is Code.SOLD_OUT:
            return SOLD_OUT
        return _REFUSALS[denied]


def not_yet(code: Code, detail: str, until: datetime, now: datetime) -> Refusal:
    """A refusal that says how long to wait."""
    wait = max(until - now, timedelta())
    return Refusal(code=code, detail=detail, retry_after_s=-(-wait // timedelta(seconds=1)))


def state_of(valid_until: datetime, now: datetime, was_used: bool, credit: str | None) -> str:
    """A voucher's state in the vocabulary partners know, from its last use and that use's refund."""
    if was_used and credit is None:
        return "USED"
    if credit == "RETURNED":
        return "RETURNED"
    return "EXPIRED" if now >= valid_until else "EFFECTIVE"


def _ended(offer: Offered, now: datetime) -> str:
    if now < offer.round.closes_at:
        return "the city has ended this stock"
    return f"the round closed at {rfc3339(offer.round.closes_at)}"


def _voucher_id(claim: Claim, serial: int) -> int:
    return pack_voucher_id(claim.card.offer.round.round_no, claim.partition, serial)


def _voucher(part: Part, code: str, claimed_ms: int) -> VoucherOfPack:
    stock = part.stock
    return VoucherOfPack(
        stock_id=stock.stock_id,
        voucher_code=code,
        face_value_fen=stock.face_value_fen,
        transaction_minimum_fen=stock.transaction_minimum_fen,
        valid_from=rfc3339(stock.valid_from),
        valid_until=_end(stock, claimed_ms),
    )


def _end(stock: Stock, claimed_ms: int) -> str:
    return rfc3339(stock.ends_at(from_ms(claimed_ms)))


@lru_cache(maxsize=256)
def _at(ms: int) -> str:
    # All claims of one call to the store have one time.
    return rfc3339(from_ms(ms))


_REFUSALS = {
    Denied(Code.IDEMPOTENCY_MISMATCH): Refusal(
        code=Code.IDEMPOTENCY_MISMATCH,
        detail="this out_request_no was used with another stock or person; take a new number for a new claim",
        pointer="out_request_no",
    ),
    Denied(Code.PAUSED): Refusal(code=Code.PAUSED, detail="the city has paused this stock", retry_after_s=5),
    Denied(Code.SYSTEM_BUSY): Refusal(code=Code.SYSTEM_BUSY, detail="the round is not published yet", retry_after_s=1),
    SHARD_AWAY: Refusal(
        code=Code.SYSTEM_BUSY, detail="a part of the claim store is away, and may hold the last ones", retry_after_s=1
    ),
    Denied(Code.USER_ALREADY_CLAIMED): Refusal(
        code=Code.USER_ALREADY_CLAIMED, detail="this person already has what a round allows from you"
    ),
    Denied(Code.REQUEST_BLOCKED): Refusal(
        code=Code.REQUEST_BLOCKED, detail="claims of this person are blocked for risk; they can appeal to the city"
    ),
    Denied(Code.FREQUENCY_LIMITED): Refusal(
        code=Code.FREQUENCY_LIMITED, detail="this person tries too often", retry_after_s=2
    ),
    Denied(Code.RULE_LIMIT, "DEVICE_LIMIT"): Refusal(
        code=Code.RULE_LIMIT, rule="DEVICE_LIMIT", detail="as many people as share one phone already claimed with it"
    ),
    Denied(Code.RULE_LIMIT, "PERSON_LIMIT"): Refusal(
        code=Code.RULE_LIMIT, rule="PERSON_LIMIT", detail="this person has what a round allows over all platforms"
    ),
    Denied(Code.RULE_LIMIT, "GROUP_LIMIT"): Refusal(
        code=Code.RULE_LIMIT, rule="GROUP_LIMIT", detail="this person has what a round allows of these stocks together"
    ),
    Denied(Code.RULE_LIMIT, "FACE_LIMIT"): Refusal(
        code=Code.RULE_LIMIT, rule="FACE_LIMIT", detail="this would pass the face value that a person may have claimed"
    ),
}
