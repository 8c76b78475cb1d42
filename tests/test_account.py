"""The account of a compiled cycle: what is counted as what, its floor, and what was measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_compile import SETUP

from specjax.core.ops import Stack, experts
from specjax.core.trips import expected_groups
from specjax.lab.compiler import cycle as account
from specjax.lab.compiler import hlo, kernels, report, topology, traffic
from specjax.lab.compiler.origins import Origins, aliased
from specjax.lab.records.compiled import Floor, Loops, Setup, load_report
from specjax.models.shapes import SHAPES

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "compile"

# A cycle with weights and activations of one shape, and a cache that a kernel of our own updates
# and a loop of unknown length joins with new keys.
LOOP = """
HloModule constructed

%joined (p0: bf16[64,8], p1: bf16[2,8]) -> bf16[66,8] {
  %p0 = bf16[64,8]{1,0} parameter(0)
  %p1 = bf16[2,8]{1,0} parameter(1)
  ROOT %both = bf16[66,8]{1,0} concatenate(%p0, %p1), dimensions={0}
}

%merged (p0: f32[4,4], p1: f32[4,4], p2: f32[4,4]) -> f32[12,4] {
  %p0 = f32[4,4]{1,0} parameter(0)
  %p1 = f32[4,4]{1,0} parameter(1)
  %p2 = f32[4,4]{1,0} parameter(2)
  ROOT %one = f32[12,4]{1,0} concatenate(%p0, %p1, %p2), dimensions={0}
}

%step (p: (s32[], bf16[64,8], bf16[2,8])) -> (s32[], bf16[64,8], bf16[2,8]) {
  %p = (s32[], bf16[64,8]{1,0}, bf16[2,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %kept = bf16[64,8]{1,0} get-tuple-element(%p), index=1
  %new = bf16[2,8]{1,0} get-tuple-element(%p), index=2
  %all = bf16[66,8]{1,0} fusion(%kept, %new), kind=kLoop, calls=%joined
  %next = bf16[2,8]{1,0} slice(%all), slice={[0:2], [0:8]}
  ROOT %out = (s32[], bf16[64,8]{1,0}, bf16[2,8]{1,0}) tuple(%i, %kept, %next)
}

%more (p: (s32[], bf16[64,8], bf16[2,8])) -> pred[] {
  %p = (s32[], bf16[64,8]{1,0}, bf16[2,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %go = pred[] compare(%i, %i), direction=LT
}

%cycle (s: (s32[], f32[4,4], f32[4,4], f32[4,4], f32[4,4], bf16[64,8])) -> (s32[], f32[4,4]) {
  %s = (s32[], f32[4,4], f32[4,4], f32[4,4], f32[4,4], bf16[64,8]) parameter(0)
  %n = s32[] get-tuple-element(%s), index=0
  %x = f32[4,4]{1,0} get-tuple-element(%s), index=1
  %w0 = f32[4,4]{1,0} get-tuple-element(%s), index=2
  %w1 = f32[4,4]{1,0} get-tuple-element(%s), index=3
  %w2 = f32[4,4]{1,0} get-tuple-element(%s), index=4
  %cache = bf16[64,8]{1,0} get-tuple-element(%s), index=5
  %y = f32[4,4]{1,0} dot(%x, %w0), metadata={op_name="specjax/verify/dot"}
  %z = f32[4,4]{1,0} dot(%y, %w1), metadata={op_name="specjax/verify/dot"}
  %a = f32[4,4]{1,0} add(%z, %y)
  %u = f32[4,4]{1,0} dot(%a, %w2), metadata={op_name="specjax/verify/dot"}
  %table = f32[12,4]{1,0} fusion(%w0, %w1, %w2), kind=kLoop, calls=%merged
  %keys = bf16[2,8]{1,0} convert(%u), metadata={op_name="specjax/commit/convert"}
  %put = (bf16[64,8]{1,0}, f32[4]{0}) custom-call(%keys, %cache), custom_call_target="mine", output_to_operand_aliasing={{0}: (1, {})}
  %updated = bf16[64,8]{1,0} get-tuple-element(%put), index=0
  %begin = (s32[], bf16[64,8]{1,0}, bf16[2,8]{1,0}) tuple(%n, %updated, %keys)
  %steps = (s32[], bf16[64,8]{1,0}, bf16[2,8]{1,0}) while(%begin), condition=%more, body=%step
  %kept = bf16[64,8]{1,0} get-tuple-element(%steps), index=1
  ROOT %next = (s32[], f32[4,4], f32[4,4], f32[4,4], f32[4,4], bf16[64,8]) tuple(%n, %u, %w0, %w1, %w2, %kept)
}

%unfinished (s: (s32[], f32[4,4], f32[4,4], f32[4,4], f32[4,4], bf16[64,8])) -> pred[] {
  %s = (s32[], f32[4,4], f32[4,4], f32[4,4], f32[4,4], bf16[64,8]) parameter(0)
  %n = s32[] get-tuple-element(%s), index=0
  ROOT %go = pred[] compare(%n, %n), direction=LT
}

ENTRY %main (n: s32[], x: f32[4,4], w: f32[4,4], v: f32[4,4], t: f32[4,4], c: bf16[64,8]) -> s32[] {
  %n = s32[] parameter(0), metadata={op_name="number"}
  %x = f32[4,4]{1,0} parameter(1), metadata={op_name="state.x"}
  %w = f32[4,4]{1,0} parameter(2), metadata={op_name="net.params[\\'layers\\'][0][\\'w\\']"}
  %v = f32[4,4]{1,0} parameter(3), metadata={op_name="net.params[\\'layers\\'][1][\\'w\\']"}
  %t = f32[4,4]{1,0} parameter(4), metadata={op_name="net.params[\\'layers\\'][2][\\'w\\']"}
  %c = bf16[64,8]{1,0} parameter(5), metadata={op_name="state.cache.k[0]"}
  %begin = (s32[], f32[4,4], f32[4,4], f32[4,4], f32[4,4], bf16[64,8]) tuple(%n, %x, %w, %v, %t, %c)
  %loop = (s32[], f32[4,4], f32[4,4], f32[4,4], f32[4,4], bf16[64,8]) while(%begin), condition=%unfinished, body=%cycle
  ROOT %out = s32[] get-tuple-element(%loop), index=0
}
"""  # noqa: E501
X, CACHE, KEYS = 4 * 4 * 4, 64 * 8 * 2, 2 * 8 * 2


def moved(module: hlo.Module) -> traffic.Moved:
    origins = Origins(module)

    def kind(home: hlo.Computation, value: hlo.Instruction, index: int) -> str:
        origin = origins.of(home, value, index)
        return "made" if origin.moved else origin.argument.partition(".")[0] or "made"

    return traffic.memory_bytes(module, "cycle", kind)


def test_arrays_are_told_by_where_they_come_from() -> None:
    """A weight and an activation of one shape; a cache behind a kernel, in a loop, and joined."""
    module = hlo.parse(LOOP)
    assert module.main_loop is not None and module.main_loop.called("body") == "cycle"
    origins = Origins(module)
    cycle, step = module.computations["cycle"], module.computations["step"]
    of = lambda home, name, index=0: origins.of(home, home.instructions[name], index)
    assert of(cycle, "w1").argument == "net.params['layers'][1]['w']"
    assert of(cycle, "x").argument == "state.x" and of(cycle, "y").argument == ""
    for home, name in ((cycle, "cache"), (cycle, "put"), (cycle, "updated"), (step, "kept")):
        assert of(home, name).argument == "state.cache.k[0]" and not of(home, name).moved, name
    assert of(step, "all").argument == "state.cache.k[0]" and of(step, "all").moved
    assert of(cycle, "put", 1).argument == ""
    assert of(step, "new").argument == of(step, "next").argument == ""
    read = moved(module).read
    assert read["net"] == 3 * X + 3 * X  # three products, and the merging


def test_a_kernel_that_updates_in_place_writes_its_update() -> None:
    module = hlo.parse(LOOP)
    put = module.computations["cycle"].instructions["put"]
    assert aliased(put) == {0: 1}
    found = moved(module)
    # What is joined reads the cache; the kernel does not, as far as is known.
    assert found.read["state"] == X + CACHE
    assert found.written["state"] == KEYS
    two = LOOP.replace("{{0}: (1, {})}", "{{0}: (1, {}), {1}: (0, {})}")
    assert aliased(hlo.parse(two).computations["cycle"].instructions["put"]) == {0: 1, 1: 0}


def test_a_loop_of_unknown_length_runs_as_often_as_is_stated() -> None:
    once, often = hlo.parse(LOOP), hlo.parse(LOOP, trips=5)
    assert account.unknown_loops(often, "cycle") == (Loops(1, 5, "trips"),)
    assert moved(often).read["state"] - moved(once).read["state"] == 4 * CACHE
    one, five = (kernels.count(m, "cycle", Origins(m), account.SCOPES) for m in (once, often))
    assert five.total - one.total == 4 * (2 + 1)  # its body, and its condition
    assert five.in_inner_loops == 5 * (2 + 1)


def test_a_mixture_says_how_often_its_loop_is_expected_to_run() -> None:
    """In a compiled program: 4 tokens draw 5.5 of 8 experts, 64 fall into 16.9 groups of 8."""
    weights = {name: jnp.ones((8, 16, 32)) for name in ("gate", "up")}
    stack = Stack(**weights, down=jnp.ones((8, 32, 16)))

    def counted(tokens: int) -> tuple[tuple[Loops, ...], int]:
        x, chosen = jnp.ones((1, tokens, 32)), jnp.zeros((1, tokens, 2), jnp.int32)
        run = jax.jit(lambda *args: experts(*args))
        text = run.lower(x, chosen, jnp.ones((1, tokens, 2)), stack).compile().as_text()
        module = hlo.parse(text)
        return account.unknown_loops(module, module.entry), traffic.flops(module, module.entry)

    loops, flops = counted(4)
    assert loops == (Loops(1, round(8 * (1 - 0.75**4)), "experts"),)
    assert flops == 5 * 3 * 2 * 4 * 32 * 16
    draws = np.random.default_rng(0).binomial(64, 0.25, 100_000)
    assert expected_groups(0.25, 64, 16) == pytest.approx(np.ceil(draws / 16).mean(), rel=0.01)
    loops, _ = counted(64)
    assert loops == (Loops(1, round(8 * expected_groups(0.25, 64, 16)), "experts"),)
    assert expected_groups(1.0, 9, 4) == 3 and expected_groups(0.5, 4, 1) == pytest.approx(2)


def test_kernels_and_copies() -> None:
    module = hlo.parse(LOOP, trips=3)
    found = kernels.count(module, "cycle", Origins(module), account.SCOPES)
    # Three products and a sum; the merging, which has no name of its own, belongs to them.
    assert found.by_scope == {"verify": 5, "commit": 2 + 3 * 3}
    assert found.a_layer == (3 - 0) / 2  # from layer 0 to layer 2: two products and a sum
    copied = kernels.copies(module, "cycle", Origins(module))
    assert [(c.argument[:5], c.times, c.num_bytes, c.is_join) for c in copied] == [
        ("net.p", 1, 3 * X, True),
        ("state", 3, CACHE + KEYS, True),
    ]
    copy = LOOP.replace("concatenate(%p0, %p1), dimensions={0}", "copy(%p0)")
    alone = hlo.parse(copy.replace("bf16[66,8]{1,0}", "bf16[64,8]{0,1}"))
    copied = kernels.copies(alone, "cycle", Origins(alone))
    assert [c.is_join for c in copied] == [True, False] and not copied[1].is_prefetch


def floors(**fields: Any) -> tuple[Setup, Floor]:
    setup = dataclasses.replace(SETUP, **fields)
    here = dataclasses.replace(topology.find("local"), hbm_bytes=None)
    return setup, report.plan(setup, here, None)[0].floor(setup.context)


def test_a_drafter_of_steps_reads_itself_in_every_one() -> None:
    """In float32, by hand: K times layers, head and cache; what fuses the target's states, once."""
    wide, own = 128 * (2 * 128 + 2 * 64), 3 * 128 * 256
    rows_of_cache = 2 * 2 * 200 * 64 * 4  # of one layer
    setup, found = floors(drafter="eagle3", num_draft=4)
    layer = 2 * wide - 128 * 128 + own + 3 * 128  # queries, keys and values of twice the width
    head, end, fc = 512 * 128, 128, 3 * 128 * 128
    assert found.draft_bytes == 4 * (4 * (layer + head + end) + fc)
    assert found.borrowed_bytes == 0
    assert found.cache_bytes == (2 + 4) * rows_of_cache
    setup, found = floors(drafter="lm", num_draft=3)  # the target's own shape, of two layers
    assert found.draft_bytes == 3 * found.weight_bytes
    assert found.cache_bytes == (2 + 3 * 2) * rows_of_cache
    setup, found = floors(drafter="medusa", num_draft=3)
    assert found.draft_bytes == 4 * 3 * (128 * 128 + 128 + 2048 * 128)
    assert found.cache_bytes == 2 * rows_of_cache and setup.draft_layers == 1


# One H100, jax 0.11.2, bfloat16, one row of 2048 slots: ms a cycle on the device.
MEASURED = {"none": 6.77, "dflash": 9.05, "eagle3": 8.38}
COPIED = 2.93e12  # bytes a second of a device copy there, reads and writes


def test_the_floor_has_the_weights_of_what_was_measured() -> None:
    """GB that the measured programs read of the target, and of the drafter, its head included.

    DFlash's keys and values are multiplied by twice, for the block and the context.
    """
    sizes = {"dflash": (15, 3.40 + 2 * 5 * 1024 * 4096 * 2 / 1e9), "eagle3": (5, 3.84)}
    assert "llama-3.1-8b" in SHAPES
    for drafter, (num_draft, read) in sizes.items():
        _, found = floors(
            **{"target": "llama-3.1-8b", "layers": 0, "drafter": drafter, "num_draft": num_draft},
            **{"draft_layers": 0, "draft_taps": 5, "draft_vocab": 32000, "dtype": "bfloat16"},
            **{"rows": 1, "slots": 2048, "context": 1536},
        )
        assert found.weight_bytes / 1e9 == pytest.approx(15.01, abs=0.005)
        assert (found.draft_bytes + found.borrowed_bytes) / 1e9 == pytest.approx(read, abs=0.005)


def test_the_account_against_what_was_measured() -> None:
    """No program moved more than the device can; cycles take as much longer as they move more."""
    reports = {d: load_report(RESULTS / f"h100-1_llama-3.1-8b_{d}.json", d) for d in MEASURED}
    plain = reports["none"].cycle.bytes
    for drafter, milliseconds in MEASURED.items():
        cycle = reports[drafter].cycle
        assert reports[drafter].setup.rows == 1
        assert 1 <= cycle.bytes_over_floor < 1.1
        assert 0.65 < cycle.bytes / (milliseconds / 1e3) / COPIED < 0.8
        longer = milliseconds / MEASURED["none"]
        assert cycle.bytes / plain == pytest.approx(longer, rel=0.1)
