"""Reads optimised HLO text: computations, instructions, shapes, loops, and copies of buffers.

Only what a report on a compiled program needs; the grammar is that of `Compiled.as_text()`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from specjax.core.trips import stated

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_COPIES = ("copy", "copy-start", "transpose")
_CALLS = re.compile(
    r"\b(?:calls|body|condition|to_apply|true_computation|false_computation"
    r"|branch_computations|called_computations)=(\{[^{}]*\}|%?[\w.\-]+)"
)


@dataclasses.dataclass(frozen=True)
class Array:
    """The shape of one array, and where the compiler keeps it."""

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""  # what stands in braces: minor-to-major order, tiles, memory space

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements, without the padding of tiles."""
        return self.size * _bits(self.dtype) // 8

    @property
    def in_memory(self) -> bool:
        """Whether it lies in main memory (HBM): TPUs mark what lies elsewhere, VMEM as ``S(1)``."""
        space = re.search(r"S\((\d+)\)", self.layout)
        return space is None or space[1] == "0"

    @property
    def squeezed(self) -> tuple[int, ...]:
        """Its sizes without those of one."""
        return tuple(d for d in self.dims if d != 1)


def _bits(dtype: str) -> int:
    digits = re.match(r"[a-z]+(\d+)", dtype)
    return _BITS[dtype] if dtype in _BITS else int(digits[1]) if digits else 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    type: str  # as written
    opcode: str
    operands: tuple[str, ...]  # names
    literal: str  # what stands in the parentheses
    attributes: str  # what follows them
    is_root: bool

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of its result, those of a tuple in their order."""
        return tuple(
            Array(dtype, tuple(map(int, dims.split(","))) if dims else (), layout or "")
            for dtype, dims, layout in _ARRAY.findall(self.type)
        )

    @functools.cached_property
    def calls(self) -> tuple[str, ...]:
        """Names of the computations it calls, in the order they are written."""
        found: list[str] = []
        for names in _CALLS.findall(self.attributes):
            found += [n.strip().lstrip("%") for n in names.strip("{}").split(",") if n.strip()]
        return tuple(found)

    def called(self, role: str) -> str:
        """The computation in one role, such as ``body``; "" if there is none."""
        found = re.search(rf"\b{role}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else ""

    @property
    def op_name(self) -> str:
        """Where it comes from in the traced program, named scopes included."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Computation:
    """A list of instructions; a fusion's, a loop's body, or the whole program."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        return next(i for i in self.instructions.values() if i.is_root)

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Name of an instruction -> those that take it as an operand."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                found.setdefault(operand, []).append(instruction)
        return found

    def parameter(self, index: int) -> Instruction:
        return next(
            i
            for i in self.instructions.values()
            if i.opcode == "parameter" and int(i.literal) == index
        )


@dataclasses.dataclass(frozen=True)
class Module:
    """A program."""

    computations: dict[str, Computation]
    entry: str
    trips: int = 1  # of a loop whose length the program decides when it runs, and does not expect
    context: int | None = None  # tokens in every row's cache; None: as many as there is room for
    # Name of a conditional -> which of its branches runs; every one of those that are not here.
    taken: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def walk(self, name: str, times: int = 1) -> Iterator[tuple[Computation, Instruction, int]]:
        """Every instruction that one run of a computation executes, and how often.

        Follows calls, loops and branches, but not into fusions, reducers and comparators, which
        belong to the instruction that calls them. The body of a loop counts as often as it runs
        (`runs`); of a conditional the branch that is ``taken``.
        """
        computation = self.computations[name]
        for instruction in computation.instructions.values():
            yield computation, instruction, times
            if instruction.opcode == "while":
                trips = self.runs(instruction)
                yield from self.walk(instruction.called("body"), times * trips)
                yield from self.walk(instruction.called("condition"), times * trips)
            elif instruction.opcode in ("call", "conditional", "async-start"):
                calls, branch = instruction.calls, self.taken.get(instruction.name)
                for called in calls if branch is None else calls[branch : branch + 1]:
                    yield from self.walk(called, times)

    @functools.cached_property
    def fused(self) -> set[str]:
        """The computations of fusions."""
        lines = (i for c in self.computations.values() for i in c.instructions.values())
        return {i.called("calls") for i in lines if i.opcode == "fusion"}

    def ends(self, fusion: Instruction) -> list[Instruction]:
        """What a fusion results in, inside it, one for each of its results."""
        inner = self.computations[fusion.called("calls")]
        root = inner.root
        return [inner.instructions[o] for o in root.operands] if root.opcode == "tuple" else [root]

    def trip_count(self, loop: Instruction) -> int | None:
        """How often the body of a ``while`` runs; None: the program decides when it runs.

        TPU programs do not say so. There it is read from a condition of the form ``counter <
        constant``, as scans have it, whose counter begins at 0 and goes up by 1.
        """
        found = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if found:
            return int(found[1])
        condition = self.computations[loop.called("condition")]
        test = condition.root
        if test.opcode != "compare" or "direction=LT" not in test.attributes:
            return None
        counter, bound = (condition.instructions[name] for name in test.operands)
        if counter.opcode != "get-tuple-element" or bound.opcode != "constant":
            return None
        return int(bound.literal)

    def runs(self, loop: Instruction) -> int:
        """How often the body of a ``while`` is taken to run: known, expected, or ``trips``."""
        known = self.trip_count(loop)
        if known is None:
            said = stated(loop.op_name, self.context)
            known = None if said is None else said.trips
        return self.trips if known is None else known

    def num_instructions(self, name: str) -> int:
        return sum(1 for _ in self.walk(name))

    @property
    def main_loop(self) -> Instruction | None:
        """The loop of cycles: of those that the program runs, the one with the largest body."""
        loops = [i for _, i, _ in self.walk(self.entry) if i.opcode == "while"]
        return max(loops, key=lambda i: self.num_instructions(i.called("body")), default=None)


def parse(text: str, trips: int = 1, context: int | None = None) -> Module:
    """Reads a module; ``trips``: how often a loop runs whose length is not in the program.

    ``context``: how many tokens are in every row's cache; None: as many as there is room for.

    Raises:
      ValueError: if the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, name, lines = "", "", dict[str, Instruction]()
    for line in text.splitlines():
        if line[:1] not in ("", " ", "}") and line.endswith("{") and "->" in line:
            head = line.removeprefix("ENTRY ")
            name, lines = head.split()[0].lstrip("%"), {}
            entry = name if line.startswith("ENTRY ") else entry
        elif line.startswith("}") and name:
            computations[name] = Computation(name, lines)
            name = ""
        elif name and " = " in line:
            instruction = _instruction(line)
            lines[instruction.name] = instruction
    if not entry:
        raise ValueError("This is no HLO text: it has no ENTRY computation.")
    return Module(computations, entry, trips, context)


def _instruction(line: str) -> Instruction:
    left, _, right = line.strip().partition(" = ")
    end = _closing(right) if right.startswith("(") else right.index(" ")
    type_, right = right[:end], right[end:].lstrip()
    opcode, _, _ = right.partition("(")
    right = right[len(opcode) :]
    end = _closing(right)
    literal, attributes = right[1 : end - 1], right[end:]
    return Instruction(
        name=left.removeprefix("ROOT ").lstrip("%"),
        type=type_,
        opcode=opcode,
        operands=tuple(re.findall(r"%([\w.\-]+)", literal)),
        literal=literal,
        attributes=attributes,
        is_root=left.startswith("ROOT "),
    )


def _closing(text: str) -> int:
    """Behind the parenthesis that closes the one that ``text`` begins with."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place + 1
    raise ValueError(f"HLO text with an open parenthesis: {text[:80]!r}.")


@dataclasses.dataclass(frozen=True)
class Copy:
    """A copy of a whole buffer."""

    array: Array  # where it goes
    source: Array
    times: int
    op_name: str

    @property
    def is_prefetch(self) -> bool:
        """From main memory into a chip's faster one: how a TPU reads what it is going to use."""
        return self.source.in_memory and not self.array.in_memory


def copies(module: Module, computation: str, shapes: Sequence[tuple[int, ...]]) -> list[Copy]:
    """The copies of buffers of these shapes that one run of ``computation`` makes.

    Also those in another order of dimensions, and those that a fusion results in. Sizes of one do
    not count: a buffer is often reshaped before it is copied.
    """
    wanted = {tuple(sorted(d for d in shape if d != 1)) for shape in shapes}
    found = []
    for home, instruction, times in module.walk(computation):
        pairs = [(home, instruction)]
        if instruction.opcode == "fusion":
            inner = module.computations[instruction.called("calls")]
            root = inner.root
            ends = root.operands if root.opcode == "tuple" else (root.name,)
            pairs = [(inner, _before_bitcasts(inner, inner.instructions[e])) for e in ends]
        for place, copy in pairs:
            array = copy.arrays[0] if copy.arrays else None
            if copy.opcode not in _COPIES or array is None:
                continue
            if tuple(sorted(array.squeezed)) in wanted:
                operand = place.instructions.get(copy.operands[0])
                source = operand.arrays[0] if operand is not None else array
                found.append(Copy(array, source, times, copy.op_name))
    return found


def _before_bitcasts(home: Computation, instruction: Instruction) -> Instruction:
    while instruction.opcode == "bitcast" and instruction.operands[0] in home.instructions:
        instruction = home.instructions[instruction.operands[0]]
    return instruction


def count_copies(text: str, shape: Sequence[int]) -> tuple[int, int]:
    """Copies of buffers of ``shape``: in the body of the loop of cycles, and in all.

    Prefetches count as well: there are none where all memory is of one kind.
    """
    module = parse(text)
    loop = module.main_loop
    inside = 0 if loop is None else len(copies(module, loop.called("body"), [tuple(shape)]))
    return inside, len(copies(module, module.entry, [tuple(shape)]))
