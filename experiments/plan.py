"""`python -m experiments.plan`; the script is specjax/cli/plan.py."""

from specjax.cli.plan import script

if __name__ == "__main__":
    script()
