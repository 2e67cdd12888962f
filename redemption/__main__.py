"""`python -m redemption`: the checkout service."""

from kernel.web import run_service
from redemption.app import make_app

if __name__ == "__main__":
    run_service("redemption", make_app)
