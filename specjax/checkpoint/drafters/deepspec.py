"""DSpark as DeepSpec publishes it: a DFlash stack whose slots guess the token *after* their own.

Mask, taps and block size stand at the top of a config cloned from the target's, and the files hold
copies of the target's embedding and head. With a ``markov_rank`` of 0 it is what DeepSpec calls
DFlash, which is shifted all the same.
"""

from __future__ import annotations

from typing import Any

from specjax.checkpoint.drafters import zlab
from specjax.checkpoint.drafters.keys import Keys
from specjax.checkpoint.drafters.source import Plan, Source


def read(source: Source, target: Any) -> Plan:
    """Raises CheckpointError on what is unsupported, or does not fit ``target``."""
    keys = Keys(source.raw, source.where, zlab.BLOCK)
    return zlab.plan(source, target, keys, zlab.read_config(source, target, keys, shifted=True))
