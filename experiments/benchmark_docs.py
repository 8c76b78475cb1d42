"""`python -m experiments.benchmark_docs`; the script is specjax/cli/benchmark_docs.py."""

from specjax.cli.benchmark_docs import script

if __name__ == "__main__":
    script()
