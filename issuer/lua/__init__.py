"""The issuer's scripts: one file a script, each beside no other caller than issuer/stock.py or issuer/moves.py."""

from importlib.resources import files


def lua(name: str) -> str:
    """The text of a script in this folder."""
    return files("issuer.lua").joinpath(name).read_text(encoding="utf-8")
