"""Runs the notebooks from top to bottom and stores them with what they showed.

  python -m experiments.notebooks
  python -m experiments.notebooks --name=quickstart

Each runs twice in fresh kernels, as the clock of a first run contains the compiler. Needs the
packages of 'specjax[test]'. Run it where nothing else runs: times are stored, too.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specjax.cli.errors import one_line_errors
from specjax.cli.script import Script
from specjax.core import machine
from specjax.core.files import write_atomically
from specjax.core.options import option
from specjax.lab.view import marks

PLACE = Path(__file__).resolve().parent.parent / "notebooks"


@dataclasses.dataclass(frozen=True)
class Options:
    name: tuple[str, ...] | None = option(None, "Of a notebook; default: all of them.", many=True)


def main(options: Options) -> None:
    known = {path.stem: path for path in sorted(PLACE.glob("*.ipynb"))}
    with one_line_errors():
        for name in options.name or known:
            if name not in known:
                raise ValueError(f"--name={name}: there are {', '.join(known)}.")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    for name in options.name or known:
        executed(known[name])
        others = machine.Others()
        made = executed(known[name])
        write_atomically(known[name], made)
        print(f"{known[name].name}: {len(made) / 1e3:,.0f} kB")
        if max(others.cores(), default=0.0) > marks.BUSY:
            print("note: other processes took part of the machine: times in it are rough.")


def executed(path: Path) -> str:
    """The notebook after a run in an empty directory, without what only this run is about."""
    import nbformat  # of the extra "test"
    from nbclient import NotebookClient

    notebook: Any = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as place:
        client = NotebookClient(notebook, timeout=900, kernel_name="python3", record_timing=False)
        client.execute(cwd=place)
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell["outputs"] = joined(cell.outputs)
    return nbformat.writes(notebook) + "\n"


def joined(outputs: Sequence[Any]) -> list[Any]:
    """Pieces of one stream together: how it was cut is chance. What went to stderr is left out."""
    made: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and output.name == "stderr":
            continue
        last = made[-1] if made else None
        if output.output_type == "stream" and last is not None and last.output_type == "stream":
            last["text"] += output.text
        else:
            made.append(output)
    return made


script = Script("notebooks", __doc__, Options, main)
