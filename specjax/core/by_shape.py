"""What code of a user's own returns, by shape alone, and what goes wrong in it, in one line."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

ARRAYS = jax.Array | np.ndarray | np.generic | bool | int | float | complex
_LONGEST = 160  # characters of an error of others
_HERE = Path(__file__).resolve().parent.parent


class Misfit(ValueError):
    """Code of a user's own that is not what it is taken for; the message says it all."""


def by_shape(what: str, call: Callable[..., Any], *args: Any) -> Any:
    """The shapes and types of what ``call(*args)`` returns; nothing is computed.

    Raises:
      Misfit: naming ``what`` was called, if it fails or returns what is no pytree of arrays.
    """

    def checked(*args: Any) -> Any:
        out = call(*args)
        for leaf in jax.tree.leaves(out):
            if not isinstance(leaf, ARRAYS):
                raise Misfit(
                    f"{what} returns a {type(leaf).__name__}, which is no pytree of arrays: "
                    "decorate its class with specjax.core.types.pytree, or return arrays."
                )
        return out

    return calling(what, lambda: jax.eval_shape(checked, *args))


def calling(what: str, call: Callable[[], Any], through: type[Exception] = Misfit) -> Any:
    """``call()``; what it raises becomes a `Misfit`, but for errors of the kind ``through``."""
    try:
        return call()
    except (Misfit, through):
        raise
    except Exception as error:  # whatever code of others raises
        raise Misfit(f"{what} fails: {brief(error)}") from error


def brief(error: BaseException) -> str:
    """Kind, first line and place of an error, on one line."""
    line = shortened(str(error).strip().partition("\n")[0])
    words = f"{type(error).__name__}: {line}" if line else type(error).__name__
    place = _place(error)
    return f"{words} ({place})." if place else f"{words.rstrip('.')}."


def shortened(text: str) -> str:
    """What others say of an error, on one line that can be read."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."


def _place(error: BaseException) -> str:
    """The innermost line of code that is neither ours nor of an installed package."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        installed = {"site-packages", "dist-packages"} & set(path.parts)
        if installed or _HERE in path.parents or Path(sys.base_prefix) in path.parents:
            continue
        return f"{path.name}, line {frame.lineno}"
    return ""


def is_ours(value: Any) -> bool:
    """Whether its class is of this library, whose tests put each through these checks."""
    return type(value).__module__.partition(".")[0] == __name__.partition(".")[0]


def takes(call: Any, names: Sequence[str]) -> str | None:
    """None if ``call`` takes so many arguments by position; else what it takes, in words."""
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):  # not known
        return None
    try:
        signature.bind(*names)
    except TypeError:
        return f"({', '.join(map(str, signature.parameters.values()))})"
    return None


def shape(x: Any) -> str:
    """float32[2, 3]"""
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return f"{x.dtype}{list(x.shape)}"
    return f"a {type(x).__name__}"
