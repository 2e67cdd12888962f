"""Vouchers and packs that the city hands to a list of people.

people.read_people(data)      bytes of a file -> the people on it, or the lines that are wrong
grant.Granter(...).grant(...) each of them claims once, by a number that follows from person and offer
"""
