"""Breaks a stack at random, under load, and holds what its clients were told against its books.

wire.py     a TCP proxy that loses replies, holds them back and cuts connections
crowd.py    clients that write down what they asked and what they were told
books.py    what the books say of those claims: lost, doubled
field.py    the stack that is broken: its stores, services, wires and crowd
kinds.py    the faults, one function each
issuer.py   rounds of faults against the claim service, and the report
"""
