"""`python -m issuer.callbacks`: tells partners what became of their vouchers."""

from issuer.callbacks.app import make_app
from kernel.web import run_service

if __name__ == "__main__":
    run_service("callbacks", make_app)
