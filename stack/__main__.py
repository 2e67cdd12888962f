"""``python -m stack``: what ./hanquan runs."""

import sys


def main() -> None:
    """Entry point of the command line."""
    from stack.cli import app
    from stack.console import exit_status

    sys.exit(exit_status(lambda: app(result_action="return_value")))


if __name__ == "__main__":
    main()
