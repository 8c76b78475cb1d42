"""Language-model training as one pure step: next-token loss, gradient, optimizer.

Master weights and gradients are float32, the two passes compute in bfloat16. Parameters are a flat
dict from tensor name to array, the names being those of the checkpoints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from specjax.core.sharding import RULES, axes_of, constrain, named
from specjax.core.types import Array, pytree
from specjax.models.frozen import Frozen
from specjax.models.registry import family
from specjax.train import losses
from specjax.train.muon import scale_by_muon

Params = dict[str, Array]
Sums = dict[str, Array]
# (params, batch, target, key) -> the loss as a sum, its weight, and further sums for the log.
# The batch is any pytree of arrays [B, ...]; the target any pytree that is not trained.
Objective = Callable[[Params, Any, Any, Array], tuple[Array, Array, Sums]]


@dataclasses.dataclass(frozen=True, eq=False)
class Skeleton:
    """A model without its weights: what turns a flat dict of parameters back into a module."""

    graphdef: Any
    treedef: Any
    axes: Mapping[str, tuple[str | None, ...]]  # logical axes by name, in the order of the leaves

    @classmethod
    def of(cls, module: nnx.Module) -> tuple[Skeleton, Params]:
        graphdef, state = nnx.split(module)
        leaves, treedef = jax.tree.flatten(state)
        axes = {
            ".".join(map(str, path)): axes_of(param) for path, param in nnx.to_flat_state(state)
        }
        return cls(graphdef, treedef, axes), dict(zip(axes, leaves, strict=True))

    def module(self, params: Params, dtype: jnp.dtype | None = None) -> Any:
        """The module with these weights, cast to ``dtype`` where one is given."""
        return nnx.merge(self.graphdef, self._state(params, dtype))

    def frozen(self, params: Params, config: Any, dtype: jnp.dtype | None = None) -> Frozen:
        """The same for inference: with one graph definition, so that nothing compiles anew."""
        return Frozen(params=self._state(params, dtype), graphdef=self.graphdef, config=config)

    def _state(self, params: Params, dtype: jnp.dtype | None) -> Any:
        leaves = [
            params[name] if dtype is None else params[name].astype(dtype) for name in self.axes
        ]
        return jax.tree.unflatten(self.treedef, leaves)


@pytree
class TrainState:
    """What is trained. A checkpoint holds this and the position in the data."""

    step: Array  # [] int32, optimizer steps taken
    params: Params  # float32
    opt_state: Any


def build(raw: Mapping[str, Any], seed: int, *, model_axis: int = 1) -> tuple[Skeleton, Params]:
    """A freshly initialised float32 model of a Hugging Face config."""
    model = family(raw.get("model_type"))
    config = model.read_config(raw).for_model_axis(model_axis)
    return Skeleton.of(model(config, dtype=jnp.float32, rngs=nnx.Rngs(seed)))


def warm_start(params: Params, net: Frozen) -> Params:
    """``params`` with the values of ``net``'s, by name.

    Raises:
      ValueError: if the two differ in names or shapes.
    """
    flat = nnx.to_flat_state(net.params)
    given = {".".join(map(str, path)): param[...] for path, param in flat}
    ours, theirs = ({n: p.shape for n, p in tree.items()} for tree in (params, given))
    if ours != theirs:
        differing = sorted(n for n in {*ours, *theirs} if ours.get(n) != theirs.get(n))
        raise ValueError(
            f"--config.init: the model there differs from --config.model in {differing[0]} and "
            f"{len(differing) - 1} other tensors; give the sizes of its config.json."
        )
    return {name: given[name].astype(p.dtype) for name, p in params.items()}


def windows(stream: np.ndarray, *, seed: int, step: int, rows: int, seq_len: int) -> np.ndarray:
    """The batch of one step: a pure function of (seed, step).

    Every epoch cuts the stream at a new offset into windows that do not overlap, and visits them
    in a new order; a batch may span two epochs.

    Args:
      stream: [N] token ids.
      rows: windows a batch.

    Returns:
      [rows, seq_len + 1] int32: inputs and, one to the right, targets.
    """
    per_epoch = (len(stream) - 1) // seq_len - 1
    if per_epoch < 1:
        raise ValueError(f"The text has {len(stream)} tokens; seq_len={seq_len} needs twice that.")
    batch = np.empty((rows, seq_len + 1), np.int32)
    first = step * rows
    for epoch in range(first // per_epoch, (first + rows - 1) // per_epoch + 1):
        rng = np.random.default_rng((seed, epoch))
        offset = int(rng.integers(seq_len))
        order = rng.permutation(per_epoch)
        begin = max(first, epoch * per_epoch)
        end = min(first + rows, (epoch + 1) * per_epoch)
        for sample in range(begin, end):
            start = offset + int(order[sample - epoch * per_epoch]) * seq_len
            batch[sample - first] = stream[start : start + seq_len + 1]
    return batch


def make_objective(
    skeleton: Skeleton, *, compute_dtype: jnp.dtype = jnp.bfloat16, distill: float = 0.0
) -> Objective:
    """``(1 - distill) * cross entropy + distill * KL(teacher || model)`` of tokens [B, T + 1].

    The forward KL term (Hinton et al. 2015, arXiv:1503.02531; for drafts Zhou et al. 2023,
    arXiv:2310.08461) asks the model for the teacher's whole distribution at every position.
    """

    def objective(
        params: Params, tokens: Array, teacher: Frozen | None, key: Array
    ) -> tuple[Array, Array, Sums]:
        del key
        inputs = constrain(tokens[:, :-1], "batch", None)
        net = skeleton.module(params, compute_dtype)
        logits = net.head(net(inputs).hidden)
        loss = losses.cross_entropy(logits, tokens[:, 1:])
        if distill:
            assert teacher is not None
            wanted = teacher.head(teacher(inputs).hidden)
            loss = (1 - distill) * loss + distill * losses.forward_kl(wanted, logits)
        return loss.sum(), jnp.float32(loss.size), {}

    return objective


def schedule(
    *, peak_lr: float, warmup_steps: int, steps: int, final_fraction: float = 0.1
) -> optax.Schedule:
    """Linear warm-up, then a cosine down to ``final_fraction`` of the peak at ``steps``."""

    def rate(count: Any) -> Array:
        step = jnp.asarray(count, jnp.float32)
        done = jnp.clip((step - warmup_steps) / (steps - warmup_steps), 0.0, 1.0)
        cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * done))
        decayed = peak_lr * (final_fraction + (1.0 - final_fraction) * cosine)
        return jnp.where(step < warmup_steps, peak_lr * step / max(warmup_steps, 1), decayed)

    return rate


# Tables that are looked up by token: a row that a batch lacks would decay without ever being used.
_TABLES = (
    "embed_tokens.weight",
    "markov_w1.weight",
    "predecessor_codebook",
    "successor_codebook",
)


def decayed(params: Params) -> dict[str, bool]:
    """By name, whether weight decay is for it: for matrices that multiply.

    Norms, biases and embeddings are left alone; so is an embedding that is the head as well.
    """
    # Muon hides some leaves: they have no ndim.
    return {
        name: getattr(p, "ndim", 0) == 2 and not name.endswith(_TABLES)
        for name, p in params.items()
    }


def adamw(lr: optax.Schedule, *, weight_decay: float) -> optax.GradientTransformation:
    """Loshchilov & Hutter 2019, arXiv:1711.05101."""
    return optax.adamw(lr, b1=0.9, b2=0.95, weight_decay=weight_decay, mask=decayed)


def muon(lr: optax.Schedule, *, weight_decay: float) -> optax.GradientTransformation:
    """Muon for the matrices of the layers, Adam for embedding, head and norms."""

    def kinds(params: Params) -> dict[str, str]:
        hidden = {n for n, p in params.items() if n.startswith("layers.") and p.ndim == 2}
        return {name: "muon" if name in hidden else "adam" for name in params}

    matrices = optax.chain(
        scale_by_muon(), optax.add_decayed_weights(weight_decay), optax.scale_by_learning_rate(lr)
    )
    return optax.partition({"muon": matrices, "adam": adamw(lr, weight_decay=weight_decay)}, kinds)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {"adamw": adamw, "muon": muon}


def make_optimizer(
    name: str, lr: optax.Schedule, *, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    """The named optimizer behind clipping by global norm.

    Raises:
      ValueError: if there is none of that name.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer={name!r} is unknown (known: {', '.join(OPTIMIZERS)}).")
    inner = OPTIMIZERS[name](lr, weight_decay=weight_decay)
    return optax.chain(optax.clip_by_global_norm(clip_norm), inner)


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def heldout_batches(stream: np.ndarray, *, rows: int, seq_len: int) -> list[np.ndarray]:
    """The stream [N] as batches [rows, seq_len + 1] in order, without what is left over."""
    count = (len(stream) - 1) // seq_len // rows * rows
    if not count:
        raise ValueError(f"The held-out text is shorter than one batch of {rows} x {seq_len}.")
    cut = np.stack([stream[i * seq_len : (i + 1) * seq_len + 1] for i in range(count)])
    return list(cut.astype(np.int32).reshape(-1, rows, seq_len + 1))


def place(state: TrainState, skeleton: Skeleton) -> TrainState:
    """The state on the devices of the mesh in use, if there is one."""
    mesh = jax.sharding.get_mesh()
    return state if mesh.empty else jax.device_put(state, state_shardings(state, skeleton, mesh))


def _divides(mesh: Mesh, axis: str | None, size: int) -> bool:
    name = RULES.get(axis or "")
    return name is None or size % mesh.shape[name] == 0


def state_shardings(state: TrainState, skeleton: Skeleton, mesh: Mesh) -> TrainState:
    """Moments are sharded like their parameter; counters are replicated.

    So is an axis that the mesh does not divide: a small draft may have fewer heads than devices.
    """

    def of(path: tuple[Any, ...], leaf: Array) -> jax.sharding.NamedSharding:
        for key in reversed(path):
            axes = skeleton.axes.get(str(getattr(key, "key", "")))
            if axes is not None and leaf.ndim == len(axes):
                sizes = zip(leaf.shape, axes, strict=True)
                return named(
                    mesh, tuple(a if _divides(mesh, a, size) else None for size, a in sizes)
                )
        return named(mesh, ())

    return jax.tree_util.tree_map_with_path(of, state)


def make_step(
    objective: Objective, optimizer: optax.GradientTransformation, *, seed: int = 0
) -> Callable[[TrainState, Any, Any], tuple[TrainState, Sums]]:
    """One optimizer step, jitted, its state donated.

    The step takes a batch whose arrays are [A, B, ...], A micro-batches, and the frozen target. It
    returns the new state and the sums of the objective over all of them, ``loss`` and ``weight``
    among them; the gradient is that of ``loss / weight``. Randomness is a function of the seed,
    the step and the micro-batch, so that a resumed run draws what the first one drew.
    """

    def step(state: TrainState, batch: Any, target: Any) -> tuple[TrainState, Sums]:
        step_key = jax.random.fold_in(jax.random.key(seed), state.step)

        def gradient(index: Array, micro: Any) -> tuple[Sums, Params]:
            def total(params: Params) -> tuple[Array, Sums]:
                key = jax.random.fold_in(step_key, index)
                loss, weight, sums = objective(params, micro, target, key)
                return loss, {"loss": loss, "weight": weight, **sums}

            (_, sums), grads = jax.value_and_grad(total, has_aux=True)(state.params)
            return sums, grads

        num = jax.tree.leaves(batch)[0].shape[0]
        if num == 1:
            sums, grads = gradient(jnp.int32(0), jax.tree.map(lambda x: x[0], batch))
        else:

            def add(carry: tuple[Sums, Params], x: Any) -> tuple[tuple[Sums, Params], None]:
                return jax.tree.map(jnp.add, carry, gradient(*x)), None

            pieces = (jnp.arange(num), batch)
            shapes = jax.eval_shape(gradient, *jax.tree.map(lambda x: x[0], pieces))
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            (sums, grads), _ = jax.lax.scan(add, zeros, pieces)
        weight = jnp.maximum(sums["weight"], 1e-8)  # a batch without a label teaches nothing
        grads = jax.tree.map(lambda g: g / weight, grads)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integer counts and floats
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), sums

    return jax.jit(step, donate_argnums=0)
