"""Bootstrap intervals over requests (Efron 1979), by percentile, from sums alone.

A pooled figure is a ratio of sums over requests. Drawing N of N requests with replacement is
drawing how often each is taken; so all resamples of all figures are one product of matrices.

Requests are taken for independent of one another. Those of one batch share a clock: an interval of
times over few large batches is too narrow.
"""

from __future__ import annotations

import numpy as np

LEVEL = 0.95
Interval = (
    tuple[float, float] | None
)  # (low, high); None: cannot be known, as with a single request


def resample(values: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Sums over resampled requests.

    Args:
      values: [N, M], M numbers of each of N requests.
      resamples: R, how often N requests are drawn.
      seed: the draws depend on it and on N alone.

    Returns:
      [R, M].

    Raises:
      ValueError: if ``resamples`` is below 1.
    """
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: must be at least 1; 1000 is usual.")
    num = len(values)
    times = np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), size=resamples)
    return times @ np.asarray(values, np.float64)


def interval(samples: np.ndarray) -> Interval:
    """The middle 95 % of ``samples`` [R]; those that are no number (0 / 0) do not count."""
    known = samples[np.isfinite(samples)]
    if not known.size:
        return None
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(known, [tail, 100 - tail])
    return float(low), float(high)


def ratio_intervals(
    above: np.ndarray, below: np.ndarray, *, resamples: int, seed: int
) -> list[Interval]:
    """Intervals of M pooled ratios, ``above[:, m].sum() / below[:, m].sum()``.

    Args:
      above: [N, M], a request's part in the numerators.
      below: [N, M], and in the denominators.
      resamples: how often N requests are drawn.
      seed: of the draws.

    Returns:
      M of (low, high); None for fewer than two requests, of which nothing is known.
    """
    num, figures = above.shape
    if num < 2:
        return [None] * figures
    sums = resample(np.concatenate([above, below], axis=1), resamples=resamples, seed=seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = sums[:, :figures] / sums[:, figures:]
    return [interval(ratios[:, m]) for m in range(figures)]
