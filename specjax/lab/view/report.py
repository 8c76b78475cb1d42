"""The report of a benchmark: one page that explains, shows and defines what was measured.

Made of the result directory alone, without model, network or scripts of others. Numbers stand in
it as metrics.json has them; figures are SVG that follows light and dark, and files of their own.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specjax.core.files import write_atomically
from specjax.lab.costs import predicted
from specjax.lab.costs.explain import explain
from specjax.lab.view import marks
from specjax.lab.view.cases import (
    best_of,
    is_plain,
    is_synthetic,
    series_name,
    setting_key,
    setting_of,
    speedup_of,
)
from specjax.lab.view.gallery import Picture, costs_of, longest_row, pictures
from specjax.lab.view.headline import headline
from specjax.lab.view.html import SCRIPT, STYLE, coloured, document, legend
from specjax.lab.view.palette import MONO
from specjax.lab.view.race import check_race, race
from specjax.lab.view.result import Result, from_traces, read_results
from specjax.lab.view.style import save, to_svg
from specjax.lab.view.tables import table
from specjax.trace.metrics import METRICS
from specjax.trace.trace import Trace

TEXTS_SHOWN = 3

PAGE_STYLE = f"""
.rp{{max-width:1000px;margin:0 auto;padding:40px 24px 80px;font-size:15px;line-height:1.6}}
.rp h1{{font-size:30px;line-height:1.2;letter-spacing:-.02em;margin:0 0 4px;font-weight:700}}
.rp h2{{font-size:19px;letter-spacing:-.01em;margin:52px 0 12px;padding-top:16px;
 border-top:1px solid var(--line)}}
.rp h3{{font-size:15px;margin:28px 0 2px}}
.rp p{{margin:0 0 10px;max-width:72ch}}
.rp .sub{{color:var(--muted);margin:0 0 24px}}
.rp .lead{{font-size:18px;line-height:1.5;margin:0 0 14px}}
.rp ul{{margin:0 0 10px;padding-left:20px;max-width:72ch}}
.rp .why{{color:var(--ink)}}
.rp .banner{{background:var(--warning-ground);border-left:4px solid var(--draft);padding:12px 16px;
 border-radius:0 6px 6px 0;margin:0 0 20px}}
.rp .banner p{{margin:0 0 2px}}
.rp .tiles{{display:grid;grid-template-columns:repeat(auto-fill,minmax(158px,1fr));gap:12px;
 margin:22px 0}}
.rp .tile{{background:var(--panel);border:1px solid var(--line);border-radius:8px;
 padding:12px 14px}}
.rp .tile b{{display:block;font-size:24px;line-height:1.25;letter-spacing:-.02em;font-weight:680;
 font-variant-numeric:tabular-nums}}
.rp .tile span{{color:var(--muted);font-size:12.5px;line-height:1.35;display:block}}
.rp .wide{{overflow-x:auto;border:1px solid var(--line);border-radius:8px;margin:0 0 10px}}
.rp table{{border-collapse:collapse;width:100%;font-size:13px;line-height:1.4;
 font-variant-numeric:tabular-nums}}
.rp th{{text-align:left;font-weight:600;color:var(--muted);padding:7px 12px;white-space:nowrap}}
.rp td{{padding:6px 12px;border-top:1px solid var(--line);white-space:nowrap}}
.rp .num{{text-align:right}}
.rp tr.g th{{background:var(--panel);color:var(--ink);border-top:1px solid var(--line)}}
.rp .iv{{color:var(--muted);font-size:11.5px}}
.rp td b{{color:var(--accepted)}}
.rp figure{{margin:26px 0 0}}
.rp .svg{{overflow-x:auto}}
.rp figure svg{{display:block;width:100%;max-width:760px;min-width:440px;height:auto}}
.rp figcaption{{font-size:13px;color:var(--muted);max-width:72ch;margin:6px 0 0}}
.rp .cap{{font-size:13px;color:var(--muted)}}
.rp dl{{display:grid;grid-template-columns:max-content 1fr;gap:4px 18px;font-size:13px;margin:0}}
.rp dt{{font-family:{MONO};font-size:12.5px;overflow-wrap:anywhere}}
.rp dd{{margin:0;color:var(--muted);overflow-wrap:anywhere}}
.rp .rc{{margin-top:12px}}
@media(max-width:640px){{.rp{{padding:24px 16px 60px}}.rp h1{{font-size:24px}}
 .rp dl{{grid-template-columns:1fr;gap:0}}.rp dd{{margin:0 0 8px}}}}
@media print{{.rp .bar,.rp .lg label{{display:none}}.rp figure,.rp .tiles{{break-inside:avoid}}}}
"""


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
    target = result.run.get("target", "")
    name = target.get("name", "") if isinstance(target, Mapping) else target
    title = f"Speculative decoding{f': {name}' if name else ''}"
    figures = "".join(_figure(picture, svg) for picture, svg in drawn)
    parts = [
        f"<header><h1>{html.escape(title)}</h1>{_subtitle(result)}</header>",
        _lead(result),
        _banner(result),
        _tiles(result),
        f"<h2>Comparison</h2>{_table(result)}",
        _why(result),
        f"<h2>Figures</h2>{figures}" if figures else "",
        _race(result),
        _texts(result),
        f"<h2>Setup</h2>{_setup(result.run)}",
        _definitions(),
    ]
    body = f'<main class="sj rp"><style>{STYLE}{PAGE_STYLE}</style>{"".join(parts)}'
    return document(title, f"{body}<script>{SCRIPT}</script></main>")


def _subtitle(result: Result) -> str:
    run = result.run
    parts = [str(run[k]) for k in ("device", "dtype") if run.get(k)]
    if run.get("num_prompts"):
        parts.append(f"{run['num_prompts']} prompts")
    if run.get("prompts_sha256"):
        parts.append(f"prompts {str(run['prompts_sha256'])[:12]}")
    return f'<p class="sub">{html.escape(" · ".join(parts))}</p>' if parts else ""


def _lead(result: Result) -> str:
    """What the run says first; the best cell comes behind the pooled row."""
    first, *more = headline(result.cases, result.pooled)
    below = "".join(f"<p>{html.escape(line)}</p>" for line in more)
    return f'<p class="lead">{html.escape(first)}</p>{below}'


def _banner(result: Result) -> str:
    found = marks.marks(result.run, [*result.pooled, *result.cases])
    if not found:
        return ""
    kinds = {mark.kind for mark in found}
    head = "What to know before these numbers are used:"
    if marks.Kind.SYNTHETIC in kinds:
        head = "Acceptance was forced: the text is not the model's."
    if marks.Kind.INVALID in kinds:
        head = "These numbers are not valid."
    told = "".join(f"<p>{html.escape(line)}</p>" for line in marks.lines(found))
    return f'<div class="banner" role="note"><p><b>{html.escape(head)}</b></p>{told}</div>'


def _why(result: Result) -> str:
    """Why the best cell is as fast as it is, where costs were calibrated."""
    best = result.best
    costs = None if best is None else costs_of(result, best)
    if best is None or costs is None:
        return ""
    device, kind = str(result.run.get("device", "")), best.get("family")
    try:
        told = explain(
            best["metrics"], costs, speedup=speedup_of(best), device=device, family=kind
        ).text
    except ValueError as error:  # not all that it needs was calibrated
        return f'<p class="cap">{html.escape(f"Not explained: {error}")}</p>'
    made, items = "", ""
    for line in [*told.split("\n"), ""]:
        if line.startswith("  - "):
            items += f"<li>{html.escape(line[4:])}</li>"
            continue
        made += f"<ul>{items}</ul>" if items else ""
        made += f"<p>{html.escape(line)}</p>" if line else ""
        items = ""
    head = f"Why {series_name(best)} is as fast as it is ({setting_of(best)}, the best cell)"
    return f'<h2>{html.escape(head)}</h2><div class="why">{made}</div>'


def _tiles(result: Result) -> str:
    """The figures of the row that the page begins with."""
    rows = result.pooled or result.cases
    row = best_of(rows)
    if row is None or (not result.pooled and len({setting_key(c) for c in rows}) > 1):
        return ""
    found, speedup, told = row["metrics"], speedup_of(row), predicted.read(row)
    plain = next((c for c in rows if is_plain(c)), None)
    tiles = []
    if speedup is not None:
        tiles.append((f"{speedup:.2f}x", "speedup over plain decoding, prefill left out"))
    tiles.append((f"{found['tau']:.2f}", "tau: committed tokens per target pass, its own included"))
    if found.get("tpot_ms"):
        per = "tokens/s a row"
        if plain is not None and plain["metrics"].get("tpot_ms"):
            per += f"; plain {1e3 / plain['metrics']['tpot_ms']:,.0f}"
        tiles.append((f"{1e3 / found['tpot_ms']:,.0f}", per))
    if told is not None and told.measured_over_predicted is not None:
        ratio = f"{told.measured_over_predicted:.2f}"
        tiles.append((ratio, "measured over predicted speedup; below 0.9 is overhead"))
    exact = (row.get("compare") or {}).get("exact_match")
    if exact is not None:
        tiles.append((f"{exact:.0%}", "of the texts equal plain decoding's, token for token"))
    cells = "".join(
        f'<div class="tile"><b>{html.escape(b)}</b><span>{html.escape(s)}</span></div>'
        for b, s in tiles
    )
    name = html.escape(series_name(row))
    return f'<p class="cap">{name}, over all prompts:</p><div class="tiles">{cells}</div>'


def _table(result: Result) -> str:
    everything = {"pooled": result.pooled, "cases": result.cases}
    return (
        f'<div class="wide">{table(everything, "html")}</div>'
        '<p class="cap">tau: committed tokens per target pass, the target\'s own included, pooled. '
        "Speedup: ratio of times per token, pooled, prefill left out. In brackets: 95 % bootstrap "
        "intervals over requests (of pooled rows: over prompts). Bold: the best of its group. "
        "tokens/s: of each user.</p>"
    )


def _figure(picture: Picture, svg: str) -> str:
    return (
        f'<figure><h3>{html.escape(picture.title)}</h3><div class="svg">{svg}</div>'
        f"<figcaption>{html.escape(picture.caption)}</figcaption></figure>"
    )


def _race(result: Result) -> str:
    """The best case against plain decoding, where both have times."""
    best = result.best
    plain = None if best is None else result.plain_of(best)
    if best is None or plain is None:
        return ""
    ours, theirs = (result.traces.get(c["name"]) for c in (best, plain))
    if ours is None or theirs is None:
        return ""
    row = longest_row(theirs.rows)
    try:
        check_race(ours, theirs, row)
    except ValueError:
        return ""
    return (
        "<h2>Race</h2><p>Both on one clock, replayed from the recorded time of every cycle; "
        f"prefill is part of it. Request {row} of the best cell.</p>{race(ours, theirs, row).body}"
    )


def _texts(result: Result) -> str:
    best = result.best
    trace = None if best is None else result.traces.get(best["name"])
    if best is None or trace is None or not trace.rows:
        return ""
    rows = _spread_rows(trace)
    texts = "".join(f'<div class="row">{coloured(trace, r, label=True)}</div>' for r in rows)
    note = " The acceptance was forced: this is not the model's text." * is_synthetic(best)
    return (
        f"<h2>Text</h2><p>Of the best cell, {html.escape(series_name(best))}. Point at a token for "
        f"its probabilities, rank and time.{note}</p>{legend()}{texts}"
    )


def _spread_rows(trace: Trace) -> list[int]:
    """A few rows, of different categories where there are such."""
    seen: dict[str, int] = {}
    for b, text in enumerate(trace.texts):
        seen.setdefault(text.category, b)
    rows = list(seen.values())
    rows += [b for b in range(len(trace.rows)) if b not in rows]
    return sorted(rows[:TEXTS_SHOWN])


def _setup(run: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>" for key, value in _flat(run)
    )
    return f"<dl>{rows}</dl>" if rows else "<p>The run says nothing about its setup.</p>"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
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


def _definitions() -> str:
    rows = "".join(
        f"<dt>{html.escape(key)}</dt><dd>{html.escape(f'[{unit}] ' if unit else '')}"
        f"{html.escape(what)}</dd>"
        for key, (unit, what) in METRICS.items()
    )
    return (
        "<h2>Definitions</h2><p>As the columns of results.csv have them. A cycle drafts k "
        "guesses, has the target verify them in one pass, and commits the accepted ones and one "
        f"token of the target's own.</p><dl>{rows}</dl>"
    )
