"""Paying the merchants: one batch a campaign and day, two people, the bank's file and its answer.

    settle.py      propose, approve, reject
    export.py      the order to the bank: order_csv.py and pain001.py
    answer.py      the bank's answer: answer_csv.py reads it, the database books it
    statement.py   what a merchant sees
    expire.py      unused vouchers, and where their money goes
    batch.py       batches and lines as they stand
    refusals.py    every expected "no"

Money moves only in the functions of sql/migrations/0002_settlement.sql; nothing here posts a transfer.
"""
