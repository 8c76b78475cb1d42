"""Times the variants of the operations that programs call, and keeps the fastest of each shape.

What is compared is what a program may run in one another's place (`core.ops.op.Timed`), on drawn
arguments of the shapes that were met while the program was traced. Several sets of them are used
in turn, each waiting for the one before: together more than a cache near the processors holds, as
a program's weights are; nothing is merged or left out, and no weight is still there.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

import jax
import jax.numpy as jnp

from specjax import decode
from specjax.checkpoint.load import Model
from specjax.core.choices import Calls, Choice, signature, taken
from specjax.core.ops import linear
from specjax.core.ops.op import Timed
from specjax.core.ops.stream import ADD_PRODUCT, NORM_PRODUCT
from specjax.core.platform import Kernels, Platform
from specjax.core.program import compiler_options
from specjax.core.sharding import use_mesh
from specjax.drafters.spec import Spec
from specjax.lab.costs.programs import one_token_session

_NEAR = 256 << 20  # bytes of arguments: more than a second-level cache holds
_MOST_SETS = 16
_USUAL = "attention"
_APART = "apart"  # of a sum with a product: the product alone, its sum left to the norm behind it


@dataclasses.dataclass(frozen=True)
class Call:
    """An operation as a program calls it."""

    op: Timed
    given: tuple[Any, ...]  # its arguments, arrays as shapes
    count: int  # in one pass over the program
    rows: int  # that the program decodes

    @property
    def told(self) -> str:
        """Its arrays in words."""
        arrays = (x for x in jax.tree.leaves(self.given) if hasattr(x, "dtype"))
        return " ".join(f"{x.dtype.name}{list(x.shape)}" for x in arrays)

    @property
    def key(self) -> tuple[str, str]:
        return self.op.name, signature(self.given)


def calls(target: Model, spec: Spec, *, rows: int, slots: int, on: Platform) -> list[Call]:
    """What a cycle of ``spec`` calls, with each of the kernels that there are; nothing runs.

    Raises:
      ValueError: if target and drafter do not fit.
    """
    found: dict[tuple[str, str], Call] = {}
    for kernels in get_args(Kernels):
        if kernels == "tuned":
            continue
        noted = Calls()
        there = dataclasses.replace(on, kernels=kernels, choices=noted)
        _trace(target, spec, rows, slots, there)
        for key, (op, given, count) in noted.found.items():
            found[key] = Call(op, given, count, rows)
    return list(found.values())


def _trace(target: Model, spec: Spec, rows: int, slots: int, there: Platform) -> None:
    target = dataclasses.replace(target, net=target.net.on(there))
    if (net := getattr(spec, "net", None)) is not None:
        of_a_file: Any = spec
        spec = dataclasses.replace(of_a_file, net=net.on(there))
    session = one_token_session(target, spec, rows, slots, 0.0, None)
    start = jnp.zeros((rows, slots), jnp.int32), jnp.ones((rows,), jnp.int32)
    models = target.net, session.drafter
    with use_mesh(target.mesh):
        state = jax.eval_shape(decode.init_state, *models, *start, session.state.done, None)
        cycle = lambda net, drafter, *given: decode.cycle(net, drafter, session.rule, *given)
        jax.eval_shape(cycle, *models, session.request, state)


class Tuner:
    """The choices of one device, as they become known."""

    def __init__(self, on: Platform, repeats: int) -> None:
        self.on, self.repeats = on, repeats
        self.known: list[Choice] = []
        self._timed: dict[tuple[str, str], tuple[Call, Mapping[str, float]]] = {}

    def in_order(self, found: list[Call]) -> Iterator[Call]:
        """Those that others are made of first, each once."""
        names = ("product", "gated product", "sum and norm", "heads")
        place = {name: i for i, name in enumerate(names)}
        met: set[tuple[str, str]] = set()
        for call in sorted(found, key=lambda call: place.get(call.op.name, len(place))):
            if call.key not in met:
                met.add(call.key)
                yield call

    def time(self, call: Call) -> str:
        """Times its variants; what was found, in a line."""
        ways = self._ways(call)
        if len(ways) < 2:
            return "one way only"
        seconds = seconds_of(ways, call.given, self.repeats, compiler_options(self.on))
        self._timed[call.key] = call, seconds
        self.known = list(self._choices())
        told = [f"{way} {1e6 * s:.1f} us" for way, s in seconds.items()]
        way = next((one.way for one in self.known if (one.op, one.given) == call.key), None)
        return ", ".join(told) + (f": {way}" if way else "")

    def _ways(self, call: Call) -> dict[str, Callable[..., Any]]:
        """Its variants by their kernels, the usual one first; those that are the same once."""
        # What variants call themselves is chosen as far as it is known.
        tuned = dataclasses.replace(self.on, kernels="tuned", choices=taken(self.known))
        given = lambda arrays: (tuned if isinstance(x, Platform) else x for x in arrays)
        found: dict[str, Callable[..., Any]] = {}
        programs: list[str] = []
        arrays, join = _apart(call.given)
        kinds = [kind for kind in get_args(Kernels) if kind != "tuned"]
        for kind in sorted(kinds, key=lambda kind: kind != _USUAL):
            variant = call.op.on(dataclasses.replace(self.on, kernels=kind))
            way = lambda *arrays, variant=variant: variant(*given(arrays))
            program = str(jax.make_jaxpr(lambda *x, way=way: way(*join(x)))(*arrays))
            if program not in programs:
                found[kind], programs = way, [*programs, program]
        if call.op is ADD_PRODUCT and len(found) > 1:
            found[_APART] = lambda x, y, w, _: linear(y, w, platform=tuned, dtype=x.dtype)
        return found

    def _choices(self) -> Iterator[Choice]:
        """Of each the fastest; sums are in products of the rows for which that pays altogether."""
        for (name, given), (call, seconds) in self._timed.items():
            ways = {way: s for way, s in seconds.items() if way != _APART}
            way = min(ways, key=ways.__getitem__)
            if call.op is ADD_PRODUCT:
                way = "pallas" if self._sums_pay(call.given[0].shape[:-1]) else _USUAL
            yield Choice(name, given, dict(seconds), way)

    def _sums_pay(self, rows: tuple[int, ...]) -> bool:
        """Whether sums within products, and norms within those behind, are faster than apart.

        Apart the sum is part of the norm, which one kernel forms.
        """
        within = apart = 0.0
        for call, seconds in self._timed.values():
            if call.op is ADD_PRODUCT and call.given[0].shape[:-1] == rows:
                within += call.count * seconds["pallas"]
                apart += call.count * seconds[_APART]
            if call.op is NORM_PRODUCT and call.given[0].states.shape[:-1] == rows:
                within += call.count * min(seconds.values())
                apart += call.count * seconds[_USUAL]
        return within < apart


def seconds_of(
    ways: Mapping[str, Callable[..., Any]],
    given: tuple[Any, ...],
    repeats: int,
    options: Mapping[str, str],
) -> dict[str, float]:
    """Seconds of a call each: medians of rounds in which every one has its turn."""
    arrays, join = _apart(given)
    size = sum(x.size * x.dtype.itemsize for x in arrays)
    sets = [_drawn(arrays, seed) for seed in range(max(2, min(_MOST_SETS, -(-_NEAR // size))))]

    def chained(way: Callable[..., Any]) -> Callable[..., Any]:
        def run(sets: Any) -> list[Any]:
            made: list[Any] = []
            for arrays in sets:
                if made:
                    arrays, made[-1] = jax.lax.optimization_barrier((arrays, made[-1]))
                made.append(way(*join(arrays)))
            return made

        return jax.jit(run, compiler_options=dict(options) or None)

    programs = {name: chained(way) for name, way in ways.items()}
    for program in programs.values():
        jax.block_until_ready(program(sets))
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            begin = time.perf_counter()
            results = [program(sets) for _ in range(4)]
            jax.block_until_ready(results)
            seconds[name].append((time.perf_counter() - begin) / (4 * len(sets)))
            del results
    return {name: statistics.median(found) for name, found in seconds.items()}


def _apart(given: tuple[Any, ...]) -> tuple[list[Any], Callable[[Any], tuple[Any, ...]]]:
    """The arrays among arguments, and what makes arguments of arrays."""
    leaves, structure = jax.tree.flatten(given)
    is_array = [isinstance(x, jax.ShapeDtypeStruct) for x in leaves]

    def join(arrays: Any) -> tuple[Any, ...]:
        rest = iter(arrays)
        filled = [next(rest) if array else x for x, array in zip(leaves, is_array)]
        found: tuple[Any, ...] = jax.tree.unflatten(structure, filled)
        return found

    return list(itertools.compress(leaves, is_array)), join


def _drawn(arrays: list[Any], seed: int) -> list[Any]:
    keys = jax.random.split(jax.random.key(seed), len(arrays))

    def draw(key: Any, x: Any) -> Any:
        if jnp.issubdtype(x.dtype, jnp.floating):
            return (0.1 * jax.random.normal(key, x.shape, jnp.float32)).astype(x.dtype)
        return jax.random.randint(key, x.shape, 0, 2).astype(x.dtype)

    found: list[Any] = jax.jit(lambda keys: [draw(k, x) for k, x in zip(keys, arrays)])(keys)
    return found
