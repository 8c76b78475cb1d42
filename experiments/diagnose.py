"""`python -m experiments.diagnose`; the script is specjax/cli/diagnose.py."""

from specjax.cli.diagnose import script

if __name__ == "__main__":
    script()
