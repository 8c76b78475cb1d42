"""`python -m experiments.train_drafter`; the script is specjax/cli/train_drafter.py."""

from specjax.cli.train_drafter import script

if __name__ == "__main__":
    script()
