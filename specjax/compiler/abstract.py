"""A decoding session without weights: shapes and shardings of all that its programs take.

Nothing is allocated and no random weights are drawn. Everything is placed as `specjax.load`,
`specjax.load_drafter` and `Session` place it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from specjax import decode
from specjax.checkpoint.assemble import on_mesh
from specjax.checkpoint.load import Model
from specjax.compiler.target import plain_config, read_target
from specjax.core import sharding
from specjax.core.keys import row_keys
from specjax.drafters import LM, DFlash, Eagle3, Medusa, NoDraft, dflash, eagle3
from specjax.drafters.dflash.net import DFlashNet
from specjax.drafters.eagle3.net import Eagle3Net
from specjax.drafters.medusa.net import MedusaConfig, MedusaNet
from specjax.models import Frozen
from specjax.models import family as registered
from specjax.sampling import Options, make_sampling
from specjax.session import CHUNKS, Row, choose


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is compiled. The fields of configs/compile.py, which explains them."""

    target: str
    layers: int
    drafter: str
    num_draft: int
    draft_layers: int
    draft_taps: int
    draft_vocab: int
    draft_model: str
    replicate_drafter: bool
    rows: int
    slots: int
    context: int
    dtype: str
    temperature: float
    top_p: float
    rule: str
    trips: int
    programs: str

    def check(self) -> None:
        """Raises ValueError, in one line, on a value out of its range."""

        def need(ok: bool, name: str, rule: str) -> None:
            if not ok:
                raise ValueError(f"--config.{name}={getattr(self, name)!r}: must be {rule}.")

        read_target(self.target, self.layers)
        if self.drafter == "lm":
            read_target(self.draft_model, 0, "draft_model")
        need(self.drafter in BUILDERS, "drafter", f"one of {', '.join(BUILDERS)}")
        need(self.dtype in ("bfloat16", "float32"), "dtype", "bfloat16 or float32")
        need(self.programs in ("all", "run"), "programs", "all or run")
        need(self.draft_layers >= 0, "draft_layers", "at least 1, or 0 for as many as published")
        for name in ("rows", "num_draft", "draft_taps", "trips"):
            need(getattr(self, name) >= 1, name, "at least 1")
        need(self.layers >= 0, "layers", "at least 1, or 0 for the shape's own number")
        need(self.slots >= CHUNKS[-1], "slots", f"at least {CHUNKS[-1]}")
        need(1 <= self.context < self.slots, "context", f"from 1 to slots - 1 ({self.slots - 1})")
        Options(temperature=self.temperature, top_p=self.top_p).check(1)


@dataclasses.dataclass(frozen=True)
class Abstract:
    """All that the programs of a session are called with; arrays are `jax.ShapeDtypeStruct`."""

    target: Model
    drafter: Any  # bound
    rule: Any
    request: decode.Request
    tokens: Any
    length: Any
    done: Any


def abstract(setup: Setup, mesh: Mesh | None) -> Abstract:
    """The session that ``setup`` describes.

    Call it inside `core.platform.trace_for`.

    Raises:
      ValueError: in one line, on sizes that do not fit together.
    """
    setup.check()
    plain = plain_config(setup.target, setup.layers)
    if setup.slots > plain.max_position_embeddings:
        raise ValueError(
            f"--config.slots={setup.slots}: {setup.target} ends at"
            f" {plain.max_position_embeddings} tokens."
        )
    target = _model(setup.target, setup, plain, mesh, replicate=False)
    if mesh is not None and setup.rows % mesh.shape["data"]:
        raise ValueError(
            f"--config.rows={setup.rows}: the mesh's data axis has {mesh.shape['data']} devices,"
            " which do not divide it."
        )
    options = [Options(temperature=setup.temperature, top_p=setup.top_p)] * setup.rows
    row = Row(prompt=[0], options=options[0], seed=0, max_new_tokens=1, stop_token_ids=())
    spec = BUILDERS[setup.drafter](setup, plain, target)
    drafter, rule = choose(target, spec, [row], setup.rule or None)

    def like(x: Any) -> Any:
        """As the host hands it over: whole on every device."""
        there = isinstance(x, jax.ShapeDtypeStruct)
        return x if there else shaped(x.shape, x.dtype, mesh)

    sampling = make_sampling(options, target.config.vocab_size)
    sampling = dataclasses.replace(sampling, greedy=rule.greedy_only)
    request = decode.Request(
        keys=row_keys(jnp.zeros((setup.rows,), jnp.uint32)),
        limit=np.zeros((setup.rows,), np.int32),  # type: ignore[arg-type]
        stop_ids=np.zeros((setup.rows, 1), np.int32),  # type: ignore[arg-type]
        sampling=sampling,
    )
    return Abstract(
        target=target,
        drafter=jax.tree.map(like, drafter),
        rule=rule,
        request=jax.tree.map(like, request),
        tokens=shaped((setup.rows, setup.slots), jnp.int32, mesh),
        length=shaped((setup.rows,), jnp.int32, mesh),
        done=shaped((setup.rows,), jnp.bool_, mesh),
    )


def states(session: Abstract) -> tuple[Any, Any]:
    """The target's cache and the drafter's state, as shapes."""
    rows, slots = session.tokens.shape
    begin = lambda net, drafter: (net.init_cache(rows, slots), drafter.init(rows, slots))
    with sharding.use_mesh(session.target.mesh):
        return jax.eval_shape(begin, session.target.net, session.drafter)


def shaped(shape: tuple[int, ...], dtype: Any, mesh: Mesh | None, axes: Any = ()) -> Any:
    """An array that is not there, with its place on the mesh."""
    place = None if mesh is None else sharding.named(mesh, axes)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)


def abstract_net(build: Callable[[], Any], mesh: Mesh | None, *, replicate: bool = False) -> Frozen:
    """The module that ``build`` makes, with shapes for weights, placed by their logical axes."""
    module = nnx.eval_shape(build)
    graphdef, state = nnx.split(module)
    placed = []
    for path, parameter in nnx.to_flat_state(state):
        value = parameter.get_value()
        axes = () if replicate else parameter.get_metadata("axes")
        placed.append((path, parameter.replace(shaped(value.shape, value.dtype, mesh, axes))))
    return Frozen(
        params=nnx.from_flat_state(placed),
        graphdef=graphdef,
        config=module.config,
        replicated=replicate,
    )


def _model(name: str, setup: Setup, plain: Any, mesh: Mesh | None, *, replicate: bool) -> Model:
    """What `specjax.load` would return, without its tokenizer."""
    config, dtype = on_mesh(plain, mesh, name, replicate), jnp.dtype(setup.dtype)
    family = registered(plain.model_type)
    return Model(
        net=abstract_net(
            lambda: family(config, dtype=dtype, rngs=nnx.Rngs(0)), mesh, replicate=replicate
        ),
        tokenizer=None,
        stop_token_ids=(),
        bos_token_id=None,
        mesh=mesh,
        name=name,
        dtype=np.dtype(dtype),
    )


def _none(setup: Setup, plain: Any, target: Model) -> NoDraft:
    del setup, plain, target
    return NoDraft()


def _dflash(setup: Setup, plain: Any, target: Model) -> DFlash:
    """Of the sizes that z-lab publishes for targets of this width: all of its layers are full."""
    if setup.draft_taps > plain.num_layers:
        raise ValueError(
            f"--config.draft_taps={setup.draft_taps}: the target has {plain.num_layers} layers."
        )
    config = dflash.fresh_config(
        plain, setup.num_draft, layers=setup.draft_layers or 5, num_taps=setup.draft_taps
    )
    config = _fitted(config, setup, target)
    net = abstract_net(
        lambda: DFlashNet(config, dtype=jnp.dtype(setup.dtype), rngs=nnx.Rngs(0)),
        target.mesh,
        replicate=_replicated(setup, target),
    )
    return DFlash(net, setup.num_draft)


def _eagle3(setup: Setup, plain: Any, target: Model) -> Eagle3:
    """One layer and a vocabulary of its own, as SafeAILab publishes them."""
    shards = 1 if target.mesh is None or setup.replicate_drafter else target.mesh.shape["model"]
    if not 1 <= setup.draft_vocab <= plain.vocab_size or setup.draft_vocab % shards:
        raise ValueError(
            f"--config.draft_vocab={setup.draft_vocab}: must be a multiple of {shards}, the devices"
            f" of the model axis, and at most {plain.vocab_size}."
        )
    config = eagle3.fresh_config(
        plain, draft_vocab_size=setup.draft_vocab, layers=setup.draft_layers or 1
    )
    config = _fitted(config, setup, target)
    net = abstract_net(
        lambda: Eagle3Net(config, dtype=jnp.dtype(setup.dtype), rngs=nnx.Rngs(0)),
        target.mesh,
        replicate=_replicated(setup, target),
    )
    return Eagle3(net, setup.num_draft, None, np.arange(setup.draft_vocab, dtype=np.int32))  # type: ignore[arg-type]


def _lm(setup: Setup, plain: Any, target: Model) -> LM:
    """A smaller model of the target's vocabulary."""
    del plain
    draft = plain_config(setup.draft_model, 0, "draft_model")
    replicate = _replicated(setup, target)
    return LM(
        _model(setup.draft_model, setup, draft, target.mesh, replicate=replicate), setup.num_draft
    )


def _medusa(setup: Setup, plain: Any, target: Model) -> Medusa:
    """As many heads as guesses, each with a table of the target's whole vocabulary."""
    config = MedusaConfig(
        plain.hidden_size, plain.vocab_size, setup.num_draft, setup.draft_layers or 1
    )
    net = abstract_net(
        lambda: MedusaNet(config, dtype=jnp.dtype(setup.dtype), rngs=nnx.Rngs(0)),
        target.mesh,
        replicate=_replicated(setup, target),
    )
    return Medusa(net, setup.num_draft)


def _replicated(setup: Setup, target: Model) -> bool:
    return setup.replicate_drafter and target.mesh is not None


def _fitted(config: Any, setup: Setup, target: Model) -> Any:
    replicate = _replicated(setup, target)
    backbone = on_mesh(config.backbone, target.mesh, setup.drafter, replicate)
    return dataclasses.replace(config, backbone=backbone)


BUILDERS: dict[str, Callable[[Setup, Any, Model], Any]] = {
    "none": _none,
    "lm": _lm,
    "dflash": _dflash,
    "eagle3": _eagle3,
    "medusa": _medusa,
}
