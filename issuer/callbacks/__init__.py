"""Callbacks: partners are told what became of their vouchers, by signed and encrypted messages.

Events are written down in the transaction of the fact they tell (`outbox.py` for claims, the database's own
functions for the rest) and sent from there by a process of its own (`python -m issuer.callbacks`) until the
partner says that it has them. docs/callbacks.md is the partners' guide.
"""
