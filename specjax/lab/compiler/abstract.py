"""A decoding session without weights: shapes and shardings of all that its programs take.

Nothing is allocated and no random weights are drawn. Everything is placed as `specjax.load`,
`specjax.load_drafter` and `Session` place it.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from specjax import decode
from specjax.checkpoint.assemble import on_mesh
from specjax.checkpoint.load import Model
from specjax.core import own, sharding
from specjax.core.family import Family
from specjax.core.platform import Kernels, Platform
from specjax.drafters import DRAFTERS
from specjax.drafters.registry import entry_of
from specjax.drafters.spec import Sizes, Spec, ask, is_trained
from specjax.lab.compiler.packed import FORMATS, packed_shapes
from specjax.lab.compiler.target import plain_config, read_target
from specjax.lab.costs import account
from specjax.lab.records.compiled import Floor, Setup
from specjax.models import Frozen
from specjax.models import family as registered
from specjax.models.joining import join, joined
from specjax.sampling import Options
from specjax.session import Row
from specjax.session.layout import Layout
from specjax.session.requests import choose
from specjax.session.slots import CHUNKS


def check(setup: Setup) -> None:
    """Raises ValueError, in one line, on a value out of its range."""

    def need(ok: bool, name: str, rule: str) -> None:
        if not ok:
            raise ValueError(f"--config.{name}={getattr(setup, name)!r}: must be {rule}.")

    read_target(setup.target, setup.layers)
    known = setup.drafter in DRAFTERS or own.is_own(setup.drafter)
    need(known, "drafter", f"one of {', '.join(DRAFTERS)}, or FILE.py:NAME")
    if ask(entry_of(setup.drafter).thing, "family") is Family.MODEL:
        read_target(setup.draft_model, 0, "draft_model")
    need(setup.dtype in ("bfloat16", "float32"), "dtype", "bfloat16 or float32")
    need(setup.packed in ("", *FORMATS), "packed", f"one of {', '.join(FORMATS)}, or empty")
    need(setup.kv_cache in ("", "int8", "fp8"), "kv_cache", "int8 or fp8, or empty")
    need(setup.kernels in get_args(Kernels), "kernels", "attention, xla, pallas or tuned")
    need(setup.split_k in ("off", "xla"), "split_k", "off or xla")
    need(setup.programs in ("all", "run"), "programs", "all or run")
    need(setup.draft_layers >= 0, "draft_layers", "at least 1, or 0 for as many as published")
    for name in ("rows", "num_draft", "draft_taps", "trips"):
        need(getattr(setup, name) >= 1, name, "at least 1")
    need(setup.layers >= 0, "layers", "at least 1, or 0 for the shape's own number")
    need(setup.slots >= CHUNKS[-1], "slots", f"at least {CHUNKS[-1]}")
    need(1 <= setup.context < setup.slots, "context", f"from 1 to slots - 1 ({setup.slots - 1})")
    options_of(setup).check(1)


def options_of(setup: Setup) -> Options:
    """Of every row."""
    names = (field.name for field in dataclasses.fields(Options) if hasattr(setup, field.name))
    return Options(**{name: getattr(setup, name) for name in names})


@dataclasses.dataclass(frozen=True)
class Abstract:
    """All that the programs of a session are called with; arrays are `jax.ShapeDtypeStruct`."""

    target: Model
    spec: Spec
    drafter: Any  # bound
    rule: Any
    request: decode.Request
    tokens: Any
    length: Any
    done: Any
    counts: Any  # None: no penalty needs them

    @property
    def states(self) -> tuple[Any, Any]:
        """The target's cache and the drafter's state."""
        return account.states(self.target, self.drafter, *self.tokens.shape)

    def floor(self, context: int) -> Floor:
        """The least that a cycle must do, with ``context`` committed tokens in every row."""
        rows, slots = self.tokens.shape
        sizes = {"rows": rows, "slots": slots, "context": context}
        return account.cycle(self.target, self.spec, self.drafter, **sizes)


def abstract(setup: Setup, mesh: Mesh | None, platform: Platform | None = None) -> Abstract:
    """The session that ``setup`` describes, traced for a platform; None: JAX's default devices.

    Raises:
      ValueError: in one line, on sizes that do not fit together.
    """
    check(setup)
    plain = plain_config(setup.target, setup.layers)
    if setup.slots > plain.max_position_embeddings:
        raise ValueError(
            f"--config.slots={setup.slots}: {setup.target} ends at"
            f" {plain.max_position_embeddings} tokens."
        )
    how: dict[str, Any] = {"replicate": False, "packed": setup.packed}
    target = _model(setup.target, setup, plain, mesh, platform, **how)
    if setup.kv_cache:
        target = target.remembering(setup.kv_cache)  # type: ignore[arg-type]
    if mesh is not None and setup.rows % sharding.pieces("batch", mesh):
        raise ValueError(
            f"--config.rows={setup.rows}: the mesh's data axis has {mesh.shape['data']} devices,"
            " which do not divide it."
        )
    row = Row(prompt=[0], options=options_of(setup), seed=0, max_new_tokens=1, stop_token_ids=())
    rows = [row] * setup.rows
    spec = _with_confidence(_spec(setup, plain, target), setup)
    drafter, rule = choose(target, spec, rows, setup.rule or None)
    layout = Layout.of(
        rows, target.config.vocab_size, greedy=rule.greedy_only, platform=target.net.platform
    )

    def like(x: Any) -> Any:
        """The shape of ``x`` as the host hands it over: whole on every device."""
        there = isinstance(x, jax.ShapeDtypeStruct)
        return x if there else shaped(x.shape, x.dtype, mesh)

    return Abstract(
        target=target,
        spec=spec,
        drafter=jax.tree.map(like, drafter),
        rule=rule,
        request=jax.tree.map(like, layout.request),
        tokens=shaped((setup.rows, setup.slots), jnp.int32, mesh),
        length=shaped((setup.rows,), jnp.int32, mesh),
        done=shaped((setup.rows,), jnp.bool_, mesh),
        counts=jax.tree.map(like, layout.counts),
    )


def shaped(shape: tuple[int, ...], dtype: Any, mesh: Mesh | None, axes: Any = ()) -> Any:
    """An array that is not there, with its place on the mesh."""
    place = None if mesh is None else sharding.named(mesh, axes)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)


def abstract_net(
    build: Callable[[], Any],
    mesh: Mesh | None,
    platform: Platform | None = None,
    *,
    replicate: bool = False,
    packed: str = "",
) -> Frozen:
    """The module that ``build`` makes, with shapes for weights, placed by their logical axes.

    ``packed``: one of `lab.compiler.packed.FORMATS`.
    """
    module = nnx.eval_shape(build)
    join(module, mesh, replicate=replicate)
    graphdef, state = nnx.split(module)
    params = _placed(state, mesh, replicate)
    params = packed_shapes(params, packed, mesh) if packed else params
    return Frozen(params, graphdef, module.config, replicate, platform)


def _placed(state: Any, mesh: Mesh | None, replicate: bool) -> Any:
    """Shapes for the parameters of ``state``, placed by their logical axes."""
    placed = []
    for path, parameter in nnx.to_flat_state(state):
        value = parameter.get_value()
        axes = () if replicate else sharding.axes_of(parameter)
        placed.append((path, parameter.replace(shaped(value.shape, value.dtype, mesh, axes))))
    return nnx.from_flat_state(placed)


def _model(
    name: str,
    setup: Setup,
    plain: Any,
    mesh: Mesh | None,
    platform: Platform | None,
    *,
    replicate: bool,
    packed: str = "",
) -> Model:
    """What `specjax.load` would return, without its tokenizer."""
    config, dtype = on_mesh(plain, mesh, name, replicate), jnp.dtype(setup.dtype)
    family = registered(plain.model_type)
    return Model(
        net=abstract_net(
            lambda: family(config, dtype=dtype, rngs=nnx.Rngs(0)),
            mesh,
            platform,
            replicate=replicate,
            packed=packed,
        ),
        tokenizer=None,
        stop_token_ids=(),
        bos_token_id=None,
        mesh=mesh,
        name=name,
        dtype=np.dtype(dtype),
    )


def _spec(setup: Setup, plain: Any, target: Model) -> Any:
    """The drafter: as its kind is published for targets of this size, else as it begins to train.

    Raises:
      ValueError: in one line, on sizes that do not fit.
    """
    entry = entry_of(setup.drafter)
    if not inspect.isclass(entry.thing) or not entry.needs_model:
        return entry.build(target, setup.num_draft)
    cls: Any = entry.thing
    replicate = setup.replicate_drafter and target.mesh is not None
    platform = target.net.platform
    if ask(cls, "family") is Family.MODEL:
        config = plain_config(setup.draft_model, 0, "draft_model")
        model = _model(setup.draft_model, setup, config, target.mesh, platform, replicate=replicate)
        return cls.made(model, setup.num_draft)
    shards = 1 if target.mesh is None or replicate else target.mesh.shape["model"]
    asked = (setup.num_draft, setup.draft_layers, setup.draft_taps, setup.draft_vocab)
    sizes = Sizes(*asked, setup.draft_latent, shards=shards)
    try:
        outline = ask(cls, "outline")(plain, sizes)
    except ValueError as error:
        raise ValueError(f"--config.{error}") from None
    if outline is None:
        return _begun(cls, setup, target, replicate)
    config = outline.config
    if hasattr(config, "backbone"):
        backbone = on_mesh(config.backbone, target.mesh, setup.drafter, replicate, beside=True)
        config = dataclasses.replace(config, backbone=backbone)
    net = abstract_net(
        lambda: outline.network(config, dtype=jnp.dtype(setup.dtype), rngs=nnx.Rngs(0)),
        target.mesh,
        platform,
        replicate=replicate,
    )
    return cls(net=net, num_draft=setup.num_draft, **outline.fields)


def _with_confidence(spec: Any, setup: Setup) -> Any:
    """The drafter as ``setup.min_confidence`` has it. Raises ValueError where it has no such."""
    if not setup.min_confidence:
        return spec
    try:
        return dataclasses.replace(spec, min_confidence=setup.min_confidence)
    except (TypeError, ValueError):
        raise ValueError(
            f"--config.min_confidence={setup.min_confidence}: must be in (0, 1], of a drafter that "
            f"says how likely its guesses are (lm, dspark); {setup.drafter} does not take it."
        ) from None


def _begun(cls: Any, setup: Setup, target: Model, replicate: bool) -> Any:
    """What training begins with, as shapes: of a kind that no size is published of."""
    if not is_trained(cls):
        raise ValueError(
            f"--config.drafter={setup.drafter}: {cls.__name__} has neither outline() nor fresh(), "
            "so there is nothing to compile without weights."
        )
    made: list[Any] = []

    def build(net: Frozen) -> tuple[Any, dict[str, Any]]:
        spec = cls.fresh(dataclasses.replace(target, net=net), num_draft=setup.num_draft)
        net = joined(dataclasses.replace(spec.net, replicated=replicate), target.mesh)
        spec = dataclasses.replace(spec, net=net)
        made.append(spec)
        values = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
        return spec.net.params, {n: v for n, v in values.items() if isinstance(v, jax.Array)}

    params, arrays = jax.eval_shape(build, target.net)
    params = _placed(params, target.mesh, replicate)
    net = dataclasses.replace(made[0].net, params=params, replicated=replicate)
    net = net.on(target.net.platform)
    arrays = {n: shaped(v.shape, v.dtype, target.mesh) for n, v in arrays.items()}
    return dataclasses.replace(made[0], net=net, **arrays)
