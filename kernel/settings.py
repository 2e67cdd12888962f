"""What a service reads from its environment, and nothing else does."""

import os
from collections.abc import Mapping
from typing import Self

import msgspec

from kernel.valkey import is_cluster


class SettingsError(Exception):
    """The environment lacks a setting or holds one that cannot be read."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Addresses and keys of one service. Made by `Settings.from_env()`."""

    postgres_dsn: str
    valkey_url: str
    master_key: bytes
    """32 bytes; seals secrets at rest."""
    code_keys: dict[int, bytes]
    """Voucher code keys by version."""
    host: str = "127.0.0.1"
    port: int = 0
    health_port: int | None = None
    """A port of this worker alone, where several share `port`."""
    valkey_replicas_acked: int = 0
    """How many replicas must hold a claim before it is answered; 0: the primary's disk alone. On a cluster 1 unless
    set otherwise."""
    clock_file: str | None = None
    workers: int = 1
    """Processes like this one that share the callers; each has its share of a partner's quota."""
    under_way_max: int = 4_096
    """Requests under way at once, before the next is answered 503 (see kernel/admission.py)."""
    connections_max: int = 10_000

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Self:
        """Reads HANQUAN_*. SettingsError names the variable that is missing or wrong."""
        try:
            return cls(
                postgres_dsn=env["HANQUAN_POSTGRES_DSN"],
                valkey_url=env["HANQUAN_VALKEY_URL"],
                master_key=bytes.fromhex(env["HANQUAN_MASTER_KEY"]),
                code_keys=parse_code_keys(env["HANQUAN_CODE_KEYS"]),
                host=env.get("HANQUAN_HOST", "127.0.0.1"),
                port=int(env.get("HANQUAN_PORT", "0")),
                health_port=int(env["HANQUAN_HEALTH_PORT"]) if "HANQUAN_HEALTH_PORT" in env else None,
                valkey_replicas_acked=int(env.get("HANQUAN_VALKEY_REPLICAS", is_cluster(env["HANQUAN_VALKEY_URL"]))),
                clock_file=env.get("HANQUAN_CLOCK_FILE"),
                workers=_count(env, "HANQUAN_WORKERS", 1),
                under_way_max=_count(env, "HANQUAN_UNDER_WAY_MAX", 4_096),
                connections_max=_count(env, "HANQUAN_CONNECTIONS_MAX", 10_000),
            )
        except KeyError as error:
            raise SettingsError(f"the environment lacks {error.args[0]}") from None
        except ValueError as error:
            raise SettingsError(f"a HANQUAN_* setting cannot be read: {error}") from None


def _count(env: Mapping[str, str], name: str, otherwise: int) -> int:
    count = int(env.get(name, otherwise))
    if count < 1:
        raise ValueError(f"{name} must be at least 1")
    return count


def parse_code_keys(text: str) -> dict[int, bytes]:
    """`"1:<32 hex>,2:<32 hex>"` -> AES-128 keys by version."""
    pairs = (part.split(":", 1) for part in text.split(","))
    return {int(version): bytes.fromhex(key) for version, key in pairs}
