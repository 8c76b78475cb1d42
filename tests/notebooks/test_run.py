"""Every notebook runs from top to bottom on a CPU.

    python -m pytest tests/notebooks

Not part of the suite, as it takes a minute: `.ci/run` runs it beside.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from test_notebooks import PATHS, SHOWN

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
