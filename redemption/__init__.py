"""Vouchers are spent and paid: checkout, refunds, settlement, reconciliation."""
