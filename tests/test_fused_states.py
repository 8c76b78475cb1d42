"""Kernels for what lies between products: interpreted here, as there is no GPU."""

from __future__ import annotations

import collections
import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import state_cases
import tiny
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

from specjax.core.ops import Form, Norm, Products, Rotation, add_norm, heads
from specjax.core.ops.heads import HeadsAtOnce, Laid, unfit
from specjax.core.ops.heads import reference as cut_apart
from specjax.core.ops.norm import ADD_NORM, NormAtOnce
from specjax.core.ops.norm import reference as added_and_normed
from specjax.core.ops.norm import unfit as unfit_norm
from specjax.core.ops.stream import ADD_PRODUCT, NORM_PRODUCT, AddedInside, NormedInside
from specjax.core.platform import Platform
from specjax.core.sharding import use_mesh
from specjax.models.joining import joined
from specjax.models.layers.linear import Linear
from specjax.models.layers.norm import RMSNorm, of_heads
from specjax.models.layers.residual import Residual, given_to, pin, states_of, takes_residual

GPU, XLA, CPU = Platform("gpu"), Platform("gpu", kernels="xla"), Platform("cpu")
PALLAS = Platform("gpu", kernels="pallas")

# The rest of the matrix is in tests/long/test_kernels.py.
FEW = {"llama": jnp.bfloat16, "gated, partly": jnp.float32, "other widths": jnp.bfloat16}


@pytest.mark.parametrize("name", FEW)
def test_heads_are_what_the_reference_makes(name: str) -> None:
    case = next(case for case in state_cases.CASES if str(case).startswith(name))
    state_cases.check(case, FEW[name])


@pytest.mark.parametrize("kind", state_cases.KINDS)
def test_a_sum_and_its_norm_are(kind: str) -> None:
    state_cases.check_norm(kind, (2, 3, 80), jnp.bfloat16, added=kind != "from one")


def test_gradients_are_those_of_the_references() -> None:
    """Which run in the place of the kernels: no kernel has a derivative."""
    case = dataclasses.replace(state_cases.CASES[-2], kind="late gain", tokens=2)
    products, rotation, weights, form = state_cases.arguments(case, jnp.float32)
    x, weight = products.q, jnp.ones(products.q.shape[-1])

    def gradients(cut: Any, norm: Any) -> Any:
        def total(given: Any) -> Any:
            (products, weights), (x, weight) = given
            q, k, v = cut(products, rotation, weights, form)
            both = norm(x, 2 * x, weight, state_cases.KINDS["late gain"])
            return sum((y**2).sum() for y in (q, k, v, *both))

        return jax.grad(total)(((products, weights), (x, weight)))

    products = products._replace(blocks=None)
    wants = gradients(cut_apart, added_and_normed)
    gots = gradients(HeadsAtOnce(), NormAtOnce())
    for got, want in zip(jax.tree.leaves(gots), jax.tree.leaves(wants), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


class Adding:
    """A layer that only adds and norms."""

    norm: Any  # or none

    @takes_residual("norm")
    def __call__(self, x: Any) -> Any:
        return x + (self.norm(x) if hasattr(self, "norm") else x)


class Squares(RMSNorm):
    """A norm that does otherwise."""

    def __call__(self, x: Any) -> Any:
        return jnp.square(x)


class Cubing:
    """A norm that is none of ours."""

    def __call__(self, x: Any) -> Any:
        return x**3


class Mixed(Cubing, RMSNorm):
    """Its call comes from another class than its own."""


class Squaring(Adding):
    """One that does otherwise."""

    def __call__(self, x: Any) -> Any:
        return x**2


def traced(function: Any, *given: Any) -> str:
    return str(jax.make_jaxpr(function)(*given))


def test_other_platforms_have_no_kernel() -> None:
    """Nor have programs for GPUs that are left to XLA."""
    products, *rest = state_cases.arguments(state_cases.CASES[0], jnp.bfloat16)
    x, weight, kind = products.q, jnp.ones(products.q.shape[-1]), state_cases.KINDS["late gain"]
    for platform, ours in ((GPU, True), (XLA, False), (CPU, False), (Platform("tpu"), False)):
        cut = traced(lambda q, on=platform: heads(products._replace(q=q), *rest, platform=on), x)
        norm = traced(lambda x, on=platform: add_norm(x, x, weight, kind, platform=on), x)
        assert ("pallas_call" in cut, "pallas_call" in norm) == (ours, ours)
        assert isinstance(given_to(Adding(), x, platform), Residual) == ours
        assert given_to(Squaring(), x, platform) is x
    made = {"eps": 1e-6, "dtype": jnp.dtype("float32"), "rngs": nnx.Rngs(0)}
    for norm, takes in ((RMSNorm(4, **made), True), (Squares(4, **made), False)):
        layer = Adding()
        layer.norm = norm
        assert isinstance(given_to(layer, x, GPU), Residual) == takes, norm
        assert isinstance(given_to(norm, x, GPU), Residual) == takes, norm
    layer.norm = Mixed(4, **made)
    assert given_to(layer, x, GPU) is x
    layer.norm = lambda x: x
    assert given_to(layer, x, GPU) is x


def test_what_they_do_not_take_is_left_to_xla() -> None:
    """Each for a reason, in words."""
    products, _, _, form = state_cases.arguments(state_cases.CASES[0], jnp.bfloat16)
    half = products._replace(v=products.v.astype(jnp.float16))
    assert unfit(products, form) is None
    assert "one type" in (unfit(half, form) or "")
    assert "wider" in (unfit(products, dataclasses.replace(form, width=640)) or "")
    of_another = dataclasses.replace(form, norm=lambda x, layer: layer(x))
    assert "another kind" in (unfit(products, of_another) or "")
    assert unfit_norm(products.q, products.q) is None
    assert "one type" in (unfit_norm(products.q, half.v) or "")
    assert "wider" in (unfit_norm(jnp.zeros((1, 1 << 15)), None) or "")


def test_a_norm_of_ones_own_is_asked() -> None:
    """Of heads as of states, on every platform; and two of one kind that differ are each asked."""
    made = lambda kind, eps: kind(4, eps=eps, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    products = Products(jnp.full((1, 1, 4), 3.0), jnp.full((1, 1, 4), 2.0), jnp.ones((1, 1, 4)))
    rotation = Rotation(jnp.ones((1, 1, 1, 4)), jnp.zeros((1, 1, 1, 4)))
    for layers, known in (
        ((made(Squares, 1e-6), made(Squares, 1e-6)), False),
        ((made(RMSNorm, 1e-6), made(RMSNorm, 1e-1)), False),
        ((made(RMSNorm, 1e-6), made(RMSNorm, 1e-6)), True),
    ):
        norm, weights = of_heads(*layers)
        assert isinstance(norm, Norm) == known
        found = heads(products, rotation, weights, Form(1, 1, 4, norm=norm), platform=CPU)
        for got, layer, x in zip(found, layers, products):
            np.testing.assert_array_equal(got[:, 0], layer(x))


def laid(products: Any, rotation: Any, form: Form, model: int) -> Laid | None:
    mesh = AbstractMesh((1, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    with use_mesh(mesh):
        return Laid.of(products, rotation, form)


def test_on_a_mesh_each_device_cuts_its_own_heads() -> None:
    """One that does not have them whole, or not all three in its share, leaves it to XLA."""
    products, rotation, _, form = state_cases.arguments(state_cases.CASES[0], jnp.bfloat16)
    split = dataclasses.replace(form, axes=("heads", "kv_heads"))
    found = laid(products._replace(blocks=2), rotation, split, 2)
    assert found is not None and (found.form.queries, found.form.groups) == (3, 1)
    assert laid(products, rotation, split, 2) is None  # not joined for two devices
    assert laid(products._replace(whole=None), rotation, split, 4) is None
    # Keys and values from whole matrices, as where they are repeated to reach the axis.
    apart = dataclasses.replace(form, axes=("heads", None))
    found = laid(products._replace(whole=None), rotation, apart, 2)
    assert found is not None and (found.form.queries, found.form.groups) == (3, 2)
    assert laid(products._replace(blocks=2), rotation, apart, 2) is None


def test_a_stream_is_the_sum_of_what_was_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is normed or asked for first, and in parts."""
    monkeypatch.setitem(ADD_NORM.variants, "cpu", added_and_normed)
    x, y, z = (jnp.full((1, 2, 4), v, jnp.float32) for v in (1.0, 2.0, 4.0))
    norm, weight = state_cases.KINDS["late gain"], jnp.ones(4)
    for asked in (False, True):
        stream = pin(lambda v: +v, Residual(x, CPU) + y)
        if asked:
            np.testing.assert_array_equal(states_of(stream), x + y)
        np.testing.assert_array_equal(stream.normed(weight, norm), norm(x + y, weight))
        np.testing.assert_array_equal(states_of(stream + z), x + y + z)
        assert given_to(Adding(), stream, GPU) is stream
        np.testing.assert_array_equal(given_to(Squaring(), stream + z, GPU), x + y + z)


def kernels_of_a_pass(family: str) -> dict[str, int]:
    """How often a pass over two tokens has each kernel, where products are ours as well."""
    target = joined(tiny.model(family).net).on(PALLAS)
    cache = target.module.init_cache(1, 32)
    text = traced(lambda tokens: target(tokens, cache).hidden, jnp.zeros((1, 2), jnp.int32))
    return collections.Counter(re.findall(r"name=(\w+)\n", text))


FUSED = ("norm_and_multiply", "norm_multiply_and_gate", "multiply_and_add", "add_norm")


@pytest.mark.parametrize(
    "family,each",
    [
        # Of both layers: products for q, k, v that norm; for gate and up; sums; norms apart.
        ("llama", (1, 2, 4, 2)),
        ("qwen3", (1, 2, 4, 2)),
        ("qwen2", (0, 2, 4, 3)),  # queries have biases
        ("qwen3_5", (0, 1, 2, 4)),  # a layer of attention, one of another kind
        ("gemma3", (0, 0, 0, 5)),  # norms behind products, too
        ("gpt_oss", (0, 0, 0, 5)),  # experts
    ],
)
def test_products_norm_what_they_read_and_add(family: str, each: tuple[int, ...]) -> None:
    """Where norms go into products and these are added; else all is as before."""
    found = kernels_of_a_pass(family)
    assert tuple(found[name] for name in FUSED) == each


class Doubling(Linear):
    """A projection that does otherwise."""

    def __call__(self, x: Any) -> Any:
        return 2 * super().__call__(x)


class Wrapped(nnx.Module):
    """One around another."""

    def __init__(self, inner: Any):
        self.inner = inner

    def __call__(self, x: Any) -> Any:
        return 2 * self.inner(x)


@pytest.mark.parametrize("kind", [Doubling, Wrapped])
def test_a_projection_of_ones_own_is_called(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a stream adds what is projected within the product."""
    target, axes = tiny.model(), (None, None)
    module, plain = target.net.module, target.net.module
    for layer, like in zip(module.layers, plain.layers, strict=True):
        for part, name in (("self_attn", "o_proj"), ("mlp", "down_proj")):
            of, linear = getattr(layer, part), getattr(getattr(like, part), name)
            weight = linear.weight[...]
            own = (
                Doubling.holding(weight, None, axes=axes)
                if kind is Doubling
                else Wrapped(Linear.holding(weight, None, axes=axes))
            )
            setattr(of, name, own)
            linear.weight = nnx.Param(2 * weight, axes=axes)
    run = lambda module: joined(target.net.with_module(module)).module(jnp.ones((1, 2), jnp.int32))
    want = run(plain).hidden
    monkeypatch.setitem(ADD_NORM.variants, "cpu", NormAtOnce(interpret=True))
    monkeypatch.setitem(NORM_PRODUCT.variants, "cpu", NormedInside(interpret=True))
    monkeypatch.setitem(ADD_PRODUCT.variants, "cpu", AddedInside(interpret=True))
    np.testing.assert_allclose(run(module).hidden, want, rtol=1e-4, atol=1e-4)


def test_one_pass_has_few_kernels_between_products() -> None:
    """Two norms with what is added, one that cuts heads, attention: nothing else of our own."""
    target = tiny.model()
    net, cache = target.net.on(GPU), target.net.on(GPU).init_cache(1, 32)
    text = traced(lambda tokens: net(tokens, cache).hidden, jnp.zeros((1, 2), jnp.int32))
    layers = target.config.num_layers
    names = {name: text.count(f"name={name}\n") for name in ("add_norm", "cut_heads")}
    assert names == {"add_norm": 2 * layers + 1, "cut_heads": layers}
