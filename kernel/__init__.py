"""Ground floor: money, clock, ids, codes, signing, errors, and how to open web, stores and settings.

Imports nothing of ours; everyone may import it.
"""
