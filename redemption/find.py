"""Find a redemption again by the till's own number."""

import msgspec

from kernel.clock import rfc3339
from kernel.codes import CodeBook
from kernel.errors import Refusal
from kernel.ids import unpack_voucher_id
from kernel.partitions import bucket_of
from kernel.signing import Caller
from redemption.catalogue import LiveCatalogue
from redemption.ledger import Ledger
from redemption.numbers import Number, Scope, number_key
from redemption.refund import NO_SUCH_REDEMPTION


class RedemptionAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A redemption as its merchant sees it now."""

    use_request_no: str
    order_no: str
    voucher_code: str
    state: str
    bill_fen: int
    subsidy_fen: int
    redeemed_at: str
    refund_request_no: str | None = None
    refund_fen: int | None = None
    refunded_at: str | None = None


async def find_redemption(
    ledger: Ledger, catalogue: LiveCatalogue, codes: CodeBook, caller: Caller, use_request_no: str
) -> RedemptionAnswer | Refusal:
    """The redemption under a merchant's number; RESOURCE_NOT_EXISTS when there is none of this merchant."""
    buckets = catalogue.current.buckets
    key = number_key(Scope.USE, caller.holder_no, use_request_no)
    owner = (await ledger.owners([Number(key, 0, 0)], buckets)).get(key)
    if owner is None:
        return NO_SUCH_REDEMPTION
    bucket = bucket_of(unpack_voucher_id(owner.voucher_id).partition, buckets)
    [state] = await ledger.states([(owner.voucher_id, caller.holder_no, use_request_no)], bucket)
    if state.mine_at is None:
        return NO_SUCH_REDEMPTION
    assert state.mine_order_no is not None and state.mine_bill_fen is not None and state.mine_subsidy_fen is not None
    return RedemptionAnswer(
        use_request_no=use_request_no,
        order_no=state.mine_order_no,
        voucher_code=codes.encode(owner.voucher_id),
        state="USED" if state.refunded_at is None else "REFUNDED",
        bill_fen=state.mine_bill_fen,
        subsidy_fen=state.mine_subsidy_fen,
        redeemed_at=rfc3339(state.mine_at),
        refund_request_no=state.refund_request_no,
        refund_fen=state.refund_fen,
        refunded_at=None if state.refunded_at is None else rfc3339(state.refunded_at),
    )
