"""What `experiments.compile` reads a config with."""

from specjax.cli.overrides import load

__all__ = ["load"]
