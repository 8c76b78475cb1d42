"""Which argument of the program an array is: a weight, a cache, or made on the way.

Shapes do not tell: activations of 128 tokens have the shape of a part of a key projection. So each
value is followed back to the argument it came from, through loops, calls and what is updated in
place. JAX names the arguments of the compiled program after the pytree they are leaves of.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TypeVar

from specjax.lab.compiler.hlo import Computation, Instruction, Module

SEE_THROUGH = {"bitcast", "reshape", "transpose", "copy", "convert", "get-tuple-element"}
PUTS = {"dynamic-update-slice": 1, "scatter": 2}  # the operand that holds the update
_MOVES = {"copy", "copy-start", "transpose", "convert", "concatenate", "reshape", "pad", "select"}
_SAME = {"bitcast", "copy-done", "opt-barrier", "get-tuple-element", "slice-done", "add-dependency"}


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where an array comes from."""

    argument: str  # such as "net.params['layers'][0]['mlp']['up_proj']['weight'].value"; "" if none
    moved: bool = False  # it is a copy of the argument, whole and perhaps in another order or type


_MADE = Origin("")
T = TypeVar("T")


class Origins:
    """Answers for one module."""

    def __init__(self, module: Module):
        self._module = module
        self._callers: dict[str, tuple[Computation, Instruction]] = {}
        for home in module.computations.values():
            for instruction in home.instructions.values():
                if instruction.opcode in ("while", "call", "conditional", "async-start"):
                    for called in instruction.calls:
                        self._callers.setdefault(called, (home, instruction))
        self._known: dict[tuple[str, str, int], Origin] = {}

    def of(self, home: Computation, value: Instruction, index: int = 0) -> Origin:
        """The origin of ``value``, or of element ``index`` of it if it is a tuple."""
        key = (home.name, value.name, index)
        if key not in self._known:
            self._known[key] = _MADE  # while it is asked for: nothing comes from itself
            self._known[key] = self._find(home, value, index)
        return self._known[key]

    def moves(self, home: Computation, value: Instruction, index: int) -> bool:
        """Whether ``value`` copies the argument that its result ``index`` comes from, anew."""
        if not self.of(home, value, index).moved:
            return False
        if value.opcode != "fusion":
            return value.opcode in _MOVES
        inner = self._module.computations[value.called("calls")]
        end = self._module.ends(value)[index]
        handed_on = end.opcode in ("parameter", "bitcast")
        return not handed_on and put_into(self._module, inner, end) is None

    def _find(self, home: Computation, value: Instruction, index: int) -> Origin:
        code = value.opcode
        if code == "parameter":
            return self._argument(home, value, index)
        if code == "get-tuple-element":
            found = re.search(r"\bindex=(\d+)", value.attributes)
            return self._operand(home, value, 0, int(found[1]) if found else 0)
        if code in _SAME or code in ("while", "custom-call") or code in PUTS:
            place = aliased(value).get(index) if code == "custom-call" else 0
            inner = index if code in ("while", "opt-barrier") else 0
            return _MADE if place is None else self._operand(home, value, place, inner)
        if code == "tuple":
            return self._operand(home, value, index, 0)
        if code == "fusion":
            return self._of_fusion(home, value, index)
        if code in ("call", "conditional"):
            return self._of_called(value, index)
        return self._of_move(home, value)

    def _operand(self, home: Computation, user: Instruction, place: int, index: int) -> Origin:
        source = home.instructions.get(user.operands[place]) if user.operands else None
        return _MADE if source is None else self.of(home, source, index)

    def _argument(self, home: Computation, value: Instruction, index: int) -> Origin:
        """Where an argument comes from: the program's own, or what the caller hands over."""
        if home.name == self._module.entry:
            return Origin(value.op_name.replace("\\'", "'"))
        if home.name not in self._callers:
            return _MADE
        caller, call = self._callers[home.name]
        place = int(value.literal)
        if call.opcode == "conditional":
            place = 1 + call.calls.index(home.name)
        return self._operand(caller, call, place, index)

    def _of_called(self, call: Instruction, index: int) -> Origin:
        """Where a called computation's result comes from; None if branches disagree."""
        homes = [self._module.computations[name] for name in call.calls]
        found = [self.of(home, home.root, index) for home in homes]
        if not found or len({origin.argument for origin in found}) > 1:
            return _MADE
        return Origin(found[0].argument, any(origin.moved for origin in found))

    def _of_fusion(self, home: Computation, fusion: Instruction, index: int) -> Origin:
        """Where a fusion's result comes from: what it updates in place, or only moves."""
        inner = self._module.computations[fusion.called("calls")]
        ends = self._module.ends(fusion)
        if index >= len(ends):
            return _MADE
        place = put_into(self._module, inner, ends[index])
        if place is not None:
            return self._operand(home, fusion, int(place.literal), 0)
        moved = _moved(inner, ends[index])
        if moved is None:
            return _MADE
        origin = self._operand(home, fusion, int(moved.literal), 0)
        again = ends[index].opcode in ("parameter", "bitcast")  # handed on
        return origin if again else dataclasses.replace(origin, moved=bool(origin.argument))

    def _of_move(self, home: Computation, value: Instruction) -> Origin:
        found = [(self.of(home, source), source) for source in _sources(home, value)]
        moved = _most(value, [(origin, s) for origin, s in found if origin.argument])
        return _MADE if moved is None else dataclasses.replace(moved, moved=True)


def aliased(call: Instruction) -> dict[int, int]:
    """The results of a custom call that are operands updated in place: result -> operand."""
    found = re.search(r"output_to_operand_aliasing=\{(.*?\))\}", call.attributes)
    pairs = re.findall(r"\{(\d*)\}: \((\d+),", found[1]) if found else []
    return {int(result or 0): int(operand) for result, operand in pairs}


def put_into(module: Module, home: Computation, end: Instruction) -> Instruction | None:
    """The parameter of a fusion that its result ``end`` is an update in place of; None: no such."""
    end = _through(home, end)
    if end.opcode == "fusion":
        inner = module.computations[end.called("calls")]
        place = put_into(module, inner, inner.root)
        if place is None:
            return None
        source = _through(home, home.instructions[end.operands[int(place.literal)]])
        return source if source.opcode == "parameter" else put_into(module, home, source)
    puts = False
    while end.opcode in PUTS:  # several updates of one buffer, one behind the other
        puts, end = True, _through(home, home.instructions[end.operands[0]])
    return end if puts and end.opcode == "parameter" else None


def _through(home: Computation, value: Instruction) -> Instruction:
    while value.opcode in SEE_THROUGH and value.operands and value.operands[0] in home.instructions:
        value = home.instructions[value.operands[0]]
    return value


def _moved(home: Computation, value: Instruction) -> Instruction | None:
    """The parameter of a fusion that makes up its result ``value``; None: it is computed."""
    if value.opcode == "parameter":
        return value
    found = [(_moved(home, source), source) for source in _sources(home, value)]
    return _most(value, [(p, source) for p, source in found if p is not None])


def _sources(home: Computation, value: Instruction) -> list[Instruction]:
    """What ``value`` may be a copy of."""
    if value.opcode not in _MOVES and value.opcode not in _SAME and value.opcode not in PUTS:
        return []
    names = value.operands[1:] if value.opcode == "select" else value.operands
    names = names[:1] if value.opcode in PUTS else names
    found = [home.instructions[o] for o in names if o in home.instructions]
    return [source for source in found if len(source.arrays) == 1]


def _most(value: Instruction, found: list[tuple[T, Instruction]]) -> T | None:
    """The first of what the largest of ``found`` stands for, if they are half of ``value``."""
    sizes = [source.arrays[0].size for _, source in found]
    if not found or not value.arrays or 2 * sum(sizes) < value.arrays[0].size:
        return None
    return found[sizes.index(max(sizes))][0]
