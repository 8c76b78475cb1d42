"""Medusa (Cai et al. 2024, arXiv:2401.10774): heads on the target's last state, used as a chain.

Head i guesses the token i + 2 places behind the one whose final state it reads. Of the pending
token there is no state yet, so the heads read that of the token before it, and head 0 guesses the
token after the pending one.

    committed   a b c d      d is pending
    state       h_c          head 0 guesses position 4, head 1 position 5, ..
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx

from specjax.core.types import Array, Proposal, one_line, pytree, static
from specjax.drafters.base import Context, check_fits, check_kind, check_num_draft
from specjax.drafters.bases import LastFeatures
from specjax.drafters.drawing import draw_all
from specjax.drafters.medusa.choices import Choices
from specjax.drafters.medusa.kind import MedusaKind
from specjax.drafters.medusa.net import MedusaConfig, MedusaNet
from specjax.drafters.spec import Outline, Sizes
from specjax.models.frozen import Frozen
from specjax.models.target import Target


@dataclasses.dataclass(frozen=True, eq=False)
class Medusa(MedusaKind):
    """Medusa heads as a drafter, before it is known what they will draft for.

    Attributes:
      net: of a `MedusaNet`.
      num_draft: K; None: as many as there are heads.
      kind: how guesses are drawn, see `drafters.drawing`; None: what suits the request.
      name: for messages.
      choices: the tree that was published with the heads, if one was (`MedusaTree` drafts it).
    """

    net: Frozen
    num_draft: int | None = None
    kind: str | None = None
    name: str = "medusa"
    choices: Choices | None = None

    summary = "a head a guess on the target's last state"
    demo = "demo:medusa"
    __repr__ = one_line

    def bind(self, target: Target, kind: str) -> MedusaDrafter:
        """The drafter for ``target``; ``kind`` is what to use where the user did not say.

        Raises:
          ValueError: if the two do not fit.
        """
        config: MedusaConfig = self.net.config
        num_draft = config.num_heads if self.num_draft is None else self.num_draft
        check_num_draft(num_draft)
        check_kind(self.kind)
        if num_draft > config.num_heads:
            raise ValueError(
                f"num_draft={num_draft}: {self.name} has {config.num_heads} heads and guesses one "
                "token with each; ask for fewer."
            )
        check_heads(self, target)
        return MedusaDrafter(self.net, num_draft, self.kind or kind, target.config.num_layers)

    @classmethod
    def fresh(  # type: ignore[override]
        cls,
        target: Target,
        *,
        num_draft: int,
        seed: int = 0,
        layers: int = 1,
        kind: str | None = None,
    ) -> Medusa:
        """Heads that all guess what the target's own head would say of the state they read."""
        c = target.config
        config = MedusaConfig(c.hidden_size, c.vocab_size, num_draft, layers)
        net = MedusaNet(config, dtype=target.dtype, rngs=nnx.Rngs(seed))
        for head in net.heads:
            head.output.weight[...] = target.net.vocabulary.output.astype(target.dtype)
        return cls(Frozen.of(net), num_draft, kind)

    @classmethod
    def outline(cls, target: Any, sizes: Sizes) -> Outline:
        """As many heads as guesses, each with a table of the target's whole vocabulary."""
        shape = (target.hidden_size, target.vocab_size)
        return Outline(MedusaNet, MedusaConfig(*shape, sizes.num_draft, sizes.layers or 1))


@pytree
class MedusaDrafter(LastFeatures):
    """The cycle's side of `Medusa`. Its state [B, D] is the last known final state of the target.

    A text of one token has none yet: zeros.
    """

    net: Any  # models.Frozen of a MedusaNet
    num_draft: int = static()
    kind: str = static()
    num_layers: int = static()  # of the target

    @property
    def taps(self) -> tuple[int, ...]:
        return (self.num_layers,)  # after the final norm

    @property
    def features(self) -> tuple[int, Any]:
        return self.net.config.hidden_size, self.net.module.dtype

    def propose(self, draft: Array, context: Context) -> tuple[Proposal, Array]:
        logits = self.net.module(draft, self.num_draft)
        guesses, q = draw_all(logits, self.kind, context)
        return Proposal(tokens=guesses, q=q), draft


def check_heads(spec: Any, target: Target) -> None:
    """Raises ValueError unless the heads read states of ``target`` and write its tokens."""
    config: MedusaConfig = spec.net.config
    check_fits(
        spec.name,
        target,
        vocab_size=config.vocab_size,
        target_hidden_size=config.hidden_size,
        taps=(),
    )
