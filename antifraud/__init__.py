"""Anti-fraud: signals in, verdicts with reasons out. Knows neither issuer nor redemption.

Three layers: A, the gate, inside the claim script (gate.lua); B, detectors over a stream of signals
(`python -m antifraud`), seconds behind; C, batch work over weeks, to come. Issuer and redemption
import `antifraud.gate` and nothing else of this package.
"""
