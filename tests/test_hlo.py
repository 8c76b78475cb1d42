"""The reader of optimised HLO: loops, copies, bytes of main memory and products."""

from __future__ import annotations

import pytest

from specjax.lab.compiler import hlo, traffic
from specjax.lab.records.compiled import Collective

# A loop of cycles whose condition the compiler does not know, with a loop of three steps inside. By
# hand: what one cycle reads and writes of main memory, sends, copies and computes.
LOOP = """
HloModule constructed

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%step_body (p: (s32[], f32[16,4])) -> (s32[], f32[16,4]) {
  %p = (s32[], f32[16,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %a = f32[16,4]{1,0} get-tuple-element(%p), index=1
  %sent = f32[16,4]{1,0} all-reduce(%a), channel_id=3, to_apply=%add
  ROOT %out = (s32[], f32[16,4]{1,0}) tuple(%i, %sent)
}

%step_test (p: (s32[], f32[16,4])) -> pred[] {
  %p = (s32[], f32[16,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %three = s32[] constant(3)
  ROOT %go = pred[] compare(%i, %three), direction=LT
}

%taken (p0: bf16[64,8], p1: s32[]) -> bf16[1,8] {
  %p0 = bf16[64,8]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %row = bf16[1,8]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,8}
}

%put (p0: bf16[64,8], p1: bf16[1,8], p2: s32[]) -> bf16[64,8] {
  %p0 = bf16[64,8]{1,0} parameter(0)
  %p1 = bf16[1,8]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %new = bf16[64,8]{1,0} dynamic-update-slice(%p0, %p1, %p2, %zero)
}

%copied (p0: bf16[64,8]) -> bf16[64,8] {
  %p0 = bf16[64,8]{1,0} parameter(0)
  ROOT %again = bf16[64,8]{0,1} copy(%p0)
}

%gathered (g: f32[2,4]) -> f32[16,4] {
  %g = f32[2,4]{1,0} parameter(0)
  ROOT %part = f32[16,4]{1,0} all-gather(%g), channel_id=9, dimensions={0}
}

%called (c: f32[16,4], w: f32[4,4]) -> f32[16,4] {
  %c = f32[16,4]{1,0} parameter(0)
  %w = f32[4,4]{1,0} parameter(1)
  ROOT %product = f32[16,4]{1,0} dot(%c, %w), lhs_contracting_dims={1}, rhs_contracting_dims={1}
}

%cycle (s: (s32[], f32[16,4], bf16[64,8], f32[4,4])) -> (s32[], f32[16,4], bf16[64,8], f32[4,4]) {
  %s = (s32[], f32[16,4]{1,0}, bf16[64,8]{1,0}, /*index=3*/f32[4,4]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%s), index=0
  %x = f32[16,4]{1,0} get-tuple-element(%s), index=1
  %cache = bf16[64,8]{1,0} get-tuple-element(%s), index=2
  %w = f32[4,4]{1,0} get-tuple-element(%s), index=3
  %near = (bf16[64,8]{1,0:T(8,128)(2,1)S(1)}, bf16[64,8]{1,0}, u32[]) copy-start(%cache)
  %nearer = bf16[64,8]{1,0:T(8,128)(2,1)S(1)} copy-done(%near)
  %row = bf16[1,8]{1,0} fusion(%cache, %n), kind=kLoop, calls=%taken
  %other = bf16[64,8]{0,1} fusion(%cache), kind=kLoop, calls=%copied
  %flipped = bf16[8,64]{1,0} transpose(%other), dimensions={1,0}
  %y = f32[16,4]{1,0} call(%x, %w), to_apply=%called
  %zero = s32[] constant(0)
  %begin = (s32[], f32[16,4]{1,0}) tuple(%zero, %y)
  %steps = (s32[], f32[16,4]{1,0}) while(%begin), condition=%step_test, body=%step_body
  %z = f32[16,4]{1,0} get-tuple-element(%steps), index=1
  %thin = f32[2,4]{1,0} slice(%z), slice={[0:2], [0:4]}
  %start = (f32[2,4]{1,0}, f32[16,4]{1,0}) all-gather-start(%thin), channel_id=5, dimensions={0}
  %done = f32[16,4]{1,0} all-gather-done(%start)
  %spread.1 = f32[16,4]{1,0} fusion(%thin), kind=kCustom, calls=%gathered
  %spread.2 = f32[16,4]{1,0} fusion(%thin), kind=kCustom, calls=%gathered
  %updated = bf16[64,8]{1,0} fusion(%cache, %row, %n), kind=kLoop, calls=%put
  ROOT %next = (s32[], f32[16,4], bf16[64,8], f32[4,4]) tuple(%n, %done, %updated, %w)
}

%unfinished (s: (s32[], f32[16,4], bf16[64,8], f32[4,4])) -> pred[] {
  %s = (s32[], f32[16,4]{1,0}, bf16[64,8]{1,0}, f32[4,4]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%s), index=0
  %most = s32[] get-tuple-element(%s), index=0
  ROOT %go = pred[] compare(%n, %most), direction=LT
}

ENTRY %main (n: s32[], x: f32[16,4], cache: bf16[64,8], w: f32[4,4]) -> bf16[64,8] {
  %n = s32[] parameter(0)
  %x = f32[16,4]{1,0} parameter(1)
  %cache = bf16[64,8]{1,0} parameter(2)
  %w = f32[4,4]{1,0} parameter(3)
  %safe = bf16[64,8]{1,0} copy(%cache)
  %begin = (s32[], f32[16,4]{1,0}, bf16[64,8]{1,0}, f32[4,4]{1,0}) tuple(%n, %x, %safe, %w)
  %loop = (s32[], f32[16,4], bf16[64,8], f32[4,4]) while(%begin), condition=%unfinished, body=%cycle
  ROOT %out = bf16[64,8]{1,0} get-tuple-element(%loop), index=2
}
"""


def constructed() -> tuple[hlo.Module, str]:
    module = hlo.parse(LOOP)
    assert module.main_loop is not None
    return module, module.main_loop.called("body")


def test_loops_calls_and_what_is_asynchronous() -> None:
    module, body = constructed()
    assert body == "cycle"
    inner = module.computations["cycle"].instructions["steps"]
    assert module.trip_count(inner) == 3 and module.trip_count(module.main_loop) is None
    # Three steps of one sum; the gather that starts and ends, and the one spread over two fusions.
    assert traffic.collectives(module, body) == {
        "all-gather": Collective(count=2, bytes=2 * 16 * 4 * 4, overlapped=1),
        "all-reduce": Collective(count=3, bytes=3 * 16 * 4 * 4, overlapped=0),
    }
    # Something runs between the start and the end; the end of another runs nothing.
    start, done = (
        next(line for line in LOOP.splitlines() if line.startswith(f"  %{name} = "))
        for name in ("start", "done")
    )
    kernel = next(line for line in LOOP.splitlines() if line.startswith("  %spread.1 = "))
    between = LOOP.replace(f"{kernel}\n", "").replace(done, f"{kernel}\n{done}")
    assert start in between
    assert traffic.collectives(hlo.parse(between), body)["all-gather"].overlapped == 2
    near = next(line for line in LOOP.splitlines() if line.startswith("  %nearer = "))
    fetching = LOOP.replace(f"{near}\n", "").replace(done, f"{done}\n{near}")
    assert traffic.collectives(hlo.parse(fetching), body)["all-gather"].overlapped == 2
    assert traffic.flops(module, body) == 2 * 16 * 4 * 4
    known = LOOP.replace(
        "body=%step_body", 'body=%step_body, backend_config={"known_trip_count":{"n":"7"}}'
    )
    assert traffic.collectives(hlo.parse(known), body)["all-reduce"].count == 7


def test_copies_of_caches() -> None:
    module, body = constructed()
    found = hlo.copies(module, body, [(1, 64, 8)])
    assert [(c.is_prefetch, c.times) for c in found] == [(True, 1), (False, 1), (False, 1)]
    assert [c.array.layout for c in found[1:]] == ["0,1", "1,0"]
    assert hlo.count_copies(LOOP, (64, 8)) == (3, 4)  # one more before the loop
    assert hlo.count_copies(LOOP, (64, 9)) == (0, 0)


def test_bytes_of_main_memory() -> None:
    """A slice reads itself, an update writes itself; what is in VMEM is not read again."""
    module, body = constructed()
    kind = lambda home, value, index: value.arrays[index].dtype
    moved = traffic.memory_bytes(module, body, kind)
    row, cache, x, thin, w = 8 * 2, 64 * 8 * 2, 16 * 4 * 4, 2 * 4 * 4, 4 * 4 * 4
    # The prefetch, the slice, the copy, the transpose, and the row that is put.
    assert moved.read["bf16"] == cache + row + cache + cache + row
    assert moved.written["bf16"] == row + cache + cache + row
    # The product; three sums; the slice; a gather that starts, and one that two fusions share.
    assert moved.read["f32"] == (x + w) + 3 * x + thin + 2 * thin
    assert moved.written["f32"] == x + 3 * x + thin + 2 * x


def test_products_that_compilers_write_otherwise() -> None:
    """A batch of 8 as one convolution over a dilated dimension, and one that a library makes."""
    text = """
ENTRY %main (a: f32[8,5,3], b: f32[8,7,3]) -> f32[8,5,7] {
  %a = f32[8,5,3]{2,1,0} parameter(0)
  %b = f32[8,7,3]{2,1,0} parameter(1)
  ROOT %c = f32[8,5,7]{2,1,0} convolution(%a, %b), WINDOW
}
""".replace("WINDOW", "window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0oi->0bf")
    assert traffic.flops(hlo.parse(text), "main") == 8 * 2 * 5 * 3 * 7
    library = """
ENTRY %main (a: f32[5,3], b: f32[7,3]) -> f32[5,7] {
  %a = f32[5,3]{1,0} parameter(0)
  %b = f32[7,3]{1,0} parameter(1)
  %c = (f32[5,7]{1,0}, s8[64]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", CONFIG
  ROOT %d = f32[5,7]{1,0} get-tuple-element(%c), index=0
}
""".replace(
        "CONFIG",
        'backend_config={"gemm_backend_config":{"dot_dimension_numbers":{'
        '"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["1"]}}}',
    )
    assert traffic.flops(hlo.parse(library), "main") == 2 * 5 * 3 * 7
    with pytest.raises(ValueError, match="no HLO text"):
        hlo.parse("nothing of the kind")
