"""What an operation is: a reference, and variants that some platforms compute faster."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from specjax.core.platform import Platform, here


@dataclasses.dataclass(frozen=True)
class Op:
    """The reference says what is computed; every variant takes and returns the same.

    A variant that does not pay for some shapes calls the reference for them.
    """

    reference: Callable[..., Any]
    # By platform, "cpu"; by platform and cores that share a device, "tpu:2"; or by platform and
    # whose kernels it may run, "gpu:xla".
    variants: Mapping[str, Callable[..., Any]] = dataclasses.field(default_factory=dict)

    def on(self, platform: Platform | None) -> Callable[..., Any]:
        """How it is written for a platform; None: JAX's default devices."""
        there = platform or here()
        kinds = (f":{there.kernels}", f":{there.cores}", "")
        for name in (there.name + kind for kind in kinds):
            if name in self.variants:
                return self.variants[name]
        return self.reference


@dataclasses.dataclass(frozen=True)
class Timed(Op):
    """An operation whose cost follows from the shapes of its arguments: they may choose a variant.

    Which is the fastest for which shapes is looked up where a platform's kernels are "tuned"
    (`core.choices`); what was not timed is written as it is by default.
    """

    name: str = ""

    def __call__(self, platform: Platform | None, *given: Any) -> Any:
        """Runs it."""
        there = platform or here()
        if there.choices is not None:
            there.choices.note(self, given)
        return self.way(there, *given)(*given)

    def way(self, platform: Platform | None, *given: Any) -> Callable[..., Any]:
        """What runs for these arguments."""
        there = platform or here()
        if there.kernels != "tuned" or there.choices is None:
            return self.on(there)
        way: Any = there.choices.way(self.name, given)
        return self.on(there if way is None else dataclasses.replace(there, kernels=way))

    def is_other(self, platform: Platform | None) -> bool:
        """Whether anything but the reference may run."""
        there = platform or here()
        ways: set[Any] = set()
        if there.kernels == "tuned" and there.choices is not None:
            ways = there.choices.ways(self.name)
        kinds = [there, *(dataclasses.replace(there, kernels=way) for way in ways)]
        return any(self.on(kind) is not self.reference for kind in kinds)


def differentiated_as(
    function: Callable[..., Any], reference: Callable[..., Any]
) -> Callable[..., Any]:
    """``function`` of arrays that are floats; where there are gradients, ``reference`` runs."""
    found = jax.custom_vjp(function)
    found.defvjp(lambda *given: jax.vjp(reference, *given), lambda pull, given: pull(given))
    return found
