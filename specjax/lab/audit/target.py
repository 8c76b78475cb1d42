"""Is a target's memory right? Every entry, every width, and the text that comes of it."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from specjax.checkpoint.load import Model, load
from specjax.core import keys, own
from specjax.core.by_shape import Misfit, by_shape, calling, shape
from specjax.core.cache import Cache
from specjax.core.types import Array, Kept, Proposal, pytree, static
from specjax.drafters import NoDraft
from specjax.drafters.base import Context
from specjax.drafters.spec import Spec
from specjax.lab.audit import rounding
from specjax.lab.audit.batch import Batch
from specjax.lab.audit.passes import MORE_SLOTS, ROWS, TOLERANCES, Round, by_width, rounds
from specjax.lab.audit.report import Check
from specjax.lab.audit.targets import full_logits, random_model
from specjax.models import FAMILIES
from specjax.models.layers.decoder import Pass
from specjax.sampling import Options
from specjax.session import Row
from specjax.session.requests import choose
from specjax.verify import Coupled

NEW, TEXTS = 20, 6
WRONG = 0.3  # the share of a scripted drafter's guesses
TIE = 1e-3  # of two scores that differ by less than this share, rounding may find either the larger


def make_target(target: Model | type | str) -> Model:
    """The model that was named or handed over; a family's has small random weights.

    Raises:
      ValueError: in one line, if there is none.
    """
    if isinstance(target, Model):
        return target
    if own.is_own(target) and not own.read_place(str(target)).rest:  # else it is a checkpoint
        target = own.find(str(target))
        if isinstance(target, Model):
            return target
    if isinstance(target, str):
        return random_model(target) if target in FAMILIES else load(target)
    if not (inspect.isclass(target) and hasattr(target, "read_config")):
        what = target.__name__ if inspect.isclass(target) else f"a {type(target).__name__}"
        raise Misfit(
            f"{what} is no target: hand over a specjax.Model, the class of a family (a subclass of "
            f"Decoder), or a name, a checkpoint's or one of {', '.join(sorted(FAMILIES))}."
        )
    cls: Any = target
    return calling(f"making a small {cls.__name__}", lambda: random_model(cls), ValueError)


def check_target(target: Model) -> None:
    """Raises ValueError, in one line, on what is no target by its shapes."""
    net, c, name = target.net, target.config, target.name
    rows, slots, width = 2, 24, 5
    if target.mesh is not None:
        raise ValueError(f"{name} is on a mesh: load it without one to audit it.")
    if c.max_position_embeddings < MORE_SLOTS:
        raise ValueError(
            f"{name} is limited to {c.max_position_embeddings} tokens; an audit needs {MORE_SLOTS}."
        )
    cache = by_shape(f"{name}: init_cache()", lambda net: net.init_cache(rows, slots), net)
    if not isinstance(cache, Cache) or len(cache.layers) != c.num_layers:
        of = len(cache.layers) if isinstance(cache, Cache) else f"a {type(cache).__name__}"
        raise Misfit(
            f"{name}: init_cache() returns {of}; it must be a Cache of an entry a layer, "
            f"{c.num_layers} in all."
        )
    for i, entry in enumerate(cache.layers):
        lacking = [m for m in ENTRY if not callable(getattr(entry, m, None))]
        if lacking:
            raise Misfit(
                f"{name}: the entry of layer {i}, a {type(entry).__name__}, lacks "
                f"{', '.join(lacking)}; see specjax/core/cache/base.py."
            )
    tokens = jax.ShapeDtypeStruct((rows, width), jnp.int32)
    taps = tuple(range(c.num_layers + 1))

    def run(net: Any, tokens: Any, cache: Cache) -> Any:
        out = net(tokens, cache, taps=taps)
        if not isinstance(out, Pass):
            raise Misfit(f"{name} returns a {type(out).__name__}; it must be a Pass.")
        return out, net.head(out.hidden), cache.commit(out.block, cache.length)

    out, logits, after = by_shape(f"{name}: a pass", run, net, tokens, cache)
    for what, got, wanted in (
        ("hidden", out.hidden, [rows, width, c.hidden_size]),
        ("features of all taps", out.features, [rows, width, len(taps) * c.hidden_size]),
        ("the head's logits", logits, [rows, width, c.vocab_size]),
    ):
        if got is None or list(got.shape) != wanted:
            raise Misfit(f"{name}: {what} is {shape(got)}; its shape must be {wanted}.")
    larger = jax.eval_shape(lambda net: net.init_cache(rows, 2 * slots), net)
    grown = by_shape(f"{name}: grow()", lambda cache: cache.grow(2 * slots), cache)
    for what, new, old in (("commit()", after, cache), ("grow()", grown, larger)):
        for i, (a, b) in enumerate(zip(new.layers, old.layers, strict=True)):
            if list(map(shape, jax.tree.leaves(a))) != list(map(shape, jax.tree.leaves(b))):
                raise Misfit(
                    f"{name}: {what} of layer {i}'s {type(b).__name__} gives other shapes than "
                    "init_entry: the compiled loop keeps them."
                )


ENTRY = ("commit", "cut", "loses", "grow", "stale", "filled", "placed")


@dataclasses.dataclass(frozen=True)
class TargetEvidence:
    """What is looked at, made once and when it is first asked for."""

    target: Model
    drafter: Spec | None
    k: int
    seed: int

    @functools.cached_property
    def rounds(self) -> list[Round]:
        with jax.default_matmul_precision("highest"):
            return list(rounds(self.target, self.seed))

    @property
    def tolerance(self) -> float:
        """The allowed difference, as a share of a layer's largest value."""
        kind = self.target.net.memory
        rounds = 0.0 if kind is None else rounding.TOLERANCES[kind]
        return max(TOLERANCES[self.target.dtype.name], rounds)

    @functools.cached_property
    def entries(self) -> list[str]:
        """Their kinds, a layer each."""
        cache = jax.eval_shape(lambda net: net.init_cache(1, 8), self.target.net)
        return [type(entry).__name__ for entry in cache.layers]

    def layer(self, index: int) -> str:
        """What state ``index`` comes from, in words."""
        if index == 0:
            return "the embedding"
        return f"layer {index - 1} ({self.entries[index - 1]})"


def off(got: np.ndarray, want: np.ndarray, tolerance: float) -> tuple[float, Any]:
    """The largest difference, as a share of its layer's largest value, and the first one too large.

    Of states [B, T, L + 1, D]: the first by layer, or None. What is not finite is too large.
    """
    size = np.maximum(np.abs(want).max((0, 1, 3), keepdims=True), 1e-6)
    share = (np.abs(got.astype(np.float64) - want) / size).max(-1)  # [B, T, L + 1]
    share = np.where(np.isfinite(share), share, np.inf)
    bad = np.argwhere((share > tolerance).transpose(2, 0, 1))
    return float(share.max()), None if not len(bad) else tuple(int(x) for x in bad[0])


def check_entries(evidence: TargetEvidence) -> Check:
    """Every layer's memory against one pass over the whole text."""
    check = _rounds(
        evidence,
        "entries",
        lambda r: (r.got, r.want),
        evidence.tolerance,
        "behind random counts and paths of the blocks before, and in another turn of the texts, "
        "against one pass over the whole text",
        "than one pass over the whole text gives",
    )
    kind = evidence.target.net.memory
    return check if kind is None else _with_steps(evidence, check, kind)


def _with_steps(evidence: TargetEvidence, check: Check, kind: str) -> Check:
    """With what an entry that rounds remembers, in steps; of float32, which tells them apart."""
    if evidence.target.dtype != np.float32:
        return check
    first, found = None, []
    for i, r in enumerate(evidence.rounds):
        found += r.steps
        for s in r.steps:
            if s.too_far and first is None:
                first = (
                    f"Before block {i + 1}, behind {r.lengths[s.row]} tokens: what "
                    f"{evidence.layer(s.layer + 1)} remembers of row {s.row} is up to "
                    f"{s.largest:.2g} steps of {kind} from what one pass over the text gives, and "
                    f"{s.count} of its {s.numbers} numbers are others."
                )
    return Check.unless(
        name=check.name,
        tested=check.tested + rounding.told(kind, found),
        statistic=check.statistic,
        counterexample=check.counterexample or first,
    )


def check_stale(evidence: TargetEvidence) -> Check:
    """What lies in memory where nothing is kept must not matter."""
    return _rounds(
        evidence,
        "stale",
        lambda r: (r.stale, r.got),
        1e-6,
        "with NaN and huge numbers wherever memory holds nothing of the text (Entry.stale)",
        "once what must not be seen is poisoned",
    )


def _rounds(
    evidence: TargetEvidence,
    name: str,
    pair: Callable[[Round], tuple[np.ndarray, np.ndarray]],
    tolerance: float,
    against: str,
    instead: str,
) -> Check:
    largest, first = 0.0, None
    for i, r in enumerate(evidence.rounds):
        got, want = pair(r)
        size, where = off(got, want, tolerance)
        largest = max(largest, size)
        if where is not None and first is None:
            layer, b, t = where
            was = "is not finite" if not np.isfinite(size) else f"differs by {size:.1e} of its size"
            first = (
                f"Block {i + 1}, {r.kind} of {r.tokens.shape[1]} tokens behind {r.lengths[b]}: the "
                f"output of {evidence.layer(layer)} at place {t} of row {b} is other {instead} (it "
                f"{was})."
            )
    kinds = ", ".join(dict.fromkeys(evidence.entries))
    return Check.unless(
        name=name,
        tested=(
            f"the states of all layers ({kinds}) in {len(evidence.rounds)} blocks, chains, trees "
            f"and wide ones, of {ROWS} rows of different lengths, {against}: the largest "
            f"difference is {largest:.1e} of a layer's largest value (allowed: {tolerance:.0e})"
        ),
        statistic=largest,
        counterexample=first,
    )


def check_widths(evidence: TargetEvidence) -> Check:
    """A text is the same whatever the blocks that it is fed in."""
    largest, first, ways = 0.0, None, []
    with jax.default_matmul_precision("highest"):
        for way, wide, other in by_width(evidence.target, evidence.seed, evidence.k):
            ways.append(way)
            size, where = off(other, wide, evidence.tolerance)
            largest = max(largest, size)
            if where is not None and first is None:
                layer, b, t = where
                first = (
                    f"Fed {way}, the output of {evidence.layer(layer)} at token {t} of row {b} "
                    f"differs by {size:.1e} of its size from that of blocks of {evidence.k + 1}."
                )
    return Check.unless(
        name="widths",
        tested=(
            f"one text fed in blocks of k + 1 = {evidence.k + 1} tokens, and {'; '.join(ways)}: "
            f"the largest difference is {largest:.1e} of a layer's largest value (allowed: "
            f"{evidence.tolerance:.0e})"
        ),
        statistic=largest,
        counterexample=first,
    )


@pytree
class Scripted:
    """Guesses a text that was written before, some tokens of it wrong."""

    script: Array  # [B, S] int32, by position
    num_draft: int = static()

    kind = "one_hot"
    taps = ()

    def init(self, rows: int, slots: int) -> Any:
        return ()

    def prefill(self, state: Any, tokens: Array, count: Array, features: Array | None) -> Any:
        return ()

    def propose(self, state: Any, context: Context) -> tuple[Proposal, Any]:
        place = context.length[:, None] + jnp.arange(self.num_draft)[None, :]
        place = jnp.minimum(place, self.script.shape[1] - 1)
        return Proposal(jnp.take_along_axis(self.script, place, axis=1)), ()

    def update(self, held: Any, kept: Kept) -> Any:
        return ()

    def grow(self, state: Any, slots: int) -> Any:
        return ()


def check_coupling(evidence: TargetEvidence) -> Check:
    """Text that was guessed is the text of plain decoding with the same seeds, token for token."""
    target, rows = evidence.target, text_rows(evidence)
    rule, width = Coupled(), max(len(r.prompt) for r in rows) + NEW
    plain = Batch.of(target, NoDraft(), rule, rows)
    want = plain.texts(plain.advance(plain.start()), -1)

    rng = np.random.default_rng((evidence.seed, 4))
    script = np.zeros((len(rows), width), np.int32)
    for line, row, text in zip(script, rows, want):
        line[len(row.prompt) : len(row.prompt) + NEW] = text
    wrong = rng.random(script.shape) < WRONG
    script = np.where(wrong, (script + 1) % target.config.vocab_size, script)
    guessing: dict[str, Any] = {
        f"a script with {WRONG:.0%} of its tokens wrong": Scripted(jnp.asarray(script), evidence.k)
    }
    if evidence.drafter is not None:
        guessing["the drafter"] = choose(target, evidence.drafter, rows, rule)[0]
    first, compared, accepted = None, 0, 0
    for who, drafter in guessing.items():
        batch = Batch.of(target, drafter, rule, rows)
        state = batch.advance(batch.start())
        got = batch.texts(state, -1)
        accepted += int(np.maximum(np.asarray(state.record.accepted), 0).sum())
        compared += got.size
        first = first or _difference(evidence, plain, who, got, want)
    return Check.unless(
        name="coupling",
        tested=(
            f"{compared} tokens of {len(rows)} texts, at temperature 0 and 1, guessed by "
            f"{' and by '.join(guessing)} ({accepted} guesses accepted), against plain decoding "
            "with the same seeds"
        ),
        counterexample=first,
    )


def text_rows(evidence: TargetEvidence) -> list[Row]:
    """Ragged prompts of random tokens."""
    rng = np.random.default_rng((evidence.seed, 5))
    V = evidence.target.config.vocab_size
    return [
        Row(
            tuple(rng.integers(0, V, size=1 + 3 * b).tolist()),
            Options(temperature=float(b % 2)),
            b,
            NEW,
            (),
        )
        for b in range(TEXTS)
    ]


def _difference(
    evidence: TargetEvidence, plain: Batch, who: str, got: np.ndarray, want: np.ndarray
) -> str | None:
    """The first token that is another, unless the two were as good as equal."""
    for b in np.flatnonzero((got != want).any(1)):
        n, row = int((got[b] != want[b]).argmax()), plain.rows[b]
        place = len(row.prompt) + n
        text = [*row.prompt, *want[b, :n].tolist()]
        size = -(-len(text) // 16) * 16
        scores = full_logits(evidence.target, [text + [0] * (size - len(text))])[0, len(text) - 1]
        if row.options.temperature:
            key = keys.at(plain.request.keys[b], jnp.int32(place), keys.NOISE)
            scores = scores + np.asarray(jax.random.gumbel(key, scores.shape, jnp.float32))
        gap = abs(float(scores[got[b, n]] - scores[want[b, n]]))
        near = max(TIE, evidence.tolerance) * max(float(np.abs(scores).max()), 1.0)
        if gap <= near:
            continue
        return (
            f"Prompt {list(row.prompt)}, temperature {row.options.temperature:g}, seed {row.seed}, "
            f"guessed by {who}: after {want[b, :n].tolist()} plain decoding writes token "
            f"{want[b, n]}, and with guesses comes {got[b, n]} ({gap:.2g} apart in score)."
        )
    return None


TARGET_CHECKS: Mapping[str, Callable[[TargetEvidence], Check]] = {
    "entries": check_entries,
    "stale": check_stale,
    "widths": check_widths,
    "coupling": check_coupling,
}
