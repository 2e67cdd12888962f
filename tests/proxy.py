"""A wire between a service and its store that tests cut: see stack/faults/wire.py."""

from stack.faults.wire import Where, Wire, wire_to

__all__ = ["Where", "Wire", "wire_to"]
