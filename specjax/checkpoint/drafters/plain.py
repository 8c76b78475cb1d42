"""The plain format, for a network that nobody publishes: config.json and model.safetensors.

config.json holds the network's frozen config, field by field, and what else the spec says; tensors
have the paths of the parameters, arrays of the spec stand under ``spec.``. The class is not stored,
only its name: a checkpoint never says which code is run. Whoever loads one has registered the class
(`specjax.extend.register_drafter`) or names it, ``FILE.py:NAME:CHECKPOINT``.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from specjax.checkpoint.drafters.format import Format
from specjax.checkpoint.drafters.layouts import Layout, Tensors
from specjax.checkpoint.drafters.source import Plan, Source
from specjax.checkpoint.errors import CheckpointError
from specjax.core import hosts
from specjax.drafters.registry import DRAFTERS
from specjax.drafters.spec import Spec, ask
from specjax.models.target import Target

KEY = "specjax_drafter"
_TYPE = "type"  # of a nested config: the name of its dataclass
_ARRAYS = "spec."
_LEFT_OUT = ("net", "name")  # fields of a spec: the tensors, and the label of a loaded one


def refusal(spec: Spec) -> str | None:
    """Why a drafter could not be read back; None: it can be written."""
    cls, net = type(spec), ask(spec, "own_net")()
    if net is None:
        return f"{cls.__name__} has no network (a field net, a specjax.models.Frozen)"
    if not dataclasses.is_dataclass(spec):
        return f"{cls.__name__} is no dataclass, so its fields are not known"
    if not isinstance(net.module, ask(cls, "net_class") or ()):
        return (
            f"{cls.__name__} does not name the class of its network: write net_class = "
            f"{type(net.module).__name__} into it"
        )
    if not dataclasses.is_dataclass(config_class(cls)):
        return (
            f"{type(net.module).__name__}.__init__ does not say what its config is: annotate it "
            "with a frozen dataclass"
        )
    return None


def write(spec: Any, tensors: Tensors, target: Target, verifier: str) -> Layout:
    """The contents of the directory. Raises ValueError on what it cannot express."""
    if why := refusal(spec):
        raise ValueError(f"format='plain': {why}.")
    fields: dict[str, Any] = {}
    arrays: Tensors = {}
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if field.name in _LEFT_OUT or not field.init:
            continue
        if hasattr(value, "dtype") and hasattr(value, "shape"):
            arrays[_ARRAYS + field.name] = np.ascontiguousarray(hosts.fetch(value))
        else:
            fields[field.name] = encode(value, field.name)
    described = {
        "kind": type(spec).__name__,
        "spec": fields,
        "config": encode(spec.net.config, "config"),
        "target": verifier,
        "target_sizes": [target.config.hidden_size, target.config.vocab_size],
    }
    return Layout({KEY: described}, {**tensors, **arrays})


def read(source: Source, target: Target, cls: Any = None) -> Plan:
    """Raises CheckpointError if the class is not known, or is another."""
    described = _described(source)
    cls = cls or _registered(described["kind"], source.where)
    if cls.__name__ != described["kind"]:
        raise CheckpointError(
            f"{source.where}: holds a {described['kind']}, which is not {cls.__name__}; name that."
        )
    sizes = [target.config.hidden_size, target.config.vocab_size]
    if described.get("target_sizes", sizes) != sizes:
        raise CheckpointError(
            f"{source.where}: was made for a target of width and vocabulary "
            f"{described['target_sizes']}, but those of {target.name} are {sizes}."
        )
    arrays = {n: t for n, t in source.tensors.items() if n.startswith(_ARRAYS)}
    known = {f.name for f in dataclasses.fields(cls)}
    said = described.get("spec") or {}
    if odd := sorted({*said, *(n.removeprefix(_ARRAYS) for n in arrays)} - known):
        raise CheckpointError(f"{source.where}: {cls.__name__} has no field {odd[0]!r}.")
    config = decode(described["config"], config_class(cls), f"{source.where}, config")

    def make(net: Any, ids: Any, num_draft: int | None, kind: str | None, name: str) -> Any:
        del ids
        fields = {n: tuple(v) if isinstance(v, list) else v for n, v in said.items()}
        fields |= {n.removeprefix(_ARRAYS): jnp.asarray(t.values()) for n, t in arrays.items()}
        for field, value in (("num_draft", num_draft), ("kind", kind), ("name", name)):
            if value is not None and field in known:
                fields[field] = value
        return cls(net=net, **fields)

    kept = {n: t for n, t in source.tensors.items() if n not in arrays}
    return Plan(config, cls.net_class, kept, lambda name: name, make)


def read_config(source: Source, target: Target) -> Any:
    """The network's config."""
    del target
    described = _described(source)
    cls = _registered(described["kind"], source.where)
    return decode(described["config"], config_class(cls), f"{source.where}, config")


FORMAT = Format("plain", read, read_config)


def config_class(cls: Any) -> Any:
    """What the network's class is made from, by its annotation; None: it says nothing."""
    made = ask(cls, "net_class")
    if made is None:
        return None
    try:
        return typing.get_type_hints(made.__init__).get("config")
    except NameError:
        return None


def encode(value: Any, what: str) -> Any:
    """A config as JSON values. Raises ValueError, naming the field that is none."""
    if dataclasses.is_dataclass(value) and not inspect.isclass(value):
        if hasattr(value, "kv_repeat"):  # of the mesh, not of the model
            value = dataclasses.replace(value, kv_repeat=1)  # type: ignore[type-var]
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        inner = {n: encode(v, f"{what}.{n}") for n, v in fields.items()}
        return {_TYPE: type(value).__name__, **inner}
    if isinstance(value, tuple | list):
        return [encode(v, what) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"format='plain' cannot express {what}, a {type(value).__name__}: numbers, texts, tuples "
        "of them and dataclasses of these can be."
    )


def decode(value: Any, hint: Any, where: str) -> Any:
    """What `encode` made, as ``hint`` says. Raises CheckpointError."""
    if isinstance(value, Mapping):
        wanted = [t for t in _options(hint) if getattr(t, "__name__", "") == value.get(_TYPE)]
        if not wanted or not dataclasses.is_dataclass(wanted[0]):
            raise CheckpointError(f"{where}: {value.get(_TYPE)!r} is not what belongs there.")
        cls: Any = wanted[0]
        hints = typing.get_type_hints(cls)
        given = {n: v for n, v in value.items() if n != _TYPE}
        if odd := sorted(given.keys() - hints.keys()):
            raise CheckpointError(f"{where}: {cls.__name__} has no field {odd[0]!r}.")
        fields = {n: decode(v, hints[n], f"{where}.{n}") for n, v in given.items()}
        try:
            return cls(**fields)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{where}: {error}.") from None
    if isinstance(value, list):
        kinds = [a for t in _options(hint) for a in typing.get_args(t) if a is not Ellipsis]
        inner = kinds[0] if len(set(kinds)) == 1 else typing.Union[tuple(kinds) or (Any,)]  # noqa: UP007
        return tuple(decode(v, inner, where) for v in value)
    return value


def _options(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _described(source: Source) -> Mapping[str, Any]:
    said = source.raw.get(KEY)
    if not isinstance(said, Mapping) or not isinstance(said.get("kind"), str):
        raise CheckpointError(f"{source.where}: {KEY} does not say what it is; export it again.")
    if not isinstance(said.get("config"), Mapping):
        raise CheckpointError(f"{source.where}: {KEY} has no config; export it again.")
    return said


def _registered(kind: str, where: str) -> Any:
    """The registered class of that name."""
    for entry in DRAFTERS.values():
        if inspect.isclass(entry.thing) and entry.thing.__name__ == kind:
            return entry.thing
    raise CheckpointError(
        f"{where}: holds a {kind}, a drafter of somebody's own. Name its file, FILE.py:{kind}:"
        f"CHECKPOINT, or register it (--import=FILE.py, specjax.extend.register_drafter)."
    )
