"""Medusa's heads drafting a static tree, as they were published: Cai et al. 2024, section 2.3.1.

Behind each guess of head i stand the best few of head i + 1, those of one head being the same
everywhere but for penalties. The target reads the whole tree in one pass (`core.view.View.tree`),
and the rules walk down it (`verify.walk`), so that the text is the target's own. (The authors'
typical acceptance is another rule, and not lossless.)
"""

from __future__ import annotations

import dataclasses
from typing import Any

from specjax.core import trees
from specjax.core.types import Array, Parents, Proposal, one_line, pytree, static
from specjax.drafters.base import Context, check_kind, check_num_draft
from specjax.drafters.drawing import draw_tree
from specjax.drafters.medusa.choices import Choices, check_choices, parents_of, ranks_of
from specjax.drafters.medusa.drafter import Medusa, MedusaDrafter, check_heads
from specjax.drafters.medusa.net import MedusaNet
from specjax.drafters.spec import Spec, with_num_draft
from specjax.models.frozen import Frozen
from specjax.models.target import Target

PUBLISHED = "mc_sim_7b_63"


@dataclasses.dataclass(frozen=True, eq=False)
class MedusaTree(Spec):
    """Medusa heads that draft a tree. They are trained and exported as `Medusa`.

    Attributes:
      net: of a `MedusaNet`.
      num_draft: W, the first nodes of the tree that are drafted; None: all of them.
      kind: "one_hot" or "coupled"; None: what suits the request.
      name: for messages.
      tree: paths of ranks, or the name of one of `medusa.choices.TREES`.
    """

    net: Frozen
    num_draft: int | None = None
    kind: str | None = None
    name: str = "medusa_tree"
    tree: Choices | str = PUBLISHED

    summary = "Medusa's heads, with a static tree of their best guesses"
    demo = "demo:medusa"
    needs_model = True
    recounts = True  # nodes, not heads
    net_class = MedusaNet
    __repr__ = one_line

    @property
    def nodes(self) -> Choices:
        """What is drafted: of the tree the first ``num_draft`` nodes that there are heads for."""
        choices = check_choices(self.tree, self.name)
        able = tuple(node for node in choices if len(node) <= self.net.config.num_heads)
        return able[: self.num_draft]

    def bind(self, target: Target, kind: str) -> MedusaTreeDrafter:
        """The drafter for ``target``; ``kind`` is what to use where the user did not say.

        Where guesses are drawn they are coupled: no rule here takes trees drawn otherwise.

        Raises:
          ValueError: if the two do not fit.
        """
        if self.num_draft is not None:
            check_num_draft(self.num_draft)
        check_kind(self.kind)
        if self.kind == "sampled":
            raise ValueError(
                f"kind='sampled': {self.name} drafts a tree, which is drawn 'one_hot' or 'coupled'."
            )
        nodes, asked = self.nodes, self.num_draft
        if asked is not None and asked > len(nodes):
            raise ValueError(
                f"num_draft={asked}: the tree of {self.name} has {len(nodes)} nodes for its "
                f"{self.net.config.num_heads} heads; ask for fewer."
            )
        check_heads(self, target)
        drawn = self.kind or ("coupled" if kind == "sampled" else kind)
        return MedusaTreeDrafter(self.net, len(nodes), drawn, target.config.num_layers, nodes)

    @classmethod
    def made(cls, loaded: Any, num_draft: int | None) -> Any:
        """Takes heads that were loaded, and the tree published beside them if there is one."""
        if isinstance(loaded, Medusa):
            tree = PUBLISHED if loaded.choices is None else loaded.choices
            loaded = cls(loaded.net, None, loaded.kind, tree=tree)
        if not isinstance(loaded, cls):
            kind = type(loaded).__name__
            raise ValueError(f"{cls.summary}: needs Medusa heads, but what was loaded is a {kind}.")
        return with_num_draft(loaded, num_draft)

    @classmethod
    def fresh(cls, target: Target, *, num_draft: int, seed: int = 0, **sizes: Any) -> MedusaTree:
        """`Medusa.fresh`, with as many heads as the first ``num_draft`` nodes have levels."""
        nodes = check_choices(PUBLISHED, cls.name)[:num_draft]
        heads = Medusa.fresh(target, num_draft=max(map(len, nodes)), seed=seed, **sizes)
        return cls(heads.net, num_draft, heads.kind)

    def tokens_fed(self, num_draft: int) -> int:
        return 1

    def weight_reads(self, weight: str, num_draft: int) -> int:
        levels = max(map(len, dataclasses.replace(self, num_draft=num_draft).nodes))
        return int(int(weight.split(".")[1]) < levels)  # a head a level


@pytree
class MedusaTreeDrafter(MedusaDrafter):
    """The cycle's side of `MedusaTree`; its state is that of the chain."""

    choices: Choices = static(default=())

    @property
    def parents(self) -> Parents:
        return parents_of(self.choices)

    def propose(self, draft: Array, context: Context) -> tuple[Proposal, Array]:
        parents, ranks = self.parents, ranks_of(self.choices)
        logits = self.net.module(draft, trees.num_levels(parents))
        guesses = draw_tree(logits, parents, ranks, self.kind, context)
        return Proposal(guesses, parents=parents), draft
