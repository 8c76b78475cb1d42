"""A batch of requests as arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from specjax import decode
from specjax.core.keys import row_keys
from specjax.core.platform import Platform
from specjax.core.types import Array
from specjax.sampling import Counts, Options, make_sampling


@dataclasses.dataclass(frozen=True)
class Row:
    """One request, checked."""

    prompt: Sequence[int]
    options: Options
    seed: int
    max_new_tokens: int
    stop_token_ids: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a batch of rows begins with. Rows that only fill a mesh are done from the start."""

    texts: list[Sequence[int]]  # of the prompts
    prompt_lengths: np.ndarray  # [B] int32
    request: decode.Request
    counts: Counts | None  # where a penalty needs them
    done: np.ndarray  # [B] bool

    @classmethod
    def of(
        cls,
        rows: Sequence[Row],
        vocab: int,
        *,
        greedy: bool,
        multiple: int = 1,
        platform: Platform | None = None,
        like: Sequence[Row] = (),
    ) -> Layout:
        """``rows`` for a vocabulary of ``vocab`` tokens, padded to a multiple of ``multiple``.

        ``greedy`` says that all temperatures are 0; ``platform`` is the target's. The arrays have
        the structure that they would have with the rows ``like`` among them.
        """
        num = len(rows)
        padding = [dataclasses.replace(rows[0], prompt=rows[0].prompt[:1])] * (-num % multiple)
        rows = [*rows, *padding]
        lengths = np.asarray([len(r.prompt) for r in rows], np.int32)
        limit = lengths + np.asarray([r.max_new_tokens for r in rows], np.int32)
        stops = max(max((len(r.stop_token_ids) for r in (*rows, *like)), default=0), 1)
        stop_ids = np.full((len(rows), stops), -1, np.int32)
        for i, row in enumerate(rows):
            stop_ids[i, : len(row.stop_token_ids)] = row.stop_token_ids
        options, others = [r.options for r in rows], [r.options for r in like]
        sampling = make_sampling(options, vocab, platform, like=others)
        sampling = dataclasses.replace(sampling, greedy=greedy)
        counts = None
        if sampling.uses_counts:
            seen = np.zeros((len(rows), vocab), bool)
            for i, row in enumerate(rows):
                seen[i, list(row.prompt)] = True
            counts = Counts(jnp.asarray(seen), jnp.zeros((len(rows), vocab), jnp.int32))
        request = decode.Request(
            keys=row_keys(jnp.asarray([r.seed for r in rows], jnp.uint32)),
            limit=jnp.asarray(limit),
            stop_ids=jnp.asarray(stop_ids),
            sampling=sampling,
        )
        done = np.arange(len(rows)) >= num
        return cls([r.prompt for r in rows], lengths, request, counts, done)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return int(self.prompt_lengths.max())

    def prompts(self, slots: int) -> tuple[Array, Array, Array, Counts | None]:
        """What `decode.init_state` takes of it."""
        host = self.tokens(slots), self.prompt_lengths, self.done
        return *map(jnp.asarray, host), self.counts  # type: ignore[return-value]

    def tokens(self, slots: int) -> np.ndarray:
        """[B, slots] int32: the prompts, then zeros."""
        tokens = np.zeros((len(self.texts), slots), np.int32)
        for row, prompt in zip(tokens, self.texts):
            row[: len(prompt)] = prompt
        return tokens

    def agreement(self, tokens: np.ndarray, length: np.ndarray) -> np.ndarray:
        """[B] int32: how many tokens each prompt begins with as the texts ``tokens`` [B, S] do.

        ``length`` [B] is theirs.
        """
        slots = max(tokens.shape[1], self.longest)
        texts = np.pad(tokens, ((0, 0), (0, slots - tokens.shape[1])))
        end = np.minimum(length, self.prompt_lengths)[:, None]
        differs = (texts != self.tokens(slots)) | (np.arange(slots)[None, :] >= end)
        found: np.ndarray = np.where(differs.any(1), differs.argmax(1), slots).astype(np.int32)
        return found
