"""Every notebook runs from top to bottom on a CPU, and is kept with what it showed."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

PATHS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
# What the last line of a cell shows.
SHOWN = {
    "image/png": re.compile(r"(^|\.)plot_\w+\(.*\);$"),
    "text/html": re.compile(r"(^|\.)(show|race)\(.*\)$|^\w+\.trace$|^(report|faulty)$"),
    "text/markdown": re.compile(r"^Markdown\("),
}
# Repetitions that make a figure steadier, and that only a reader's run needs.
FEWER = {
    "why_no_speedup": {"rounds=6": "rounds=2", "repeats=9": "repeats=2"},
    "new_drafter": {"in range(4)": "in range(2)"},
}


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, place = tmp_path / "xla", tmp_path / "place"
    place.mkdir()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))  # nobody's own is touched
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = nbformat.read(path, as_version=4)
    for said, fewer in FEWER.get(path.stem, {}).items():
        places = [cell for cell in notebook.cells if said in cell.source]
        assert places, f"{path.stem} does not say {said}"
        for cell in places:
            cell.source = cell.source.replace(said, fewer)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=str(place))
    seen = set()
    for cell in notebook.cells:
        last = cell.source.splitlines()[-1]
        kinds = {kind for output in cell.get("outputs", ()) for kind in output.get("data", {})}
        for kind, ending in SHOWN.items():
            if cell.cell_type == "code" and ending.search(last):
                assert kind in kinds, f"nothing is shown by: {last}"
                seen.add(kind)
    assert {"image/png"} < seen
    assert not list(place.iterdir()), "a notebook leaves nothing behind"


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
