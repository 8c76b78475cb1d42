"""What Medusa heads say of themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from specjax.checkpoint.drafters.format import Formats
from specjax.core.types import Array
from specjax.drafters.medusa.net import MedusaNet
from specjax.drafters.spec import Misreading, Spec
from specjax.models.frozen import Frozen
from specjax.models.target import Target

if TYPE_CHECKING:
    from specjax.drafters.medusa.objective import MedusaObjective


class MedusaKind(Spec):
    """A spec with a `MedusaNet`."""

    needs_model: ClassVar[bool] = True
    nested: ClassVar[bool] = True
    net_class = MedusaNet
    net: Frozen

    @classmethod
    def objective(cls) -> type[MedusaObjective]:
        from specjax.drafters.medusa.objective import MedusaObjective

        return MedusaObjective

    @classmethod
    def formats(cls) -> Formats:
        from specjax.drafters.medusa.formats import FORMATS

        return FORMATS

    def tokens_fed(self, num_draft: int) -> int:
        return 1

    def weight_reads(self, weight: str, num_draft: int) -> int:
        return int(int(weight.split(".")[1]) < num_draft)  # a head a guess

    def outputs(self, target: Target, golden: Mapping[str, Any], prompt: Any) -> dict[str, Array]:
        from specjax.drafters.medusa.parity import outputs

        return outputs(target, self, golden, prompt)

    def misreadings(self, target: Target) -> Iterable[Misreading]:
        yield Misreading(
            "Heads in another order, or trained on states before the final norm: they are read as "
            "guessing 2, 3, .. tokens ahead from the state after it"
        )
