"""How the weights of a drafter are kept: its dtype, rounded to 8 bits, or packed as they were."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from specjax.checkpoint.errors import CheckpointError
from specjax.checkpoint.load import (
    Model,
    Weights,
    num_packed,
    platform_of,
    read_dtype,
    settle_weights,
)
from specjax.core.quantised import Quantisation, check_quantisation
from specjax.models.frozen import Frozen


@dataclasses.dataclass(frozen=True)
class Stored:
    """What `load_drafter` was asked for, settled."""

    dtype: np.dtype
    quantize: Quantisation | None
    weights: Weights | None  # as it was asked for
    packed: bool  # what is packed stays so

    @classmethod
    def read(cls, target: Model, dtype: Any, quantize: Any, weights: Any) -> Stored:
        """With the target's dtype where none is asked for. Raises ValueError."""
        check_quantisation("quantize", quantize)
        platform = platform_of(target.mesh)
        said, packed = settle_weights(weights, read_dtype(dtype), quantize, platform)
        return cls(said or target.dtype, quantize, weights, packed)

    @property
    def how(self) -> dict[str, Any]:
        """For `assemble_module`."""
        kept = {"quantize": self.quantize, "packed": self.packed}
        return {"dtype": self.dtype, **kept, "all_products": True}

    def told(self, net: Frozen, where: str) -> str:
        """Behind the name of a drafter, what is not as usual of its weights.

        Raises:
          CheckpointError: if they were to stay packed, and none is packed.
        """
        if self.quantize is not None:
            return f", {self.quantize}"
        count = num_packed(net)
        if self.weights == "packed" and not count:
            raise CheckpointError(
                f"{where}: weights=packed, but no matrix there is packed in a way that can be "
                "kept; leave it out."
            )
        return f", {count} matrices packed" if count else ""
