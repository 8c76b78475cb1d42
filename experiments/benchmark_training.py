"""`python -m experiments.benchmark_training`; the script is specjax/cli/benchmark_training.py."""

from specjax.cli.benchmark_training import script

if __name__ == "__main__":
    script()
