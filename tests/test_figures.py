"""Figures: the numbers that they draw, their text, and the race."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import made_traces
import pytest
from matplotlib.figure import Figure

import specjax
from specjax.cli.errors import needs_lab
from specjax.lab.costs.cost_model import predict
from specjax.lab.view import figures
from specjax.lab.view.heat import by_class, rolling_tau
from specjax.lab.view.palette import DARK
from specjax.lab.view.style import colours, to_svg
from specjax.lab.view.tokens import tokens, visible
from specjax.trace import metrics
from specjax.trace.trace import BONUS, CORRECTION
from tools import race_still

TRACE, PLAIN = made_traces.speculative(), made_traces.plain()


def test_figures_hold_the_numbers() -> None:
    def drawn(draw, **kwargs):  # type: ignore[no-untyped-def]
        with figures.style(**kwargs):
            ax = Figure().add_subplot()
            assert draw(ax) is ax
        return ax

    ax = drawn(lambda ax: specjax.plot_acceptance(made_traces.speculative(rows=1), ax=ax))
    assert [p.get_height() for p in ax.patches] == TRACE.survival()
    dots = next(line for line in ax.lines if line.get_marker() == "o")
    assert list(dots.get_ydata()) == list(metrics.figures(TRACE).conditional)

    curve = predict(TRACE.survival(), made_traces.costs(), range(1, 5))
    runs = {4: TRACE, 2: made_traces.speculative((2, 0, 1, 2, 2, 1, 2, 2), k=2)}
    ax = drawn(lambda ax: specjax.plot_speedup(runs, PLAIN, prediction=curve, ax=ax))
    lines = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
    assert len(curve.speedup) == 4
    assert lines["predicted"] == list(curve.speedup)
    assert lines["single alpha"] == list(curve.single_alpha_speedup)
    want = [metrics.compare(runs[k], PLAIN).speedup for k in (2, 4)]
    assert lines["measured, 95 % interval"] == want

    ax = drawn(
        lambda ax: specjax.plot_timeline(TRACE, costs=made_traces.costs(), plain=PLAIN, ax=ax)
    )
    assert [t.get_text() for t in ax.texts] == [str(c.committed) for c in TRACE.rows[0]]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["draft", "verify", "plain"]
    free = dataclasses.replace(made_traces.costs(), draft=dict.fromkeys(range(1, 9), 0.01))
    ax = drawn(lambda ax: specjax.plot_timeline(TRACE, costs=free, ax=ax))
    assert [t.get_text() for t in ax.get_yticklabels()] == ["cycle"]  # no row that looks empty
    many = dataclasses.replace(
        TRACE, rows=(tuple(dataclasses.replace(c, committed=12) for c in TRACE.rows[0] * 40),)
    )
    many = dataclasses.replace(
        many,
        rows=(
            tuple(
                dataclasses.replace(c, begin=0.01 * j, end=0.01 * (j + 1))
                for j, c in enumerate(many.rows[0])
            ),
        ),
    )
    with figures.style():
        figure = Figure()
        ax = specjax.plot_timeline(many, cycles=240, ax=figure.add_subplot())
        figure.draw_without_rendering()
        boxes = sorted((t.get_window_extent().x0, t.get_window_extent().x1) for t in ax.texts)
    assert 20 < len(boxes) < 240
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(boxes))  # digits apart

    ax = drawn(lambda ax: specjax.plot_heat(TRACE, ax=ax), dark=True)
    written = "".join(t.get_text() for t in ax.texts).replace("\\$", "$")
    assert written == "".join(visible("".join(TRACE.texts[0].pieces)).split())
    assert colours(ax) is DARK

    loads = [figures.Load("plain", 1, 100.0), figures.Load("dflash, k = 4", 2, 150.0)]
    ax = drawn(lambda ax: figures.plot_frontier(loads, ax=ax))
    assert [list(line.get_ydata()) for line in ax.lines] == [[100.0], [300.0]]


def test_rolling_tau_and_classes() -> None:
    assert rolling_tau(TRACE, 0, 1) == [c.committed for c in TRACE.rows[0]]
    assert rolling_tau(TRACE, 0, 100)[0] == TRACE.tau
    shares = by_class(TRACE)
    assert sum(s.tokens for s in shares) == TRACE.num_committed
    assert sum(s.accepted for s in shares) == sum(
        label not in (CORRECTION, BONUS) for b in (0, 1) for label in TRACE.labels(b)
    )
    assert {s.name for s in shares} >= {"new line", "space", "word", "special", "punctuation"}


def test_training_curves(tmp_path: Path) -> None:
    lines = [{"step": i, "loss": 1 / i} for i in (1, 2, 3)]
    lines[-1] |= {"predicted_tau": 2.0, "measured_tau": 1.9}
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 4, "lo')  # killed while writing
    ax = Figure().add_subplot()
    figures.plot_training(tmp_path, panel="loss", ax=ax)
    assert list(ax.lines[0].get_ydata()) == [1, 1 / 2, 1 / 3]
    figures.plot_training(tmp_path, ax=Figure().add_subplot())
    with pytest.raises(ValueError, match="has not recorded accuracy"):
        figures.plot_training(tmp_path, panel="accuracy")
    (tmp_path / "metrics.jsonl").write_text("no\n")
    with pytest.raises(ValueError, match="line 1: no record"):
        figures.plot_training(tmp_path)


def test_an_svg_figure_follows_the_reader() -> None:
    with figures.style():
        figure = Figure()
        specjax.plot_acceptance(TRACE, ax=figure.add_subplot())
    image = to_svg(figure)
    root = ET.fromstring(image)
    style = next(e.text or "" for e in root.iter() if e.tag.endswith("}style"))
    assert "prefers-color-scheme:dark" in style
    assert not re.findall(r"#[0-9a-f]{6}", image.replace(style, "")), "a colour of no palette"
    assert any("share accepted" in (e.text or "") for e in root.iter())  # text is text


def test_the_race_stands_still_and_runs(tmp_path: Path) -> None:
    ax = race_still.race_strip(TRACE, PLAIN, ax=Figure().add_subplot())
    told = [t.get_text() for t in ax.texts]
    assert told == ["34 ms, 588 tokens/s", "22 ms, 909 tokens/s"]
    path = tmp_path / "race.gif"
    race_still.race_gif(TRACE, PLAIN, path, seconds=0.4, fps=5, lines=4)
    image = pytest.importorskip("PIL.Image").open(path)
    assert image.n_frames >= 3
    assert "dflash, k = 4 finished first: 1.55x as fast" in str(specjax.race(TRACE, PLAIN))


def test_names_in_figures_are_no_formulas_and_not_hidden() -> None:
    with figures.style():
        figure = Figure()
        named = {r"_$\nope{$": TRACE, "$": TRACE}
        ax = specjax.plot_acceptance(named, ax=figure.add_subplot())
        loads = [figures.Load(name, 1, 100.0) for name in named]
        figures.plot_frontier(loads, ax=figure.add_subplot())
        figure.draw_without_rendering()
    told = [t.get_text() for t in ax.get_legend().get_texts()]
    assert any(r"_\$\nope{\$: tau" in t for t in told) and len(told) == 3


def test_pictures_are_imported_by_whoever_wants_one() -> None:
    assert specjax.plot_acceptance is figures.plot_acceptance
    assert "specjax.lab.view.html" in sys.modules
    with pytest.raises(AttributeError, match="plot_nothing"):
        specjax.plot_nothing  # noqa: B018
    assert [t.text for t in tokens(TRACE, 0, rejected=False)] == list(TRACE.texts[0].pieces)


def test_without_the_extra_one_line_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("matplotlib", "matplotlib.axes"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("figures", "acceptance"):
        monkeypatch.delitem(sys.modules, f"specjax.lab.view.{name}")
    with pytest.raises(ImportError, match=r"^specjax.plot_heat: matplotlib is.*'specjax\[lab\]'"):
        specjax.plot_heat(TRACE)
    with pytest.raises(SystemExit), needs_lab():
        importlib.import_module("specjax.lab.view.acceptance")
    assert re.fullmatch(r"error: matplotlib is not .*\[lab\].*\n", capsys.readouterr().err)
    with pytest.raises(ModuleNotFoundError, match="no_such"), needs_lab():
        importlib.import_module("no_such")
