"""Trouble that a user of the command line can do something about."""


class StackError(Exception):
    """Expected trouble. The message is one plain line: what is wrong and what to do."""
