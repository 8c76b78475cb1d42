"""`python -m experiments.predict_check`; the script is specjax/cli/predict_check.py."""

from specjax.cli.predict_check import script

if __name__ == "__main__":
    script()
