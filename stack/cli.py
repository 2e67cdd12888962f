"""The command line. One line a command here, one file a command in stack/commands/.

Commands are imported only when they are called, so that ``--help`` is quick. A command is a
function; its return value, if it is an int, is the exit status.
"""

from cyclopts import App

app = App(
    name="hanquan",
    help="Consumption vouchers for a city: hand out, redeem, pay the shops, prove every fen.",
    version_flags=(),
)

COMMANDS = {
    "demo": "Play a real Thursday of 2020: grab, redeem, settle, reconcile, audit.",
    "up": "Start the whole stack on this machine and stay until Ctrl-C.",
    "down": "Stop the stack that runs in a data folder.",
    "status": "Say what runs, where it listens and whether it is ready.",
    "sign": "Sign a call with a key of the data folder and print it as a curl line.",
    "psql": "Open the database with psql; arguments are passed on.",
    "migrate": "Bring the database to the newest schema.",
    "reset": "Delete a data folder and everything in it.",
    "test": "Run the tests; arguments are passed on to pytest.",
}

GROUPS = {
    "campaign": "Check a campaign file, show what it costs, load it.",
    "flags": "Look at what anti-fraud flagged, release held merchants, lift blocks.",
    "enrol": "Enrol partners' keys, and merchants with their terminals.",
    "load": "Send a rush of real clients to a stack and audit what they were told.",
}
"""Commands with commands of their own: the module's `app`."""

for _name, _help in COMMANDS.items():
    app.command(f"stack.commands.{_name}:{_name}", name=_name, help=_help)
for _name, _help in GROUPS.items():
    app.command(f"stack.commands.{_name}:app", name=_name, help=_help)
