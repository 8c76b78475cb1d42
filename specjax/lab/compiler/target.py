"""The target that is compiled: a known shape, or whatever has a config.json; no weights are read.

Sizes that a config has by default are those of large models. Where the target is smaller, defaults
shrink to what it has, and say so; what was asked for is refused instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from specjax.checkpoint.hf import read_json
from specjax.checkpoint.located import locate
from specjax.drafters.registry import entry_of
from specjax.drafters.spec import ask
from specjax.lab.records.compiled import Setup
from specjax.models import family
from specjax.models.config import flattened
from specjax.models.shapes import SHAPES


def read_target(name: str, layers: int, field: str = "target") -> dict[str, Any]:
    """The config.json of ``name``: a shape, a directory, the file itself, or ``demo:target``.

    Args:
      name: of the target.
      layers: instead of its own; 0: those.
      field: of --config, for messages.

    Raises:
      ValueError: in one line, if it is none of them or cannot be read.
    """
    raw = dict(SHAPES[name]) if name in SHAPES else flattened(_read(name, field))
    if layers:
        raw["num_hidden_layers"] = layers
        for key, value in raw.items():
            if key == "layer_types" and isinstance(value, list):
                raw[key] = value[:layers]
    return raw


def depth_of(name: str) -> int:
    """How many layers a target has. Raises ValueError as `read_target`."""
    return int(plain_config(name, 0).num_layers)


def _read(name: str, field: str) -> dict[str, Any]:
    path = Path(name).expanduser()
    if name.startswith("demo:"):
        path, _ = locate(name)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file() or path.suffix != ".json":
        near = difflib.get_close_matches(name, SHAPES, 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(
            f"--config.{field}={name!r}{meant}: must be one of {', '.join(SHAPES)}, a directory "
            "with a config.json, or demo:target."
        )
    return read_json(path)


def plain_config(name: str, layers: int, field: str = "target") -> Any:
    """`read_target` as its family reads it. Raises ValueError."""
    raw = read_target(name, layers, field)
    try:
        return family(raw.get("model_type")).read_config(raw)
    except ValueError as error:
        raise ValueError(f"--config.{field}={name}: {error}") from None


def shrink(setup: Setup, *, shards: int = 1) -> tuple[Setup, list[str]]:
    """A setup that fits the target, and what was changed, in words: only what is a default.

    Args:
      setup: what is asked for.
      shards: devices of the mesh's model axis.

    Raises:
      ValueError: in one line, if there is no such target.
    """
    made: dict[str, Any] = vars(setup) | {}
    notes = []
    for field, most, why in _limits(made, plain_config(setup.target, setup.layers), shards):
        if made[field] > most and made[field] == getattr(Setup(), field):
            notes.append(f"{field} is {most} instead of {made[field]}: {why}.")
            made[field] = most
    return Setup(**made), notes


def _limits(made: Mapping[str, Any], plain: Any, shards: int) -> Iterator[tuple[str, int, str]]:
    """(field, the most that fits, why); those that depend on another come behind it."""
    longest = plain.max_position_embeddings
    yield "slots", longest, f"the target ends at {longest} tokens"
    # Read when it is asked for: slots may have shrunk.
    yield "context", max(3 * made["slots"] // 4, 1), f"three quarters of {made['slots']} slots"
    asked = ask(entry_of(made["drafter"]).thing, "outline_sizes")
    if "taps" in asked:
        yield "draft_taps", plain.num_layers, f"the target has {plain.num_layers} layers"
    if "vocab" in asked:
        split = 1 if made["replicate_drafter"] else shards
        most = plain.vocab_size // split * split
        yield "draft_vocab", most, f"the target has {plain.vocab_size} tokens"
