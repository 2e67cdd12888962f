"""The load test of a stack: a fresh campaign, a rush of real clients, and two audits.

prepare.py   loads a campaign of its own, enrols keys, writes the plan that loadtests/ reads
rush.py      runs Locust as processes of their own and watches what the clients are told
verdict.py   holds what they were told against the server and against the ledger
noon.py      one run from end to end

Nothing of loadtests/ is imported here: it stands for somebody else's program, and talks HTTP only.
"""
