"""The schedule of a batch: how wide its prefill passes are, and how many slots its buffers have.

Both come from few sizes, as each is a program that is compiled once.
"""

from __future__ import annotations

import dataclasses

from specjax.core.platform import Platform, follows_text, here

MIN_SLOTS = 256
# Widths of a prefill pass: prompts of any length compile these alone.
CHUNKS = (16, 64, 256)
# Where a pass of few tokens costs what reading the weights does: on GPUs and TPUs. The last
# one only where a kernel of our own attends: elsewhere scores of 2048 go through main memory (v5e:
# 3.6 times the bytes of a pass of 1024).
WIDE_CHUNKS = (64, 256, 1024, 2048)

# Tokens whose arithmetic takes as long as reading the weights: 240 (v5e) to 560 (v6e) in bfloat16,
# 295 on an H100, by their data sheets. A pass of fewer is no shorter.
_FREE = 256
_SPARE = 1 / 4  # of a longer pass may be padding


def bucket(slots: int) -> int:
    """The smallest power of two, from `MIN_SLOTS` on, that holds ``slots``."""
    size = MIN_SLOTS
    while size < slots:
        size *= 2
    return size


@dataclasses.dataclass(frozen=True)
class Passes:
    """Which passes feed a prompt."""

    widths: tuple[int, ...] = CHUNKS  # that they may have, ascending
    free: int | None = None  # padding up to this width costs nothing; None: to any

    @classmethod
    def of(
        cls,
        longest: int,
        chunk: int | None = None,
        *,
        rows: int = 1,
        platform: Platform | None = None,
    ) -> Passes:
        """Those of ``rows`` prompts (on a device) that are fed side by side.

        Args:
          longest: tokens of the longest prompt.
          chunk: the most tokens of a prompt that a pass feeds. None: 256, and on GPUs and TPUs,
            where a pass of few costs what reading the weights does, up to 2048 or 1024 of all rows
            together (`WIDE_CHUNKS`).
          rows: prompts.
          platform: of the target; None: JAX's default devices.
        """
        platform = platform or here()
        wide = chunk is None and platform.name in ("gpu", "tpu")
        widths: tuple[int, ...] = CHUNKS
        if wide:
            widths = WIDE_CHUNKS if follows_text(platform) else WIDE_CHUNKS[:-1]
        if chunk is None:
            most = max(widths[-1] // rows, CHUNKS[-1])
            chunk = max(width for width in widths if width <= most)
        widest = min(chunk, bucket(longest))
        free = max(_FREE // rows, widths[0]) if wide else None
        return cls((*(w for w in widths if w < widest), widest), free)

    @property
    def widest(self) -> int:
        return self.widths[-1]

    def plan(self, num_tokens: int) -> list[tuple[int, int]]:
        """(start, width) of the passes that feed ``num_tokens`` tokens.

        The last is the narrowest that holds what is left; where much of it would be padding, and
        that costs time, a narrower one goes before it.
        """
        passes, start = list[tuple[int, int]](), 0
        while start < num_tokens:
            width = self._next(num_tokens - start)
            passes.append((start, width))
            start += width
        return passes

    def _next(self, left: int) -> int:
        """The width of the pass that begins where ``left`` tokens are left."""
        width = next((w for w in self.widths if w >= left), self.widest)
        padding = width - left
        if self.free is None or width <= self.free or padding <= _SPARE * width:
            return width
        return max((w for w in self.widths if w < width), default=width)

    def first_slots(self, longest: int, num_draft: int) -> int:
        """How many slots a batch begins with, whose longest prompt has ``longest`` tokens.

        The passes that feed it fit, and behind the prompt a block of ``num_draft`` guesses.
        """
        fed = sum(width for _, width in self.plan(longest - 1))
        return bucket(max(fed, longest + num_draft + 1))

    def slots_at(self, longest: int, length: int, num_draft: int) -> int:
        """How many slots a text of ``length`` has behind a prompt of ``longest`` tokens."""
        return max(self.first_slots(longest, num_draft), bucket(length + num_draft + 1))
