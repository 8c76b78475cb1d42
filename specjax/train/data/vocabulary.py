"""Which of the target's tokens a draft with a reduced vocabulary should be able to guess."""

from __future__ import annotations

import numpy as np

from specjax.train.data.rows import Rows, heldout_rows

_ROWS = 8192  # are counted at most


def frequent_tokens(rows: Rows, num: int, vocab_size: int) -> tuple[np.ndarray, float]:
    """The ``num`` tokens that are labels most often (FR-Spec, Zhao et al. 2025, arXiv:2502.14856).

    Args:
      rows: the training data; of long data an even sample is counted.
      num: V_draft, at most ``vocab_size``. Ties go to the lower id.
      vocab_size: of the target.

    Returns:
      [num] int32 ids in increasing order, and the share of all labels that they cover: no guess is
      accepted more often than that.

    Raises:
      ValueError: if ``num`` does not lie in 1..vocab_size.
    """
    if not 1 <= num <= vocab_size:
        raise ValueError(
            f"--config.sizes.draft_vocab_size={num}: must lie between 1 and the target's "
            f"{vocab_size} tokens."
        )
    counts = np.zeros(vocab_size, np.int64)
    for row in heldout_rows(rows, _ROWS):
        counts += np.bincount(row.tokens[row.supervised], minlength=vocab_size)
    ids = np.sort(np.argsort(-counts, kind="stable")[:num]).astype(np.int32)
    return ids, int(counts[ids].sum()) / max(int(counts.sum()), 1)
