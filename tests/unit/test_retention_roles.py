"""A data folder of an older version gets the passwords of roles that came since, and keeps the others."""

from pathlib import Path

import msgspec

from stack.data_folder import DataFolder, write_atomically


def test_a_folder_without_the_custodian_gets_one(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    made = folder.secrets()
    passwords = {role: word for role, word in made.role_passwords.items() if role != "hanquan_custodian"}
    older = msgspec.structs.replace(made, role_passwords=passwords)
    write_atomically(tmp_path / "secrets.json", msgspec.json.encode(older))

    mended = folder.secrets()
    assert mended.role_passwords.keys() == made.role_passwords.keys()
    assert passwords.items() <= mended.role_passwords.items()
    assert folder.secrets() == mended  # it is written down
