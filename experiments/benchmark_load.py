"""`python -m experiments.benchmark_load`; the script is specjax/cli/benchmark_load.py."""

from specjax.cli.benchmark_load import script

if __name__ == "__main__":
    script()
