"""The whole way: people claim, pay and take back over HTTP, and their partner's endpoint hears of it."""

from datetime import timedelta
from pathlib import Path

from aiohttp import web
from aiohttp.test_utils import TestServer

from issuer.callbacks.app import make_app
from issuer.callbacks.desk import Subscribed, Wish, subscribe
from redemption.settlement.expire import expire_over
from tests import stores
from tests.callback_world import Receiver, as_keys, eventually
from tests.city import MASTER_KEY, City, open_city
from tests.city_plan import BILL, FACE, NOON, PAID, person


async def told(city: City, partner_id: str) -> Receiver:
    """A partner that subscribes to everything, with its endpoint."""
    receiver = Receiver(city.clock)
    app = web.Application()
    app.router.add_post("/told", receiver.post)
    server = await city.stack.enter_async_context(TestServer(app))
    wish = Wish(url=str(server.make_url("/told")), may_be_private=True)
    async with city.database.connection("hanquan_operator") as conn:
        done = await subscribe(conn, MASTER_KEY, partner_id, wish, city.clock.now())
    assert isinstance(done, Subscribed)
    assert done.key is not None
    receiver.keys = as_keys(done.key)
    return receiver


async def test_a_voucher_s_whole_life_is_told(cluster: stores.Cluster, tmp_path: Path) -> None:
    async with open_city(cluster, tmp_path) as city:
        wechat = await told(city, "wechat")
        await city.serve(await make_app(city.settings("hanquan_issuer")))
        code, kept = await city.claim_many("dining", [person(1), person(2)])
        other = await city.claim("alipay_dining", person(3), signer="alipay")
        await city.drain()
        first = (await city.redeem("NOODLES", code, number="use-0001")).json
        back = (await city.refund("NOODLES", "use-0001", number="back-0001")).json
        assert (first["state"], back["voucher_state"]) == ("USED", "EFFECTIVE")
        await eventually(lambda: len(wechat.taken) == 4)
        city.clock.move_to(NOON + timedelta(days=11))
        async with city.database.connection("hanquan_finance") as conn:
            await expire_over(conn, city.clock.now())
        await eventually(lambda: len(wechat.taken) == 6)
        partners = await city.database.pool.fetch("SELECT DISTINCT partner_no FROM callback_event")
    assert other.status == 200
    assert len(partners) == 1, "the other partner does not subscribe"
    mine = [call for call in wechat.taken if call.voucher["voucher_code"] == code]
    assert [(call.kind, call.voucher["voucher_state"]) for call in mine] == [
        *(("CLAIMED", "EFFECTIVE"), ("USED", "USED"), ("REFUNDED", "EFFECTIVE"), ("EXPIRED", "EXPIRED"))
    ]
    assert [call.kind for call in wechat.taken if call.voucher["voucher_code"] == kept] == ["CLAIMED", "EXPIRED"]
    refund = mine[2].voucher
    assert (refund["use_request_no"], refund["refund_request_no"]) == ("use-0001", "back-0001")
    assert (refund["bill_fen"], refund["subsidy_fen"], refund["refund_fen"]) == (BILL, FACE, PAID)
    assert refund["merchant_id"] == "NOODLES"
