"""What lies between products and attention, and a sum and its norm, in all their kinds."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core.ops import Form, Norm, Products, Rotation
from specjax.core.ops.heads import HeadsAtOnce
from specjax.core.ops.heads import reference as cut_apart
from specjax.core.ops.norm import NormAtOnce
from specjax.core.ops.norm import reference as added_and_normed

KINDS = {
    "late gain": Norm(1e-5),
    "late rounded": Norm(1e-6, early=False),
    "from one": Norm(1e-6, early=False, one=True),
}
# Sums in another order, and one product and sum at once; in bfloat16 that is at most its last bit.
CLOSE = {"float32": 3e-6, "bfloat16": 2.0**-7}


@dataclasses.dataclass(frozen=True)
class Case:
    """Products of some tokens of each of two rows, and what is made of them."""

    name: str
    rows: int = 2
    tokens: int = 3
    queries: int = 6
    groups: int = 2
    width: int = 64
    rotated: int | None = None  # features of a head; None: all
    gated: bool = False
    kind: str | None = None  # of the norm of heads
    joined: bool = True

    def __str__(self) -> str:
        return self.name


CASES = (
    Case("llama"),
    Case("each by itself", joined=False),
    Case("one token of one row", rows=1, tokens=1, width=128),
    Case("many tokens", tokens=37),
    Case("partly rotated", rotated=24),
    Case("a head for itself", queries=1, groups=1, width=16),
    *(Case(f"norm: {kind}", kind=kind) for kind in KINDS),
    Case("other widths, norm", width=80, kind="late gain"),
    Case("gated, partly rotated, norm", gated=True, rotated=16, kind="from one"),
    Case("gated, each by itself", gated=True, joined=False),
    Case("wide", width=256, kind="from one", rotated=64),
)


def arguments(case: Case, dtype: Any) -> tuple[Any, ...]:
    """What `heads` takes, beside its platform."""
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), dtype)

    c, size = case, case.rotated or case.width
    sizes = [c.queries * c.width * (1 + c.gated), c.groups * c.width, c.groups * c.width]
    whole = drawn(c.rows, c.tokens, sum(sizes))
    q, k, v = jnp.split(whole, np.cumsum(sizes)[:2], axis=-1)
    angles = jnp.asarray(rng.normal(size=(c.rows, 1, c.tokens, size // 2)) * 30, jnp.float32)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    turned = Rotation(*(jnp.concatenate(x, -1) for x in ((cos, cos), (-sin, sin))))
    products = Products(q, k, v, whole, 1) if c.joined else Products(q, k, v)
    form = Form(c.queries, c.groups, c.width, norm=None if c.kind is None else KINDS[c.kind])
    weights = None if c.kind is None else (drawn(c.width), drawn(c.width))
    return products, turned, weights, form


def check(case: Case, dtype: Any) -> None:
    """The kernel, interpreted, gives what the reference does."""
    products, *rest = arguments(case, dtype)
    kernel = HeadsAtOnce(interpret=True)
    alone = products if products.whole is None else _only_whole(products)
    want = jax.jit(lambda: cut_apart(products, *rest))()
    got = jax.jit(lambda: kernel(alone, *rest))()
    same(got, want, dtype, str(case))


def _only_whole(products: Products) -> Products:
    """NaN in all that the kernel has no need to read."""
    q, k, v, *rest = products
    return Products(*(jnp.full_like(x, jnp.nan) for x in (q, k, v)), *rest)


def check_norm(kind: str, shape: tuple[int, ...], dtype: Any, *, added: bool) -> None:
    """The same of a sum and its norm."""
    rng = np.random.default_rng(1)
    # So small that what keeps a norm from dividing by nothing is seen.
    x, more = (jnp.asarray(1e-3 * rng.normal(size=shape), dtype) for _ in range(2))
    weight = jnp.asarray(rng.normal(size=shape[-1]), dtype)
    given = (x, more if added else None, weight, KINDS[kind])
    want = jax.jit(lambda: added_and_normed(*given))()
    got = jax.jit(lambda: NormAtOnce(interpret=True)(*given))()
    np.testing.assert_array_equal(got[0].astype(jnp.float32), want[0].astype(jnp.float32))
    same(got, want, dtype, f"{kind} {shape}")


def same(got: Any, want: Any, dtype: Any, told: str) -> None:
    close = CLOSE[jnp.dtype(dtype).name]
    for one, other in zip(got, want, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype == dtype, told
        one, other = (x.astype(jnp.float32) for x in (one, other))
        np.testing.assert_allclose(one, other, rtol=close, atol=close, err_msg=told)
