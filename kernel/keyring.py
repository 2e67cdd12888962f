"""All callers' keys and quotas in memory, read again every few seconds; no request waits for a store to be known."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from kernel.clock import Clock
from kernel.errors import Broken, Code, Refusal, Rejected
from kernel.quota import TokenBucket
from kernel.refreshing import in_turns, kept_fresh
from kernel.sealing import unseal
from kernel.signing import Algorithm, ApiKey, Caller, Signed, parse_authorization, text_to_sign, verify

RELOAD_EVERY_S = 2.0
"""A key that is revoked, or a terminal suspended, is refused everywhere after at most this long; at once where
somebody sets `wake`."""

ReadRows = Callable[[], Awaitable[Sequence[Mapping[str, Any]]]]
ReadDigest = Callable[[], Awaitable[object]]

log = structlog.get_logger()


class Keyring:
    """Keys by serial number, and a bucket of tokens for each partner that has a quota.

    `read_rows` answers rows of the named query `api_keys`, and is asked when `read_digest` answers something new: a
    city has tens of thousands of tills, and to take in their keys stalls a worker for a tenth of a second. A quota
    holds over all `workers`: each has its share.
    `on_over_quota` hears the number of each partner that was turned away. Where `wake` tells of every change, keys need
    not be read so often (`reload_every_s`).
    """

    def __init__(
        self,
        read_rows: ReadRows,
        master_key: bytes,
        clock: Clock,
        *,
        read_digest: ReadDigest | None = None,
        workers: int = 1,
        on_over_quota: Callable[[int], None] = lambda partner_no: None,
        reload_every_s: float = RELOAD_EVERY_S,
    ) -> None:
        self._read_rows = read_rows
        self._read_digest = read_digest
        self._digest: object = None
        self._master_key = master_key
        self._clock = clock
        self._workers = workers
        self._on_over_quota = on_over_quota
        self._reload_every_s = reload_every_s
        self._keys: dict[str, ApiKey] = {}
        self._rows: dict[str, Mapping[str, Any]] = {}
        self._buckets: dict[str, TokenBucket] = {}
        self.wake = asyncio.Event()
        """Set it when a key was revoked, or a terminal suspended."""

    async def reload(self) -> None:
        """Takes in new, changed and revoked keys; keys that did not change are not opened again."""
        digest = await self._read_digest() if self._read_digest else None
        if digest is not None and digest == self._digest:
            return
        rows = {row["serial_no"]: row async for row in in_turns(await self._read_rows())}
        keys = {
            serial_no: self._keys.get(serial_no) if self._rows.get(serial_no) == row else self._try_open(row)
            async for serial_no, row in in_turns(rows.items())
        }
        self._keys = {serial_no: key for serial_no, key in keys.items() if key is not None}
        self._rows, self._digest = rows, digest
        self._take_quotas({row["holder_id"]: row["claims_per_s_max"] for row in rows.values() if _is_partner(row)})

    def announced(self, header: str | None) -> Signed:
        """Who says to have signed, before anything else of the request is looked at.

        Rejected when that cannot be read (SIGN_ERROR), or names a key of a partner whose quota is used up
        (FREQUENCY_LIMITED). Takes no token: a stranger could name anybody.
        """
        signed = parse_authorization(header)
        if isinstance(signed, Refusal):
            raise Rejected(signed)
        key = self._keys.get(signed.serial_no)
        if self._buckets and key is not None and key.caller.holder_id == signed.holder_id:
            self._turn_away_flood(key.caller)
        return signed

    def authenticate(self, signed: Signed, method: str, path: str, body: bytes) -> Caller:
        """The caller that signed this request, one token poorer. Rejected (SIGN_ERROR) when nobody we know did."""
        text = text_to_sign(method, path, signed.timestamp, signed.nonce, body)
        caller = verify(signed, self._keys.get(signed.serial_no), text, self._clock.now())
        if isinstance(caller, Refusal):
            log.info("signature_refused", holder_id=signed.holder_id, serial_no=signed.serial_no)
            raise Rejected(caller)
        self.charge(caller)
        return caller

    def charge(self, caller: Caller, tokens: int = 1) -> None:
        """Takes tokens from a caller that has a quota: one a request, and one more for each further item."""
        bucket = self._bucket(caller) if self._buckets else None
        if bucket is not None:
            bucket.take(tokens)

    def _turn_away_flood(self, caller: Caller) -> None:
        bucket = self._bucket(caller)
        wait_s = bucket.wait_s() if bucket is not None else 0
        if wait_s:
            self._on_over_quota(caller.holder_no)
            raise Rejected(
                Refusal(
                    code=Code.FREQUENCY_LIMITED,
                    detail="your quota of requests a second is used up; nothing was done, send it again later",
                    retry_after_s=wait_s,
                )
            )

    def _bucket(self, caller: Caller) -> TokenBucket | None:
        return self._buckets.get(caller.holder_id) if caller.kind == "partner" else None

    def _take_quotas(self, quotas: Mapping[str, int | None]) -> None:
        shares = {partner_id: quota / self._workers for partner_id, quota in quotas.items() if quota is not None}
        for partner_id, per_s in shares.items():
            bucket = self._buckets.setdefault(partner_id, TokenBucket(per_s))
            if bucket.per_s != per_s:
                bucket.change(per_s)
        self._buckets = {partner_id: self._buckets[partner_id] for partner_id in shares}

    def kept_fresh(self) -> AbstractAsyncContextManager[None]:
        """Loads the keys, then keeps reloading them while the context is open."""
        return kept_fresh("keys", self.reload, self._reload_every_s, self.wake)

    def _try_open(self, row: Mapping[str, Any]) -> ApiKey | None:
        try:
            return self._open(row)
        except (Broken, ValueError):  # it opens nothing; the other keys, and what is revoked, must not wait for it
            log.exception("key_not_opened", serial_no=row["serial_no"])
            return None

    def _open(self, row: Mapping[str, Any]) -> ApiKey:
        return ApiKey(
            serial_no=row["serial_no"],
            caller=Caller(
                kind=row["holder_kind"],
                holder_id=row["holder_id"],
                holder_no=row["holder_no"],
                terminal_no=row["terminal_no"] or 0,
            ),
            algorithm=Algorithm(row["algorithm"]),
            secret=self._secret(row),
            not_before=row["not_before"],
            not_after=row["not_after"],
        )

    def _secret(self, row: Mapping[str, Any]) -> bytes | RSAPublicKey:
        if row["algorithm"] == Algorithm.HMAC:
            return unseal(self._master_key, row["key_material"], row["serial_no"])
        key = load_der_public_key(row["key_material"])
        if not isinstance(key, RSAPublicKey):
            raise Broken(f"key {row['serial_no']} is not an RSA key")
        return key


def _is_partner(row: Mapping[str, Any]) -> bool:
    return bool(row["holder_kind"] == "partner")
