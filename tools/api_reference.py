"""Builds the API reference from the docstrings; any warning is an error.

pip install -e '.[docs]' && python -m tools.api_reference build/api
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

# Whatever a reader of the code may import; scripts and the demo's data are no part of it.
MODULES = ("specjax", "!specjax.demo")


def build(directory: Path) -> None:
    """Writes one page a module into ``directory``. Raises a warning of pdoc's as an error."""
    import pdoc

    import specjax

    for name in specjax.__all__:  # those that are imported when they are asked for, too
        setattr(specjax, name, getattr(specjax, name))
    pdoc.render.configure(docformat="google")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pdoc.pdoc(*MODULES, output_directory=directory)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
