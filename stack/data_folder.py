"""The folder of one stack: its lock, its secrets, its logs, and who runs in it now.

postgres/  valkey/  logs/    data of the stores, what every process wrote
lock                         held by the running supervisor (flock)
secrets.json                 passwords and keys, made at the first start, readable by the owner
run.json                     processes, ports and addresses of the current or the last run
"""

import fcntl
import os
import secrets as random_source
import shutil
from contextlib import suppress
from pathlib import Path

import msgspec

from sql.migrate import ROLES
from stack.errors import StackError

DEFAULT = Path(".hanquan")


class Secrets(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that must not leak. Keys are hex: 32 bytes each, code keys 16."""

    postgres_password: str
    role_passwords: dict[str, str]
    valkey_password: str
    master_key: str
    code_keys: dict[str, str]
    person_key: str

    def code_keys_setting(self) -> str:
        """Code keys as services read them: ``1:hex,2:hex``."""
        return ",".join(f"{version}:{key}" for version, key in sorted(self.code_keys.items()))


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """A process of the run. `start_ticks` tells it from a later process with its pid."""

    name: str
    pid: int
    start_ticks: int
    address: str
    """Base URL of a service; workers that share it with the first one have none. For stores, where it listens."""
    health: str = ""
    """Base URL at which this very process answers; stores have none."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What runs in the folder. Stores of one's own have an address and no process."""

    supervisor: Process
    processes: list[Process]
    postgres: str
    valkey: str


class DataFolder:
    """Opens `path` and makes it where it is missing (mode 700)."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._lock: int | None = None

    @property
    def logs(self) -> Path:
        """Where every process of the stack writes its log."""
        return self.path / "logs"

    def make(self) -> None:
        """Make the folder. Raises StackError if that cannot be."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.logs.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StackError(f"cannot use {self.path}: {error.strerror}") from error
        if not os.access(self.path, os.R_OK | os.W_OK | os.X_OK):
            raise StackError(f"cannot write to {self.path}: it belongs to another user")

    def lock(self) -> None:
        """Take the folder for this process. Raises StackError if another stack runs in it.

        The kernel lets go of it when the process ends, however it ends.
        """
        descriptor = self._open_lock()
        if not _try_lock(descriptor):
            os.close(descriptor)
            raise StackError(
                f"another stack runs in {self.path}; stop it with: ./hanquan down, or use another folder with --data"
            )
        self._lock = descriptor

    def unlock(self) -> None:
        """Let the next stack in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def is_locked(self) -> bool:
        """Does a stack run in the folder now?"""
        if not (self.path / "lock").exists():
            return False
        descriptor = self._open_lock()
        try:
            return not _try_lock(descriptor)
        finally:
            os.close(descriptor)

    def _open_lock(self) -> int:
        return os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)

    def secrets(self) -> Secrets:
        """The secrets, made at the first call. Raises StackError if they were lost."""
        file = self.path / "secrets.json"
        with suppress(FileNotFoundError):
            return self._with_new_roles(file, msgspec.json.decode(file.read_bytes(), type=Secrets))
        if (self.path / "postgres" / "hanquan.made").exists():
            raise StackError(f"{file} is gone, and without it the data cannot be opened; put it back")
        made = new_secrets()
        write_atomically(file, msgspec.json.format(msgspec.json.encode(made)))
        return made

    @staticmethod
    def _with_new_roles(file: Path, known: Secrets) -> Secrets:
        """A folder of an older version lacks the passwords of roles that came since."""
        if known.role_passwords.keys() >= set(ROLES):
            return known
        made = msgspec.structs.replace(known, role_passwords=_passwords() | known.role_passwords)
        write_atomically(file, msgspec.json.format(msgspec.json.encode(made)))
        return made

    def read_run(self) -> Run | None:
        """The current or the last run, or None."""
        try:
            return msgspec.json.decode((self.path / "run.json").read_bytes(), type=Run)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def write_run(self, run: Run) -> None:
        """Publish what runs now."""
        write_atomically(self.path / "run.json", msgspec.json.format(msgspec.json.encode(run)))

    def forget_run(self) -> None:
        """Say that nothing runs."""
        (self.path / "run.json").unlink(missing_ok=True)

    def check_removable(self) -> None:
        """Raises StackError while a stack runs in it, or if it is not a folder of ours."""
        if not (self.path / "secrets.json").exists():
            raise StackError(f"{self.path} holds no Hanquan data; nothing was removed")
        if self.is_locked():
            raise StackError(f"a stack runs in {self.path}; stop it first with: ./hanquan down")

    def remove(self) -> None:
        """Delete everything in it. Raises StackError like `check_removable`."""
        self.check_removable()
        self.lock()
        try:
            shutil.rmtree(self.path)
        finally:
            self.unlock()


def new_secrets() -> Secrets:
    """Fresh random secrets from the system's source."""
    return Secrets(
        postgres_password=random_source.token_urlsafe(24),
        role_passwords=_passwords(),
        valkey_password=random_source.token_hex(24),
        master_key=random_source.token_hex(32),
        code_keys={"1": random_source.token_hex(16)},
        person_key=random_source.token_hex(32),
    )


def _passwords() -> dict[str, str]:
    return {role: random_source.token_urlsafe(24) for role in ROLES}


def write_atomically(file: Path, content: bytes) -> None:
    """Write a file of mode 600 that a reader sees whole or not at all, also after a crash."""
    fresh = file.with_name(f"{file.name}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as target:
        target.write(content)
        target.flush()
        os.fsync(target.fileno())
    fresh.replace(file)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
