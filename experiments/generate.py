"""`python -m experiments.generate`; the script is specjax/cli/generate.py."""

from specjax.cli.generate import script

if __name__ == "__main__":
    script()
