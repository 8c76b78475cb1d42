"""Continuations of the training corpus, written by the demo target itself.

Expected: 2000 lines of 64 tokens of the standard library and 192 of the target's own. Cost: that of
plain decoding, which every batch reports; on a GPU raise the batch.

  python -m experiments.regenerate --config=configs/regenerate.py --output=runs/regenerated.jsonl
"""

from __future__ import annotations

from ml_collections import ConfigDict

from specjax.cli.configs import config_of
from specjax.jobs.regenerating import Options


def get_config() -> ConfigDict:
    return config_of(Options)  # --help lists the fields
