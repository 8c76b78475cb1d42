"""`python -m experiments.audit`; the script is specjax/cli/audit.py."""

from specjax.cli.audit import script

if __name__ == "__main__":
    script()
