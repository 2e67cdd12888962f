"""Reaches a stack that another process runs: for psql, audit, load and the like.

reach = Reach(DataFolder(Path(".hanquan")))     # StackError when nothing runs there
reach.addresses["issuer"], reach.dsn("hanquan_auditor"), reach.valkey_url
"""

import os
from collections.abc import Mapping

from stack.data_folder import DataFolder
from stack.errors import StackError
from stack.postgres_server import SUPERUSER
from stack.stores import replicas_acked, with_user


class Reach:
    """Addresses of the stack that runs in `folder`. Its DSNs and URLs hold passwords.

    Raises StackError when no stack runs there. For servers of one's own, the environment must
    name them as it did for the stack.
    """

    def __init__(self, folder: DataFolder, env: Mapping[str, str] = os.environ) -> None:
        run = folder.read_run() if folder.is_locked() else None
        if run is None:
            raise StackError(f"no stack runs in {folder.path}; start one with: ./hanquan up")
        self.folder = folder
        self.run = run
        self.secrets = folder.secrets()
        self._env = env

    @property
    def addresses(self) -> dict[str, str]:
        """Base URL by service."""
        return {one.name: one.address for one in self.run.processes if one.address and one.health}

    @property
    def health(self) -> dict[str, str]:
        """Base URL by process, of every worker its own: for /readyz and /metrics."""
        return {one.name: one.health for one in self.run.processes if one.health}

    @property
    def valkey_url(self) -> str:
        """URL with password."""
        own = self._env.get("HANQUAN_VALKEY_URL")
        return own or with_user(self.run.valkey, "", self.secrets.valkey_password)

    @property
    def replicas_acked(self) -> int:
        """How many replicas must hold what is answered, as for the stack."""
        return replicas_acked(self.valkey_url, self._env)

    def dsn(self, role: str | None = None) -> str:
        """DSN for one of sql.migrate.ROLES, or for the administrator, with password."""
        if role is not None:
            return with_user(self.run.postgres, role, self.secrets.role_passwords[role])
        own = self._env.get("HANQUAN_POSTGRES_DSN")
        return own or with_user(self.run.postgres, SUPERUSER, self.secrets.postgres_password)
