"""`python -m experiments.train_lm`; the script is specjax/cli/train_lm.py."""

from specjax.cli.train_lm import script

if __name__ == "__main__":
    script()
