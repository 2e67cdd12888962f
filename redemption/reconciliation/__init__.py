"""Our books against what partners and the bank say.

    flow_file.py   the file that a partner and we send each other for each day
    our_flow.py    our side of it, as CSV or XLSX (flow_xlsx.py)
    reconcile.py   a run: finds breaks, closes those that are gone
    breaks.py      breaks as they stand, and closing one by hand

What a break is and how rows are paired is in sql/migrations/0002_settlement.sql.
"""
