"""`python -m experiments.benchmark_device`; the script is specjax/cli/benchmark_device.py."""

from specjax.cli.benchmark_device import script

if __name__ == "__main__":
    script()
