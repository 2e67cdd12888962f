"""`python -m issuer.operator`: the operator service."""

from issuer.operator.app import make_app
from kernel.web import run_service

if __name__ == "__main__":
    run_service("operator", make_app)
