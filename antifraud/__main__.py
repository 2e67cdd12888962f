"""``python -m antifraud``: the worker of layer B."""

from antifraud.app import make_app
from kernel.web import run_service

if __name__ == "__main__":
    run_service("antifraud", make_app)
