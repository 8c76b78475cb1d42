"""Several texts a row, for every kind of drafter, with layers of every kind of memory.

python -m pytest -n 0 tests/long/test_packed_rows.py    # two minutes
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import packed_rows
import tiny_families

from specjax.train.objectives import trained_kinds


@pytest.mark.parametrize("kind", trained_kinds())
def test_a_packed_text_teaches_what_it_teaches_alone(kind: str) -> None:
    """A recurrent state, a window, latents, and all of the text, a layer each."""
    with tiny_families.listed():
        packed_rows.teaches_what_it_teaches_alone(kind, tiny_families.model("mixed"))
