"""`python -m experiments.regenerate`; the script is specjax/cli/regenerate.py."""

from specjax.cli.regenerate import script

if __name__ == "__main__":
    script()
