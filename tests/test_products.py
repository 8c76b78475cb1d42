"""Products in a kernel of our own: interpreted here, as there is no GPU."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import product_cases
import pytest
import state_cases
from jax.sharding import AbstractMesh, AxisType

from specjax.core.ops import linear
from specjax.core.ops.linear import PRODUCT, unfit
from specjax.core.platform import Platform
from specjax.core.quantised import quantise

# The rest of the matrix is in tests/long/test_kernels.py.
FEW = [(1, 40, 70), (5, 300, 33), (70, 16, 48)]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", FEW, ids=str)
def test_it_gives_what_the_reference_does(sizes: tuple[int, int, int], dtype: Any) -> None:
    """Of rows, columns and widths that no tile divides."""
    product_cases.check(*sizes, dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_it_finds_the_likeliest(dtype: Any) -> None:
    product_cases.check_likeliest(5, 24, 37, dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", [(1, 80, 33), (17, 300, 40)], ids=str)
def test_a_norm_is_within_a_product_and_a_sum_behind_one(
    sizes: tuple[int, int, int], dtype: Any
) -> None:
    kind = "late gain" if sizes[0] == 1 else "from one"
    product_cases.check_stream(*sizes, state_cases.KINDS[kind], dtype)


def test_it_is_asked_for_and_takes_what_it_can() -> None:
    """All else is left to XLA, each for a reason."""
    drawn = lambda *shape: jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.bfloat16)
    x, w = drawn(3, 32), drawn(24, 32)

    def traced(x: Any, w: Any, kernels: Any = "pallas") -> str:
        run = lambda x: linear(x, w, platform=Platform("gpu", kernels=kernels), dtype=x.dtype)
        return str(jax.make_jaxpr(run)(x))

    assert "pallas_call" in traced(x, w)
    for kernels in ("attention", "xla"):
        assert "pallas_call" not in traced(x, w, kernels)
    assert "pallas_call" not in traced(x, quantise(w, "int8"))
    assert "rows" in (unfit(drawn(129, 32), w) or "")
    assert "type" in (unfit(x.astype(jnp.float16), w.astype(jnp.float16)) or "")
    mesh = AbstractMesh((1, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    with jax.sharding.use_abstract_mesh(mesh):
        assert "mesh" in (unfit(x, w) or "") and "pallas_call" not in traced(x, w)
    gradient = jax.grad(lambda x: linear(x, w, platform=Platform("gpu", kernels="pallas")).sum())
    assert str(jax.make_jaxpr(gradient)(x)).count("pallas_call") == 1  # forward alone


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_rows_are_padded_on_cpu_and_their_products_are_not(dtype: Any) -> None:
    """For each number of rows: some are multiplied with others that are not there."""
    rows, w = (jax.random.normal(jax.random.key(n), (n, 48), dtype) for n in (17, 20))
    for num in range(1, 18):
        want = np.asarray(rows[:num], np.float32) @ np.asarray(w, np.float32).T
        found = PRODUCT.on(Platform("cpu"))(rows[:num], w)
        assert found.shape == want.shape
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
