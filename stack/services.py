"""Our services, as data: what each runs, whose rights it has in the database, where it listens.

In the order in which they start; they stop in the reverse order, so that the drain still
writes down what the issuer granted last.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stack.data_folder import Secrets


@dataclass(frozen=True, slots=True)
class Service:
    """One of our services. `port_offset` is added to the stack's base port.

    Every service answers /healthz, /readyz and /metrics on its port. Where several `workers` share the
    port, the kernel picks one for each connection; each answers on a port of its own as well.
    """

    name: str
    module: str
    role: str
    port_offset: int
    stop_within_s: float = 20.0
    workers: int = 1

    @property
    def process_names(self) -> tuple[str, ...]:
        """What its processes are called: issuer, issuer-2, issuer-3."""
        return (self.name, *(f"{self.name}-{number}" for number in range(2, self.workers + 1)))

    @property
    def argv(self) -> tuple[str, ...]:
        """The command that starts it."""
        return (sys.executable, "-m", self.module)


SERVICES = (
    Service("antifraud", "antifraud", "hanquan_antifraud", 4),
    Service("callbacks", "issuer.callbacks", "hanquan_issuer", 6),
    Service("drain", "issuer.drain", "hanquan_issuer", 3),
    Service("issuer", "issuer", "hanquan_issuer", 1),
    Service("redemption", "redemption", "hanquan_redemption", 2),
    Service("operator", "issuer.operator", "hanquan_operator", 5),
)


def with_workers(services: Sequence[Service], name: str, workers: int) -> tuple[Service, ...]:
    """The same services, of which one has several workers."""
    return tuple(replace(each, workers=workers) if each.name == name else each for each in services)


# What a service takes over from the stack's own environment.
_PASSED_ON = ("PATH", "HOME", "LANG", "TZ", "HANQUAN_CLOCK_FILE", "HANQUAN_UNDER_WAY_MAX", "HANQUAN_CONNECTIONS_MAX")

_ROOT = Path(__file__).resolve().parents[1]


def environment(
    *,
    postgres_dsn: str,
    valkey_url: str,
    replicas_acked: int = 0,
    secrets: Secrets,
    host: str,
    port: int,
    health_port: int | None = None,
    workers: int = 1,
) -> Mapping[str, str]:
    """The settings of a service; the keys are 32 bytes as hex, code keys ``1:hex,2:hex``."""
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    own = {} if health_port is None else {"HANQUAN_HEALTH_PORT": str(health_port)}
    return (
        passed_on
        | own
        | {
            "HANQUAN_POSTGRES_DSN": postgres_dsn,
            "HANQUAN_VALKEY_URL": valkey_url,
            "HANQUAN_VALKEY_REPLICAS": str(replicas_acked),
            "HANQUAN_MASTER_KEY": secrets.master_key,
            "HANQUAN_CODE_KEYS": secrets.code_keys_setting(),
            "HANQUAN_PERSON_KEY": secrets.person_key,
            "HANQUAN_HOST": host,
            "HANQUAN_PORT": str(port),
            "HANQUAN_WORKERS": str(workers),
            "PYTHONPATH": str(_ROOT),
            "PYTHONSAFEPATH": "1",
            "PYTHONUNBUFFERED": "1",
        }
    )
