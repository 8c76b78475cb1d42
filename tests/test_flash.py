"""The kernel that attends to valid slots alone: interpreted here, as there is no GPU."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import attention_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType
from scripts import flags_of, invoke, script

import specjax
from specjax.core import trips
from specjax.core.cache.block import put
from specjax.core.ops import Cached, Columns, Projected, attend
from specjax.core.ops.valid_slots import unfit
from specjax.core.ops.write import WRITE_ALL, ByRow, Together, Write, one_by_one
from specjax.core.platform import Platform, allowed_kernels
from specjax.models.layers.norm import RMSNorm
from specjax.models.layers.rope import Rope, rotation

ROOT = Path(specjax.__file__).parent

# The rest of the matrix is in tests/long/test_kernels.py.
FEW = {"sinks and shares": jnp.float32, "tree": jnp.bfloat16, "fp8, padded width": jnp.float32}


@pytest.mark.parametrize("name", FEW)
def test_it_gives_what_the_reference_does(name: str) -> None:
    """And reads nothing behind a text, where NaN may lie."""
    case = next(case for case in attention_cases.CASES if str(case).startswith(name))
    attention_cases.check(case, FEW[name])


def traced(given: tuple[Any, ...], platform: Platform) -> str:
    """How attention is written for a platform."""
    q, k, v, visible, cached, scale, sinks = given
    how: dict[str, Any] = {"scale": scale, "sinks": sinks, "platform": platform}
    return str(jax.make_jaxpr(lambda q: attend(q, k, v, visible, cached, **how))(q))


CASE = attention_cases.CASES[0]
GPU, XLA = Platform("gpu"), Platform("gpu", kernels="xla")


def test_one_setting_goes_back_to_what_xla_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    given = attention_cases.arguments(CASE, jnp.bfloat16)
    assert "pallas_call" in traced(given, GPU)
    assert "pallas_call" not in traced(given, XLA) + traced(given, Platform("cpu"))
    for said, found in (("", "attention"), ("xla", "xla")):
        allowed_kernels.cache_clear()
        monkeypatch.setenv("SPECJAX_KERNELS", said)
        assert allowed_kernels() == found
    allowed_kernels.cache_clear()
    monkeypatch.setenv("SPECJAX_KERNELS", "ours")
    with pytest.raises(
        ValueError, match="SPECJAX_KERNELS=ours: must be one of attention, xla, pallas"
    ):
        allowed_kernels()
    allowed_kernels.cache_clear()


def test_every_script_has_that_setting(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that of split products: as a flag, or as a field of what is compiled."""
    monkeypatch.setenv("SPECJAX_KERNELS", "attention")
    monkeypatch.setenv("SPECJAX_SPLIT_K", "off")
    line = ("plan", "--target=demo:target", "--kernels=xla", "--split_k=xla")
    status, _, told = invoke(script("plan"), capsys, *line)
    unused = "--kernels=xla, --split_k=xla: changes programs for GPUs alone" in told
    assert status == 0 and unused == (jax.default_backend() != "gpu")
    assert os.environ["SPECJAX_KERNELS"] == os.environ["SPECJAX_SPLIT_K"] == "xla"
    assert not {"kernels", "split_k"} & flags_of("compile")
    monkeypatch.setenv("SPECJAX_TUNED", "")
    wrong = ("plan", "--target=demo:target", "--kernels=tuned", "--tuned=no.json")
    status, _, told = invoke(script("plan"), capsys, *wrong)
    assert status == 2 and "--tuned=no.json: no such file" in told
    monkeypatch.setenv("SPECJAX_KERNELS", "attention")
    wrong = ("compile", "--topology=local", "--config.kernels=ours")
    status, _, told = invoke(script("compile"), capsys, *wrong)
    assert (
        status == 2 and "--config.kernels='ours': must be attention, xla, pallas or tuned." in told
    )
    wrong = ("compile", "--topology=local", "--config.split_k=2")
    status, _, told = invoke(script("compile"), capsys, *wrong)
    assert status == 2 and "split_k" in told


def test_what_it_does_not_take_is_left_to_xla() -> None:
    """Each for a reason, in words."""
    q, k, v, visible, cached, scale, sinks = attention_cases.arguments(CASE, jnp.bfloat16)
    wide = jnp.zeros((3, 2, 90, 640), jnp.bfloat16)
    half = cached._replace(keys=cached.keys.astype(jnp.float16))
    reasons = {
        "no cache": None,
        "how far": cached._replace(reach=None),
        "made of": cached._replace(write=lambda *given: given[:2]),
        "no slots": Cached(*(x[:, :, :0] for x in cached[:3]), cached.reach),
        "one type": half,
        "wider": cached._replace(values=wide),
    }
    for reason, other in reasons.items():
        assert reason in (unfit(q, k, v, other) or "")
    for other in (None, cached._replace(reach=None)):
        assert "pallas_call" not in traced((q, k, v, visible, other, scale, sinks), GPU)


def test_on_a_mesh_each_device_attends_with_its_own_heads() -> None:
    """One call of the kernel on half of the heads, and nothing exchanged."""
    q, k, v, visible, cached, *rest = attention_cases.arguments(CASE, jnp.bfloat16)
    mesh = AbstractMesh((1, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    cached = cached._replace(axes=("heads", "kv_heads"))
    with jax.sharding.use_abstract_mesh(mesh):
        text = traced((q, k, v, visible, cached, *rest), GPU)
    assert "shard_map" in text and "pallas_call" in text
    kernel = text[text.index("pallas_call") :]
    assert "[3,3,2,64]" in kernel and "[3,3,4,64]" not in kernel
    for exchange in ("psum", "all_gather", "ppermute"):
        assert exchange not in text


def test_a_report_counts_what_it_reads() -> None:
    """Of its operands the cache's: slots up to the context."""
    name = "jit(run)/verify/valid_of_2048_slots_in_3_operands_from_4/attend_valid_slots/pallas_call"
    assert trips.reads_in_part(name) and not trips.reads_in_part("jit(run)/verify/pallas_call")
    shares = [trips.share_read(name, operand, 512) for operand in range(9)]
    assert shares == [1, 1, 1, 1, 0.25, 0.25, 0.25, 1, 1]
    assert trips.share_read(name, 5) == trips.share_read(name, 5, 4096) == 1


def test_many_caches_are_written_at_once() -> None:
    """Of any type and number of heads, at a row's length or slot by slot, none past the end."""
    rng = np.random.default_rng(0)
    drawn = lambda *shape: jnp.asarray(rng.normal(size=shape) * 10, jnp.float32)
    start, slots = jnp.asarray([0, 13]), jnp.asarray(rng.permutation(40)[:34].reshape(2, 17))
    kinds = ((2, 80, jnp.bfloat16), (3, 1, jnp.float32), (1, 16, jnp.float8_e4m3fn))
    writes = [
        Write(drawn(2, heads, 30, width).astype(dtype), drawn(2, heads, 17, width), at)
        for heads, width, dtype in kinds
        for at in (start, slots)
    ]
    found = jax.jit(lambda: Together(interpret=True, most=4)(writes, None))()
    for got, want in zip(found, one_by_one(writes, Platform("cpu")), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got.astype(jnp.float32), want.astype(jnp.float32))


@pytest.mark.parametrize("rows,tokens", [(1, 3), (3, 3), (3, 17), (9, 17)])
def test_long_blocks_and_lone_rows_are_written_by_row_on_tpus(rows: int, tokens: int) -> None:
    """Few tokens of several rows are not, nor many rows, nor what goes slot by slot."""
    rng = np.random.default_rng(0)
    drawn = lambda *shape: jnp.asarray(rng.normal(size=shape) * 10, jnp.float32)
    start = jnp.asarray(rng.permutation(30 - tokens)[:rows])
    slots = jnp.asarray(rng.permuted(np.tile(np.arange(40), (rows, 1)), axis=1)[:, :tokens])
    writes = [
        Write(drawn(rows, 2, 30, width).astype(dtype), drawn(rows, 2, tokens, width), at)
        for width, dtype in ((80, jnp.bfloat16), (1, jnp.float32))
        for at in (start, slots)
    ]
    by_row, platform = ByRow(long=17, most=8), Platform("tpu")
    found = jax.jit(lambda: by_row(writes, platform))()
    for got, want in zip(found, one_by_one(writes, platform), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
    traced = str(jax.make_jaxpr(lambda: by_row(writes[:1], platform))())
    assert ("scatter" in traced) == (rows > 8 or (rows > 1 and tokens < 17))


def test_a_draft_step_is_put_into_its_block_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys and values of all layers; what is no array of heads goes by itself."""
    rng = np.random.default_rng(0)
    drawn = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    parts = [tuple(drawn(2, heads, n, 16) for n in (6, 1)) for heads in (2, 1, 3, 3)]
    old, new = ((tuple(p[i] for p in parts[:2]), tuple(p[i] for p in parts[2:])) for i in (0, 1))
    want = put(old, new, jnp.int32(4))
    monkeypatch.setitem(WRITE_ALL.variants, "cpu", Together(interpret=True))
    got = jax.jit(put)(old, new, jnp.int32(4))
    jax.tree.map(np.testing.assert_array_equal, got, want)
    flat = (((old[0][0][:, 0]),),), (((new[0][0][:, 0]),),)
    for platform, kernels in ((GPU, 1), (XLA, 0), (Platform("cpu"), 1)):
        count = lambda *blocks, on=platform: str(
            jax.make_jaxpr(lambda *x: put(*x, jnp.int32(4), on))(*blocks)
        ).count("pallas_call")
        assert (count(old, new), count(*flat)) == (kernels, 0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_context_is_normed_and_rotated_while_it_is_written(dtype: Any) -> None:
    """Out of columns that hold other things as well, for heads of a width that is padded."""
    rng, width, heads, tokens = np.random.default_rng(1), 12, 3, 17
    drawn = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    product, norm = drawn(2, tokens, 100), RMSNorm(width, eps=1e-5, dtype=dtype, rngs=nnx.Rngs(0))
    norm.weight[...] = drawn(width)
    start, slots = jnp.asarray([2, 13]), jnp.asarray(rng.permutation(40)[:34].reshape(2, 17))
    turn = rotation(Rope(100.0), start[:, None] + jnp.arange(tokens)[None], width)
    writes = []
    for first, at in ((5, start), (60, slots)):
        cut = product[..., first : first + heads * width]
        plain = cut.reshape(2, tokens, heads, width).swapaxes(1, 2)
        columns = Columns(product, None, None, first, 1, width)
        both = (norm.weight[...], (turn.cos, turn.sin), first, 1, width, norm.eps)
        keys = Projected(turn(norm(plain)), Columns(product, *both))
        writes += [
            Write(drawn(2, heads, 30, width), new, at)
            for new in (keys, Projected(plain, columns), plain)
        ]
    found = jax.jit(lambda: Together(interpret=True)(writes, None))()
    close = 1e-6 if dtype == jnp.float32 else 2**-7  # a step of bfloat16 at most
    for got, want in zip(found, one_by_one(writes, Platform("cpu")), strict=True):
        got, want = got.astype(jnp.float32), want.astype(jnp.float32)
        np.testing.assert_allclose(got, want, rtol=close, atol=close)


def test_pallas_comes_with_the_kernel_alone() -> None:
    """It takes a second to import, which nobody waits for who has no GPU."""
    files = {path.stem: path.read_text() for path in ROOT.rglob("*.py")}
    brings = re.compile(r"^(?:from|import) .*\bpallas\b", re.MULTILINE)
    kernels = {name for name, text in files.items() if brings.search(text)}
    assert kernels == {
        "flash",
        "flash_blocks",
        "heads_kernel",
        "norm_kernel",
        "put",
        "rows_by_matrix",
    }
    for name, text in files.items():
        found = re.findall(r"^from specjax\.core\.ops\.(\w+) import", text, re.MULTILINE)
        assert name in kernels or not kernels & set(found), name
