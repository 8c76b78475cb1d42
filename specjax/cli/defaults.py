"""What --config is where no file is named: the defaults of a script's options."""

from __future__ import annotations

import importlib

from ml_collections import ConfigDict

from specjax.cli.configs import config_of


def get_config(script: str) -> ConfigDict:
    return config_of(importlib.import_module(f"specjax.cli.{script}").script.options)
