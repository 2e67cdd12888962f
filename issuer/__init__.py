"""Vouchers are born here: campaigns and rounds, the claim path, the drain into the ledger."""
