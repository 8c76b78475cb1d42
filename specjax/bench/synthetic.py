"""Forced acceptance: what a system would gain from a drafter that does not exist yet.

Drafting and verifying cost what they cost; how many guesses are accepted is drawn from a given
survival curve instead of the rule's law, inside the same compiled loop. **The text is not the
model's.** (As vLLM's synthetic rejection sampling and SGLang's simulated acceptance length.)

A curve comes from one number or from a file of measured acceptance lengths:

    2.5                                 tau, spread by one alpha: survival[i] = alpha^i
    golden.yaml:qwen3.5:thinking_on     {model: {mode: {k: mean acceptance length}}}
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import yaml

from specjax.core.types import Verdict
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
    lengths: tuple[float, ...] = ()  # AL(1), AL(2), ...: measured, the target's token included

    def survival(self, num_draft: int) -> tuple[float, ...]:
        """P(accepted >= i) for i = 1..K.

        Raises:
          ValueError: if the curve has no such K.
        """
        if self.tau is not None:
            return geometric(self.tau, num_draft)
        if num_draft > len(self.lengths):
            raise ValueError(
                f"k={num_draft}, but {self.source} tells acceptance lengths up to k="
                f"{len(self.lengths)}: choose a smaller k."
            )
        return from_lengths(self.lengths[:num_draft])

    def record(self, num_draft: int) -> dict[str, Any]:
        """As JSON values, with what the curve changed about its source."""
        survival = self.survival(num_draft)
        record: dict[str, Any] = {
            "source": self.source,
            "survival": list(survival),
            "tau": 1 + math.fsum(survival),
            "note": NOT_THE_MODELS,
        }
        if self.lengths:
            record["tau_source"] = self.lengths[num_draft - 1]
        return record


def parse_curve(text: str) -> Curve:
    """Reads ``TAU``, or ``FILE.yaml:MODEL:MODE`` (model and mode where the file has several).

    Raises:
      ValueError: in one line, on what is neither.
    """
    try:
        tau = float(text)
    except ValueError:
        path, _, rest = text.partition(".yaml")
        if not _ and text:
            raise ValueError(
                f"curve {text!r}: write a tau such as 2.5, or FILE.yaml:MODEL:MODE."
            ) from None
        return _golden(Path(path + ".yaml").expanduser(), [p for p in rest.split(":") if p])
    if not math.isfinite(tau) or tau < 1:
        raise ValueError(f"tau={text}: every cycle commits at least 1 token.")
    return Curve(f"tau{tau:g}", f"tau {tau:g} spread by one alpha", tau=tau)


def _golden(path: Path, wanted: list[str]) -> Curve:
    try:
        table: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file of acceptance lengths; check the path.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
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
    if not numbers or sorted(table) != list(range(1, len(table) + 1)):
        raise ValueError(f"{path}: no acceptance lengths of at least 1 for k = 1, 2, ...")
    lengths = tuple(float(table[k]) for k in sorted(table))
    return Curve(f"{names[0]}-{names[2]}", ":".join(names), lengths=lengths)


def geometric(tau: float, num_draft: int) -> tuple[float, ...]:
    """alpha, ..., alpha^K with 1 + their sum = ``tau``: one chance for every guess.

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
    return tuple(high**i for i in range(1, num_draft + 1))


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
        return Verdict(tokens=jnp.where(guessed, law.guesses, own), num_accepted=count)


def mark(setup: Mapping[str, Any], curve: Curve, num_draft: int) -> dict[str, Any]:
    """The setup of a trace, with a note that its text is not the model's."""
    return {**setup, "synthetic": curve.record(num_draft)}
