"""Every notebook is kept with what it showed; `tests/notebooks` runs them."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

PATHS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
# What the last line of a cell shows.
SHOWN = {
    "image/png": re.compile(r"(^|\.)plot_\w+\(.*\);$"),
    "text/html": re.compile(r"(^|\.)(show|race)\(.*\)$|^\w+\.trace$|^(report|faulty)$"),
    "text/markdown": re.compile(r"^Markdown\("),
}


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_notebook_is_as_it_is_kept(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[:3] == ["markdown", "markdown", "code"]
    assert notebook.cells[0].source.startswith("# ")
    assert "pip install" in notebook.cells[1].source
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "print(jax.devices())" in code[0].source
    assert sum("assert " in cell.source for cell in code) >= 3, "claims are asserted"
    for number, cell in enumerate(code, 1):
        assert cell.execution_count == number, "run top to bottom: python -m experiments.notebooks"
        last = cell.source.splitlines()[-1]
        kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
        assert all(output.output_type != "error" for output in cell.outputs)
        for kind, ending in SHOWN.items():
            if ending.search(last):
                assert kind in kinds, f"nothing is kept of: {last}"
    text = path.read_text()
    assert path.stat().st_size < 1e6, "notebooks are kept small"
    assert not re.search(r"/(home|root|tmp|usr|work)/|site-packages", text), "a path of a machine"
