"""`python -m issuer`: the claim service."""

from issuer.app import make_app
from kernel.web import run_service

if __name__ == "__main__":
    run_service("issuer", make_app)
