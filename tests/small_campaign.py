"""A campaign of two rounds that tests read, break and load."""

from issuer.campaign.model import Campaign
from issuer.campaign.read import Refused, read_campaign

SMALL = """\
id: small-2020
title: {zh: 小券, en: Small vouchers}
zone: Asia/Shanghai
fund: 1000
rollover: yes
expected_redemption: 50
opening_time: 12:00
partners:
  - {id: wechat, name: {zh: 微信支付, en: WeChat Pay}}
  - {id: alipay, name: {zh: 支付宝, en: Alipay}}
categories:
  - {id: dining, name: {zh: 餐饮, en: Dining}}
funding: {city: 60, platform: 30, merchant: 10}
limits: {per_person_round_and_partner: 1}
offer: {minimum_spend_times: 3, vouchers_per_payment: 1, refund_policy: RESTORE}
validity: {days: 7}
stocks:
  - {partner: wechat, category: dining, face: 20, quantity: 10}
  - {partner: alipay, category: dining, face: "20.50", quantity: 10, minimum: 70}
rounds:
  - {id: r1, opens: 2020-04-23 12:00, closes: 2020-04-23, budget: 400}
  - {id: r2, opens: 2020-04-30 12:00, closes: 2020-04-30 18:30, budget: 400}
"""


def small(*changes: tuple[str, str], text: str = SMALL) -> str:
    """The file with words replaced; each must stand in it."""
    for old, new in changes:
        assert old in text, f"{old!r} is not in the file"
        text = text.replace(old, new, 1)
    return text


def read(text: str) -> Campaign:
    """The campaign in a file that must be fine."""
    answer = read_campaign(text.encode())
    assert not isinstance(answer, Refused), answer.complaints
    return answer
