"""`python -m experiments.export`; the script is specjax/cli/export.py."""

from specjax.cli.export import script

if __name__ == "__main__":
    script()
