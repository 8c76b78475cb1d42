"""Stopping rules for replays, as written in a config.

``confident:0.4`` stops before the first guess that the draft is not 0.4 sure of, ``jointly:0.2``
before it is no longer 0.2 sure of all guesses so far.
"""

from __future__ import annotations

from collections.abc import Callable

from specjax.trace.replay import Stop, confident, jointly_confident

STOPS: dict[str, Callable[[float], Stop]] = {
    "confident": confident,
    "jointly": jointly_confident,
}


def parse_stop(text: str) -> tuple[str, Stop]:
    """(label, rule) of ``NAME:THRESHOLD``.

    Raises:
      ValueError: in one line, on anything else.
    """
    name, _, number = text.partition(":")
    try:
        least = float(number)
        if name not in STOPS or not 0 <= least <= 1:
            raise ValueError
    except ValueError:
        known = ", ".join(f"{n}:P" for n in STOPS)
        raise ValueError(f"stop_rules holds {text!r}: write {known}, P from 0 to 1.") from None
    return f"{name}{least:g}", STOPS[name](least)
