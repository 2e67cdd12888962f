"""Campaigns that come with Hanquan."""

from pathlib import Path

_FOLDER = Path(__file__).parent / "files"


def shipped_names() -> list[str]:
    """Names of the campaigns, such as ``wuhan-2020``."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def shipped_document(name: str) -> bytes:
    """The file of a shipped campaign. Raises KeyError."""
    if name not in shipped_names():
        raise KeyError(f"no campaign {name} comes with Hanquan; there is {', '.join(shipped_names())}")
    return (_FOLDER / f"{name}.yaml").read_bytes()
