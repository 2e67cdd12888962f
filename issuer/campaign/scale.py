"""One round of a campaign at another size: for rehearsals, load tests and small machines."""

import msgspec

from issuer.campaign.apportion import apportion
from issuer.campaign.model import Campaign


def scaled(campaign: Campaign, round_id: str, vouchers: int) -> Campaign:
    """The campaign with only that round, and exactly `vouchers` vouchers in it.

    Stocks keep their names and their proportions (largest remainder), at least one voucher each.
    Budget and fund become what these vouchers can cost and no fen more, so that one voucher too
    many would overdraw the ledger. Raises KeyError for an unknown round, ValueError when there are
    fewer vouchers than stocks.
    """
    chosen = campaign.round(round_id)
    quantities = apportion(vouchers, [stock.quantity for stock in chosen.stocks])
    stocks = tuple(
        msgspec.structs.replace(stock, quantity=quantity)
        for stock, quantity in zip(chosen.stocks, quantities, strict=True)
    )
    fund_fen = sum(stock.exposure_fen for stock in stocks)
    return msgspec.structs.replace(
        campaign, fund_fen=fund_fen, rounds=(msgspec.structs.replace(chosen, budget_fen=fund_fen, stocks=stocks),)
    )
