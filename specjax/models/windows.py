"""Which layers attend to a sliding window, as configs spell it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_FULL, _SLIDING = "full_attention", "sliding_attention"
_FIRST = 28  # of Qwen's classes: layers before it never slide, where the config does not say


def read_windows(raw: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    """The window of each layer; None: it sees everything.

    As in Transformers: ``layer_types`` says which layers slide; without it those from
    ``max_window_layers`` on, and only where ``use_sliding_window`` is true. A window of null or 0
    is none.

    Raises:
      ValueError: naming the keys that contradict each other.
    """
    kinds, window = raw.get("layer_types"), raw.get("sliding_window") or None
    on = raw.get("use_sliding_window")
    if kinds is None:
        first = raw.get("max_window_layers")
        first = layers if not on else min(_FIRST if first is None else first, layers)
        if first < layers and "sliding_window" not in raw:
            raise ValueError(
                "config.json: use_sliding_window=True, but there is no sliding_window; add it, or "
                "write false."
            )
        return (None,) * first + (window,) * (layers - first)
    odd = sorted(set(kinds) - {_FULL, _SLIDING})
    if odd:
        raise ValueError(f"config.json: layer_types holds {', '.join(odd)}, not supported.")
    if len(kinds) != layers and set(kinds) != {_FULL}:
        raise ValueError(
            f"config.json: layer_types has {len(kinds)} entries for {layers} layers; correct it."
        )
    if _SLIDING in kinds and (on is False or window is None):
        raise ValueError(
            "config.json: layer_types has sliding layers, but sliding_window="
            f"{raw.get('sliding_window')!r} and use_sliding_window={on!r}, which contradict that."
        )
    return tuple(window if i < len(kinds) and kinds[i] == _SLIDING else None for i in range(layers))


def write_windows(windows: Sequence[int | None]) -> dict[str, Any]:
    """The keys that `read_windows` reads, of layers of which at least one slides."""
    (window,) = {w for w in windows if w is not None}
    kinds = [_FULL if w is None else _SLIDING for w in windows]
    return {"layer_types": kinds, "sliding_window": window, "use_sliding_window": True}
