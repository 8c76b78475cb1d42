"""What all tests share: JAX in its strictest mode, on CPU, and the data that lies beside."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # `experiments` is run from the checkout, never installed

collect_ignore = ["multidevice"]  # run by test_multidevice in a process of its own

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference outputs and weights; tests that need it are skipped without it."""
    path = Path(os.environ.get("SPECJAX_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"no reference data at {path}; set SPECJAX_SHARED to the folder that holds it")
    return path


@pytest.fixture
def quick_compile():
    """Compiles with few optimisations: the tests are many programs that run for a moment."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
