"""Merchants: how a shop gets in, its stores, terminals and keys, and what stops it.

credit_code, application, check, register   pure rules over data
onboarding, places, standing, keys          use cases
book                                        every statement they make
handlers                                    what a merchant may ask over HTTP
"""
