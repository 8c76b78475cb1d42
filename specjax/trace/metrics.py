"""What a run of speculation was worth, from its trace alone.

Symbols. Cycle s put k_s guesses to the target, of which the rule accepted a_s, and committed n_s
tokens. a_s is before, n_s behind the cut at a stop token or the limit: a cycle that accepts four
guesses, the second of them a stop token, has a = 4 and n = 2. Where guesses form a tree, survival,
conditional and alpha_hat count its levels instead: a level is accepted if one of its guesses is.
*Pooled* figures are ratios of sums over all cycles, never means of ratios.
Times are those of `specjax.trace.clock`.

Whatever cannot be known is None, never NaN.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from specjax.trace.bootstrap import Interval, interval, ratio_intervals, resample
from specjax.trace.clock import decode_seconds, passes, timings
from specjax.trace.trace import Cycle, Trace

# key -> (unit, what it is), as the columns of results.csv have it (of lists with _1, _2, .. added).
# The last block is not of one trace: the benchmark measures it.
METRICS: dict[str, tuple[str, str]] = {
    "tau": ("tokens/pass", "committed tokens per target pass, the target's own included; pooled"),
    "tau_macro": ("tokens/pass", "mean over requests of each one's tau (as DFlash and NVIDIA)"),
    "tau_uncut": ("tokens/pass", "1 + accepted per pass, before cutting at the end (as vLLM)"),
    "tau_lockstep": ("tokens/pass", "what a batch advances by if rows wait for the slowest of all"),
    "occupancy": ("fraction", "of all cycles of all rows of the batch, those that a request used"),
    "accept_rate": ("fraction", "accepted of all guesses, before cutting; always say at which k"),
    "survival": ("fraction", "[i] of the cycles with at least i guesses, those that accepted i"),
    "conditional": ("fraction", "[i] the same of those that accepted i - 1"),
    "alpha_hat": ("fraction", "accepted of the guesses that were decided: one alpha for all"),
    "alpha_model": ("fraction", "mean of sum_x min(p, q) = 1 - TV where token-level checks reach"),
    "accept_hist": ("cycles", "{a: cycles that accepted a guesses, before cutting}"),
    "waste": ("guesses/token", "guesses not accepted, per committed token"),
    "verify_use": ("fraction", "committed of all tokens that the target scored (verify_rate)"),
    "tps_decode": ("tokens/s", "(tokens - 1) / time from the first cycle's end on, of a request"),
    "tpot_ms": ("ms/token", "decode time from the end of prefill, per token; pooled"),
    "tpot_ms_p50": ("ms/token", "its median over requests"),
    "tpot_ms_p95": ("ms/token", "its 95th percentile over requests"),
    "step_ms": ("ms", "mean time of a cycle: draft, verify, commit, of the whole batch"),
    "step_ms_p50": ("ms", "its median (cycles of one device call share its time)"),
    "step_ms_p95": ("ms", "its 95th percentile (cycles of one device call share its time)"),
    "ttft_ms": ("ms", "end of the first cycle, both prefills included; mean over requests"),
    "ttft_ms_p50": ("ms", "its median over requests"),
    "ttft_ms_p95": ("ms", "its 95th percentile over requests"),
    "tokens": ("tokens", "committed, prompts not included"),
    "cycles": ("passes", "target passes of rows that were not done"),
    "requests": ("", "rows"),
    "num_draft": ("guesses", "k: the most guesses of a cycle"),
    "experts": ("experts", "distinct ones a layer that a pass reads, of a target with such"),
    "experts_expected": ("experts", "the same if each token drew for itself"),
    "speedup": ("ratio", "tpot of plain decoding / tpot, pooled over the same prompts"),
    "speedup_interval": ("ratio", "95 % bootstrap interval of speedup over requests"),
    "speedup_gmean": ("ratio", "geometric mean over requests of each one's ratio"),
    "speedup_gmean_interval": ("ratio", "95 % bootstrap interval of speedup_gmean over requests"),
    "exact_match": ("fraction", "requests whose tokens are all those of plain decoding"),
    "first_diff": ("index", "[request, token] of the earliest token that differs"),
    "same_lengths": ("", "whether each request has as many tokens as under plain decoding"),
    "predicted_speedup": ("ratio", "tau / the cost of a cycle in plain steps, calibrated"),
    "predicted_measured_over_predicted": ("ratio", "of speedups; below 0.9 is overhead to hunt"),
    "predicted_single_alpha_speedup": ("ratio", "what alpha_hat alone would say, with these costs"),
    "predicted_best_k": ("guesses", "of all k up to this one; 0: plain decoding is as fast"),
    "predicted_cost_draft": ("ratio", "c: one draft call over a plain step"),
    "predicted_cost_verify": ("ratio", "v(k): verifying k guesses over a plain step"),
    "predicted_cost_rest": (
        "ratio",
        "of a calibrated cycle beyond draft and verify, as cost_draft",
    ),
    "predicted_overhead": ("ratio", "the same of the measured cycle; below 0: something is rough"),
    "predicted_share_draft": ("fraction", "of a cycle's time"),
    "predicted_share_verify": ("fraction", "of a cycle's time"),
    "predicted_share_rest": ("fraction", "of a cycle's time"),
    "compile_s": ("s", "spent compiling"),
    "compiles_after_warmup": ("count", "programs compiled while measuring: must be 0"),
    "peak_bytes": ("bytes", "of device memory, both models and caches"),
}


@dataclasses.dataclass(frozen=True)
class Figures:
    """What `METRICS` defines, up to num_draft: of the requests of a trace together.

    A record of fewer figures, such as that of a pooled row, lacks the others: they are None.
    """

    tau: float | None = None
    tau_macro: float | None = None
    tau_uncut: float | None = None
    tau_lockstep: float | None = None
    occupancy: float | None = None
    accept_rate: float | None = None
    survival: tuple[float | None, ...] = ()
    conditional: tuple[float | None, ...] = ()
    alpha_hat: float | None = None
    alpha_model: float | None = None
    accept_hist: Mapping[str, int] = dataclasses.field(default_factory=dict)
    waste: float | None = None
    verify_use: float | None = None
    tps_decode: float | None = None
    tpot_ms: float | None = None
    tpot_ms_p50: float | None = None
    tpot_ms_p95: float | None = None
    step_ms: float | None = None
    step_ms_p50: float | None = None
    step_ms_p95: float | None = None
    ttft_ms: float | None = None
    ttft_ms_p50: float | None = None
    ttft_ms_p95: float | None = None
    tokens: int = 0
    cycles: int = 0
    requests: int = 0
    num_draft: int = 0


@dataclasses.dataclass(frozen=True)
class Intervals:
    """95 % bootstrap intervals over requests, (low, high).

    None where the figure is None, and for fewer than two requests, of which nothing is known.
    """

    tau: Interval = None
    accept_rate: Interval = None
    survival: tuple[Interval, ...] = ()
    tpot_ms: Interval = None


@dataclasses.dataclass(frozen=True)
class Speedup:
    """Times per token of plain decoding over ours; None where times are unknown."""

    speedup: float | None = None
    speedup_interval: Interval = None
    speedup_gmean: float | None = None
    speedup_gmean_interval: Interval = None


@dataclasses.dataclass(frozen=True)
class Comparison(Speedup):
    """Speculation against plain decoding of the same requests.

    ``exact_match`` and ``first_diff`` (request, token) are None where texts differ by right:
    sampled without coupled noise.
    """

    exact_match: float | None = None
    first_diff: tuple[int, int] | None = None
    same_lengths: bool = True


def figures(trace: Trace) -> Figures:
    """The metrics of all requests together.

    ``tau_lockstep`` is the mean, over the cycles that the device ran for a batch, of the fewest
    tokens that a row of it committed. It and ``occupancy`` need the batches (``setup["batch"]``,
    or the clock).
    """
    about, cycles = trace.about, list(trace)
    most = max((c.num_levels for c in cycles), default=0)
    tokens, num = sum(c.committed for c in cycles), len(cycles)
    ks, hits = [len(c.proposed) for c in cycles], [c.accepted for c in cycles]
    asked, reached = _at_least((c.num_levels for c in cycles), most), _at_least(hits, most)
    decided = [c.decided for c in cycles]
    before = _at_least(decided, most)
    each = [sum(c.committed for c in row) / len(row) for row in trace.rows if row]
    return Figures(
        tau=_ratio(tokens, num),
        tau_macro=_ratio(sum(each), len(each)),
        tau_uncut=_ratio(num + sum(hits), num),
        tau_lockstep=_lockstep(trace),
        occupancy=_occupancy(trace),
        accept_rate=_ratio(sum(hits), sum(ks)),
        survival=tuple(_ratio(a, b) for a, b in zip(reached, asked)),
        conditional=tuple(_ratio(a, b) for a, b in zip(reached, before)),
        alpha_hat=_ratio(sum(hits), sum(decided)),
        alpha_model=_alpha_model(trace),
        accept_hist={str(a): count for a, count in sorted(Counter(hits).items())},
        waste=_ratio(sum(ks) - sum(hits), tokens),
        verify_use=_ratio(tokens, sum(ks) + num),
        **timings(trace),
        tokens=tokens,
        cycles=num,
        requests=len(trace.rows),
        num_draft=max(ks, default=0) if about.num_draft is None else about.num_draft,
    )


def by_category(trace: Trace) -> dict[str, Figures]:
    """`figures` of the requests of each category, in order of appearance."""
    rows: dict[str, list[int]] = {}
    for b, text in enumerate(trace.texts):
        rows.setdefault(text.category, []).append(b)
    return {name: figures(select(trace, members)) for name, members in rows.items()}


def select(trace: Trace, rows: Sequence[int]) -> Trace:
    """The trace of some rows. They are no batch of their own, so that the setup's is left out."""
    return Trace(
        rows=tuple(trace.rows[b] for b in rows),
        texts=tuple(trace.texts[b] for b in rows) if trace.texts else (),
        setup={key: value for key, value in trace.setup.items() if key != "batch"},
    )


def with_intervals(trace: Trace, *, resamples: int = 1000, seed: int = 0) -> Intervals:
    """The intervals of a trace's figures.

    Raises:
      ValueError: if ``resamples`` is below 1.
    """
    most = max((c.num_levels for c in trace), default=0)
    above, below = sums(trace, most)
    tau, rate, tpot, *survival = ratio_intervals(above, below, resamples=resamples, seed=seed)
    return Intervals(tau, rate, tuple(survival), tpot)


def sums(trace: Trace, most: int) -> tuple[np.ndarray, np.ndarray]:
    """What each request adds to the numerators and denominators of pooled figures.

    Returns:
      Two of [N, 3 + most]: of tau, accept_rate, tpot_ms (NaN above where times are unknown), and
      survival at 1 to ``most`` guesses.
    """
    above, below = [], []
    for row, seconds in zip(trace.rows, decode_seconds(trace), strict=True):
        tokens, time = sum(c.committed for c in row), math.nan if seconds is None else seconds
        ks, hits = [len(c.proposed) for c in row], [c.accepted for c in row]
        above.append([tokens, sum(hits), 1e3 * time, *_at_least(hits, most)])
        asked = _at_least((c.num_levels for c in row), most)
        below.append([len(row), sum(ks), tokens, *asked])
    shape = (len(trace.rows), 3 + most)
    return (
        np.asarray(above, np.float64).reshape(shape),
        np.asarray(below, np.float64).reshape(shape),
    )


def compare(ours: Trace, plain: Trace, *, resamples: int = 1000, seed: int = 0) -> Comparison:
    """Speculation against plain decoding of the same requests, row by row.

    A ratio of like with like: prompts, and whatever of the setup both know (target, options, batch,
    dtype, device), must be equal, and so must the limits, as far as the rows' ends tell them. Where
    texts are sampled, stop tokens may still end them at different lengths; ``same_lengths`` says
    so, and the ratio is one of times per token.

    Args:
      ours: a trace of speculation.
      plain: a trace of plain decoding (drafter "none").
      resamples: of the bootstrap over requests.
      seed: of the bootstrap.

    Raises:
      ValueError: in one line, where the two are not comparable.
    """
    check_comparable(ours, plain)
    texts = [_tokens(row) for row in ours.rows], [_tokens(row) for row in plain.rows]
    found = Speedup()
    times = [*decode_seconds(ours), *decode_seconds(plain)]
    lengths = np.asarray([len(t) for side in texts for t in side], np.float64)
    if len(ours.rows) and all(t is not None for t in times) and (lengths > 0).all():
        seconds = np.asarray(times, np.float64).reshape(2, -1)
        found = speedup(seconds, lengths.reshape(2, -1), resamples=resamples, seed=seed)
    same = [a == b for a, b in zip(*texts, strict=True)]
    diffs = [(i, _first_diff(a, b)) for i, (a, b) in enumerate(zip(*texts)) if a != b]
    decided = _same_law_same_text(ours, plain)
    return Comparison(
        found.speedup,
        found.speedup_interval,
        found.speedup_gmean,
        found.speedup_gmean_interval,
        exact_match=sum(same) / len(same) if decided and same else None,
        first_diff=min(diffs, key=lambda d: (d[1], d[0])) if decided and diffs else None,
        same_lengths=all(len(a) == len(b) for a, b in zip(*texts)),
    )


def check_comparable(ours: Trace, plain: Trace) -> None:
    """Raises ValueError, in one line, unless both are about the same requests."""
    if any(c.proposed for c in plain):
        raise ValueError("The trace to compare with holds guesses: it is not of plain decoding.")
    if len(ours.rows) != len(plain.rows):
        raise ValueError(
            f"{len(ours.rows)} requests against {len(plain.rows)} of plain decoding: measure both "
            "on the same prompts."
        )
    if not ours.texts or not plain.texts:
        raise ValueError("A trace without texts does not tell its prompts, so it is not compared.")
    for key in ("target", "options", "batch", "dtype", "mesh", "device"):
        a, b = ours.setup.get(key), plain.setup.get(key)
        if key in ours.setup and key in plain.setup and a != b:
            raise ValueError(
                f"{key} is {a!r} here and {b!r} under plain decoding: measure both alike."
            )
    for i, (a, b) in enumerate(zip(ours.texts, plain.texts, strict=True)):
        if a.prompt_tokens != b.prompt_tokens:
            raise ValueError(
                f"Request {i} has another prompt than under plain decoding: measure both on the "
                "same prompts."
            )
        lengths = [sum(c.committed for c in t.rows[i]) for t in (ours, plain)]
        limits = [n for n, text in zip(lengths, (a, b)) if text.finish == "length"]
        if limits and None not in (a.finish, b.finish) and max(lengths) > min(limits):
            raise ValueError(
                f"Request {i} has {lengths[0]} tokens, and {lengths[1]} under plain decoding, past "
                f"the limit of {min(limits)}: use one max_new_tokens for both."
            )


def speedup(
    seconds: np.ndarray, lengths: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> Speedup:
    """Pooled and mean, with intervals, of ``seconds`` and ``lengths`` [2, N]: ours, and plain."""
    columns = np.concatenate([seconds, lengths, np.ones((1, seconds.shape[1]))]).T
    logs = np.diff(np.log(seconds / lengths), axis=0).T  # plain over ours, of each request
    columns = np.concatenate([columns, logs], axis=1)  # [N, 6]

    def pooled(sums: np.ndarray) -> np.ndarray:
        return (sums[..., 1] / sums[..., 3]) / (sums[..., 0] / sums[..., 2])

    def gmean(sums: np.ndarray) -> np.ndarray:
        return np.exp(sums[..., 5] / sums[..., 4])

    several = len(columns) > 1
    drawn = resample(columns, resamples=resamples, seed=seed)
    return Speedup(
        float(pooled(columns.sum(0))),
        interval(pooled(drawn)) if several else None,
        float(gmean(columns.sum(0))),
        interval(gmean(drawn)) if several else None,
    )


def _same_law_same_text(ours: Trace, plain: Trace) -> bool:
    """Whether exact rules make both texts the same: greedy on both sides, or coupled on both."""
    rules = [t.about.rule or "greedy" for t in (ours, plain)]
    return rules[0] == rules[1] and rules[0] in ("greedy", "coupled")


def _tokens(row: Sequence[Cycle]) -> list[int]:
    return [token for c in row for token in c.emitted]


def _first_diff(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def _ratio(above: float, below: float) -> float | None:
    return above / below if below else None


def _at_least(values: Iterable[int], most: int) -> list[int]:
    """How many are at least 1, 2, ..., ``most``."""
    values = list(values)
    return [sum(v >= i for v in values) for i in range(1, most + 1)]


def _alpha_model(trace: Trace) -> float | None:
    """The mean overlap, sum_x min(p, q), of target and draft, from p and q at the guesses alone.

    A guess x is drawn from q, so that min(1, p(x) / q(x)) has the overlap as its mean. Each guess
    counts by the chance that token-level verification reaches it, the product of these numbers over
    the guesses before it (Leviathan et al. 2023). Counting the guesses that *were* reached would be
    the same on average under that rule, but not under block verification, whose verdict on a
    prefix depends on the guesses behind it.

    None without details, and where guesses are not drawn from a law that verification uses.
    """
    if trace.about.kind != "sampled" or trace.about.rule == "greedy":
        return None
    overlap = weight = 0.0
    for c in trace:
        if c.detail is None:
            continue
        reach = 1.0
        for p, q in zip(c.detail.p, c.detail.q, strict=True):
            accept = 1.0 if p >= q else p / q
            overlap, weight = overlap + reach * accept, weight + reach
            reach *= accept
    return _ratio(overlap, weight)


def _lockstep(trace: Trace) -> float | None:
    if trace.about.batch is None:
        return None
    fewest = [min(c.committed for c in together) for together in passes(trace)]
    return _ratio(sum(fewest), len(fewest))


def _occupancy(trace: Trace) -> float | None:
    if trace.about.batch is None:
        return None
    return _ratio(trace.num_cycles, trace.about.batch * len(passes(trace)))
