"""What one run of a compiled computation moves and computes, counted in its optimised HLO.

Bytes are those of main memory. XLA's own `cost_analysis` says for every instruction the bytes of
its operands and results, wherever they lie and however little of them is touched: a cache that is
updated in place counts as read and written whole, a weight that was fetched into a TPU's VMEM
counts twice. Here

  - only arrays in main memory count (`hlo.Array.in_memory`); a prefetch reads its source once;
  - a slice, dynamic slice or gather reads what it takes out, inside a fusion as well;
  - a dynamic-update-slice or scatter that a fusion ends with writes its update, in place: the
    compiler has inserted copies, which are counted, wherever that is not possible;
  - a custom call (a kernel) that takes a buffer and hands it out again writes as much of it as it
    is given beside it; what it reads of the buffer is not known, and not counted;
  - what a kernel reads as far as texts reach (`core.trips.share_read`) counts as much;
  - loops inside count as often as they run;
  - communication that the compiler has spread over several fusions, which hand its buffers on,
    reads and writes once.

Padding of tiles is not counted, nor is what spills from registers.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Iterator

from specjax.core.trips import is_product, operand_a_buffer, share_read, tokens_filled
from specjax.lab.compiler.hlo import Computation, Instruction, Module
from specjax.lab.compiler.origins import PUTS, SEE_THROUGH, aliased
from specjax.lab.records.compiled import Collective

COLLECTIVES = (
    *("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter"),
    *("collective-broadcast", "ragged-all-to-all"),
)
_FREE = {
    *("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all", "iota"),
    *("partition-id", "replica-id", "while", "call", "conditional", "async-start", "opt-barrier"),
    *("add-dependency", "domain", "copy-done", "slice-done", "async-done", "async-update"),
}
_FREE_CALLS = ("ConcatBitcast", "AsyncCollectiveStart", "AsyncCollectiveDone", "Sharding")
_TAKES = {"slice", "dynamic-slice", "gather"}
Kind = Callable[[Computation, Instruction, int], str]


def works(instruction: Instruction) -> bool:
    """Whether an instruction does something of its own when it runs."""
    if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
        return False
    return instruction.opcode != "custom-call" or not any(
        f'custom_call_target="{free}"' in instruction.attributes for free in _FREE_CALLS
    )


@dataclasses.dataclass(frozen=True)
class Moved:
    """Bytes by kind."""

    read: dict[str, int]
    written: dict[str, int]

    @property
    def near(self) -> int:
        """Of the kind "near": what need not reach main memory."""
        return self.read.get("near", 0) + self.written.get("near", 0)

    @property
    def far(self) -> int:
        """Of all other kinds."""
        return sum(self.read.values()) + sum(self.written.values()) - self.near


def memory_bytes(module: Module, name: str, kind: Kind = lambda home, value, index: "all") -> Moved:
    """Bytes read and written by one run of a computation.

    Args:
      module: the program.
      name: of the computation.
      kind: sorts arrays: (its computation, what makes it, which of its results it is) -> kind;
        slices and updates belong to the array they are taken from or put into.
    """
    read: dict[str, int] = collections.Counter()
    written: dict[str, int] = collections.Counter()
    for home, instruction, times in module.walk(name):
        if not works(instruction):
            continue
        for index, operand in enumerate(instruction.operands):
            source = home.instructions.get(operand)
            if source is None or len(source.arrays) != 1 or not source.arrays[0].in_memory:
                continue
            amount = _touched(module, home, instruction, index)
            read[kind(home, source, 0)] += times * min(amount, source.arrays[0].nbytes)
        for index, amount in _results(module, home, instruction):
            if instruction.arrays[index].in_memory:
                written[kind(home, instruction, index)] += times * amount
    for home, instruction, times, _ in _spread(module, name):
        sources = [home.instructions[o] for o in instruction.operands if o in home.instructions]
        for source in sources:
            for index, array in enumerate(source.arrays):
                read[kind(home, source, index)] += times * array.nbytes * array.in_memory
        for index, array in enumerate(instruction.arrays):
            written[kind(home, instruction, index)] += times * array.nbytes * array.in_memory
    return Moved(dict(read), dict(written))


def _touched(module: Module, home: Computation, user: Instruction, index: int) -> int:
    """Bytes that ``user`` reads of its operand ``index``."""
    source = home.instructions.get(user.operands[index])
    full = 0 if source is None else sum(a.nbytes for a in source.arrays)
    if user.opcode == "fusion":
        inner = module.computations[user.called("calls")]
        return min(full, _read_of(module, inner, inner.parameter(index)))
    if user.opcode == "slice-start":  # ((operand), slice, context)
        return user.arrays[1].nbytes
    if user.opcode in _TAKES:
        return user.arrays[0].nbytes if index == 0 else full
    if user.opcode in PUTS and index == 0:
        return 0
    if user.opcode == "custom-call":
        read = 0.0 if index in aliased(user).values() else 1.0
        return round(read * full * share_read(user.op_name, index, module.context))
    return full


def _read_of(module: Module, home: Computation, value: Instruction) -> int:
    """Bytes of ``value``, inside a fusion, that its users there read."""
    full = sum(a.nbytes for a in value.arrays)
    amount = 0
    for user in home.users[value.name]:
        for index, operand in enumerate(user.operands):
            if operand != value.name:
                continue
            if user.opcode in SEE_THROUGH and not user.is_root:
                amount += min(full, _read_of(module, home, user))
            elif user.opcode == "tuple" or user.opcode in COLLECTIVES:
                pass  # handed on, or counted apart
            elif user.opcode in SEE_THROUGH:
                amount += full
            else:
                amount += _touched(module, home, user, index)
    return min(amount, full)


def _results(module: Module, home: Computation, instruction: Instruction) -> list[tuple[int, int]]:
    """Which arrays of its result an instruction writes, and how many bytes of each."""
    code, arrays = instruction.opcode, instruction.arrays
    whole = [(index, array.nbytes) for index, array in enumerate(arrays)]
    if code == "copy-start":
        return whole[:1]
    if code == "slice-start":
        return whole[1:2]
    if code.endswith("-start"):  # (operands, results, contexts)
        skipped = len(instruction.operands) if len(arrays) > 1 else 0
        return [pair for pair in whole[skipped:] if arrays[pair[0]].dims]
    if code in PUTS:
        update = home.instructions[instruction.operands[PUTS[code]]]
        return [(0, update.arrays[0].nbytes)]
    if code == "custom-call":
        given = _given(home, instruction)
        return [(index, given.get(index, size)) for index, size in whole]
    if code != "fusion":
        return whole
    inner, ends = module.computations[instruction.called("calls")], module.ends(instruction)
    if len(ends) != len(arrays):
        return whole
    return [(index, _put(module, inner, end)) for index, end in enumerate(ends)]


def _given(home: Computation, call: Instruction) -> dict[int, int]:
    """Bytes that a custom call writes of each buffer it updates in place, by its result.

    All that it is given beside the buffers, shared among them by their sizes, where it does not say
    which goes where (`core.trips.updates`).
    """
    places = aliased(call)
    if operand_a_buffer(call.op_name):
        of = lambda i: sum(a.nbytes for a in home.instructions[call.operands[i]].arrays)
        return {index: of(index) for index in places}
    if (tokens := tokens_filled(call.op_name)) is not None:
        filled = {index: call.arrays[index] for index in places}
        return {i: x.nbytes * min(tokens, x.dims[2]) // x.dims[2] for i, x in filled.items()}
    names = [o for i, o in enumerate(call.operands) if i not in places.values()]
    beside = [home.instructions[o] for o in names if o in home.instructions]
    given = sum(a.nbytes for source in beside for a in source.arrays)
    sizes = {index: call.arrays[index].nbytes for index in places if index < len(call.arrays)}
    total = max(sum(sizes.values()), 1)
    return {index: min(size, given * size // total) for index, size in sizes.items()}


def _put(module: Module, home: Computation, end: Instruction) -> int:
    """Bytes that a result of a fusion writes: its update, if it is one in place."""
    full = sum(a.nbytes for a in end.arrays)
    before = end.opcode in ("parameter", "bitcast")
    while end.opcode in SEE_THROUGH and end.operands and end.operands[0] in home.instructions:
        end = home.instructions[end.operands[0]]
    if end.opcode == "fusion":
        inner = module.computations[end.called("calls")]
        return min(full, _put(module, inner, inner.root))
    if end.opcode in COLLECTIVES or (end.opcode == "parameter" and before):
        return 0  # counted apart, or handed on
    amount = 0
    while end.opcode in PUTS:  # several updates of one buffer, one behind the other
        amount += home.instructions[end.operands[PUTS[end.opcode]]].arrays[0].nbytes
        end = home.instructions[end.operands[0]]
        while end.opcode in SEE_THROUGH and end.operands[0] in home.instructions:
            end = home.instructions[end.operands[0]]
    return min(full, amount) if amount and end.opcode == "parameter" else full


def collectives(module: Module, name: str) -> dict[str, Collective]:
    """Communication of one run of a computation, by kind.

    An asynchronous operation counts once, where it starts; so does one that the compiler has spread
    over several fusions, which share its channel. Bytes are those of the operands or of the
    results, whichever are more. Overlapped are those that were spread so, those between whose start
    and end a kernel runs, and those during which something is brought into a chip's faster memory.
    """
    counts: dict[str, int] = collections.Counter()
    sizes: dict[str, int] = collections.Counter()
    beside: dict[str, int] = collections.Counter()
    apart = [(h, i, t, 1) for h, i, t in module.walk(name) if _kind(i) in COLLECTIVES]
    for home, instruction, times, parts in [*apart, *_spread(module, name)]:
        kind = _kind(instruction)
        operands = [home.instructions[o] for o in instruction.operands if o in home.instructions]
        sent = sum(a.nbytes for o in operands for a in o.arrays)
        results = sum(a.nbytes for a in instruction.arrays if a.dims)
        if instruction.opcode.endswith("-start") and results > sent:
            results -= sent  # a start hands its operands out again
        counts[kind] += times
        sizes[kind] += times * max(sent, results)
        beside[kind] += times * (parts > 1 or _runs_beside(home, instruction))
    return {kind: Collective(counts[kind], sizes[kind], beside[kind]) for kind in sorted(counts)}


def _runs_beside(home: Computation, one: Instruction) -> bool:
    """Whether other work runs while a collective does: a kernel, or a prefetch into the chip.

    Instructions of a compiled program stand in the order in which they run.
    """
    names = list(home.instructions)
    at = {name: place for place, name in enumerate(names)}

    def end(start: Instruction) -> int:
        ends = [at[u.name] for u in home.users[start.name] if u.opcode.endswith("-done")]
        return ends[0] if ends else at[start.name]

    place = at[one.name]
    before, between = names[:place], names[place + 1 : end(one)]
    kernels = (home.instructions[n] for n in between)
    prefetches = (home.instructions[n] for n in before)
    return any(works(i) and not i.opcode.endswith("-start") for i in kernels) or any(
        end(i) > place for i in prefetches if _is_prefetch(i)
    )


def _is_prefetch(start: Instruction) -> bool:
    place = {"copy-start": 0, "slice-start": 1}.get(start.opcode)  # of what it makes
    return place is not None and not start.arrays[place].in_memory


def _kind(instruction: Instruction) -> str:
    return instruction.opcode.removesuffix("-start")


def _spread(module: Module, name: str) -> Iterator[tuple[Computation, Instruction, int, int]]:
    """The communication inside fusions: each channel once, and over how many it is spread."""
    found: dict[tuple[str, str], list[tuple[Computation, Instruction, int]]] = {}
    for home, instruction, times in _inside_fusions(module, name):
        if _kind(instruction) in COLLECTIVES and home.name in module.fused:
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            key = (instruction.opcode, instruction.name if channel is None else channel[1])
            found.setdefault(key, []).append((home, instruction, times))
    for parts in found.values():
        yield *parts[0], len(parts)


def _inside_fusions(module: Module, name: str) -> Iterator[tuple[Computation, Instruction, int]]:
    """Walks a module as `Module.walk` does, and into its fusions."""
    pending = list(module.walk(name))
    while pending:
        home, instruction, times = pending.pop()
        if instruction.opcode == "fusion":
            inner = module.computations[instruction.called("calls")]
            pending += [(inner, i, times) for i in inner.instructions.values()]
        else:
            yield home, instruction, times


def flops(module: Module, name: str) -> int:
    """Floating-point operations of the matrix products of one run of a computation."""
    count = {"dot": _dot_flops, "convolution": _convolution_flops, "custom-call": _call_flops}
    return sum(
        times * count[i.opcode](home, i)
        for home, i, times in _inside_fusions(module, name)
        if i.opcode in count
    )


def _dot_flops(home: Computation, dot: Instruction) -> int:
    left = home.instructions[dot.operands[0]].arrays[0]
    found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.attributes)
    dims = [int(d) for d in found[1].split(",")] if found and found[1] else []
    return 2 * dot.arrays[0].size * math.prod(left.dims[d] for d in dims)


def _call_flops(home: Computation, call: Instruction) -> int:
    """Of a product of a library, or of a kernel of our own that says that it is one."""
    over = re.search(r'lhs_contracting_dimensions[^0-9]*([0-9",\s]*)', call.attributes)
    if over is not None:
        left = home.instructions[call.operands[0]].arrays[0].dims
        dims = map(int, re.findall(r"\d+", over[1]))
        return 2 * call.arrays[0].size * math.prod(left[d] for d in dims)
    if not is_product(call.op_name):
        return 0
    x, w = (home.instructions[o].arrays[0] for o in call.operands[:2])
    return 2 * x.dims[0] * w.size


def _convolution_flops(home: Computation, conv: Instruction) -> int:
    """TPUs write products as convolutions, batch dimensions as spatial ones with dilation."""
    left, right = (home.instructions[o].arrays[0] for o in conv.operands[:2])
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", conv.attributes)
    assert labels is not None
    lhs, rhs, out = labels[1], labels[2], labels[3]
    total = 2 * conv.arrays[0].dims[out.index("b")] * conv.arrays[0].dims[out.index("f")]
    total *= right.dims[rhs.index("i")]
    window = re.search(r"window=\{([^}]*)\}", conv.attributes)
    fields = dict(f.split("=") for f in window[1].split()) if window else {}

    def field(name: str, place: int, default: int) -> int:
        return int(fields[name].split("x")[place].split("_")[0]) if name in fields else default

    for place in range(len(lhs) - 2):
        size, taps = left.dims[lhs.index(str(place))], right.dims[rhs.index(str(place))]
        stride, pad = field("stride", place, 1), field("pad", place, 0)
        spread, step = field("lhs_dilate", place, 1), field("rhs_dilate", place, 1)
        reach = (size - 1) * spread + 1
        places = (
            o * stride - pad + k * step
            for o in range(conv.arrays[0].dims[out.index(str(place))])
            for k in range(taps)
        )
        total *= sum(1 for at in places if 0 <= at < reach and at % spread == 0)
    return total
