"""Retention: what is kept for how long, and the removal of what is past its time (docs/privacy.md).

Each family of rows or keys has one class that looks and applies. All of them work in small steps beside a running
system, and begin again where they were broken off.
"""
