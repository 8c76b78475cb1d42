"""The schedule of a batch: how wide its prefill passes are, and how many slots its buffers have.

Both come from few sizes, as each is a program that is compiled once.
"""

from __future__ import annotations

MIN_SLOTS = 256
CHUNKS = (16, 64, 256)  # widths of a prefill pass: prompts of any length compile these alone


def bucket(slots: int) -> int:
    """The smallest power of two, from `MIN_SLOTS` on, that holds ``slots``."""
    size = MIN_SLOTS
    while size < slots:
        size *= 2
    return size


def plan_chunks(num_tokens: int, widest: int = CHUNKS[-1]) -> list[tuple[int, int]]:
    """(start, width) of the passes that feed ``num_tokens`` tokens."""
    widths = [*(c for c in CHUNKS if c < widest), widest]
    chunks, start = [], 0
    while num_tokens - start > widest:
        chunks.append((start, widest))
        start += widest
    if num_tokens > start:
        chunks.append((start, next(c for c in widths if c >= num_tokens - start)))
    return chunks


def first_slots(longest: int, num_draft: int, widest: int = CHUNKS[-1]) -> int:
    """How many slots a batch begins with, whose longest prompt has ``longest`` tokens.

    The passes that feed it fit, and behind the prompt a block of ``num_draft`` guesses.
    """
    fed = sum(width for _, width in plan_chunks(longest - 1, widest))
    return bucket(max(fed, longest + num_draft + 1))


def slots_at(longest: int, length: int, num_draft: int) -> int:
    """How many slots a text of ``length`` has behind a prompt of ``longest`` tokens."""
    return max(first_slots(longest, num_draft), bucket(length + num_draft + 1))
