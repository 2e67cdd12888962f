"""Keyed tokens stand for people and devices; nothing else about them is stored.

The city hands the key to its partners, so that one person has one token on every platform and nobody
without the key can tell whose it is. Tokens are 128 bits; on the wire 32 lowercase hex characters.
"""

import hmac

TOKEN_BYTES = 16


def make_token(person_key: bytes, identity: str) -> str:
    """The token of an identity (a document number, a device's number) under the city's key."""
    return hmac.digest(person_key, identity.encode(), "sha256")[:TOKEN_BYTES].hex()
