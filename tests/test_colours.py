"""Colours: told apart by all eyes, legible, and few."""

from __future__ import annotations

import itertools

import made_traces
import numpy as np
import pytest

from specjax.lab.view import palette
from specjax.lab.view.palette import DARK, LIGHT

TRACE, PLAIN = made_traces.speculative(), made_traces.plain()


# Machado, Oliveira and Fernandes (2009), severity 1, in linear RGB.
SEEN_BY = {
    "normal": np.eye(3),
    "deuteranope": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "protanope": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
}


def linear(colour: str) -> np.ndarray:
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE 1976, D65."""
    to_xyz = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    xyz = np.array(to_xyz) @ rgb / [0.95047, 1, 1.08883]
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(a: str, b: str, eyes: str) -> float:
    seen = [lab(np.clip(SEEN_BY[eyes] @ linear(c), 0, 1)) for c in (a, b)]
    return float(np.linalg.norm(seen[0] - seen[1]))


def contrast(a: str, b: str) -> float:
    """WCAG 2."""
    low, high = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colour", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("eyes", SEEN_BY)
def test_colours_stay_apart(colour: palette.Palette, eyes: str) -> None:
    marks = [colour.accepted, colour.own, colour.rejected, colour.draft, colour.plain]
    for group, least in ((marks, 15), (colour.series, 20)):
        for a, b in itertools.combinations(group, 2):
            assert distance(a, b, eyes) >= least, (a, b)
    assert distance(colour.accepted_ground, colour.own_ground, eyes) >= 15
    lightness = [lab(linear(c))[0] for c in colour.ramp]
    steps = np.diff(lightness)
    assert (steps < -5).all() if colour is LIGHT else (steps > 5).all()


@pytest.mark.parametrize("colour", [LIGHT, DARK], ids=["light", "dark"])
def test_text_is_legible(colour: palette.Palette) -> None:
    for ground in (colour.page, colour.panel, colour.accepted_ground, *colour.ramp):
        assert contrast(colour.ink, ground) >= 4.5, ground
    for text in (colour.muted, colour.rejected):
        assert contrast(text, colour.page) >= 4.5
    assert contrast(colour.own, colour.own_ground) >= 4.5
    assert contrast(colour.ink, colour.warning_ground) >= 4.5
    assert min(contrast(c, colour.page) for c in colour.series) >= 3
    assert len(set(palette.named(LIGHT).values())) == len(palette.named(LIGHT))
