"""What an operation is: a reference, and variants that some platforms compute faster."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from specjax.core.platform import Platform, here


@dataclasses.dataclass(frozen=True)
class Op:
    """The reference says what is computed; every variant takes and returns the same.

    A variant that does not pay for some shapes calls the reference for them.
    """

    reference: Callable[..., Any]
    # By platform, "cpu"; or by platform and cores that share a device, "tpu:2".
    variants: Mapping[str, Callable[..., Any]] = dataclasses.field(default_factory=dict)

    def on(self, platform: Platform | None) -> Callable[..., Any]:
        """How it is written for a platform; None: JAX's default devices."""
        there = platform or here()
        for name in (f"{there.name}:{there.cores}", there.name):
            if name in self.variants:
                return self.variants[name]
        return self.reference
