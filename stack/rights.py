"""Which rights PostgreSQL runs with on this machine; see stack/unprivileged.py for the modes."""

import os
import shutil
import subprocess
from pathlib import Path

from stack.child import launched
from stack.errors import StackError
from stack.unprivileged import NOBODY


def choose(binary: Path, data: Path) -> str:
    """Mode for a server whose data lie in `data`, made ready for it (owner and mode).

    An ordinary user keeps its own rights. Root gets a user namespace, or, where that is
    forbidden, uid 65534 and a data folder that belongs to it.
    Raises StackError where neither works.
    """
    if os.getuid() != 0:
        return "self"
    if _works("namespace", binary):
        _give(data, os.getuid(), os.getgid())
        return "namespace"
    data.parent.chmod(0o711)  # the way to its folder; what lies beside it stays closed
    _give(data, NOBODY, NOBODY)
    if _works("nobody", binary, data):
        return "nobody"
    raise StackError(
        "PostgreSQL does not run as root, and here root can neither use a user namespace nor"
        f" become another user that reaches {data}; run as an ordinary user, choose another"
        " --data, or set HANQUAN_POSTGRES_DSN"
    )


def _works(mode: str, *paths: Path) -> bool:
    command = launched((), mode)[:-1]
    probe = [*command, "--can", *map(str, paths)]
    return subprocess.run(probe, check=False, capture_output=True).returncode == 0


def _give(folder: Path, uid: int, gid: int) -> None:
    if not folder.exists() or folder.stat().st_uid == uid:
        return
    for root, folders, files in os.walk(folder):
        for name in [root, *folders, *files]:
            shutil.chown(os.path.join(root, name), uid, gid)
