"""`python -m experiments.benchmark_peer`; the script is specjax/cli/benchmark_peer.py."""

from specjax.cli.benchmark_peer import script

if __name__ == "__main__":
    script()
