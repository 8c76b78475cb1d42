"""Conditionals in a compiled program: one branch runs, the dearest counts, all stand apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from scripts import invoke, script

from specjax.lab.compiler import branches, hlo, kernels, traffic
from specjax.lab.compiler.comparison import Figure, compare
from specjax.lab.compiler.origins import Origins
from specjax.lab.records.compiled import read_report

ROOT = Path(__file__).resolve().parent.parent
RESULTS, CONFIG = ROOT / "docs" / "results" / "compile", ROOT / "configs" / "compile.py"

# A cycle that chooses one of three: a product, a loop of five products, or another choice of two.
# The first and the last hand the cache on; the second one, and the last's second, copy it.
SWITCH = """
HloModule constructed

%narrow (p: (f32[4,4], bf16[64,8])) -> (f32[4,4], bf16[64,8]) {
  %p = (f32[4,4]{1,0}, bf16[64,8]{1,0}) parameter(0)
  %w = f32[4,4]{1,0} get-tuple-element(%p), index=0
  %c = bf16[64,8]{1,0} get-tuple-element(%p), index=1
  %y = f32[4,4]{1,0} dot(%w, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %out = (f32[4,4]{1,0}, bf16[64,8]{1,0}) tuple(%y, %c)
}

%step (p: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %p = (s32[], f32[4,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %a = f32[4,4]{1,0} get-tuple-element(%p), index=1
  %y = f32[4,4]{1,0} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %out = (s32[], f32[4,4]{1,0}) tuple(%i, %y)
}

%test (p: (s32[], f32[4,4])) -> pred[] {
  %p = (s32[], f32[4,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %go = pred[] compare(%i, %i), direction=LT
}

%wide (p: (f32[4,4], bf16[64,8])) -> (f32[4,4], bf16[64,8]) {
  %p = (f32[4,4]{1,0}, bf16[64,8]{1,0}) parameter(0)
  %w = f32[4,4]{1,0} get-tuple-element(%p), index=0
  %c = bf16[64,8]{1,0} get-tuple-element(%p), index=1
  %again = bf16[64,8]{1,0} copy(%c)
  %zero = s32[] constant(0)
  %begin = (s32[], f32[4,4]{1,0}) tuple(%zero, %w)
  %five = (s32[], f32[4,4]{1,0}) while(%begin), condition=%test, body=%step, backend_config={"known_trip_count":{"n":"5"}}
  %y = f32[4,4]{1,0} get-tuple-element(%five), index=1
  ROOT %out = (f32[4,4]{1,0}, bf16[64,8]{1,0}) tuple(%y, %again)
}

%idle (p: bf16[64,8]) -> bf16[64,8] {
  ROOT %p = bf16[64,8]{1,0} parameter(0)
}

%busy (p: bf16[64,8]) -> bf16[64,8] {
  %p = bf16[64,8]{1,0} parameter(0)
  ROOT %again = bf16[64,8]{1,0} copy(%p)
}

%nested (p: (f32[4,4], bf16[64,8])) -> (f32[4,4], bf16[64,8]) {
  %p = (f32[4,4]{1,0}, bf16[64,8]{1,0}) parameter(0)
  %w = f32[4,4]{1,0} get-tuple-element(%p), index=0
  %c = bf16[64,8]{1,0} get-tuple-element(%p), index=1
  %which = pred[] constant(true)
  %inside = bf16[64,8]{1,0} conditional(%which, %c, %c), true_computation=%idle, false_computation=%busy
  ROOT %out = (f32[4,4]{1,0}, bf16[64,8]{1,0}) tuple(%w, %inside)
}

ENTRY %main (w: f32[4,4], c: bf16[64,8], n: s32[]) -> bf16[64,8] {
  %w = f32[4,4]{1,0} parameter(0), metadata={op_name="net.w"}
  %c = bf16[64,8]{1,0} parameter(1), metadata={op_name="state.cache"}
  %n = s32[] parameter(2), metadata={op_name="number"}
  %given = (f32[4,4]{1,0}, bf16[64,8]{1,0}) tuple(%w, %c)
  %chosen = (f32[4,4]{1,0}, bf16[64,8]{1,0}) conditional(%n, %given, %given, %given), branch_computations={%narrow, %wide, %nested}, metadata={op_name="specjax/verify/cond"}
  %x = f32[4,4]{1,0} get-tuple-element(%chosen), index=0
  %kept = bf16[64,8]{1,0} get-tuple-element(%chosen), index=1
  %last = f32[4,4]{1,0} add(%x, %w)
  ROOT %sum = bf16[64,8]{1,0} add(%kept, %kept)
}
"""  # noqa: E501
X, CACHE = 4 * 4 * 4, 64 * 8 * 2
TEST = 4 + 4 + 1  # what the loop's condition reads and writes
PRODUCT = 2 * 4 * 4 * 4


def settled(text: str) -> tuple[hlo.Module, list[branches.Choice]]:
    module = hlo.parse(text)
    return branches.settle(module, module.entry, lambda *_: "all", Origins(module))


def test_the_dearest_branch_counts_and_all_stand_apart() -> None:
    module, (outer, inner) = settled(SWITCH)
    assert (outer.op_name, outer.times, outer.counted) == ("specjax/verify/cond", 1, 1)
    assert [b.bytes for b in outer.branches] == [3 * X, 2 * CACHE + 5 * (3 * X + TEST), 2 * CACHE]
    assert [b.flops for b in outer.branches] == [PRODUCT, 5 * PRODUCT, 0]
    assert [b.kernels for b in outer.branches] == [1, 1 + 5 * 2, 1]  # a loop's condition is one
    copied: list[dict[str, int]] = [{}, {"state.cache": 1}, {"state.cache": 1}]
    assert [b.copied for b in outer.branches] == copied
    assert inner.counted == 1 and [b.bytes for b in inner.branches] == [0, 2 * CACHE]
    moved = traffic.memory_bytes(module, "main")
    beside = 3 * X + 3 * CACHE  # the two sums
    assert moved.far + moved.near == (beside + outer.branches[1].bytes)
    assert traffic.flops(module, "main") == 5 * PRODUCT
    found = kernels.copies(module, "main", Origins(module))
    assert [(c.argument, c.times) for c in found] == [("state.cache", 1)]
    assert hlo.count_copies(SWITCH, (64, 8)) == (0, 2)  # no branch may have one: all are looked at


def test_a_cache_keeps_its_name_through_a_conditional() -> None:
    module = hlo.parse(SWITCH)
    main = module.computations["main"]
    of = lambda name, index=0: Origins(module).of(main, main.instructions[name], index)
    assert of("kept").argument == "state.cache"
    assert of("x").argument == ""  # branches differ in what they hand back
    agreed = hlo.parse(
        SWITCH.replace("tuple(%y, %c)", "tuple(%w, %c)").replace("(%y, %ag", "(%w, %ag")
    )
    main = agreed.computations["main"]
    assert Origins(agreed).of(main, main.instructions["x"]).argument == "net.w"


def test_a_switch_as_jax_compiles_it() -> None:
    """Widths of 1, 2 and 8 rows, the last in a loop of three."""

    def many(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 3, lambda _, y: jnp.tanh(y @ w), x)

    def cycle(n: jax.Array, w: jax.Array, x: jax.Array) -> jax.Array:
        first = lambda rows: lambda: x.at[:rows].set(jnp.tanh(x[:rows] @ w))
        return jax.lax.switch(n, [first(1), first(2), lambda: many(x, w)])

    shapes = (jax.ShapeDtypeStruct(s, d) for s, d in (((), "int32"), ((512, 512), "float32")))
    given = (*shapes, jax.ShapeDtypeStruct((8, 512), "float32"))
    _, choices = settled(jax.jit(cycle).lower(*given).compile().as_text())
    (choice,) = choices
    product = 2 * 512 * 512
    assert choice.counted == 2
    assert [b.flops for b in choice.branches] == [product, 2 * product, 3 * 8 * product]
    weights = 4 * 512 * 512
    for branch, reads in zip(choice.branches, (1, 1, 3), strict=True):
        assert reads * weights <= branch.bytes < 1.5 * reads * weights


def changed(report: dict[str, Any], **cycle: Any) -> dict[str, Any]:
    return {**report, "cycle": {**report["cycle"], **cycle}}


def compared(before: dict[str, Any], after: dict[str, Any]) -> list[Figure]:
    return compare(read_report(before, "before"), read_report(after, "after"))


def test_two_reports_side_by_side() -> None:
    before = json.loads((RESULTS / "h100-1_llama-3.1-8b_lm.json").read_text())
    assert not any(f.worse or f.before != f.after for f in compared(before, before))
    joins = before["cycle"]["cache_joins"]
    after = changed(before, cache_joins=joins - 1, bytes=before["cycle"]["bytes"] + 1)
    found = {f.name: f for f in compared(before, after)}
    assert found["bytes"].worse and not found["cache joins"].worse
    assert (found["cache joins"].before, found["cache joins"].after) == (joins, joins - 1)
    sent = changed(before, collectives={"all-reduce": {"count": 3, "bytes": 12}})
    assert {f.name for f in compared(before, sent) if f.worse} == {
        "all-reduce",
        "all-reduce, bytes",
    }
    other = {**before, "setup": {**before["setup"], "rows": 8}}
    with pytest.raises(ValueError, match=r"setup\.rows is 1 and 8\.$"):
        compared(before, other)
    kernels_gone = {k: v for k, v in before["cycle"].items() if k != "kernels"}
    with pytest.raises(ValueError, match="lacks 'kernels': make it anew"):
        compared({**before, "cycle": kernels_gone}, before)


def test_stored_reports_are_shown_and_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is compiled. Every branch has a line; a figure that rose is told."""
    before = json.loads((RESULTS / "h100-1_llama-3.1-8b_lm.json").read_text())
    cost = {"bytes": 10**6, "flops": 0, "kernels": 7, "cache_copies": 1, "weight_copies": 2}
    one = {
        "op_name": "",
        "times": 5,
        "counted": 1,
        "branches": [cost, {**cost, "bytes": 2 * 10**6}],
    }
    after = changed(before, conditionals=[one], flops=before["cycle"]["flops"] * 2)
    for name, report in (("before", before), ("after", after)):
        (tmp_path / f"{name}.json").write_text(json.dumps(report))
    line = ["compile", f"--config={CONFIG}", f"--compare={tmp_path / 'before.json'}"]
    line += [f"--read={tmp_path / 'after.json'}"]
    module = script("compile")
    status, told, _ = invoke(module, capsys, *line)
    assert status == 0
    assert "0 of conditional 1 " in told and "1 of conditional 1, counted 5 times" in told
    flops = next(line for line in told.splitlines() if line.startswith("| flops"))
    assert "WORSE +100.00%" in flops and told.count("WORSE") == 1
    for text, reason in (("{}", "is no report"), (None, "there is no such file")):
        (tmp_path / "after.json").unlink()
        if text is not None:
            (tmp_path / "after.json").write_text(text)
        module = script("compile")
        status, _, error = invoke(module, capsys, *line)
        assert status == 2 and reason in error and error.count("\n") == 1
