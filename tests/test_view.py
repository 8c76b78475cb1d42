"""Pictures: they say what the trace says, to every reader, and let no text steer a page."""

from __future__ import annotations

import csv
import dataclasses
import html.parser
import io
import itertools
import json
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import made_traces
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from matplotlib.figure import Figure
from rich.console import Console
from scripts import script

import specjax
from experiments import cli
from specjax.measure import metrics, trace_file
from specjax.measure.cost_model import predict
from specjax.measure.trace import BONUS, CORRECTION, Trace
from specjax.view import escape, figures, palette, race_still, svg, tables
from specjax.view.heat import by_class, rolling_tau
from specjax.view.html import CLASSES
from specjax.view.palette import DARK, LIGHT
from specjax.view.report import page, report_traces, write_report
from specjax.view.result import from_traces, read_results
from specjax.view.style import colours, to_svg
from specjax.view.text import show_text
from specjax.view.tokens import lay_out, tokens, visible

TRACE, PLAIN = made_traces.speculative(), made_traces.plain()


class Reader(html.parser.HTMLParser):
    """The text of a page: of elements by class, and what is struck out."""

    def __init__(self, page: str):
        super().__init__()
        self.stack: list[tuple[str, list[str]]] = []
        self.found: list[tuple[list[str], str]] = []  # of each .tk: its classes and its text
        self.tags: set[str] = set()
        self.feed(page)
        self.close()
        assert not self.stack, f"left open: {self.stack}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag in ("meta", "input", "br"):
            return
        classes = (dict(attrs).get("class") or "").split()
        self.stack.append((tag, classes))
        if "tk" in classes or "pr" in classes:
            self.found.append((classes, ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack.pop()[0] == tag, tag

    def handle_data(self, data: str) -> None:
        if any({"tk", "pr"} & set(classes) for _, classes in self.stack):
            classes, text = self.found[-1]
            self.found[-1] = (classes, text + data)


def body(page: str) -> str:
    return page[page.index('class="row"') :]


def test_the_page_holds_each_piece_once_and_escaped() -> None:
    shown_page = str(specjax.show(TRACE, 0))
    for bad in ("<script>alert", "<!--", "\x1b", "http"):  # the last: no network
        assert bad not in shown_page
    reader = Reader(shown_page)
    shown = [(c, t) for c, t in reader.found if t != "abc"]  # the legend's
    prompt, *rest = shown
    assert prompt == (["pr"], made_traces.PROMPT)
    kept = [(c, t) for c, t in rest if "r" not in c]
    assert [t for _, t in kept] == [visible(p) for p in TRACE.texts[0].pieces]
    assert [c[1] for c, _ in kept] == [CLASSES[label] for label in TRACE.labels(0)]
    rejected = sum(len(c.proposed) - c.accepted for c in TRACE.rows[0])
    assert len(rest) - len(kept) == rejected
    # The first rejected guess stands before the token that took its place.
    order = ["".join(c[1]) for c, _ in rest][:12]
    assert order[:6] == ["a", "a", "a", "a", "b", "r"] and "c" in order
    assert f"tau {TRACE.tau:.2f}" in shown_page
    assert "committed tokens per target pass, the target's own included" in shown_page
    assert TRACE._repr_html_().count('class="row"') == len(TRACE.rows)
    # Without a style sheet, as where notebooks are looked at, indentation stays: all is in <pre>.
    for whole, many in ((shown_page, 1), (str(specjax.race(TRACE, PLAIN)), 2)):
        bare = re.sub(r"<style>.*?</style>|<pre .*?</pre>", "", whole, flags=re.S)
        assert whole.count('<pre class="tx">') == many and "pr" not in re.findall(
            r'class="(\w+)', bare
        )


def test_hovering_tells_what_the_trace_knows() -> None:
    first = re.search(r'title="([^"]*)"', body(str(specjax.show(TRACE, 0))))
    assert first is not None
    assert first[1].split("\n") == [
        "accepted guess: guess 1 of 4",
        "position 5 · cycle 1 · token 100",
        "p 0.75 (target) · q 1 (draft)",
        "rank 1 in the target&#x27;s order",
        "after 0.012 s",
    ]
    bare = dataclasses.replace(
        TRACE, rows=tuple(tuple(dataclasses.replace(c, detail=None) for c in r) for r in TRACE.rows)
    )
    assert "p 0." not in str(specjax.show(bare, 0))
    numbers = Trace(TRACE.rows)  # no texts at all: ids stand for them
    assert "⟨100⟩" in str(specjax.show(numbers, 0))


def test_the_terminal_shows_the_same() -> None:
    out = io.StringIO()
    show_text(TRACE, Console(file=out), row=0, rejected=True)
    text = out.getvalue()
    taus = [sum(c.committed for c in row) / len(row) for row in TRACE.rows]
    assert "~~<wrong 904>" in text and f"tau {taus[0]:.2f}" in text
    for row, tau in enumerate(taus):  # the figures are those of what is shown
        assert f'<span class="big">tau {tau:.2f}</span>' in str(specjax.show(TRACE, row))
    assert f'<span class="big">tau {TRACE.tau:.2f}</span>' in str(specjax.show(TRACE))
    plain = io.StringIO()
    show_text(TRACE, Console(file=plain), row=0)
    stripped = re.sub("[«»⟦⟧]", "", plain.getvalue())
    assert made_traces.PROMPT + "".join(TRACE.texts[0].pieces) in stripped


def test_the_svg_of_the_text_is_well_formed_and_whole() -> None:
    image = svg.text_svg(TRACE, 0)
    root = ET.fromstring(image)
    texts = [e.text or "" for e in root.iter() if e.tag.endswith("}text") and e.get("textLength")]
    shown = "".join(texts).replace("abc", "")
    want = visible(made_traces.PROMPT + "".join(TRACE.texts[0].pieces))
    assert "".join(shown.split()) == "".join(want.split())
    assert "prefers-color-scheme" in image and "script>" not in image.replace("/script&gt;", "")
    with pytest.raises(ValueError, match="width=3"):
        svg.text_svg(TRACE, 0, width=3)


def test_layout_keeps_columns() -> None:
    assert lay_out(["ab\n", "\tc", "日本語"], 8) == [
        [(0, 0, "ab")],
        [(1, 0, "    c")],
        [(1, 5, "日"), (2, 0, "本語")],
    ]


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


def test_tables_agree_in_every_format() -> None:
    traces = {"plain": PLAIN, "d|f_l": TRACE}
    tau, speedup = TRACE.tau, metrics.compare(TRACE, PLAIN)["speedup"]
    markdown = specjax.table(traces, "markdown").splitlines()
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in markdown if line.startswith("|")]
    assert len({len(r) for r in rows}) == 1 and len(rows) == 4
    assert rows[3][0].strip() == r"d\|f\_l"
    assert rows[3][3].strip().startswith(f"**{tau:.2f} [") and f"{speedup:.2f}x" in rows[3][6]
    latex = specjax.table(traces, "latex")
    assert r"d\textbar{}f\_l" in latex and rf"\textbf{{{tau:.2f} [" in latex
    body_lines = [
        line for line in latex.splitlines() if line.endswith(r"\\") and "multi" not in line
    ]
    assert {line.count("&") for line in body_lines} == {6}  # no case has a prediction
    assert "predicted" not in latex
    (first, second) = csv.DictReader(io.StringIO(specjax.table(traces, "csv")))
    assert first["drafter"] == "none" and float(second["tau"]) == tau
    assert float(second["speedup"]) == speedup
    assert [float(second[f"survival_{i}"]) for i in range(1, 5)] == TRACE.survival()
    out = io.StringIO()
    Console(file=out, width=200).print(specjax.table(traces))
    assert f"{tau:.2f} [" in out.getvalue() and "d|f_l" in out.getvalue()
    assert f"<b>{tau:.2f}</b>" in specjax.table(traces, "html")


def test_what_is_unknown_has_no_column() -> None:
    """Plain decoding has no rate of acceptance, so no interval of it; the other case has one."""
    text = specjax.table({"plain": PLAIN, "d": TRACE}, "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert "interval_accept_rate_1" in rows[0] and "interval_accept_rate" not in rows[0]
    empty = [name for name in rows[0] if not any(row[name] for row in rows)]
    assert not [name for name in empty if "interval" in name]


@pytest.mark.parametrize(("speedup", "bold"), [(1.25, True), (1.0, False), (0.8, False)])
def test_a_speedup_that_is_none_is_never_the_best(speedup: float, bold: bool) -> None:
    plain, ours = tables.cases_of({"plain": PLAIN, "a": TRACE})
    changed = {**ours, "compare": {**ours["compare"], "speedup": speedup}}
    (group,) = tables.groups([plain, changed])
    assert [row[6].best for row in group.rows] == [False, bold]
    assert (f"**{speedup:.2f}x" in specjax.table([plain, changed], "markdown")) is bold


def test_a_forced_acceptance_is_never_the_best() -> None:
    ours = tables.cases_of({"plain": PLAIN, "a": TRACE})[1]
    forced = {**ours, "name": "b", "mode": "synthetic"}
    best = {**forced, "metrics": {**forced["metrics"], "tau": 9.0}}
    (group,) = tables.groups([ours, best])
    assert [row[3].best for row in group.rows] == [True, False]
    assert "synthetic" in group.rows[1][0].text


def test_figures_hold_the_numbers() -> None:
    def drawn(draw, **kwargs):  # type: ignore[no-untyped-def]
        with figures.style(**kwargs):
            ax = Figure().add_subplot()
            assert draw(ax) is ax
        return ax

    ax = drawn(lambda ax: specjax.plot_acceptance(made_traces.speculative(rows=1), ax=ax))
    assert [p.get_height() for p in ax.patches] == TRACE.survival()
    dots = next(line for line in ax.lines if line.get_marker() == "o")
    assert list(dots.get_ydata()) == metrics.figures(TRACE)["conditional"]

    curve = predict(TRACE.survival(), made_traces.costs(), range(1, 5))
    runs = {4: TRACE, 2: made_traces.speculative((2, 0, 1, 2, 2, 1, 2, 2), k=2)}
    ax = drawn(lambda ax: specjax.plot_speedup(runs, PLAIN, prediction=curve, ax=ax))
    lines = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
    assert len(curve.speedup) == 4
    assert lines["predicted"] == list(curve.speedup)
    assert lines["single alpha"] == list(curve.single_alpha_speedup)
    want = [metrics.compare(runs[k], PLAIN)["speedup"] for k in (2, 4)]
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


def test_reports_of_directories_and_of_traces(tmp_path: Path) -> None:
    """That of the directory is written with all figures, the others as pages alone."""
    a = made_traces.result_directory(tmp_path / "a", compiles=1)
    whole = write_report(a).read_text()
    Reader(whole)
    assert "1 programs were compiled behind" in whole and "These numbers are not valid" in whole
    assert "Speedup if one factor were perfect" in whole  # explained in words
    assert all(key in whole for key in metrics.METRICS)
    assert {p.suffix for p in (a / "figures").iterdir()} == {".png", ".svg"}
    b = made_traces.result_directory(tmp_path / "b")
    both = page(read_results([a, b]), [])
    assert "dflash (a)" in both and "dflash (b)" in both
    c = made_traces.result_directory(tmp_path / "c", prompts="cd" * 32)
    with pytest.raises(ValueError, match=r"not comparable: their rendered prompts.*abab.*cdcd"):
        write_report([a, c])
    alone = page(from_traces({"plain": PLAIN, "dflash": TRACE}), [])
    assert "2.00x" in alone and "Race" in alone


HOSTILE = "=cmd|' /C'!A0\n`x` <b>*[a](http://x)*</b> \x1b[31m[red]"


def test_names_are_shown_and_never_obeyed() -> None:
    """In every format: a name that is a formula, markup, HTML, or steers a terminal."""
    ours = tables.cases_of({"plain": PLAIN, "a": TRACE})[1]
    case = {**ours, "name": "-1+1", "drafter": HOSTILE, "prompt_set": "\t@sum", "rule": "1.5"}
    (row,) = csv.DictReader(io.StringIO(specjax.table([case], "csv")))
    assert row["name"] == "'-1+1" and row["drafter"] == f"'{HOSTILE}"
    assert row["prompt_set"] == "'\t@sum" and row["rule"] == "1.5"
    assert float(row["speedup"]) == case["compare"]["speedup"]
    lines = [x for x in specjax.table([case], "markdown").splitlines() if x.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {
        len(tables.filled(tables.groups([case]))) + 1
    }
    assert r"\`x\` \<b>\*[a\](http://x)\*\</b>" in lines[-1] and "\x1b" not in lines[-1]
    latex = specjax.table([case], "latex")
    assert "textless{}b" in latex and latex.count("\n") == 8
    page = specjax.table([case], "html")
    assert "&lt;b&gt;" in page and "<b>*" not in page
    out = io.StringIO()
    Console(file=out, width=200).print(specjax.table([case]))
    assert "[red]" in out.getvalue() and "\x1b" not in out.getvalue()


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


def test_numbers_stay_numbers() -> None:
    for number in (-1.5, 0, True, None):
        assert escape.csv_cell(number) is number
    for text in ("=1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1", " =1", "\uff1d1", "a\tb"[1:]):
        assert escape.csv_cell(text) == "'" + text
    for text in ("a=1", "1-2", "demo:dflash", ""):
        assert escape.csv_cell(text) == text


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: specjax.show(TRACE, 2), "row=2: the trace has 2 rows"),
        (lambda: specjax.plot_acceptance(PLAIN), "Nothing was guessed"),
        (lambda: specjax.plot_speedup({4: TRACE}), "needs the trace of plain decoding"),
        (lambda: specjax.plot_speedup({}), "No runs"),
        (lambda: specjax.plot_timeline(TRACE, first=99), "first=99"),
        (lambda: specjax.plot_heat(TRACE, window=0), "window=0"),
        (lambda: specjax.race(TRACE, Trace(PLAIN.rows[:1]), 1), "row=1"),
        (lambda: specjax.race(TRACE, Trace(PLAIN.rows)), "another prompt"),
        (lambda: specjax.table({}), "No cases"),
        (lambda: specjax.table([{"name": "x"}]), "Case x has no 'drafter'"),
        (lambda: specjax.table({"a": PLAIN}, "word"), "format='word'"),
        (lambda: figures.plot_frontier([]), "No measured speeds"),
        (lambda: write_report("/nowhere"), "no such file; name the directory"),
        (lambda: report_traces({}, "/tmp"), "No traces"),
    ],
)
def test_bad_input_is_one_line(draw, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        draw()
    assert "\n" not in str(error.value)


def test_the_script_refuses_in_one_line_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = tmp_path / "cut.jsonl"
    trace_file.save(TRACE, cut)
    cut.write_text("\n".join(cut.read_text().splitlines()[:4]) + "\n")
    with script("report") as module:
        # What is drawn is tested above.
        monkeypatch.setattr(module, "report_traces", lambda traces, output: list(traces))
        for arguments, told in (
            ((), "name either --run directories or --trace files"),
            (("--run=/nowhere",), "no such file; name the directory of a complete benchmark"),
            (("--run=a", "--plain=b"), "--plain goes with --trace"),
            ((f"--trace={cut}",), "--trace needs --output"),
            ((f"--trace={cut}", "--output=x"), "was cut"),
        ):
            status, _, err = run_script(module, capsys, *arguments)
            assert status == 2 and told in err and err.count("\n") == 1
        good = [tmp_path / f"{name}.jsonl" for name in ("plain", "dflash")]
        for path, trace in zip(good, (PLAIN, TRACE)):
            trace_file.save(trace, path)
        given = (f"--trace={good[1]}", f"--plain={good[0]}", "--output=x")
        assert run_script(module, capsys, *given)[:2] == (0, "['plain', 'dflash']\n")


def run_script(
    module: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """(exit status, stdout, stderr)"""
    status = 0
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        try:
            cli.parse(["report", *arguments])
            module.main([])
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            flags.FLAGS.mark_as_parsed()
    out, err = capsys.readouterr()
    return status, out, err


def test_pictures_are_imported_by_whoever_wants_one() -> None:
    assert specjax.plot_acceptance is figures.plot_acceptance
    assert "specjax.view.html" in sys.modules
    with pytest.raises(AttributeError, match="plot_nothing"):
        specjax.plot_nothing  # noqa: B018
    assert [t.text for t in tokens(TRACE, 0, rejected=False)] == list(TRACE.texts[0].pieces)
