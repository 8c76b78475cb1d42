"""`python -m experiments.compile`; the script is specjax/cli/compile.py."""

from specjax.cli.compile import script

if __name__ == "__main__":
    script()
