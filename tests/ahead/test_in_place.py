"""Compiled for devices that are not there: caches are updated in place, and kernels are few.

Needs XLA's compilers for TPUs and GPUs, but neither device. `.ci/run` makes an environment for them
beside the one of all other tests; by hand, in any that has specjax (V is the version of jax):

    pip install 'jax[tpu]' && pip install --no-deps jax-cuda12-plugin==V jax-cuda12-pjrt==V
    pytest -n 0 tests/ahead
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import tiny_families
from jax.sharding import SingleDeviceSharding
from test_compile import SETUP

from specjax.core.sharding import mesh_sizes
from specjax.lab.compiler import branches, hlo, report, topology
from specjax.lab.compiler.origins import Origins
from specjax.lab.records.compiled import CycleCost

# Kernels of a cycle of two layers and three guesses, on one H100, as jax 0.10.2 compiles it, and
# without those of our own.
ON_GPU = {"none": 38, "lm": 168, "dflash": 69, "eagle3": 126, "medusa": 48, "early_exit": 115}
XLA_ALONE = {"none": 43, "dflash": 89}
PRODUCTS = {"none": 27, "dflash": 51, "eagle3": 91}  # with products of our own
KINDS = {"attention": ON_GPU, "xla": XLA_ALONE, "pallas": PRODUCTS}

MESH = "data:2,model:4"


def found(name: str) -> topology.Topology:
    """The devices; the test is skipped where their compiler is missing."""
    try:
        return topology.find(name)
    except ValueError as error:
        if "which is not installed" not in str(error):
            raise
        pytest.skip(str(error))


def cycle_of(
    name: str,
    mesh: str,
    drafter: str,
    model: str = "tiny",
    *,
    rows: int = 8,
    **more: Any,
) -> CycleCost:
    """The account of a small model's cycle."""
    devices = found(name)
    sizes = {"dtype": "bfloat16", "rows": rows, "target": model, "draft_model": model, **more}
    setup = dataclasses.replace(SETUP, drafter=drafter, **sizes)
    made = report.make(setup, devices, devices.mesh(**mesh_sizes(mesh)))
    assert made.cycle.loops_of_unknown_length == 0
    return made.cycle


@pytest.mark.parametrize(
    "drafter,kernels,most",
    [(d, kind, n) for kind, of in KINDS.items() for d, n in of.items()],
)
def test_a_gpu(drafter: str, kernels: str, most: int) -> None:
    """A cache is written where it lies: what is written of it is the block, in every layer."""
    cycle = cycle_of("h100:1", "", drafter, kernels=kernels)
    layers = {"none": 2, "medusa": 2, "early_exit": 2, "lm": 4}.get(drafter, 3)
    tokens = {"none": 1}.get(drafter, 4)
    assert cycle.cache_copies == 0 and cycle.weight_copies == 0
    assert cycle.bytes_written["caches"] == layers * 2 * 8 * tokens * 64 * 2
    assert cycle.collectives == {}
    other = 1.0 if jax.__version__ == "0.10.2" else 1.25  # another compiler fuses otherwise
    assert cycle.kernels is not None and cycle.cache_joins == 0
    assert cycle.kernels.total <= other * most
    ours = any("kernels of our own read" in line for line in cycle.unknown)
    assert ours == (kernels != "xla")
    phases = {"other", "verify", "accept", "commit"} | ({"draft"} - {drafter})
    assert set(cycle.kernels.by_scope) <= phases


@pytest.mark.parametrize("drafter,rows", [("none", 1), ("none", 8), ("dflash", 1), ("eagle3", 8)])
def test_a_layer_with_products_of_our_own(drafter: str, rows: int) -> None:
    """Heads cut, attention, two sums and two products that norm: no norm, sum or gate apart.

    That of the first layer is, and where the slots are split, adding up their shares.
    """
    cycle = cycle_of("h100:1", "", drafter, kernels="pallas", rows=rows, layers=5)
    assert cycle.kernels is not None and cycle.kernels.a_layer is not None
    if drafter == "none":  # (else what drafts in the meantime counts as a layer's)
        assert cycle.kernels.a_layer <= 7 + 1 / 4
    # The head's product compares, and one kernel what its programs found: the verdict is at hand.
    assert cycle.kernels.by_scope["verify"] <= 5 * 7 + 11
    assert cycle.kernels.by_scope.get("accept", 0) <= {"none": 0}.get(drafter, 3)
    assert cycle.cache_copies == cycle.weight_copies == 0


def test_a_gpu_that_may_verify_fewer() -> None:
    """Where all guesses are likely: the fixed cycle, and the same few kernels for any model."""
    fixed, narrower = (
        cycle_of("h100:1", "", "dspark", rows=1, min_confidence=least) for least in (0.0, 0.5)
    )
    (choice,) = narrower.conditionals
    assert len(choice.branches) == 4 and choice.counted == 3  # 0, 1, 2 and 3 guesses
    assert fixed.kernels is not None and narrower.kernels is not None
    assert narrower.kernels.a_layer == fixed.kernels.a_layer  # none of the passes' own
    other = 0 if jax.__version__ == "0.10.2" else 4
    assert narrower.kernels.total <= fixed.kernels.total + 10 + other
    assert narrower.bytes <= 1.02 * fixed.bytes and narrower.cache_copies == 0


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_gpu_with_caches_in_8_bits(kind: str) -> None:
    """The kernels take them as they lie: keys and values of a byte, and a factor of each."""
    cycle = cycle_of("h100:1", "", "none", kv_cache=kind)
    assert cycle.cache_copies == cycle.cache_joins == 0
    assert cycle.bytes_written["caches"] == 2 * 2 * 8 * (64 + 2 * 4)
    assert any("kernels of our own read" in line for line in cycle.unknown)


@pytest.mark.parametrize("handed_on", [False, True])
def test_branches_on_a_gpu(handed_on: bool) -> None:
    """A branch that reads a cache copies nothing; where one that hands it on does, that is seen."""
    place = SingleDeviceSharding(found("h100:1").devices[0])

    def branch(rows: int, cache: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = jax.nn.softmax(x[:rows] @ cache.T) @ cache
        x = x.at[:rows].set(y)
        return (jax.lax.dynamic_update_slice(cache, x, (0, 0)) if handed_on else x), x

    def program(cache: jax.Array, x: jax.Array, limit: jax.Array) -> Any:
        def cycle(state: Any) -> Any:
            i, cache, x = state
            widths = [functools.partial(branch, rows) for rows in (2, 4, 8)]
            new, x = jax.lax.switch(i % 3, widths, cache, x)
            updated = jax.lax.dynamic_update_slice(cache, new, (i, 0))
            return i + 1, new if handed_on else updated, x

        return jax.lax.while_loop(lambda s: s[0] < limit, cycle, (0, cache, x))

    shapes = (((4096, 128), jnp.bfloat16), ((8, 128), jnp.bfloat16), ((), jnp.int32))
    given = (jax.ShapeDtypeStruct(s, d, sharding=place) for s, d in shapes)
    text = jax.jit(program, donate_argnums=(0,)).lower(*given).compile().as_text()
    module = hlo.parse(text)
    assert module.main_loop is not None
    body, origins = module.main_loop.called("body"), Origins(module)
    kind = lambda home, value, index: origins.of(home, value, index).argument
    module, (choice,) = branches.settle(module, body, kind, origins)
    assert choice.counted == 2 and choice.branches[2].bytes > 2 * 4096 * 128 * 2
    copied = [one.copied.get("cache", 0) for one in choice.branches]
    (conditional,) = (i for _, i, _ in module.walk(body) if i.opcode == "conditional")
    branches_of = (text.split(f"\n%{name} (")[1].split("\n}")[0] for name in conditional.calls)
    assert copied == [one.count(" = bf16[4096,128]{1,0} copy(") for one in branches_of]
    if not handed_on or jax.__version__ != "0.10.2":  # later compilers hand it on where it lies
        assert not any(copied)
    else:
        assert all(copied)


@pytest.mark.parametrize("name,mesh,drafter", [("h100:1", "", "lm"), ("v5e:2x4", MESH, "none")])
def test_every_kind_of_memory(
    name: str, mesh: str, drafter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recurrent, windowed, latent and full entries are written where they lie."""
    # (The TPU's compiler takes a cache of five slots into on-chip memory and back.)
    monkeypatch.setattr(tiny_families, "WINDOW", 129)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "vocab_size": 2048}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "num_hidden_layers": 4}
    config = {"model_type": "tiny-mixed", "max_position_embeddings": 2048, **sizes, **heads}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with tiny_families.listed():
        cycle = cycle_of(name, mesh, drafter, model=str(tmp_path / "config.json"))
    # (Later compilers for GPUs write a recurrent state of 49 KB beside new inputs, once a pass.)
    joined = 3 if name == "h100:1" and jax.__version__ != "0.10.2" else 0
    assert cycle.cache_copies == 0 and cycle.cache_joins <= joined


@pytest.mark.parametrize("name,mesh", [("h100:2", "model:2"), ("v5e:2x4", MESH)])
def test_several(name: str, mesh: str) -> None:
    """Caches stay where they are, split over the devices; two sums a layer, one an embedding."""
    cycle = cycle_of(name, mesh, "dflash")
    assert cycle.cache_copies == cycle.cache_joins == 0
    assert cycle.collectives["all-reduce"].count <= 2 * 3 + 2


@pytest.mark.parametrize("rows", [1, 8])
def test_prefill_on_a_tpu(rows: int, tmp_path: Path) -> None:
    """No pass copies a cache, nor do scores of many queries go through memory."""
    sizes = {"hidden_size": 1024, "intermediate_size": 2048, "head_dim": 128, "vocab_size": 2048}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 4, "num_hidden_layers": 2}
    config = {"model_type": "llama", "max_position_embeddings": 4096, **sizes, **heads}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model: dict[str, Any] = {"target": str(tmp_path / "config.json"), "drafter": "none"}
    more = {"rows": rows, "slots": 4096, "context": 3072, "programs": "all", "dtype": "bfloat16"}
    devices = found("v5e:2x2")
    setup = dataclasses.replace(SETUP, **model, **more)
    made = report.make(setup, devices, devices.mesh(**mesh_sizes("model:4")))
    widest = {1: "prefill 1024", 8: "prefill 256"}[rows]
    assert widest in made.prefills and made.cycle.cache_copies == 0
    for cost in made.prefills.values():
        assert cost.cache_copies == 0
        scores = 4 * cost.tokens * 4 * 4096  # bytes of a device's in a layer, float32
        assert cost.bytes - cost.floor.bytes < scores / 2


@pytest.mark.parametrize("drafter", ["none", "eagle3"])
def test_a_lone_row_gathers_no_table(drafter: str) -> None:
    """The embedding of 2048 rows lies on two devices; one row of it is looked up."""
    cycle = cycle_of("h100:2", "model:2", drafter, rows=1)
    assert sum(found.bytes for found in cycle.collectives.values()) < 2048 * 128 * 2 / 4


@pytest.mark.parametrize("name,mesh,data,model", [("h100:1", "", 1, 1), ("v5e:2x4", MESH, 2, 4)])
def test_a_mixture(name: str, mesh: str, data: int, model: int) -> None:
    """Of two layers' experts those are read that are expected to be drawn, and none is copied."""
    devices, texts = found(name), dict[str, str]()
    sizes = {"target": "gpt-oss-20b", "drafter": "none", "dtype": "bfloat16", "rows": 2}
    setup, sizes = dataclasses.replace(SETUP, **sizes), mesh_sizes(mesh)
    made = report.make(setup, devices, devices.mesh(**sizes), hlo_text=texts.__setitem__)
    (loops,), trips = made.cycle.loops, round(32 * (1 - (1 - 4 / 32) ** (2 // data)))
    assert (loops.count, loops.trips, loops.why) == (2, trips, "experts")
    for shape in ((32, 2880, 2880 // model), (32, 2880 // model, 2880)):
        assert hlo.count_copies(texts["run"], shape) == (0, 0)
    experts = 2 * trips * 3 * 2880 * 2880 // model * 2
    rest = made.cycle.bytes_read["weights"] - experts  # the head, and two layers' attention
    assert 0 <= rest < 1.1 * (201088 + 2 * 9216) * 2880 // model * 2
