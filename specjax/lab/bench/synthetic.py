"""Survival curves that were not measured here, and the rule that forces acceptance to one.

A rule of this kind tells what a system would gain from a drafter that does not exist yet: drafting
and verifying cost what they cost; how many guesses are accepted is drawn from the curve instead of
the rule's law, inside the same compiled loop. **The text is not the model's.** (As vLLM's synthetic
rejection sampling and SGLang's simulated acceptance length.) A curve comes from one number, a
published table, or another run:

2.5                                  tau at each case's own k, spread by one alpha
2.5@4                                tau at k = 4, the alpha of which holds for every k
golden.yaml:qwen3.5:thinking_on      {model: {mode: {k: mean acceptance length}}}
runs/here:builtin-ngram-k4-T0-b1     the case of a finished benchmark
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import yaml

from specjax.core.files import read_text
from specjax.core.types import Verdict
from specjax.lab.costs.cost_model import survival_of
from specjax.lab.records.case import Forced as Record
from specjax.lab.records.run import load_summary
from specjax.verify.base import Law, Rule, VerifyKeys

NOT_THE_MODELS = "the text is not the model's: acceptance was forced"
# Folded into the key of a cycle's coin, so that the rule's own coin is another.
_COIN = 0x5CA1


@dataclasses.dataclass(frozen=True)
class Curve:
    """Where a survival curve comes from."""

    label: str  # short, part of a case's name
    source: str  # in words
    tau: float | None = None
    at: int | None = None  # the k that tau is meant for; None: each case's own
    lengths: tuple[float, ...] = ()  # AL(1), AL(2), ...: measured, the target's token included
    values: tuple[float, ...] = ()  # survival[1], survival[2], ...

    @property
    def most(self) -> int | None:
        """The largest k that the curve knows; None: any."""
        return len(self.lengths or self.values) or None

    def survival(self, num_draft: int) -> tuple[float, ...]:
        """P(accepted >= i) for i = 1..K.

        Raises:
          ValueError: if the curve has no such K.
        """
        if self.tau is not None:
            at = num_draft if self.at is None else self.at
            alpha = alpha_of(self.tau, at)
            return tuple(alpha**i for i in range(1, num_draft + 1))
        if self.most is None or num_draft > self.most:
            raise ValueError(
                f"k={num_draft}, but {self.source} is known up to k={self.most}: choose a smaller "
                "k."
            )
        return from_lengths(self.lengths[:num_draft]) or self.values[:num_draft]

    def record(self, num_draft: int) -> Record:
        """With what the curve changed about its source."""
        survival = self.survival(num_draft)
        return Record(
            source=self.source,
            survival=survival,
            tau=1 + math.fsum(survival),
            tau_source=self.lengths[num_draft - 1] if self.lengths else None,
            note=NOT_THE_MODELS,
        )


def parse_curve(text: str) -> Curve:
    """Reads one of the forms above. Model and mode are needed where a file has several.

    Raises:
      ValueError: in one line, on what is none of them.
    """
    number, _, at = text.partition("@")
    try:
        tau, k = float(number), int(at) if at else None
    except ValueError:
        head, yaml_suffix, rest = text.partition(".yaml")
        if yaml_suffix:
            return _golden(Path(head + ".yaml").expanduser(), [p for p in rest.split(":") if p])
        directory, _, case = text.rpartition(":")
        if directory:
            return _measured(Path(directory).expanduser(), case)
        raise ValueError(
            f"curve {text!r}: write a tau (2.5, or 2.5@4 for one k), FILE.yaml:MODEL:MODE, or "
            "RUN_DIRECTORY:CASE."
        ) from None
    if not math.isfinite(tau) or tau < 1 or (k is not None and k < 1):
        raise ValueError(f"curve {text!r}: every cycle commits at least 1 token, of at least k=1.")
    if k is not None:
        alpha_of(tau, k)
    suffix = "" if k is None else f" at k={k}"
    return Curve(f"tau{text}".replace("@", "at"), f"tau {tau:g}{suffix} by one alpha", tau, k)


def _golden(path: Path, wanted: list[str]) -> Curve:
    try:
        table: Any = yaml.safe_load(read_text(path))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file of acceptance lengths; check the path.") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as YAML: {said}.") from None
    names = [path.stem]
    for level in ("model", "mode"):
        if not isinstance(table, dict) or not table:
            raise ValueError(f"{path}: no table {{model: {{mode: {{k: length}}}}}}.")
        choices = [str(key) for key in table]
        if wanted:
            chosen = wanted.pop(0)
        elif len(choices) == 1:
            chosen = choices[0]
        else:
            raise ValueError(f"{path}: which {level}? It has {', '.join(choices)}: add :{level}.")
        if chosen not in choices:
            raise ValueError(f"{path} has no {level} {chosen!r}; it has {', '.join(choices)}.")
        table = table[next(key for key in table if str(key) == chosen)]
        names.append(chosen)
    if wanted:
        raise ValueError(f"{path}: {':'.join(wanted)!r} is more than FILE.yaml:MODEL:MODE.")
    numbers = isinstance(table, dict) and all(
        isinstance(k, int) and isinstance(v, int | float) and math.isfinite(v) and v >= 1
        for k, v in table.items()
    )
    if not numbers or not table or sorted(table) != list(range(1, len(table) + 1)):
        raise ValueError(f"{path}: no acceptance lengths of at least 1 for k = 1, 2, ...")
    lengths = tuple(float(table[k]) for k in sorted(table))
    return Curve(f"{names[0]}-{names[2]}", ":".join(names), lengths=lengths)


def _measured(directory: Path, name: str) -> Curve:
    path = directory / "metrics.json"
    if not path.exists():
        raise ValueError(f"{path}: no such file; name the directory of a finished run.")
    cases = {c.name: c for c in load_summary(path).cases}
    if name not in cases:
        raise ValueError(f"{directory} has no case {name!r}; it has {', '.join(cases)}.")
    k = cases[name].num_draft
    if not k:
        raise ValueError(f"{directory}:{name} is plain decoding, which accepts nothing.")
    values = survival_of(cases[name].metrics.accept_hist, k)
    return Curve(f"as-{name}", f"{directory.name}:{name}", values=tuple(values))


def alpha_of(tau: float, num_draft: int) -> float:
    """The alpha with 1 + alpha + ... + alpha^K = ``tau``: one chance for every guess.

    Raises:
      ValueError: if K guesses cannot bring that much.
    """
    if not 1 <= tau <= num_draft + 1:
        raise ValueError(f"tau={tau:g} with k={num_draft}: a cycle commits 1 to {num_draft + 1}.")
    low, high = 0.0, 1.0
    for _ in range(100):
        alpha = (low + high) / 2
        if 1 + math.fsum(alpha**i for i in range(1, num_draft + 1)) < tau:
            low = alpha
        else:
            high = alpha
    return high


def from_lengths(lengths: tuple[float, ...]) -> tuple[float, ...]:
    """survival[i] = AL(i) - AL(i - 1), AL(0) = 1, kept from rising and from leaving [0, 1].

    Each length is a measurement of its own, so that a difference can be negative or above the one
    before. A negative one counts as 0, a rise as level: tau may then differ from AL(K).
    """
    survival: list[float] = []
    before, most = 1.0, 1.0
    for length in lengths:
        most = min(max(length - before, 0.0), most)
        survival.append(most)
        before = length
    return tuple(survival)


@dataclasses.dataclass(frozen=True)
class Forced(Rule):
    """Runs ``inner`` in full, and then accepts by ``survival`` instead.

    The coin is keyed by row and position, as the rule's own. The token behind the accepted guesses
    is the one that ``inner`` would have added to its own verdict.
    """

    inner: Rule
    survival: tuple[float, ...]  # [K]

    def __post_init__(self) -> None:
        # What a rule is asked about is what the inner one answers.
        for field in ("takes", "refusal", "greedy_only"):
            object.__setattr__(self, field, getattr(self.inner, field))
        object.__setattr__(self, "name", f"synthetic-{self.inner.name}")

    def law(self, logits: jax.Array, proposal: Any) -> Law:
        """The law that ``inner`` follows and this does not."""
        return self.inner.law(logits, proposal)

    def sample(self, keys: VerifyKeys, law: Law) -> Verdict:
        """See ``Rule.sample``."""
        verdict = self.inner.sample(keys, law)
        coin = jax.random.uniform(jax.random.fold_in(keys.accept, _COIN))
        count = jnp.sum(coin < jnp.asarray(self.survival, coin.dtype), dtype=jnp.int32)
        own = verdict.tokens[verdict.num_accepted]
        index = jnp.arange(law.guesses.shape[0], dtype=jnp.int32)
        guessed = (index < count) & (law.guesses >= 0)
        # A token is never negative; but the count must depend on it, or the caches are copied
        # (`decode.cycle`).
        count = count + jnp.minimum(own, 0)
        return Verdict(tokens=jnp.where(guessed, law.guesses, own), num_accepted=count)
