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
    "demo": "Play a real Thursday of 2020, from the grab to the audit.",
    "up": "Start the whole stack on this machine; Ctrl-C stops it.",
    "down": "Stop the stack that runs in a data folder.",
    "status": "Say what runs, where it listens, whether it is ready.",
    "watch": "Show the rush live, in this terminal.",
    "audit": "Recompute every statement of the books from the rows.",
    "sign": "Sign a call and print it as a curl line.",
    "psql": "Open the database; arguments are passed on to psql.",
    "migrate": "Bring the database to the newest schema.",
    "reset": "Delete a data folder and everything in it.",
    "test": "Run the tests; arguments are passed on to pytest.",
}

GROUPS = {
    "campaign": "Check a campaign file, load it, grant vouchers to a list.",
    "stock": "Lead a stock through its life: approve, pause, budget.",
    "enrol": "Enrol partners, merchants with their terminals, operators.",
    "merchants": "Let merchants in: papers, stores, tills, keys, suspension.",
    "settle": "Pay the shops: propose, approve, export, bank's answer.",
    "reconcile": "Hold our books against partners and the bank.",
    "flags": "See who is flagged; release merchants, lift blocks.",
    "tills": "See which terminals are locked for invalid codes; let one go.",
    "load": "Send a rush of real clients, and audit their answers.",
    "bench": "Measure the issuer beside its limit, in one run.",
    "callbacks": "Tell partners what became of vouchers; mend what got stuck.",
    "privacy": "Export what is stored about a person; erase what may go.",
    "retention": "Show what is kept for how long; remove what is past it.",
    "faults": "Break a stack at random, and prove that nothing was lost.",
}
"""Commands with commands of their own: the module's `app`."""

for _name, _help in COMMANDS.items():
    app.command(f"stack.commands.{_name}:{_name}", name=_name, help=_help)
for _name, _help in GROUPS.items():
    app.command(f"stack.commands.{_name}:app", name=_name, help=_help)
