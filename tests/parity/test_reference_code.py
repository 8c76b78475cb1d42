"""Exported drafters mean to other people's code what they mean here.

Drafters are exported in each of their formats, loaded by the code that the format comes from
(packages dflash, speculators, specforge; PyTorch on CPU) and compared in float32: hidden states,
logits, guesses, the whole text of the reference's own decoding loop with the tokens of each of its
cycles, and the losses of the reference's own trainer over its first updates, from the same weights,
on the same text, with the same anchors.

The packages pin what they stand on, so they get an environment of their own:

    python3 -m venv reference && reference/bin/pip install -r tests/parity/requirements.txt
    reference/bin/pip install --no-deps specforge==0.2.0
    SPECJAX_REFERENCE_PYTHON=reference/bin/python python -m pytest -n 0 tests/parity

With drafters of yours: SPECJAX_REFERENCE_TARGET=DIR SPECJAX_REFERENCE_DRAFTERS=DIR,DIR beside it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
import reference_cases

import specjax

PYTHON = os.environ.get("SPECJAX_REFERENCE_PYTHON", "")
TARGET = os.environ.get("SPECJAX_REFERENCE_TARGET", "")
GIVEN = [d for d in os.environ.get("SPECJAX_REFERENCE_DRAFTERS", "").split(",") if d]
FRESH = (
    *("dflash", "dflash sliding", "dflash causal", "dflash sliding from the anchor"),
    *("dflash2", "eagle3", "eagle3 reduced"),
)
pytestmark = pytest.mark.skipif(
    not PYTHON, reason="SPECJAX_REFERENCE_PYTHON names no Python with the reference packages"
)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Any], set[str]]]:
    """All of them in one run of the reference: the comparisons, and the packages it lacks."""
    scratch = tmp_path_factory.mktemp("reference")
    precision = jax.config.jax_default_matmul_precision
    jax.config.update("jax_default_matmul_precision", "highest")
    directory = Path(TARGET).resolve() if TARGET else scratch / "target"
    if not TARGET:
        reference_cases.write_target(directory)
    target = specjax.load(directory, dtype="float32")
    if TARGET:
        drafters = {d: specjax.load_drafter(d, target, dtype="float32") for d in GIVEN}
    else:
        drafters = reference_cases.fresh_drafters(target)
    yield reference_cases.compare(drafters, target, directory, scratch, python=PYTHON, steps=3)
    jax.config.update("jax_default_matmul_precision", precision)


@pytest.mark.parametrize("name", GIVEN if TARGET else FRESH)
def test_reference_code_agrees(compared: tuple[list[Any], set[str]], name: str) -> None:
    rows, missing = compared
    ours = [row for row in rows if row.name.startswith(f"{name},")]
    if not ours and missing:
        pytest.skip(f"not installed for {PYTHON}: {', '.join(sorted(missing))}")
    for row in ours:
        print(f"{row.name:<70}  {row.difference:>8.1e}  {row.tolerance:>8.0e}")
    assert ours and [(row.name, row.difference) for row in ours if not row.passed] == []
