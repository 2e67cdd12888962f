"""All callers' keys in memory, read again every few seconds; no request waits for a store to be known."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from kernel.clock import Clock
from kernel.errors import Broken, Refusal, Rejected
from kernel.refreshing import kept_fresh
from kernel.sealing import unseal
from kernel.signing import Algorithm, ApiKey, Caller, parse_authorization, text_to_sign, verify

RELOAD_EVERY_S = 2.0
"""A key that is revoked, or a merchant suspended, is refused everywhere after at most this long."""

ReadRows = Callable[[], Awaitable[Sequence[Mapping[str, Any]]]]

log = structlog.get_logger()


class Keyring:
    """Keys by serial number. `read_rows` answers rows of the named query `api_keys`."""

    def __init__(self, read_rows: ReadRows, master_key: bytes, clock: Clock) -> None:
        self._read_rows = read_rows
        self._master_key = master_key
        self._clock = clock
        self._keys: dict[str, ApiKey] = {}
        self._rows: dict[str, Mapping[str, Any]] = {}

    async def reload(self) -> None:
        """Takes in new, changed and revoked keys; keys that did not change are not opened again."""
        rows = {row["serial_no"]: row for row in await self._read_rows()}
        keys = {
            serial_no: self._keys.get(serial_no) if self._rows.get(serial_no) == row else self._try_open(row)
            for serial_no, row in rows.items()
        }
        self._keys = {serial_no: key for serial_no, key in keys.items() if key is not None}
        self._rows = rows

    def authenticate(self, header: str | None, method: str, path: str, body: bytes) -> Caller:
        """The caller that signed this request. Rejected (SIGN_ERROR) when nobody we know did."""
        signed = parse_authorization(header)
        if isinstance(signed, Refusal):
            raise Rejected(signed)
        text = text_to_sign(method, path, signed.timestamp, signed.nonce, body)
        caller = verify(signed, self._keys.get(signed.serial_no), text, self._clock.now())
        if isinstance(caller, Refusal):
            log.info("signature_refused", holder_id=signed.holder_id, serial_no=signed.serial_no)
            raise Rejected(caller)
        return caller

    def kept_fresh(self) -> AbstractAsyncContextManager[None]:
        """Loads the keys, then keeps reloading them while the context is open."""
        return kept_fresh("keys", self.reload, RELOAD_EVERY_S)

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
