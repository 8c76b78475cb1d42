"""`python -m experiments.benchmark`; the script is specjax/cli/benchmark.py."""

from specjax.cli.benchmark import script

if __name__ == "__main__":
    script()
