"""Kernels of our own, interpreted, against the references of their operations: the whole matrix.

    python -m pytest -n 0 tests/long/test_kernels.py

Not part of the suite, which has a few of these cases: on two cores this takes about 3 minutes.
"""

from __future__ import annotations

from typing import Any

import attention_cases
import jax.numpy as jnp
import pytest


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", attention_cases.CASES, ids=str)
def test_attention(case: attention_cases.Case, dtype: Any) -> None:
    attention_cases.check(case, dtype)
