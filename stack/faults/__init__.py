"""Breaks a stack at random, under load, and holds what its clients were told against its books.

wire.py     a TCP proxy that loses replies, holds them back and cuts connections
witness.py  what every crowd has: signed requests, and an eye for what may never be
drill.py    rounds of faults, whoever is broken; report.py  what is told of them

            the issuer                                      the checkout
clients     crowd.py   people who claim                     tills.py       tills that redeem and refund (till_asks.py)
books       books.py   lost, doubled                        till_books.py  the same of redemptions and refunds
stack       field.py   stores, services, wires, crowd       town.py        the same with shops and a finance office
faults      kinds.py   one function each                    till_kinds.py  one function each
drill       issuer.py                                       checkout.py
"""
