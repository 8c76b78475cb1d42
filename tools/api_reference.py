"""Builds the API reference from the docstrings; any warning is an error.

pip install -e '.[lab,docs]' && python -m tools.api_reference build/api
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import sys
import warnings
from pathlib import Path

import specjax

# Whatever a reader of the code may import; scripts and the demo's data are no part of it.
MODULES = ("specjax", "!specjax.demo")


def build(directory: Path) -> None:
    """Writes one page a module into ``directory``. Raises a warning of pdoc's as an error."""
    import pdoc

    for module in pkgutil.walk_packages(specjax.__path__, "specjax."):
        if not module.name.startswith("specjax.demo"):
            resolve_inherited(importlib.import_module(module.name))
    for name in specjax.__all__:  # those that are imported when they are asked for, too
        setattr(specjax, name, getattr(specjax, name))
    pdoc.render.configure(docformat="google")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pdoc.pdoc(*MODULES, output_directory=directory)


def resolve_inherited(module: object) -> None:
    """Types of fields that a dataclass inherits mean what they do where they were written."""
    for cls in [x for x in vars(module).values() if inspect.isclass(x)]:
        if not dataclasses.is_dataclass(cls) or "__init__" not in vars(cls):
            continue
        types = vars(cls)["__init__"].__annotations__
        for base in cls.__mro__[1:]:
            there = vars(sys.modules.get(base.__module__, cls))
            for name in set(types) & set(vars(base).get("__annotations__", {})):
                if isinstance(types[name], str):
                    types[name] = eval(types[name], dict(there))


if __name__ == "__main__":
    build(Path(sys.argv[1]))
