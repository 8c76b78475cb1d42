"""DSpark as DeepSpec publishes it: a DFlash stack whose slots guess the token *after* their own.

Mask, taps and block size stand at the top of a config cloned from the target's, and the files hold
copies of the target's embedding and head. With a ``markov_rank`` of 0 it is what DeepSpec calls
DFlash, which is shifted all the same.
"""

from __future__ import annotations

from specjax.checkpoint.drafters.source import Plan, Source
from specjax.drafters.dflash import zlab
from specjax.drafters.dflash.net import DFlashConfig
from specjax.models.target import Target


def read(source: Source, target: Target) -> Plan:
    """Raises CheckpointError on what is unsupported, or does not fit ``target``."""
    return zlab.plan(source, target, read_config(source, target))


def read_config(source: Source, target: Target) -> DFlashConfig:
    """As `zlab.read_config`."""
    return zlab.read_config(source, target, shifted=True)
