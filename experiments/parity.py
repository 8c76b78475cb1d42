"""`python -m experiments.parity`; the script is specjax/cli/parity.py."""

from specjax.cli.parity import script

if __name__ == "__main__":
    script()
