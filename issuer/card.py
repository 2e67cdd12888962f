"""What is the same for everybody who claims an offer, prepared once."""

import struct

import msgspec

from issuer.catalogue import Offered, Stock
from kernel.clock import rfc3339

HEAD = struct.Struct(">HHB")
"""round_no, slot, way: 0 a claim, 1 a grant."""
TAIL = struct.Struct(">IB")
"""face_fen, how many parts."""
PART = struct.Struct(">IB")
"""stock_no, quantity."""
_GOLDEN = 2_654_435_761


class Card(msgspec.Struct, frozen=True):
    """An offer with the parts of a packed claim, and of an answer, that are the same for everybody.

    salt      set off against a request's digest, so that one number for two offers makes two requests
    letters   the answer's JSON before the request number, before the code, and before what the time of the claim says
    days      the stock, where each voucher's end follows from its claim
    """

    offer: Offered
    head: bytes
    tail: bytes
    salt: int
    letters: tuple[str, str, str]
    days: Stock | None = None


def card_of(offer: Offered, *, is_grant: bool = False) -> Card:
    """`is_grant`: the city hands it out, and the gate is not asked."""
    parts = b"".join(PART.pack(part.stock.stock_no, part.quantity) for part in offer.parts)
    return Card(
        offer=offer,
        head=HEAD.pack(offer.round.round_no, offer.slot, is_grant),
        tail=TAIL.pack(offer.face_value_fen, len(offer.parts)) + parts,
        salt=offer.slot * _GOLDEN & 0xFFFFFFFF,
        letters=_letters(offer),
        days=offer.parts[0].stock if offer.parts[0].stock.valid_days else None,
    )


def _letters(offer: Offered) -> tuple[str, str, str]:
    stock = offer.parts[0].stock
    return (
        '{"out_request_no":"',
        f'","stock_id":"{offer.offer_id}","voucher_code":"',
        f'","state":"EFFECTIVE","face_value_fen":{stock.face_value_fen}'
        f',"transaction_minimum_fen":{stock.transaction_minimum_fen}'
        f',"valid_from":"{rfc3339(stock.valid_from)}","valid_until":"'
        + ("" if stock.valid_days else f'{rfc3339(stock.valid_until)}","claimed_at":"'),
    )
