"""What heads for further tokens say of themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from specjax.checkpoint.drafters.format import Formats
from specjax.core.types import Array
from specjax.drafters.misreadings import norms, trial
from specjax.drafters.mtp.net import MTPConfig, MTPNet
from specjax.drafters.spec import Misreading, Spec
from specjax.models.frozen import Frozen
from specjax.models.registry import family
from specjax.models.target import Target

if TYPE_CHECKING:
    from specjax.drafters.mtp.objective import MTPObjective


class MTPKind(Spec):
    """A spec with an `MTPNet`."""

    nested: ClassVar[bool] = True
    in_target: ClassVar[bool] = True
    net_class = MTPNet
    net: Frozen

    @classmethod
    def objective(cls) -> type[MTPObjective]:
        from specjax.drafters.mtp.objective import MTPObjective

        return MTPObjective

    @classmethod
    def formats(cls) -> Formats:
        from specjax.drafters.mtp.formats import FORMATS

        return FORMATS

    def passes(self, num_draft: int) -> int:
        return num_draft

    def tokens_fed(self, num_draft: int) -> int:
        heads: int = min(self.net.config.heads, num_draft)  # each reads the tokens of a whole cycle
        return heads * (num_draft + heads) + num_draft - heads

    def weight_reads(self, weight: str, num_draft: int) -> int:
        config: MTPConfig = self.net.config
        _, head, part, _ = weight.split(".", 3)
        used = min(config.heads, num_draft)
        if part != "layer" and family(config.backbone.model_type).nextn_shared:
            return num_draft
        if int(head) >= used:
            return 0
        return 1 if int(head) < used - 1 else num_draft - used + 1

    def outputs(self, target: Target, golden: Mapping[str, Any], prompt: Any) -> dict[str, Array]:
        from specjax.drafters.mtp.parity import outputs

        return outputs(target, self, golden)

    def misreadings(self, target: Target) -> Iterable[Misreading]:
        config: MTPConfig = self.net.config
        other = "raw" if config.recycle == "normed" else "normed"
        means = f"the head was trained with recycle={other}: say so (mtp's field recycle)"
        yield Misreading(
            f"What is fed back: the {config.recycle} state",
            (trial(f"recycle={other}", means, self, recycle=other),),
        )
        yield norms(self)
