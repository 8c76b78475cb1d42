"""What the layers of one pass share: where its tokens stand, and what they see."""

from __future__ import annotations

from specjax.core.types import Array
from specjax.core.view import View
from specjax.models.layers.rope import Rope, Rotation, rotation


class Reading:
    """Made once a pass and handed to every layer; rotations are computed once for all of them."""

    def __init__(self, length: Array, view: View):
        """``length`` [B] int32 is the cache's; ``view`` says what the T tokens see of the block."""
        self.length = length
        self.view = view
        self.positions = view.positions(length)  # [B, T] int32
        self._rotations: dict[tuple[Rope, int], Rotation] = {}

    def rotation(self, rope: Rope, head_dim: int) -> Rotation:
        """The rotary embedding of heads of ``head_dim`` at the T positions."""
        if (rope, head_dim) not in self._rotations:
            self._rotations[rope, head_dim] = rotation(rope, self.positions, head_dim)
        return self._rotations[rope, head_dim]
