"""The report of a benchmark: one page that explains, shows and defines what was measured.

Made of the result directory alone, without model, network or scripts of others. Numbers stand in
it as metrics.json has them; figures are SVG that follows light and dark, and files of their own.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from specjax.core.files import write_atomically
from specjax.lab.costs.explain import explain
from specjax.lab.records.codec import to_json
from specjax.lab.records.run import Run
from specjax.lab.view import marks
from specjax.lab.view.cases import best_of, series_name, setting_key, setting_of
from specjax.lab.view.gallery import Picture, costs_of, longest_row, pictures
from specjax.lab.view.headline import headline
from specjax.lab.view.html import render
from specjax.lab.view.race import Race, race_of
from specjax.lab.view.result import Result, from_traces, read_results
from specjax.lab.view.show import row_of
from specjax.lab.view.style import save, to_svg
from specjax.lab.view.tables import table
from specjax.trace.metrics import METRICS
from specjax.trace.trace import Trace

TEXTS_SHOWN = 3


def write_report(
    directory: str | Path | Sequence[str | Path], *, output: str | Path | None = None
) -> Path:
    """Writes report.html and figures/ from a result directory.

    Args:
      directory: of a complete benchmark, or several of the same prompts.
      output: the directory to write to; None: the (first) result directory.

    Returns:
      The path of report.html.

    Raises:
      ValueError: in one line, if a directory holds no result, a file is damaged, or the rendered
        prompts of two directories differ.
      OSError: if it cannot be written.
    """
    directories = [directory] if isinstance(directory, str | Path) else list(directory)
    result = read_results(directories)
    return write(result, Path(output or directories[0]).expanduser())


def report_traces(traces: Mapping[str, Trace], output: str | Path) -> Path:
    """Writes the same of traces alone, by name; the one that guesses nothing is plain decoding.

    Raises:
      ValueError: in one line, where the traces cannot be compared.
      OSError: if it cannot be written.
    """
    return write(from_traces(traces), Path(output).expanduser())


def write(result: Result, output: Path) -> Path:
    """Writes report.html and figures/ into ``output``; returns the former's path."""
    shown = pictures(result)
    (output / "figures").mkdir(parents=True, exist_ok=True)
    drawn = []
    for picture in shown:
        figure = picture.figure()
        image = to_svg(figure)
        write_atomically(output / "figures" / f"{picture.name}.svg", image)
        save(figure, output / "figures" / f"{picture.name}.png")
        save(picture.figure(dark=True), output / "figures" / f"{picture.name}_dark.png")
        drawn.append((picture, image))
    path = output / "report.html"
    write_atomically(path, page(result, drawn))
    return path


def page(result: Result, drawn: Sequence[tuple[Picture, str]]) -> str:
    """The whole report."""
    name = "" if result.run.target is None else result.run.target.name
    return render(
        "report",
        title=f"Speculative decoding{f': {name}' if name else ''}",
        subtitle=_subtitle(result.run),
        lead=headline(result),
        banner=_banner(result),
        tiles=_tiles(result),
        table=Markup(table(result, "html")),
        why=_why(result),
        pictures=[(picture, Markup(svg)) for picture, svg in drawn],
        race=_race(result),
        texts=_texts(result),
        setup=_flat(to_json(result.run)),
        metrics=METRICS,
    )


def _subtitle(run: Run) -> str:
    parts = [told for told in (run.device, run.dtype) if told]
    if run.num_prompts:
        parts.append(f"{run.num_prompts} prompts")
    if run.prompts_sha256:
        parts.append(f"prompts {run.prompts_sha256[:12]}")
    return " · ".join(parts)


def _banner(result: Result) -> dict[str, Any] | None:
    """What must stand beside the numbers, below the gravest of it."""
    found = marks.marks(result.run, result.rows)
    kinds = {mark.kind for mark in found}
    head = "What to know before these numbers are used:"
    if marks.Kind.SYNTHETIC in kinds:
        head = "Acceptance was forced: the text is not the model's."
    if marks.Kind.INVALID in kinds:
        head = "These numbers are not valid."
    return {"head": head, "lines": marks.lines(found)} if found else None


def _why(result: Result) -> dict[str, Any] | None:
    """Why the best cell is as fast as it is, where costs were calibrated."""
    best = result.best
    costs = None if best is None else costs_of(result, best)
    if best is None or costs is None:
        return None
    device = result.run.device
    try:
        told = explain(
            best.metrics,
            costs,
            speedup=best.speedup,
            device=device,
            family=best.family,
            experts=best.experts,
        ).text
    except ValueError as error:  # not all that it needs was calibrated
        return {"missing": str(error)}
    lines = [line for line in told.split("\n") if line]
    parts = [
        (listed, [line.removeprefix("  - ") for line in group])
        for listed, group in itertools.groupby(lines, key=lambda line: line.startswith("  - "))
    ]
    return {"missing": "", "name": series_name(best), "setting": setting_of(best), "parts": parts}


def _tiles(result: Result) -> dict[str, Any] | None:
    """The figures of the row that the page begins with."""
    rows = result.pooled or result.cases
    row = best_of(rows)
    if row is None or (not result.pooled and len({setting_key(c) for c in rows}) > 1):
        return None
    found, speedup, told = row.metrics, row.speedup, row.predicted
    plain = next((c for c in rows if c.is_plain), None)
    tiles = []
    if speedup is not None:
        tiles.append((f"{speedup:.2f}x", "speedup over plain decoding, prefill left out"))
    if found.tau is not None:
        what = "tau: committed tokens per target pass, its own included"
        tiles.append((f"{found.tau:.2f}", what))
    if found.tpot_ms:
        per = "tokens/s a row"
        if plain is not None and plain.metrics.tpot_ms:
            per += f"; plain {1e3 / plain.metrics.tpot_ms:,.0f}"
        tiles.append((f"{1e3 / found.tpot_ms:,.0f}", per))
    if told is not None and told.measured_over_predicted is not None:
        ratio = f"{told.measured_over_predicted:.2f}"
        tiles.append((ratio, "measured over predicted speedup; below 0.9 is overhead"))
    exact = None if row.compare is None else row.compare.exact_match
    if exact is not None:
        tiles.append((f"{exact:.0%}", "of the texts equal plain decoding's, token for token"))
    return {"name": series_name(row), "numbers": tiles}


def _race(result: Result) -> Race | None:
    """The best case against plain decoding, where both have times."""
    best = result.best
    plain = None if best is None else result.plain_of(best)
    if best is None or plain is None:
        return None
    ours, theirs = (result.traces.get(c.name) for c in (best, plain))
    if ours is None or theirs is None:
        return None
    with contextlib.suppress(ValueError):
        return race_of(ours, theirs, longest_row(theirs.rows))
    return None


def _texts(result: Result) -> dict[str, Any] | None:
    best = result.best
    trace = None if best is None else result.traces.get(best.name)
    if best is None or trace is None or not trace.rows:
        return None
    rows = [row_of(trace, r) for r in _spread_rows(trace)]
    return {"name": series_name(best), "forced": best.is_synthetic, "rows": rows}


def _spread_rows(trace: Trace) -> list[int]:
    """A few rows, of different categories where there are such."""
    seen: dict[str, int] = {}
    for b, text in enumerate(trace.texts):
        seen.setdefault(text.category, b)
    rows = list(seen.values())
    rows += [b for b in range(len(trace.rows)) if b not in rows]
    return sorted(rows[:TEXTS_SHOWN])


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Names and values, those inside others behind a dot; what says nothing is left out."""
    found = []
    for key, value in values.items():
        if key in ("cases", "invalid_because"):
            continue
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key}.")
        elif value not in (None, "", [], ()):
            told = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            found.append((prefix + key, told))
    return found
