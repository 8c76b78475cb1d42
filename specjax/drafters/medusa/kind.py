"""What Medusa heads say of themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from specjax.drafters.medusa.net import MedusaNet
from specjax.drafters.published import Published
from specjax.drafters.spec import Misreading
from specjax.models.target import Target


class MedusaKind(Published):
    """A spec with a `MedusaNet`."""

    folder: ClassVar[str] = "specjax.drafters.medusa"
    nested: ClassVar[bool] = True
    net_class = MedusaNet

    def tokens_fed(self, num_draft: int) -> int:
        return 1

    def weight_reads(self, weight: str, num_draft: int) -> int:
        return int(int(weight.split(".")[1]) < num_draft)  # a head a guess

    def misreadings(self, target: Target) -> Iterable[Misreading]:
        yield Misreading(
            "Heads in another order, or trained on states before the final norm: they are read as "
            "guessing 2, 3, .. tokens ahead from the state after it"
        )
