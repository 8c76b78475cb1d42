"""Every drafter under every rule writes on eight devices, of 1, 2 or 4 processes, what one does.

    python -m pytest -n 0 tests/long/test_meshes.py

Not part of the suite: on two cores this takes a quarter of an hour. docs/long_tests.md has results.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import several

from specjax import drafters, verify


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return texts(tmp_path_factory.mktemp("alone"), 1, 1, "")


def texts(folder: Path, num: int, devices: int, mesh: str) -> dict[str, Any]:
    command = ["tests/long/on_meshes.py", f"--mesh={mesh}", f"--output={folder}/texts.json"]
    ends = several.start(num, command, devices=devices, timeout=3000)
    assert {e.status for e in ends} == {0}, [e.stderr[-2000:] for e in ends]
    found: dict[str, Any] = json.loads((folder / "texts.json").read_text())
    return found


@pytest.mark.parametrize(
    "num, devices, mesh",
    [(1, 8, "data:2,model:4"), (2, 4, "data:2,model:4"), (4, 2, "data:4,model:2")],
)
def test_texts_are_those_of_one_device(num, devices, mesh, alone, tmp_path: Path) -> None:
    found = texts(tmp_path, num, devices, mesh)
    assert found.keys() == alone.keys()
    assert len(found) == len(drafters.DRAFTERS) * len(verify.RULES)
    assert {k for k, v in found.items() if v != alone[k]} == set()
    written = [v for v in found.values() if isinstance(v, list)]
    assert len(written) > len(found) // 2 and all(any(row) for text in written for row in text)
