"""What an EAGLE-3 drafter says of itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from specjax.checkpoint.drafters.format import Formats
from specjax.core.types import Array
from specjax.drafters.eagle3.net import Eagle3Config, Eagle3Net
from specjax.drafters.misreadings import rope, taps, trial
from specjax.drafters.spec import Misreading, Spec
from specjax.models.frozen import Frozen
from specjax.models.target import Target

if TYPE_CHECKING:
    from specjax.drafters.eagle3.objective import Eagle3Objective


class Eagle3Kind(Spec):
    """A spec with an `Eagle3Net`."""

    needs_model: ClassVar[bool] = True
    nested: ClassVar[bool] = True
    net_class = Eagle3Net
    net: Frozen

    @classmethod
    def objective(cls) -> type[Eagle3Objective]:
        from specjax.drafters.eagle3.objective import Eagle3Objective

        return Eagle3Objective

    @classmethod
    def formats(cls) -> Formats:
        from specjax.drafters.eagle3.formats import FORMATS

        return FORMATS

    def passes(self, num_draft: int) -> int:
        return num_draft

    def tokens_fed(self, num_draft: int) -> int:
        return num_draft

    def weight_reads(self, weight: str, num_draft: int) -> int:
        return 1 if weight.startswith("fc") else num_draft  # what fuses the target's states

    def outputs(self, target: Target, golden: Mapping[str, Any], prompt: Any) -> dict[str, Array]:
        from specjax.drafters.eagle3.parity import outputs

        return outputs(target, self, golden, prompt)

    def misreadings(self, target: Target) -> Iterable[Misreading]:
        config: Eagle3Config = self.net.config
        yield taps(self, target)
        yield rope(self, target)
        flipped = not config.norm_before_residual
        means = f"its config should say norm_before_residual: {str(flipped).lower()}"
        yield Misreading(
            f"Norms: norm_before_residual={config.norm_before_residual}, norm_before_fc="
            f"{config.norm_before_fc}, fc_norm={config.fc_norm}",
            (trial(f"norm_before_residual={flipped}", means, self, norm_before_residual=flipped),),
        )
