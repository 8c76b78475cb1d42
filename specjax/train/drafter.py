"""A drafter under training: its spec taken apart into weights and all else, and put together."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from specjax.checkpoint.load import Model
from specjax.core import hosts
from specjax.core.by_shape import calling
from specjax.core.family import Family
from specjax.core.sharding import axis_size
from specjax.core.types import Array
from specjax.drafters.lm import LM
from specjax.drafters.registry import class_of
from specjax.drafters.spec import Spec, ask, is_trained, name_of
from specjax.models.frozen import Frozen
from specjax.models.joining import separated
from specjax.models.registry import family
from specjax.train import next_token
from specjax.train.data.rows import Row
from specjax.train.objectives import objective_of
from specjax.train.objectives.base import Batch, Objective
from specjax.train.replay import Replay, replay
from specjax.train.state import Params, Skeleton


@dataclasses.dataclass(frozen=True, eq=False)
class Trainee:
    """What is trained, besides its weights.

    Attributes:
      spec: the drafter as it started; `specialise` puts other weights into it.
      skeleton: of its network.
      objective: what it is trained for.
      compute_dtype: of the passes, and of the weights that are measured.
    """

    spec: Spec
    skeleton: Skeleton
    objective: Objective
    compute_dtype: Any

    @classmethod
    def of(
        cls,
        kind: str,
        spec: Spec,
        hyperparameters: Mapping[str, Any],
        *,
        num_draft: int,
        compute_dtype: Any,
    ) -> tuple[Trainee, Params]:
        """Takes ``spec`` apart; the float32 masters come with it.

        Raises:
          ValueError: on a hyperparameter that the objective does not have.
        """
        net = separated(network(spec))
        skeleton, params = Skeleton.of(nnx.merge(net.graphdef, net.params))
        given = dict(hyperparameters)
        objective = objective_of(kind, given.pop("name", ""))
        fields = {f.name for f in dataclasses.fields(objective)}
        unknown = sorted(set(given) - fields)
        if unknown:
            known = sorted(fields - {"skeleton", "config", "compute_dtype", "target_ids"})
            raise ValueError(
                f"--config.objective.{unknown[0]}: {objective.__name__} has no such setting; "
                f"there are {', '.join(known)}."
            )
        for f in dataclasses.fields(objective):
            value, number = given.get(f.name), isinstance(f.default, int | float)
            if f.name in given and number and not isinstance(value, int | float):
                raise ValueError(f"--config.objective.{f.name}={value}: must be a number.")
        if "num_draft" in {f.name for f in dataclasses.fields(objective) if f.init}:
            given.setdefault("num_draft", num_draft)
        made = objective(
            skeleton=skeleton,
            config=net.config,
            compute_dtype=compute_dtype,
            target_ids=getattr(spec, "target_ids", None),
            **given,
        )
        # Copies: a step donates them, and fresh heads may be the target's own arrays.
        masters = {name: jnp.array(p, jnp.float32) for name, p in params.items()}
        return cls(spec, skeleton, made, compute_dtype), masters

    def specialise(self, params: Params) -> Any:
        """The spec with these weights, in the compute type, as `generate` takes it."""
        dtype = self.compute_dtype
        net = self.skeleton.frozen(params, network(self.spec).config, dtype)
        net = dataclasses.replace(net, replicated=network(self.spec).replicated)
        return ask(self.spec, "with_net")(net)


def network(spec: Spec) -> Frozen:
    """The drafter's own network. Raises ValueError if it has none."""
    net = ask(spec, "own_net")()
    if net is None:
        raise ValueError(f"{name_of(spec)} has no network to train (a field net, see Spec).")
    return net


def fresh(kind: str, target: Model, sizes: Mapping[str, Any], *, num_draft: int, seed: int) -> Any:
    """A randomly initialised spec of a kind for ``target`` (a `specjax.Model`), in float32.

    Raises:
      ValueError: if the sizes are not such a drafter's.
    """
    spec = class_of(kind)
    if ask(spec, "family") is Family.MODEL:
        return _fresh_lm(target, sizes, num_draft=num_draft, seed=seed)
    if not is_trained(spec):
        raise ValueError(f"--config.kind={kind}: {spec.__name__} has no classmethod fresh().")
    known = inspect.signature(spec.fresh).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        for size in sizes:
            if size not in known or size in ("target", "num_draft", "seed"):
                there = [n for n in known if n not in ("target", "num_draft", "seed")]
                raise ValueError(
                    f"--config.sizes.{size}: a {kind} drafter has no such size; there are "
                    f"{', '.join(there) or 'none'}."
                )
    full = dataclasses.replace(target, dtype=np.dtype(np.float32))
    made = calling(
        f"{spec.__name__}.fresh()",
        lambda: spec.fresh(full, num_draft=num_draft, seed=seed, **sizes),
        ValueError,
    )
    if not isinstance(made, spec):
        raise ValueError(f"{spec.__name__}.fresh() returns a {type(made).__name__}.")
    return made


def _fresh_lm(target: Model, raw: Mapping[str, Any], *, num_draft: int, seed: int) -> LM:
    if raw.get("vocab_size") != target.config.vocab_size:
        raise ValueError(
            f"--config.sizes.vocab_size={raw.get('vocab_size')}: the draft speaks the target's "
            f"{target.config.vocab_size} tokens."
        )
    skeleton, params = next_token.build(raw, seed, model_axis=axis_size("model"))
    config = family(raw.get("model_type")).read_config(raw).for_model_axis(axis_size("model"))
    net = skeleton.frozen(params, config)
    model = dataclasses.replace(target, net=net, name="draft", dtype=np.dtype(np.float32))
    return LM(model, num_draft)


@dataclasses.dataclass(frozen=True)
class GreedyText:
    """A held-out prompt and what the target writes behind it, greedily."""

    prompt: list[int]
    tokens: list[int]


class PredictedTau:
    """tau by replay of `Objective.matches` over greedy texts of the target, cut to equal shapes."""

    def __init__(self, objective: Objective, texts: list[GreedyText], *, rows: int):
        """``rows`` texts are run at a time."""
        self._prompts = np.array([len(t.prompt) for t in texts])
        self._lengths = np.array([len(t.prompt) + len(t.tokens) for t in texts])
        width = -(-int(self._lengths.max()) // 16) * 16
        padded = [Row(np.array([*t.prompt, *t.tokens], np.int32), np.ones(0, bool)) for t in texts]
        padded += [padded[0]] * (-len(texts) % rows)
        whole = stack_unsupervised(padded, width)
        num = len(padded) // rows
        self._batches = [
            jax.tree.map(lambda x, i=i: x[i * rows : (i + 1) * rows], whole) for i in range(num)
        ]
        self._matches = jax.jit(lambda params, batch, net: objective.matches(params, batch, net))

    def __call__(self, params: Params, target: Frozen) -> Replay:
        found = [hosts.fetch(self._matches(params, b, target)) for b in self._batches]
        matches = np.concatenate(found)[: len(self._lengths)]
        return replay(matches, self._prompts, self._lengths)


def stack_unsupervised(rows: list[Row], width: int) -> Batch:
    """Texts as a batch [B, T] in which nothing is a label."""
    tokens = np.zeros((len(rows), width), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row.tokens)] = row.tokens
    lengths = np.array([len(row.tokens) for row in rows], np.int32)
    return Batch(jnp.asarray(tokens), jnp.zeros(tokens.shape, bool), jnp.asarray(lengths))


class HeldoutLoss:
    """The objective on held-out batches, always with the same randomness."""

    def __init__(self, objective: Objective, batches: list[Batch]):
        self._batches = batches

        def sums(params: Params, batch: Batch, net: Frozen, key: Array) -> tuple[Array, Array]:
            total, weight, _ = objective(params, batch, net, key)
            return total, weight

        self._sums = jax.jit(sums)

    def __call__(self, params: Params, target: Frozen) -> float:
        keys = [jax.random.key(i) for i in range(len(self._batches))]
        sums = [self._sums(params, b, target, k) for b, k in zip(self._batches, keys, strict=True)]
        totals, weights = np.array(hosts.fetch(sums)).T
        return float(totals.sum() / weights.sum())
