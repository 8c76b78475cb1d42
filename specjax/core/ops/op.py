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


def differentiated_as(
    function: Callable[..., Any], reference: Callable[..., Any]
) -> Callable[..., Any]:
    """``function`` of arrays that are floats; where there are gradients, ``reference`` runs."""
    found = jax.custom_vjp(function)
    found.defvjp(lambda *given: jax.vjp(reference, *given), lambda pull, given: pull(given))
    return found
