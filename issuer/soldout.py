"""Sold out, from memory: once every voucher of an offer is in the books, no store is asked for another one.

What is asked all the same is whatever may be a retry: the numbers that won an offer are kept here too, so that who
lost an answer still finds the voucher.
"""

import asyncio
from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime

import msgspec
import structlog

import sql
from issuer.catalogue import Catalogue, Offered
from issuer.record import request_key
from kernel.ids import SERIAL_MAX, pack_voucher_id
from kernel.partitions import PARTITIONS
from kernel.postgres import ACQUIRE_TIMEOUT_S, Pool
from kernel.tasks import running

READ_WITHIN_S = 60.0

_queries = sql.load("issuer")
log = structlog.get_logger()


class Winners(msgspec.Struct, frozen=True):
    """The request keys that won an offer, four bytes each, in order; all there are as long as nothing is added to its
    stocks: `of` is how much there was of each when they were read."""

    keys: "array[int]"
    of: Sequence[tuple[int, int]]

    def may_hold(self, key: int) -> bool:
        """Whether a request won; of others, one in a thousand is taken for one that did when millions won."""
        at = bisect_left(self.keys, key)
        return at < len(self.keys) and self.keys[at] == key


class SoldOut:
    """Which offers are sold out for good, as long as nobody adds to them. `pool` is for reading by many rows."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._final: Mapping[str, Winners] = {}
        self._wanted: Mapping[str, Offered] = {}
        self._seen = asyncio.Event()
        self.answered = 0

    def is_final(self, offer: Offered, out_request_no: str) -> bool:
        """Whether a claim of this offer can be answered SOLD_OUT without asking the store."""
        winners = self._final.get(offer.offer_id)
        if winners is None or winners.may_hold(request_key(offer.partner_no, out_request_no)):
            return False
        self.answered += 1
        return True

    def see(self, catalogue: Catalogue, now: datetime) -> None:
        """Forgets at once what there is again, or what closed, and wants to know the winners of what is sold out."""
        offers = (offer for offer in catalogue.offers.values() if offer.round.closes_at > now and is_sold_out(offer))
        self._wanted = {offer.offer_id: offer for offer in offers}
        self._final = {
            offer_id: kept
            for offer_id, kept in self._final.items()
            if offer_id in self._wanted and kept.of == stock_of(self._wanted[offer_id])
        }
        if self._wanted.keys() != self._final.keys():
            self._seen.set()

    def watching(self) -> AbstractAsyncContextManager[None]:
        """Reads winners while the context is open. On its own time: a round has millions of them, and until they are
        here the store is asked, which knows as well."""
        return running(self._watch())

    async def _watch(self) -> None:
        while True:
            await self._seen.wait()
            self._seen.clear()
            try:
                await self.read()
            except Exception as error:  # a database that is away: the next look at the catalogue asks again
                log.warning("sold_out_not_read", error=f"{type(error).__name__}: {error}")

    async def read(self) -> None:
        """Takes in the winners of what is sold out and not known yet, one round after the other."""
        rounds: dict[int, list[Offered]] = defaultdict(list)
        for offer_id, offer in self._wanted.items():
            if offer_id not in self._final:
                rounds[offer.round.round_no].append(offer)
        for round_no, offers in rounds.items():
            winners = await self._winners(round_no, offers)
            known = {
                offer.offer_id: Winners(winners[key_of(offer)], stock_of(offer))
                for offer in offers
                if (now := self._wanted.get(offer.offer_id)) is not None and stock_of(now) == stock_of(offer)
            }
            self._final = {**self._final, **known}
            log.info("sold_out", round_no=round_no, offers=sorted(known))

    async def _winners(
        self, round_no: int, offers: Sequence[Offered]
    ) -> Mapping[tuple[int | None, int | None], "array[int]"]:
        stock_nos = [offer.parts[0].stock.stock_no for offer in offers if offer.pack_no is None]
        pack_nos = [offer.pack_no for offer in offers if offer.pack_no is not None]
        first = pack_voucher_id(round_no, 0, 1)
        last = pack_voucher_id(round_no, PARTITIONS - 1, SERIAL_MAX)
        async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as conn:
            rows = await conn.fetch(_queries["winning_keys"], first, last, stock_nos, pack_nos, timeout=READ_WITHIN_S)
        winners: dict[tuple[int | None, int | None], array[int]] = defaultdict(lambda: array("i"))
        for row in rows:
            keys = array("i", row["keys"])
            keys.byteswap()
            winners[row["stock_no"], row["pack_no"]] = keys
        return winners


def key_of(offer: Offered) -> tuple[int | None, int | None]:
    """Its stock, or its pack."""
    return (offer.parts[0].stock.stock_no, None) if offer.pack_no is None else (None, offer.pack_no)


def stock_of(offer: Offered) -> Sequence[tuple[int, int]]:
    """Quantity and last adjustment of its stocks."""
    return [(part.stock.quantity, part.stock.adjust_no) for part in offer.parts]


def is_sold_out(offer: Offered) -> bool:
    """Whether the books hold every voucher of one of its stocks."""
    return any(part.stock.issued >= part.stock.quantity for part in offer.parts)
