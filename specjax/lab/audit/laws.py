"""What is asked for in an audit, and the exact law of the texts that answer it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from specjax.checkpoint.load import Model
from specjax.core import trees
from specjax.core.types import Parents
from specjax.lab.audit.options import law
from specjax.lab.audit.tables import all_blocks
from specjax.lab.audit.targets import full_logits
from specjax.sampling import Options

VOCAB, NEW = 4, 5  # 1024 texts of several cycles each


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows that differ in nothing but their seed."""

    words: str
    prompt: tuple[int, ...]
    options: Options
    stop_token_ids: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"Prompt {list(self.prompt)}, {self.words}"


# All in one batch: options are per row. The order of temperature and top-p shows where they differ.
GROUPS = (
    Group("temperature 1.3", (2,), Options(temperature=1.3)),
    Group("temperature 1.6 with top-p 0.75", (1, 3, 0), Options(temperature=1.6, top_p=0.75)),
    Group(
        "temperature 1 with penalties",
        (0, 2),
        Options(
            temperature=1.0,
            repetition_penalty=1.5,
            presence_penalty=0.5,
            frequency_penalty=0.75,
        ),
    ),
    Group(
        "temperature 1.5 with top-k 3, min-p and a bias",
        (3, 1),
        Options(temperature=1.5, top_k=3, min_p=0.0625, logit_bias={0: 1.0}),
    ),
    Group("temperature 1.3 until token 1", (2, 0), Options(temperature=1.3), (1,)),
    Group("temperature 0", (1, 2), Options()),
)


@dataclasses.dataclass(frozen=True)
class TextLaw:
    """The target's law of each text of `NEW` tokens of a group.

    ``tables[n][c]`` is the law [V] of the token after the n tokens that are numbered c in base V.
    """

    group: Group
    tables: tuple[np.ndarray, ...]

    def texts(self) -> tuple[np.ndarray, np.ndarray]:
        """The possible texts [M, NEW], padded with V after a stop token, and their chances [M]."""
        texts = all_blocks(VOCAB, NEW)
        number, chance = np.zeros(len(texts), int), np.ones(len(texts))
        for n, table in enumerate(self.tables):
            chance = chance * table[number, texts[:, n]]
            number = number * VOCAB + texts[:, n]
        cut, where = np.unique(self.cut(texts), axis=0, return_inverse=True)
        return cut, np.bincount(where.reshape(-1), chance)

    def cut(self, texts: np.ndarray) -> np.ndarray:
        """Texts [N, NEW] up to and with their first stop token; V behind it."""
        stopped = np.isin(texts, self.group.stop_token_ids).cumsum(1) - np.isin(
            texts, self.group.stop_token_ids
        )
        return np.where(stopped > 0, VOCAB, texts)


def text_laws(target: Model, groups: Sequence[Group] = GROUPS) -> list[TextLaw]:
    """From passes over whole texts, without a cache, and options in plain Python."""
    before = all_blocks(VOCAB, NEW - 1)
    longest = max(len(g.prompt) for g in groups)
    fed = np.zeros((len(groups), len(before), longest + NEW - 1), np.int32)
    for g, group in enumerate(groups):
        size = len(group.prompt)
        fed[g, :, :size] = group.prompt
        fed[g, :, size : size + NEW - 1] = before
    logits = full_logits(target, fed.reshape(-1, fed.shape[-1])).reshape(*fed.shape, VOCAB)
    laws = []
    for g, group in enumerate(groups):
        tables = []
        for n in range(NEW):
            step = VOCAB ** (NEW - 1 - n)  # one text of those that begin alike
            rows = [
                law(x[len(group.prompt) - 1 + n], group.options, group.prompt, text[:n].tolist())
                for x, text in zip(logits[g, ::step], before[::step])
            ]
            tables.append(np.stack(rows))
        laws.append(TextLaw(group, tuple(tables)))
    return laws


def tree_laws(
    target: Model, groups: Sequence[Group], blocks: np.ndarray, parents: Parents
) -> np.ndarray:
    """The target's laws behind the places of trees of guesses: [D, W + 1, V].

    Arguments as for `block_laws`; ``blocks`` is [D, W].
    """
    routes, depth = trees.routes(parents), trees.depths(parents)
    lines = blocks[:, np.maximum(routes[:, 1:] - 1, 0)]  # [D, W + 1, M]
    lines = np.where(routes[:, 1:] > 0, lines, -1).astype(np.int32)
    repeated = [group for group in groups for _ in depth]
    laws = block_laws(target, repeated, lines.reshape(-1, lines.shape[-1]))
    laws = laws.reshape(*lines.shape[:2], *laws.shape[1:])  # [D, W + 1, M + 1, V]
    return laws[:, np.arange(len(depth)), depth]


def block_laws(target: Model, groups: Sequence[Group], blocks: np.ndarray) -> np.ndarray:
    """The target's laws along blocks of guesses: [D, K + 1, V].

    Args:
      target: the model.
      groups: [D], whose options and prompt stand before each block.
      blocks: [D, K] int32; what follows an empty slot (-1) does not matter.
    """
    K = blocks.shape[1]
    longest = max(len(g.prompt) for g in groups)
    fed = np.zeros((len(blocks), longest + K), np.int32)
    for row, group, block in zip(fed, groups, blocks):
        row[: len(group.prompt)] = group.prompt
        row[len(group.prompt) : len(group.prompt) + K] = np.maximum(block, 0)
    logits = full_logits(target, fed)
    laws = np.empty((len(blocks), K + 1, logits.shape[-1]))
    for d, (group, block) in enumerate(zip(groups, blocks)):
        for i in range(K + 1):
            output = [int(t) for t in block[:i] if t >= 0]
            place = len(group.prompt) - 1 + i
            laws[d, i] = law(logits[d, place], group.options, group.prompt, output)
    return laws
