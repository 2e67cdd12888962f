"""./hanquan, the script at the root: finds a Python, makes .venv once, hands over."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SYSTEM_PATH = "/usr/bin:/bin"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the real script, no dependencies, and a command line that tells its world."""
    root = tmp_path / "a checkout"
    (root / "requirements").mkdir(parents=True)
    (root / "stack").mkdir()
    shutil.copy2(ROOT / "hanquan", root / "hanquan")
    for lock in ("run", "dev"):
        (root / "requirements" / f"{lock}.txt").write_text(f"# {lock}: nothing to install\n")
    (root / "stack" / "__main__.py").write_text(
        "import os, sys; print(sys.argv[1:], os.getcwd()); sys.exit(len(sys.argv) - 1)\n"
    )
    return root


QUICK = r"""case "$*" in
*realpath*) echo "$0" ;;
"-m venv "*) cp -a {made} "$3" ;;
*) exec {python} "$@" ;;
esac"""
"""A Python that copies a .venv instead of making one, which takes seconds. It stands for its own real path."""


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of that Python."""
    made, program = tmp_path_factory.mktemp("made") / "venv", tmp_path_factory.mktemp("quick") / "python"
    subprocess.run([sys.executable, "-m", "venv", made], check=True)
    program.write_text("#!/bin/sh\n" + QUICK.format(made=made, python=sys.executable) + "\n")
    program.chmod(0o755)
    return str(program)


def run(
    root: Path, *arguments: str, path: str = SYSTEM_PATH, python: str = sys.executable, **more: str
) -> tuple[int, str, str]:
    """Run the script: its status, output and remarks."""
    done = subprocess.run(
        [str(root / "hanquan"), *arguments],
        env={"PATH": path, "PYTHON": python, **more},
        cwd=root.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def folder_with(tmp_path: Path, **programs: str) -> str:
    """A PATH with these shell scripts as Pythons (dots spelled as _) before the system's tools."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for tool in ("sh", "cat", "cp", "cksum", "dirname", "readlink", "rm", "mv", "ls"):
        (folder / tool).symlink_to(shutil.which(tool, path=SYSTEM_PATH) or "")
    for name, text in programs.items():
        program = folder / name.replace("_", ".")
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    return str(folder)


def test_the_first_run_installs_and_later_runs_start_at_once(checkout: Path, tmp_path: Path) -> None:
    status, out, err = run(checkout, "one", "--json")
    assert status == 2
    assert out == f"['one', '--json'] {tmp_path}\n"
    assert err == "hanquan: installing Python packages into .venv (requirements/run.txt), this once ...\n"
    # Without any Python on the PATH: nothing is looked for any more.
    nothing = folder_with(tmp_path)
    assert run(checkout, path=nothing, python="") == (0, f"[] {tmp_path}\n", "")
    link = tmp_path / "link"
    link.symlink_to(checkout / "hanquan")
    assert subprocess.run([link], check=True, capture_output=True, cwd="/").stdout == b"[] /\n"


def test_tests_add_what_they_need_to_the_same_folder(checkout: Path, quick: str) -> None:
    run(checkout, python=quick)
    (checkout / ".venv" / "kept").touch()
    assert "requirements/dev.txt" in run(checkout, "test", python=quick)[2]
    assert run(checkout, "test", python=quick)[2] == ""
    assert run(checkout, python=quick)[2] == ""
    assert (checkout / ".venv" / "kept").exists()


def test_a_half_made_folder_is_made_anew(checkout: Path, quick: str) -> None:
    run(checkout, python=quick)
    (checkout / ".venv" / "hanquan.stamp").unlink()
    (checkout / ".venv" / "leftover").touch()
    assert "installing" in run(checkout, python=quick)[2]
    assert not (checkout / ".venv" / "leftover").exists()


@pytest.mark.parametrize("change", ["lock", "python", "place"])
def test_a_change_is_seen(checkout: Path, quick: str, change: str) -> None:
    run(checkout, python=quick)
    if change == "lock":
        (checkout / "requirements" / "run.txt").write_text("# another lock\n")
    elif change == "python":
        for name in ("python", "python3"):
            (checkout / ".venv" / "bin" / name).unlink()
            (checkout / ".venv" / "bin" / name).symlink_to("/no/such/python")
    else:
        checkout = checkout.rename(checkout.with_name("moved"))
    assert "installing" in run(checkout, python=quick)[2]
    assert run(checkout, python=quick)[2] == ""


def test_two_first_runs_at_once_do_not_clash(checkout: Path, quick: str) -> None:
    processes = [
        subprocess.Popen(
            [str(checkout / "hanquan")],
            env={"PATH": SYSTEM_PATH, "PYTHON": quick},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    remarks = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sum("installing Python" in remark for remark in remarks) == 1
    assert sum("another run is installing; waiting" in remark for remark in remarks) == 2


def test_a_failed_installation_is_tried_again(checkout: Path, quick: str) -> None:
    lock = checkout / "requirements" / "run.txt"
    lock.write_text("hanquan-has-no-such-package==1.0 --hash=sha256:00\n")
    status, out, err = run(checkout, python=quick, PIP_NO_INDEX="1")
    assert (status, out) == (1, "")
    assert "pip could not install requirements/run.txt" in err
    lock.write_text("# nothing\n")
    assert run(checkout, python=quick)[0] == 0


OLD = 'case "$*" in *realpath*) echo "$0" ;; *version_info*) exit 1 ;; esac'
BARE = 'case "$*" in *realpath*) echo "$0" ;; *ensurepip*) exit 1 ;; esac'
SHIM = 'echo "version is not installed" >&2; exit 127'


@pytest.mark.parametrize(
    ("programs", "words"),
    [
        ({}, "needs Python 3.11 or newer: install it"),
        ({"python3_13": SHIM}, "needs Python 3.11 or newer: install it"),
        ({"python3": OLD}, "needs Python 3.11 or newer (python3 is older): install it"),
        ({"python3": BARE, "python3_12": SHIM}, "python3 has no venv module: install it"),
    ],
)
def test_without_a_fit_python_one_line_says_what_to_do(
    checkout: Path, tmp_path: Path, programs: dict[str, str], words: str
) -> None:
    status, out, err = run(checkout, path=folder_with(tmp_path, **programs), python="")
    assert (status, out) == (1, "")
    assert err.startswith(f"hanquan: {words}")
    assert err.count("\n") == 1
    assert not (checkout / ".venv").exists()


def test_a_shim_that_fails_is_passed_over(checkout: Path, quick: str, tmp_path: Path) -> None:
    path = folder_with(tmp_path, python3_13=SHIM, python3_12=OLD, python3_11=f'exec "{quick}" "$@"')
    assert run(checkout, path=path, python="")[0] == 0


def test_the_locks_name_no_machine() -> None:
    for lock in (ROOT / "requirements").glob("*.txt"):
        text = lock.read_text(encoding="utf-8")
        assert "--hash=sha256:" in text
        for word in ("://", "--index", "--find-links", "--trusted", "file:", str(Path.home())):
            assert word not in text


def test_the_script_may_be_run() -> None:
    for name in ("hanquan", ".ci/run", "requirements/lock"):
        assert os.access(ROOT / name, os.X_OK)
