"""Sold out, from memory: once every voucher of an offer is in the books, no store is asked for another one.

What is asked all the same is whatever may be a retry: the numbers that won an offer are kept here too, so that who
lost an answer still finds the voucher.
"""

from array import array
from bisect import bisect_left
from collections.abc import Mapping
from datetime import datetime

import msgspec
import structlog

import sql
from issuer.catalogue import Catalogue, Offered
from issuer.record import request_key
from kernel.ids import SERIAL_MAX, pack_voucher_id
from kernel.partitions import PARTITIONS
from kernel.postgres import ACQUIRE_TIMEOUT_S, Pool

READ_WITHIN_S = 30.0

_queries = sql.load("issuer")
log = structlog.get_logger()


class Winners(msgspec.Struct, frozen=True):
    """The request keys that won an offer, eight bytes each, in order."""

    keys: "array[int]"

    def may_hold(self, key: int) -> bool:
        """Whether a request won; one in 2**64 of others is taken for one that did."""
        at = bisect_left(self.keys, key)
        return at < len(self.keys) and self.keys[at] == key


class SoldOut:
    """Which offers are sold out for good, as long as nobody adds to them. `pool` is for reading by many rows."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._final: Mapping[str, Winners] = {}
        self.answered = 0

    def is_final(self, offer: Offered, out_request_no: str) -> bool:
        """Whether a claim of this offer can be answered SOLD_OUT without asking the store."""
        winners = self._final.get(offer.offer_id)
        if winners is None or winners.may_hold(request_key(offer.partner_no, out_request_no)):
            return False
        self.answered += 1
        return True

    async def refresh(self, catalogue: Catalogue, now: datetime) -> None:
        """Forgets offers of which there is something again, or that closed, and takes in what is sold out since the
        last time. Raises what PostgreSQL raises, and what is taken in then stays."""
        offers = [offer for offer in catalogue.offers.values() if offer.round.closes_at > now and is_sold_out(offer)]
        sold_out = {offer.offer_id for offer in offers}
        if not self._final.keys() <= sold_out:
            self._final = {offer_id: kept for offer_id, kept in self._final.items() if offer_id in sold_out}
        for offer in offers:
            if offer.offer_id not in self._final:
                self._final = {**self._final, offer.offer_id: await self._winners(offer)}
                log.info("sold_out", offer_id=offer.offer_id, winners=len(self._final[offer.offer_id].keys))

    async def _winners(self, offer: Offered) -> Winners:
        first = pack_voucher_id(offer.round.round_no, 0, 1)
        last = pack_voucher_id(offer.round.round_no, PARTITIONS - 1, SERIAL_MAX)
        stock_no = offer.parts[0].stock.stock_no
        async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as conn:
            packed = await conn.fetchval(
                _queries["winning_keys"], first, last, stock_no, offer.pack_no, timeout=READ_WITHIN_S
            )
        keys = array("q", packed)
        keys.byteswap()
        return Winners(keys)


def is_sold_out(offer: Offered) -> bool:
    """Whether the books hold every voucher of one of its stocks."""
    return any(part.stock.issued >= part.stock.quantity for part in offer.parts)
