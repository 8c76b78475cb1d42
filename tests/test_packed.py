"""Packed weights against what their own projects unpack (tests/parity/make_packed.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from specjax.checkpoint import kept
from specjax.checkpoint.errors import CheckpointError
from specjax.checkpoint.packed import unpacked
from specjax.checkpoint.safetensors_reader import read_headers
from specjax.core.ops import linear
from specjax.core.platform import Platform
from specjax.core.tensors import Tensor
from specjax.models.places import Whole

HERE = Path(__file__).parent / "data" / "packed"
CONFIGS: dict[str, Any] = json.loads((HERE / "configs.json").read_text())


def stored(name: str) -> tuple[dict[str, Tensor], np.ndarray]:
    tensors = read_headers(HERE / f"{name}.safetensors")
    return tensors, tensors.pop("plain").values()


def read(tensors: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    found = unpacked(tensors, {"quantization_config": config}, "here")
    assert list(found) == ["layer.weight"]
    return found["layer.weight"]


def tensor(values: Any) -> Tensor:
    array = np.asarray(values)
    return Tensor(array.shape, array.dtype, lambda: array)


@pytest.mark.parametrize("name", CONFIGS)
def test_bit_for_bit(name: str) -> None:
    tensors, plain = stored(name)
    weight = read(tensors, CONFIGS[name])
    assert weight.shape == plain.shape and np.unique(plain).size > 20
    np.testing.assert_array_equal(weight.values().view(np.int32), plain.view(np.int32))
    rows, columns = plain.shape
    boxes = (
        (slice(1, 2), slice(0, columns)),
        (slice(3, rows - 1), slice(5, columns - 2)),
        (slice(rows // 2, rows), slice(columns // 2, columns)),
        (slice(0, rows, 3), slice(1, columns, 2)),
        (slice(0, 0), slice(0, columns)),
        (slice(0, rows), slice(columns, columns)),
    )
    for box in boxes:
        np.testing.assert_array_equal(weight.read()[box], plain[box])


# Groups that are not neighbours, and those that leave a shorter one, are written out.
WRITTEN_OUT = {"gptq-8", "gptq-ordered", "int4-ordered", "int4-ordered-zeros", "fp8-block"}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_kept_stands_for_the_same(name: str) -> None:
    """Bit for bit in float32, and in products as each platform writes them."""
    tensors, plain = stored(name)
    tensors = unpacked(tensors, {"quantization_config": CONFIGS[name]}, "here")
    form = kept.bind(Whole("layer.weight"), tensors, plain.shape)
    assert (form is None) == (name in WRITTEN_OUT)
    if form is None:
        return
    begin = lambda tensor, dtype, at: lambda: jnp.asarray(np.array(tensor.read()[()], dtype))
    held = form.load(begin, np.dtype(np.float32), None)()
    assert held.shape == plain.shape and held.nbytes == form.num_bytes(None)
    np.testing.assert_array_equal(held[...], plain)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, plain.shape[1])), jnp.float32)
    for on in ("cpu", "gpu", "tpu"):
        got = linear(x, held, platform=Platform(on))
        np.testing.assert_allclose(got, x @ plain.T, rtol=1e-5, atol=1e-5)


def test_symmetric_zeros_are_in_the_middle_whatever_is_stored() -> None:
    """Files that say the first version and store zeros of the second exist."""
    tensors, plain = stored("gptq-sym-v2")
    said = {**CONFIGS["gptq-sym-v2"], "checkpoint_format": "gptq"}
    np.testing.assert_array_equal(read(tensors, said).values(), plain)
    asymmetric = read(tensors, {**said, "sym": False}).values()
    assert not np.array_equal(asymmetric, plain)


def test_a_zero_less_one_wraps() -> None:
    tensors, plain = stored("gptq-zeros")
    tensors["layer.qzeros"] = tensor(np.full((4, 2), -1, np.int32))  # 15 in each: zero 0
    full = read(tensors, CONFIGS["gptq-zeros"]).values()
    assert full.min() >= 0 and not np.array_equal(full, plain)


def test_columns_of_an_awq_word() -> None:
    packed = {
        "layer.qweight": tensor(np.array([[0x76543210]], np.int32)),
        "layer.qzeros": tensor(np.zeros((1, 1), np.int32)),
        "layer.scales": tensor(np.ones((1, 8), np.float16)),
    }
    weight = read(packed, {"quant_method": "awq", "bits": 4})
    assert weight.values()[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_blocks_of_experts() -> None:
    """[E, out, in] with factors in bfloat16, and layers that were left in full beside them."""
    values = np.arange(2 * 5 * 6, dtype=np.float32).reshape(2, 5, 6)
    scale = np.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], np.float32)
    tensors = {
        "experts.up_proj": tensor(values.astype(jnp.float8_e4m3fn)),
        "experts.up_proj_scale_inv": tensor(scale.astype(jnp.bfloat16)),
        "experts.input_scale": tensor(np.ones((1,), np.float32)),
        "norm.weight": tensor(np.ones((6,), jnp.bfloat16)),
    }
    said = {"quant_method": "fp8", "weight_block_size": [4, 3]}
    found = unpacked(tensors, {"quantization_config": said}, "here")
    assert sorted(found) == ["experts.up_proj", "norm.weight"]
    factors = scale.repeat(4, 1)[:, :5].repeat(3, 2)
    want = values.astype(jnp.float8_e4m3fn).astype(np.float32) * factors
    np.testing.assert_array_equal(found["experts.up_proj"].values(), want)
    box = (slice(1, 2), slice(3, 5), slice(2, 6))
    np.testing.assert_array_equal(found["experts.up_proj"].read()[box], want[box])


FP8 = tensor(np.ones((4, 6), ml_dtypes.float8_e4m3fn))


@pytest.mark.parametrize(
    ("name", "edit", "said", "words"),
    [
        ("awq", {}, {"version": "gemv"}, ["version='gemv'", "gemm"]),
        ("awq", {"qzeros": None}, {}, ["layer.qweight", "layer.qzeros is missing"]),
        ("gptq-8", {}, {"checkpoint_format": "marlin"}, ["checkpoint_format='marlin'"]),
        ("gptq-8", {"g_idx": np.full((32,), 4)}, {}, ["g_idx", "4 groups"]),
        ("gptq-8", {"qzeros": np.zeros((4, 3), np.int32)}, {}, ["gptq", "[4, 3]", "2, 4, 8"]),
        ("gptq-8", {"scales": np.zeros((4, 8), np.float16)}, {}, ["gptq", "supported"]),
        ("int4-group", {}, {"format": "marlin-24"}, ["format='marlin-24'", "pack-quantized"]),
        ("int4-group", {}, {"sparsity_config": {"format": "sparse-24"}}, ["sparse-24"]),
        ("int4-group", {"weight_scale": None}, {}, ["weight_scale is missing"]),
        ("int4-group", {"weight_scale": np.ones((16, 3))}, {}, ["[16, 3]", "[16, 32]"]),
        (
            "int4-group",
            {},
            {"config_groups": {"a": {"weights": {"num_bits": 3}}}},
            ["num_bits=[3]", "4, 8"],
        ),
        ("int4-group", {}, {"quant_method": "bitsandbytes"}, ["'bitsandbytes'", "awq"]),
        ("fp8-channel", {"weight_scale": None}, {}, ["without a scale", "layer.weight"]),
        ("fp8-channel", {"weight": np.ones((16, 32), np.float32)}, {}, ["float32", "scale"]),
        ("fp8-block", {"weight_scale": np.ones((3, 4))}, {}, ["[3, 4]", "(16, 8)"]),
        ("fp8-block", {}, {"config_groups": {}}, ["weight_block_size"]),
    ],
)
def test_refusals(name: str, edit: dict[str, Any], said: dict[str, Any], words: list[str]) -> None:
    tensors, _ = stored(name)
    for key, value in edit.items():
        if value is None:
            del tensors[f"layer.{key}"]
        else:
            tensors[f"layer.{key}"] = tensor(value)
    with pytest.raises(CheckpointError) as error:
        unpacked(tensors, {"quantization_config": {**CONFIGS[name], **said}}, "here")
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in ["here: ", *words]), message
