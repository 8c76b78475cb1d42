"""Compiled for devices that are not there: caches are updated in place, and kernels are few.

Needs XLA's compilers for TPUs and GPUs, but neither device. `.ci/run` makes an environment for them
beside the one of all other tests; by hand, in any that has specjax (V is the version of jax):

    pip install 'jax[tpu]' && pip install --no-deps jax-cuda12-plugin==V jax-cuda12-pjrt==V
    pytest -n 0 tests/ahead
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import pytest
from test_compile import SETUP

from specjax.compiler import report, topology
from specjax.core.sharding import mesh_sizes

# Of a cycle of two layers and three guesses, on one H100, as jax 0.10.2 compiles it: kernels, and
# copies of caches that are put beside new keys: XLA merges small products.
ON_GPU = {"none": (43, 0), "lm": (219, 4), "dflash": (89, 0), "eagle3": (156, 2), "medusa": (63, 0)}


def cycle_of(name: str, mesh: str, drafter: str) -> dict[str, Any]:
    """The account of the tiny model's cycle; the test is skipped where the compiler is missing."""
    try:
        devices = topology.find(name)
    except ValueError as error:
        if "which is not installed" not in str(error):
            raise
        pytest.skip(str(error))
    setup = dataclasses.replace(SETUP, drafter=drafter, dtype="bfloat16", rows=8)
    made = report.make(setup, devices, devices.mesh(**mesh_sizes(mesh)))
    cycle: dict[str, Any] = made["cycle"]
    assert cycle["loops_of_unknown_length"] == 0
    return cycle


@pytest.mark.parametrize("drafter", ON_GPU)
def test_a_gpu(drafter: str) -> None:
    """A cache is written where it lies: what is written of it is the block, in every layer."""
    cycle = cycle_of("h100:1", "", drafter)
    layers = {"none": 2, "medusa": 2, "lm": 4}.get(drafter, 3)
    tokens = {"none": 1}.get(drafter, 4)
    assert cycle["cache_copies"] == 0 and cycle["weight_copies"] == 0
    assert cycle["bytes_written"]["caches"] == layers * 2 * 8 * tokens * 64 * 2
    assert cycle["collectives"] == {}
    kernels, joins = ON_GPU[drafter]
    other = 1.0 if jax.__version__ == "0.10.2" else 1.25  # another compiler fuses otherwise
    assert cycle["kernels"]["total"] <= other * kernels and cycle["cache_joins"] <= joins
    phases = {"other", "verify", "accept", "commit"} | ({"draft"} - {drafter})
    assert set(cycle["kernels"]["by_scope"]) <= phases


@pytest.mark.parametrize("name,mesh", [("h100:2", "model:2"), ("v5e:2x4", "data:2,model:4")])
def test_several(name: str, mesh: str) -> None:
    """Caches stay where they are, split over the devices; two sums a layer, one an embedding."""
    cycle = cycle_of(name, mesh, "dflash")
    assert cycle["cache_copies"] == 0
    assert cycle["collectives"]["all-reduce"]["count"] <= 2 * 3 + 2
