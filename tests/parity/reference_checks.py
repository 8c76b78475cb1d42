"""What this project computes where a reference was run, and the comparison of the two.

The references mean their losses differently: they divide by other numbers, and some leave out a
constant. What is compared is the sum that all of them have in common; each check says how it is
reached.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import specjax
from specjax.core.types import Array
from specjax.drafters.base import Context
from specjax.drafters.dflash import DFlash, DFlash2, embed, head
from specjax.drafters.dflash.net import Blocks
from specjax.drafters.dflash.objective import DFlashObjective
from specjax.drafters.eagle3 import Eagle3
from specjax.drafters.eagle3.objective import Eagle3Objective
from specjax.sampling import Options, make_sampling
from specjax.train.objectives.base import Batch
from specjax.train.state import Skeleton

TOLERANCE = 1e-4
LEARNING_RATE, BETAS = 1e-3, (0.9, 0.95)  # as in reference_drafters.py
DECAY = 0.8  # of the steps of EAGLE-3's loss, as SpecForge has it

Differences = dict[str, tuple[float, float]]  # by name: largest difference and tolerance
Golden = Mapping[str, np.ndarray]


@dataclasses.dataclass
class Check:
    """One run of a reference."""

    job: dict[str, Any]  # for the worker, without the directories
    compare: Callable[[Golden], Differences]
    label: str = ""  # where a task is run more than once


@dataclasses.dataclass(frozen=True)
class Text:
    """A prompt and what the target writes behind it, greedily.

    The labels are then the target's likeliest tokens, which some references take instead.
    """

    prompt: list[int]
    answer: list[int]
    loop: int = 24  # tokens that the decoding loops write

    @classmethod
    def written_by(cls, target: specjax.Model) -> Text:
        prompt = np.random.default_rng(3).integers(0, target.config.vocab_size - 1, 12).tolist()
        out = specjax.generate(target, None, prompt, max_new_tokens=40, stop_token_ids=[])
        return cls(prompt, [int(token) for token in out.tokens[0]])

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.answer

    @property
    def supervised(self) -> list[int]:
        return [0] * len(self.prompt) + [1] * len(self.answer)

    @property
    def batch(self) -> Batch:
        tokens = jnp.asarray([self.tokens], jnp.int32)
        supervised = jnp.asarray([self.supervised], bool)
        return Batch(tokens, supervised, jnp.array([len(self.tokens)], jnp.int32))


def of(spec: Any, format: str, target: specjax.Model, text: Text, steps: int) -> list[Check]:
    """The checks of a drafter in a format; none where no reference can be installed (Medusa)."""
    if isinstance(spec, Eagle3):
        check = _specforge_eagle3 if format == "safeailab" else _speculators_eagle3
        return [check(spec, target, text, steps)]
    if not isinstance(spec, DFlash | DFlash2):
        return []
    if format == "speculators":
        return [_speculators_dflash(spec, target, text, steps)]
    checks = [_dflash(spec, target, text)]
    config = spec.net.config
    # SpecForge has no DFlash2, and its layers with a window are always causal inside the block.
    if not config.selector_rank and config.causal == tuple(w is not None for w in config.windows):
        checks += [_specforge_dflash(spec, target, text, steps, gamma) for gamma in (0.0, 4.0)]
    return checks


def _dflash(spec: Any, target: specjax.Model, text: Text) -> Check:
    anchors = [1, 5, 12, 30]

    def compare(got: Golden) -> Differences:
        hidden, logits = dflash_blocks(spec, target, text, anchors)
        guesses = dflash_guesses(spec, target, text, anchors)
        # The reference's prefill gives the first token; here that would be a cycle of its own.
        begun = text.tokens[: len(text.prompt) + 1]
        out = specjax.generate(target, spec, begun, max_new_tokens=text.loop - 1, stop_token_ids=[])
        written = begun[-1:] + out.tokens[0]
        cycles = [cycle.committed for cycle in out.trace.rows[0]]
        return {
            "hidden states": (_gap(hidden[:, 1:], got["hidden"]), TOLERANCE),
            "logits": (_gap(logits[:, 1:], got["logits"]), TOLERANCE),
            "guesses": (_differing(guesses, got["guesses"]), 0),
            "text of its loop": (_differing(written, got["text"]), 0),
            "tokens of each cycle": (_differing(cycles, got["produced"]), 0),
        }

    sizes = {"prompt": len(text.prompt), "new": text.loop}
    return Check({"task": "dflash", "tokens": text.tokens, "anchors": anchors, **sizes}, compare)


def _specforge_dflash(
    spec: Any, target: specjax.Model, text: Text, steps: int, gamma: float
) -> Check:
    """Decayed cross entropy over the sum of the weights; D-PACE (gamma 0) over the rows."""
    # The last blocks run past the end of the text, the first begins in the prompt.
    anchors = [len(text.prompt) - 1, 15, 20, 33, len(text.tokens) - 3, len(text.tokens) - 2]

    def compare(got: Golden) -> Differences:
        loss = dflash_loss(spec, target, text, anchors, gamma=gamma)
        ours = curve(spec, loss, steps, lambda total, weight: weight if gamma else 1.0)
        return {"losses of the first updates": (_gap(ours, got["losses"]), TOLERANCE)}

    job = {
        "task": "specforge_dflash",
        "tokens": [text.tokens],
        "supervised": [text.supervised],
        "anchors": [anchors],
        "keep": [[True] * len(anchors)],
        "gamma": gamma,
        "steps": steps,
    }
    return Check(job, compare, _loss_name(gamma))


def _speculators_dflash(spec: Any, target: specjax.Model, text: Text, steps: int) -> Check:
    """All of its losses are divided by how many guesses count, and 1e-5."""
    last = len(text.tokens) - spec.net.config.block_size  # it has no block past the end
    anchors = [len(text.prompt) - 1, 15, 20, 33, last]
    settings = {"ce": {"ce": 1.0}, "kl_div": {"ce": 0.0, "divergence": 1.0}}
    losses = [(name, gamma) for name in settings for gamma in (4.0, 0.0)][:3]

    def compare(got: Golden) -> Differences:
        hidden, logits = dflash_blocks(spec, target, text, anchors)
        first = 0 if spec.net.config.shifted else 1
        found = {
            "hidden states": (_gap(hidden[:, first:], got["hidden"][:, first:]), TOLERANCE),
            "logits": (_gap(logits[:, first:], got["logits"][:, first:]), TOLERANCE),
        }
        counted = float(got["counted"]) + 1e-5
        for i, (name, gamma) in enumerate(losses):
            loss = dflash_loss(spec, target, text, anchors, gamma=gamma, **settings[name])
            ours = curve(spec, loss, steps if i == 0 else 1, lambda total, weight: counted)
            theirs = got["curve"] if i == 0 else got["losses"][i : i + 1]
            found[f"{name}, {_loss_name(gamma)}"] = (_gap(ours, theirs), TOLERANCE)
        return found

    job = {
        "task": "speculators_dflash",
        "tokens": text.tokens,
        "supervised": text.supervised,
        "anchors": anchors,
        "losses": losses,
        "steps": steps,
    }
    return Check(job, compare)


def _speculators_eagle3(spec: Any, target: specjax.Model, text: Text, steps: int) -> Check:
    """Each step's loss is divided by how many positions count at it, and 1e-5.

    The text's prompt is longer than the steps, so that these numbers are equal. Its mask is that of
    the pending token: it is handed ours, one place to the left.
    """
    names = {"kl_div": "forward_kl", "tv": "tv", "lk_hybrid": "lk_hybrid"}
    ttt = spec.num_draft
    # It teaches a reduced vocabulary the targets outside it, too.
    whole = spec.target_ids is None

    def compare(got: Golden) -> Differences:
        hidden, logits = eagle3_steps(spec, target, text)
        found = {
            "hidden states": (_gap(hidden, got["hidden"], ttt), TOLERANCE),
            "logits": (_gap(logits, got["logits"], ttt), TOLERANCE),
        }
        counted = float(sum(text.supervised)) + 1e-5
        for i, (name, kind) in enumerate(names.items()):
            if not whole:
                break
            loss = eagle3_loss(spec, target, text, kind)
            ours = curve(spec, loss, steps if i == 0 else 1, lambda total, weight: counted)
            theirs = got["curve"] if i == 0 else got["losses"][i : i + 1]
            found[name] = (_gap(ours, theirs), TOLERANCE)
        return found

    job = {
        "task": "speculators_eagle3",
        "tokens": text.tokens,
        "supervised": [*text.supervised[1:], 0],
        "ttt": ttt,
        "decay": DECAY,
        "losses": list(names),
        "steps": steps,
    }
    return Check(job, compare)


def _specforge_eagle3(spec: Any, target: specjax.Model, text: Text, steps: int) -> Check:
    """Cross entropy with the target's law, its entropy included, over all positions of the text."""
    ttt = spec.num_draft

    def compare(got: Golden) -> Differences:
        hidden, logits = eagle3_steps(spec, target, text)
        loss = eagle3_loss(spec, target, text, "forward_kl")
        ours = curve(spec, loss, steps, lambda total, weight: float(len(text.tokens)))
        ours = ours + sum(DECAY**j * x for j, x in enumerate(got["entropy"]))
        return {
            "hidden states": (_gap(hidden, got["hidden"][:, 0, :-1], ttt), TOLERANCE),
            "logits": (_gap(logits, got["logits"][:, 0, :-1], ttt), TOLERANCE),
            "cross entropy": (_gap(ours, got["curve"]), TOLERANCE),
        }

    job = {
        "task": "specforge_eagle3",
        "tokens": [text.tokens],
        "supervised": [text.supervised],
        "taps": list(spec.net.config.taps),
        "ttt": ttt,
        "decay": DECAY,
        "steps": steps,
    }
    return Check(job, compare)


def dflash_blocks(
    spec: Any, target: specjax.Model, text: Text, anchors: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Final states and logits [A, block, ...] of the blocks behind ``anchors``."""
    config = spec.net.config

    @jax.jit
    def run(draft: Any, net: Any, tokens: Array) -> tuple[Array, Array]:
        features = net(tokens, taps=config.taps).features
        context = draft.module.context(features, jnp.arange(tokens.shape[1])[None])
        block = jnp.full((len(anchors), config.block_size), config.mask_token_id, jnp.int32)
        block = block.at[:, 0].set(tokens[0, jnp.array(anchors)]).reshape(1, -1)
        x = embed(draft.module, config, net.vocabulary, block)
        blocks = Blocks.at(jnp.array([anchors]), config.block_size)
        look = blocks.looking_at(context, config)
        h = draft.module.block(x, blocks.positions, blocks.offsets, look)
        logits = head(draft.module, config, net.vocabulary, h)
        return h.reshape(*block_shape, -1), logits.reshape(*block_shape, -1)

    block_shape = (len(anchors), config.block_size)
    hidden, logits = run(spec.net, target.net, text.batch.tokens)
    return np.asarray(hidden), np.asarray(logits)


def dflash_guesses(spec: Any, target: specjax.Model, text: Text, anchors: list[int]) -> np.ndarray:
    """What the drafter proposes [A, K] with each of ``anchors`` pending."""
    drafter = spec.bind(target, "one_hot")
    rows = len(anchors)
    sampling = make_sampling([Options()] * rows, target.config.vocab_size)

    @jax.jit
    def run(drafter: Any, net: Any, tokens: Array, length: Array) -> Array:
        features = net(tokens, taps=drafter.taps).features
        draft = drafter.prefill(drafter.init(rows, tokens.shape[1]), tokens, length - 1, features)
        keys = jax.random.split(jax.random.key(0), rows)
        return drafter.propose(draft, Context(tokens, length, keys, sampling, None))[0].tokens

    tokens = jnp.tile(text.batch.tokens, (rows, 1))
    return np.asarray(run(drafter, target.net, tokens, jnp.array(anchors) + 1))


def dflash_loss(
    spec: Any, target: specjax.Model, text: Text, anchors: list[int], **settings: Any
) -> Callable[[Any], tuple[Array, Array]]:
    """Parameters -> the sum of the losses of the blocks, and of their weights."""
    skeleton, _ = Skeleton.of(spec.net.module)
    objective = DFlashObjective(
        skeleton,
        spec.net.config,
        jnp.float32,
        spec.target_ids,
        chunk=4,
        selector=0.0,
        **settings,
    )
    where = jnp.array([anchors])
    keep = jnp.ones_like(where, jnp.bool_)
    return lambda params: objective.at_anchors(params, text.batch, target.net, where, keep)[:2]


def eagle3_steps(spec: Any, target: specjax.Model, text: Text) -> tuple[np.ndarray, np.ndarray]:
    """Normed states and logits [J, T - 1, ...]: place i has read feature i and token i + 1."""
    skeleton, params = Skeleton.of(spec.net.module)
    config = spec.net.config
    objective = Eagle3Objective(
        skeleton, config, jnp.float32, spec.target_ids, num_draft=spec.num_draft
    )

    @jax.jit
    def run(params: Any, net: Any, batch: Batch) -> tuple[Array, Array]:
        module = skeleton.module(params)
        features = net(batch.tokens, taps=config.taps).features
        states = objective.unroll(module, batch, module.fuse(features), net)
        return states[:, 0, 1:], module.head(states[:, 0, 1:])

    hidden, logits = run(params, target.net, text.batch)
    return np.asarray(hidden), np.asarray(logits)


def eagle3_loss(
    spec: Any, target: specjax.Model, text: Text, divergence: str
) -> Callable[[Any], tuple[Array, Array]]:
    """Parameters -> the sum of the losses of all steps, and of the weights."""
    skeleton, _ = Skeleton.of(spec.net.module)
    objective = Eagle3Objective(
        skeleton,
        spec.net.config,
        jnp.float32,
        spec.target_ids,
        num_draft=spec.num_draft,
        decay=DECAY,
        divergence=divergence,
    )
    key = jax.random.key(0)
    return lambda params: objective(params, text.batch, target.net, key)[:2]


def curve(
    spec: Any,
    loss: Callable[[Any], tuple[Array, Array]],
    steps: int,
    denominator: Callable[[Array, Array], Any],
) -> np.ndarray:
    """The losses before each of ``steps`` updates by AdamW, as the worker makes them."""
    _, params = Skeleton.of(spec.net.module)
    optimizer = optax.adamw(LEARNING_RATE, *BETAS, eps=1e-8, weight_decay=0.0)
    state = optimizer.init(params)

    def mean(params: Any) -> Array:
        total, weight = loss(params)
        return total / denominator(total, weight)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        value, gradient = jax.value_and_grad(mean)(params)
        with jax.numpy_dtype_promotion("standard"):  # which Optax's Adam relies on
            update, state = optimizer.update(gradient, state, params)
        return value, optax.apply_updates(params, update), state

    values = []
    for _ in range(steps):
        value, params, state = step(params, state)
        values.append(float(value))
    return np.array(values)


def _loss_name(gamma: float) -> str:
    return f"decay {gamma:g}" if gamma else "D-PACE"


def _gap(ours: Any, theirs: Any, steps: int = 0) -> float:
    """The largest absolute difference; infinite if the shapes differ.

    With ``steps``, of arrays [J, T, ...] of which step j has nothing to read in the last j places.
    """
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        return float("inf")
    gap = np.abs(ours - theirs)
    if steps:
        return float(max(gap[j, : gap.shape[1] - j].max() for j in range(steps)))
    return float(gap.max(initial=0.0))


def _differing(ours: Any, theirs: Any) -> float:
    """How many entries differ; infinite if the shapes do."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return float((ours != theirs).sum()) if ours.shape == theirs.shape else float("inf")
