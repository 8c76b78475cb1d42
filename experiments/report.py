"""`python -m experiments.report`; the script is specjax/cli/report.py."""

from specjax.cli.report import script

if __name__ == "__main__":
    script()
