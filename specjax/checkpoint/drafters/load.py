"""`load_drafter`: a published drafter -> a spec for `generate`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from specjax.checkpoint.assemble import assemble_module, check_layers, on_mesh
from specjax.checkpoint.drafters import plain
from specjax.checkpoint.drafters.recognise import recognise
from specjax.checkpoint.drafters.source import PICKLES, Plan, read_source
from specjax.checkpoint.drafters.stored import Stored
from specjax.checkpoint.errors import CheckpointError
from specjax.checkpoint.load import Model, Weights, load
from specjax.checkpoint.located import download, locate, unchanged
from specjax.checkpoint.packed import unpacked
from specjax.core import own, sharding
from specjax.core.quantised import Quantisation
from specjax.core.types import KINDS
from specjax.drafters.lm import LM
from specjax.drafters.registry import class_of
from specjax.drafters.spec import Spec, ask, with_window
from specjax.models.frozen import Frozen


def load_drafter(
    path_or_repo: str | Path,
    target: Model,
    *,
    num_draft: int | None = None,
    kind: str | None = None,
    mesh: Mesh | str | None = None,
    dtype: Any = None,
    revision: str | None = None,
    replicate: bool = True,
    quantize: Quantisation | None = None,
    weights: Weights | None = None,
    window: int | None = None,
) -> Spec:
    """Loads a drafter in any known format and checks that it fits the target.

    Formats, recognised by the keys of config.json and the names of the tensors: z-lab and SpecForge
    DFlash, z-lab DFlash2, DeepSpec, SafeAILab and SpecForge EAGLE-3, speculators (DFlash, EAGLE-3),
    Medusa; and an ordinary language model, which drafts as `drafters.LM`. The ``name`` of what is
    returned says what was recognised. A drafter of one's own is saved in a plain format, and loads
    where its class is registered or named: ``FILE.py:NAME:CHECKPOINT``.

    Args:
      path_or_repo: a directory, a repository on the Hugging Face hub, or what else `load` takes.
      target: what it will draft for, from `load`.
      num_draft: guesses a cycle; None: what the checkpoint was trained for, or 5.
      kind: how guesses are drawn (`core.types.KINDS`); None: what suits the request.
      mesh: None: the target's.
      dtype: float32 or bfloat16; None: the target's.
      revision: of a hub repository only.
      replicate: on a mesh, put the whole drafter on every device.
      quantize: "int8" or "fp8": the matrices that it multiplies by, its own head among them, are
        rounded to 8 bits as they are loaded. Text stays the target's; tau may be another.
      weights: of a drafter in 4 or 8 bits, as of `load`.
      window: its layers see the last so many tokens alone, however long a text is; None: as they
        were trained. Of DFlash's kinds and EAGLE-3.

    Raises:
      CheckpointError: if there is no such checkpoint, if it is damaged or of a kind that is not
        supported (which is named), or if it belongs to another target.
      ValueError: if ``num_draft``, ``kind``, ``quantize``, ``weights`` or ``window`` do not suit
        it.
    """
    name = str(path_or_repo)
    stored = Stored.read(target, dtype, quantize, weights)
    asked = _Asked(num_draft, kind, replicate, stored)
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind={kind!r}: must be one of {', '.join(KINDS)}.")
    if isinstance(mesh, str):
        mesh = sharding.parse_mesh(mesh)
    if mesh not in (None, target.mesh):
        raise CheckpointError(
            f"{name}: asked for on other devices than {target.name}; leave mesh out."
        )
    try:
        found = _read(name, target, asked, revision)
    except OSError as error:
        raise CheckpointError(f"{error.filename or name}: {error.strerror or error}.") from error
    except CheckpointError:
        raise
    except ValueError as error:  # of reading files
        raise CheckpointError(str(error)) from None
    if isinstance(found, _Found):
        found = found.make(target, asked)
        found.bind(target, kind or KINDS[0])
    return found if window is None else with_window(found, window)


@dataclasses.dataclass(frozen=True)
class _Asked:
    """Arguments of `load_drafter`."""

    num_draft: int | None
    kind: str | None
    replicate: bool
    stored: Stored


@dataclasses.dataclass(frozen=True)
class _Found:
    """What a checkpoint holds, assembled."""

    plan: Plan
    net: Frozen
    label: str
    where: str
    cls: Any  # that it must be of; None: of any

    def make(self, target: Model, asked: _Asked) -> Spec:
        """The spec. Raises ValueError if what was asked for does not suit it."""
        plan = self.plan
        ids = None if plan.target_ids is None else jnp.asarray(plan.target_ids)
        if ids is not None and target.mesh is not None:
            ids = jax.device_put(ids, sharding.named(target.mesh, (None,)))
        num_draft = plan.num_draft if asked.num_draft is None else asked.num_draft
        spec: Spec = plan.make(self.net, ids, num_draft, asked.kind, self.label)
        if self.cls is not None and not isinstance(spec, self.cls):
            raise CheckpointError(
                f"{self.where}: holds a {type(spec).__name__}, which is not {self.cls.__name__}."
            )
        return spec


def _read(name: str, target: Model, asked: _Asked, revision: str | None) -> _Found | Spec:
    """What is at ``name``: a drafter's network, or a language model as a spec."""
    name, cls = _own_class(name)
    path, is_repository = locate(name)
    if path.is_file():
        return _language_model(name, target, asked, revision)
    if is_repository:
        path = download(name, revision, otherwise=PICKLES)
    elif revision is not None:
        raise CheckpointError(f"revision={revision!r} needs a hub repository; {name} is local.")
    source = read_source(path)
    form = recognise(source, () if cls is None else ask(cls, "formats")().read)
    if form is None:
        # What was downloaded is loaded from where it lies.
        return _language_model(str(path) if is_repository else name, target, asked, None)
    source = source.as_format(form.name)
    packed = unpacked(source.tensors, source.raw, source.where)
    source = dataclasses.replace(source, tensors=packed)
    is_plain = form is plain.FORMAT
    plan = plain.read(source, target, cls) if is_plain else form.read(source, target)
    with unchanged(path):
        net = _assemble(plan, source.where, target, asked)
    label = name if is_repository else path.resolve().name
    label = f"{label} ({form.name}{asked.stored.told(net, source.where)})"
    return _Found(plan, net, label, source.where, cls)


def _assemble(plan: Plan, where: str, target: Model, asked: _Asked) -> Frozen:
    """The network, on the target's devices."""
    config = plan.config
    if hasattr(config, "backbone"):
        check_layers(config.backbone, plan.tensors, where)
        backbone = on_mesh(config.backbone, target.mesh, where, asked.replicate, beside=True)
        config = dataclasses.replace(config, backbone=backbone)
    return assemble_module(
        lambda: plan.network(config, dtype=asked.stored.dtype, rngs=nnx.Rngs(0)),
        plan.tensors,
        called=plan.called,
        mesh=target.mesh,
        where=where,
        replicate=asked.replicate,
        **asked.stored.how,
    )


def _language_model(name: str, target: Model, asked: _Asked, revision: str | None) -> Spec:
    model = load(
        name,
        mesh=target.mesh,
        dtype=asked.stored.dtype,
        revision=revision,
        replicate=asked.replicate and target.mesh is not None,
        quantize=asked.stored.quantize,
        weights=asked.stored.weights,
    )
    spec = LM(model, 5 if asked.num_draft is None else asked.num_draft, asked.kind)
    spec.bind(target, asked.kind or KINDS[0])
    return spec


def _own_class(name: str) -> tuple[str, Any]:
    """The checkpoint, and the class that ``FILE.py:NAME:CHECKPOINT`` says it is of, or None."""
    if not own.is_own(name):
        return name, None
    place = own.read_place(name)
    if not place.rest:
        raise CheckpointError(f"{name}: names no checkpoint; write {place}:CHECKPOINT.")
    return place.rest, class_of(str(place))
