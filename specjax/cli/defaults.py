"""What --config is where no file is named: the defaults of a script's options."""

from __future__ import annotations

from ml_collections import ConfigDict

from specjax.cli.configs import config_of
from specjax.cli.flags import RECORDS


def get_config(script: str) -> ConfigDict:
    return config_of(RECORDS[script])
