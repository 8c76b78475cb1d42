"""From the products of queries, keys and values to heads: cut, normed, rotated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from specjax.core.ops.norm import Norm
from specjax.core.ops.op import Timed, differentiated_as
from specjax.core.platform import Platform
from specjax.core.sharding import fitting, pieces
from specjax.core.types import Array

_WIDEST = 512  # of a head

Heads = tuple[Array, Array, Array]
Weights = tuple[Any, Any] | None


class Products(NamedTuple):
    """What the matrices of queries, keys and values made of one input.

    ``q`` has for each of N heads H columns, and behind them others of that head if it is wider.
    ``whole`` has all three behind one another, in ``blocks`` equal shares of each (`models.joint`);
    None: they were multiplied one by one.
    """

    q: Array  # [B, T, N * (H or more)]
    k: Array  # [B, T, G * H]
    v: Array  # [B, T, G * H]
    whole: Array | None = None
    blocks: int | None = None

    @property
    def arrays(self) -> tuple[Array, ...]:
        """That in which all is: one, or three."""
        return self[:3] if self.whole is None else (self.whole,)


class Rotation(NamedTuple):
    """Cosines and sines of one forward pass, by which the first R features of heads are rotated."""

    cos: Array  # [B, 1, T, R] float32
    sin: Array  # [B, 1, T, R] float32, its first half negated

    def __call__(self, x: Array) -> Array:
        """Rotates ``x`` [B, N, T, H], or the first R features of wider heads."""
        size = self.cos.shape[-1]
        if size < x.shape[-1]:
            return jnp.concatenate([self(x[..., :size]), x[..., size:]], axis=-1)
        full = x.astype(jnp.float32)
        half = x.shape[-1] // 2
        swapped = jnp.concatenate([full[..., half:], full[..., :half]], axis=-1)
        cos = jnp.broadcast_to(self.cos, x.shape)
        sin = jnp.broadcast_to(self.sin, x.shape)
        return (full * cos + swapped * sin).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Form:
    """How products are cut, and where heads lie on a mesh."""

    queries: int  # N
    groups: int  # G
    width: int  # H
    # Of each head of queries and keys: what it makes of it and of weights; None: there is none.
    norm: Callable[[Array, Any], Array] | None = None
    # The logical axes of the heads of queries, and of keys and values.
    axes: tuple[str | None, str | None] = (None, None)


def split_heads(x: Array, heads: int) -> Array:
    """[B, T, N * H] -> [B, N, T, H]."""
    rows, num_tokens, _ = x.shape
    return x.reshape(rows, num_tokens, heads, -1).swapaxes(1, 2)


def reference(products: Products, rotation: Rotation, weights: Weights, form: Form) -> Heads:
    """See `heads`."""
    q = split_heads(products.q, form.queries)[..., : form.width]
    k, v = (split_heads(x, form.groups) for x in (products.k, products.v))
    if form.norm is not None:
        assert weights is not None
        q, k = form.norm(q, weights[0]), form.norm(k, weights[1])
    return rotation(q), rotation(k), v


@dataclasses.dataclass(frozen=True)
class HeadsAtOnce:
    """A variant of `heads`: all of it in a kernel of our own (`ops.heads_kernel`)."""

    interpret: bool = False  # as an XLA program: where there is no GPU, and slowly

    def __call__(
        self,
        products: Products,
        rotation: Rotation,
        weights: Weights,
        form: Form,
    ) -> Heads:
        laid = None if unfit(products, form) else Laid.of(products, rotation, form)
        if laid is None:
            return reference(products, rotation, weights, form)
        given = products._replace(blocks=None)

        def kernel(given: Products, rotation: Rotation, weights: Weights) -> Heads:
            return laid.run(self._local, given.arrays, rotation, weights)

        def slowly(given: Products, rotation: Rotation, weights: Weights) -> Heads:
            return reference(given, rotation, weights, form)

        found: Heads = differentiated_as(kernel, slowly)(given, rotation, weights)
        return found

    def _local(self, arrays: Any, rotation: Rotation, weights: Any, form: Form) -> Heads:
        from specjax.core.ops.heads_kernel import cut  # only here: it brings Pallas

        return cut(arrays, rotation, weights, form, self.interpret)


@dataclasses.dataclass(frozen=True)
class Laid:
    """On a mesh every device cuts the rows and heads that it has."""

    form: Form  # of what a device has
    specs: Any  # of products, rotation, and of what comes of them; None: no mesh

    @classmethod
    def of(cls, products: Products, rotation: Rotation, form: Form) -> Laid | None:
        """None: a device does not have all of its heads."""
        mesh, joined = jax.sharding.get_abstract_mesh(), products.whole is not None
        of_q, of_kv = (1 if mesh.empty or axis is None else pieces(axis) for axis in form.axes)
        if form.queries % of_q or form.groups % of_kv:
            return None
        if joined and not products.blocks == of_q == of_kv:
            return None
        counts = form.queries // of_q, form.groups // of_kv
        local = dataclasses.replace(form, queries=counts[0], groups=counts[1])
        if mesh.empty:
            return cls(local, None)
        axes = (form.axes[0], form.axes[1], form.axes[1])
        given = tuple(
            fitting(x.shape, ("batch", None, axis)) for x, axis in zip(products.arrays, axes)
        )
        around: Any = fitting(rotation.cos.shape, ("batch", None, None, None))
        rows, heads = products.q.shape[0], (form.queries, form.groups, form.groups)
        found = tuple(
            fitting((rows, count, 1, 1), ("batch", axis, None, None))
            for count, axis in zip(heads, axes)
        )
        return cls(local, (given, Rotation(around, around), found))

    def run(
        self, cut: Callable[..., Heads], arrays: Any, rotation: Rotation, weights: Any
    ) -> Heads:
        """``cut`` of each device's part; nothing is exchanged."""
        local = lambda *given: cut(*given, self.form)
        if self.specs is not None:
            *given, found = self.specs
            of_weights = None if weights is None else (PartitionSpec(None),) * 2
            specs = (*given, of_weights)
            local = jax.shard_map(local, in_specs=specs, out_specs=found, check_vma=False)
        return local(arrays, rotation, weights)


def unfit(products: Products, form: Form) -> str | None:
    """Why the kernel does not take these; None: it does."""
    dtypes = {x.dtype for x in products[:3]}
    if len(dtypes) > 1 or not dtypes <= {jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)}:
        return "products are not of one type, float32 or bfloat16"
    if form.norm is not None and not isinstance(form.norm, Norm):
        return "heads have a norm of another kind"
    if form.width > _WIDEST:
        return f"a head is wider than {_WIDEST}"
    return None


# (Not among `ops.OPS`, whose variants run on CPU as they are.)
HEADS = Timed(reference, {"gpu": HeadsAtOnce(), "gpu:xla": reference}, name="heads")


def heads(
    products: Products,
    rotation: Rotation,
    weights: Weights,
    form: Form,
    *,
    platform: Platform | None = None,
) -> Heads:
    """Queries [B, N, T, H], and keys and values [B, G, T, H], in the type of the products.

    ``weights`` are those of the norms of each head of queries and keys, if ``form`` has one: [H],
    or what else such a norm takes.
    """
    found: Heads = HEADS(platform, products, rotation, weights, form)
    return found
