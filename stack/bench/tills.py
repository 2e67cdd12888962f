"""Helper: redemptions of many shops, each signed with its till's key before the clock starts."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import msgspec

from kernel.codes import CodeBook
from kernel.settings import Settings
from stack.bench.helper import Work, serve
from stack.bench.presign import Written, signed_post, write_requests
from stack.bench.sales import Sales, read_shops, sales_of

REDEMPTIONS = "/v1/redemptions"


class Selling(msgspec.Struct, frozen=True, kw_only=True):
    """Requests for these sales, dated `timestamp_s`: good for five minutes."""

    sales: Sales
    timestamp_s: int
    file: str


def requests(job: Selling, codes: CodeBook) -> Iterator[bytes]:
    """Whole HTTP requests, signed."""
    sales = [*sales_of(job.sales)]
    market = job.sales.market
    signers = [shop.key.signer() for shop in read_shops(market.shops_file)]
    codes_of = codes.encode_all([sale.voucher_id for sale in sales])
    for place, (sale, code) in enumerate(zip(sales, codes_of, strict=True), start=job.sales.first):
        body = (
            f'{{"use_request_no":"{sale.use_request_no}","voucher_code":"{code}",'
            f'"order_no":"{sale.order_no}","bill_fen":{market.bill_fen}}}'
        ).encode()
        yield signed_post(signers[sale.shop], REDEMPTIONS, body, job.timestamp_s, place)


@asynccontextmanager
async def _opened() -> AsyncIterator[Work[Selling]]:
    codes = CodeBook(Settings.from_env().code_keys)

    async def work(job: Selling) -> Written:
        return write_requests(job.file, requests(job, codes))

    yield work


if __name__ == "__main__":
    serve(Selling, _opened)
