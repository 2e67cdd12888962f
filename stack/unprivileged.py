"""Starts one program as a child that dies with its parent and has no more rights than it needs.

Run as a script, so that a fresh, single-threaded process does the delicate calls:

    python -I -S stack/unprivileged.py [--as MODE] [--death-signal N --parent PID] -- PROGRAM ARG...

PostgreSQL refuses to run as root. MODE says how root's rights are dropped:

    self       keep the user (for everyone but root, and for programs that do not mind root)
    namespace  a user namespace of our own: the program sees uid 1000, its files stay root's,
               and nothing of the system is touched
    nobody     uid and gid 65534, for containers that forbid user namespaces; the data folder
               must be given to that user

``--can PATH...`` instead of a program tells, by the exit status, whether MODE works here and
each PATH can be reached in it. Only the standard library is used: ``-S`` keeps the start short.
"""

import argparse
import ctypes
import os
import sys

NOBODY = 65534
SEEN_UID = 1000
CANNOT = 71

_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Drop rights, bind the child's life to its parent's, and become the program."""
    parser = argparse.ArgumentParser(prog="unprivileged")
    parser.add_argument("--as", dest="mode", default="self")
    parser.add_argument("--death-signal", type=int, default=0)
    parser.add_argument("--parent", type=int, default=0)
    parser.add_argument("--can", nargs="+")
    parser.add_argument("program", nargs="*")
    options = parser.parse_args(argv)
    try:
        drop(options.mode)
    except OSError as error:
        sys.exit(_cannot(f"cannot give up root's rights ({options.mode}): {error}"))
    if options.can:
        sys.exit(0 if all(os.access(path, os.X_OK) for path in options.can) else CANNOT)
    # After the drop: a change of user clears the death signal.
    if options.death_signal:
        die_with_parent(options.death_signal, options.parent)
    try:
        os.execv(options.program[0], options.program)
    except OSError as error:
        sys.exit(_cannot(f"cannot run {options.program[0]}: {error}"))


def drop(mode: str) -> None:
    """Give up root's rights in the given way. Raises OSError where the system forbids it."""
    if mode == "namespace":
        _enter_namespace()
    elif mode == "nobody":
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    elif mode != "self":
        raise ValueError(mode)


def die_with_parent(signal_number: int, parent: int) -> None:
    """Ask the kernel for a signal when the thread that started us ends, however it ends."""
    _libc("prctl", _PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
    if parent and os.getppid() != parent:
        sys.exit(_cannot("the parent is gone"))  # it died before the call above


def _enter_namespace() -> None:
    uid, gid = os.getuid(), os.getgid()
    _libc("unshare", _CLONE_NEWUSER)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{SEEN_UID} {uid} 1")
    _write("/proc/self/gid_map", f"{SEEN_UID} {gid} 1")


def _libc(function: str, *arguments: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def _cannot(message: str) -> int:
    sys.stderr.write(f"hanquan: {message}\n")
    return CANNOT


if __name__ == "__main__":
    main(sys.argv[1:])
