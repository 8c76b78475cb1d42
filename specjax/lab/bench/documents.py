"""Documents whose numbers come from stored results: a template, and what stands between its lines.

A line of the template of one of these forms is replaced:

    <!-- results: NAME [KEY=VALUE ...] -->   the comparison table of NAME/metrics.json, of the cases
                                             with these values (temperature=0 batch=1 ...), and what
                                             must stand beside it
    <!-- predictions: NAME [KEY=VALUE ...] -->  measured and predicted speedups side by side
    <!-- rows: FILE.json PATH COLUMN,COLUMN:FORMAT,... -->  a list of objects in any JSON file

and within a line, ``{{FILE.json PATH FORMAT}}`` by one value. PATH is names and indices with dots
between them ("." is the whole file), FORMAT as of Python's ``format``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from specjax.lab.bench.outputs import remarks
from specjax.lab.bench.store import read_json
from specjax.lab.costs import predicted
from specjax.lab.view import escape
from specjax.lab.view.tables import table

_LINE = re.compile(r"<!-- (results|predictions|rows): (.*) -->")
_VALUE = re.compile(r"\{\{([^{}]*)\}\}")
_FILTERS = ("prompt_set", "drafter", "num_draft", "rule", "temperature", "batch", "mode")


def render(template: str, results: Path) -> str:
    """The document.

    Args:
      template: its text.
      results: the folder that names are relative to.

    Raises:
      ValueError: in one line that names the template's line, on what cannot be filled in.
    """
    lines = []
    for number, line in enumerate(template.split("\n"), 1):
        try:
            found = _LINE.fullmatch(line.strip())
            if found is not None:
                lines.append(_BLOCKS[found[1]](found[2].split(), results).rstrip("\n"))
            else:
                lines.append(_VALUE.sub(lambda m: value(m[1].split(), results), line))
        except ValueError as error:
            raise ValueError(f"template, line {number}: {error}") from None
    return "\n".join(lines)


def results_table(words: Sequence[str], results: Path) -> str:
    """The comparison table of a run, and its remarks."""
    summary, cases = _chosen(words, results)
    beside = remarks({**summary, "cases": cases, "pooled": ()})
    below = "".join(f"{escape.markdown(line)}  \n" for line in beside)
    return f"{table(cases, 'markdown')}\n{below}"


def predictions_table(words: Sequence[str], results: Path) -> str:
    """Each case's speedup: measured, predicted, and the one over the other."""
    _, cases = _chosen(words, results)
    rows = [
        {
            "drafter": case["drafter"],
            "k": case["num_draft"],
            "T": f"{case['temperature']:g}",
            "batch": case["batch"],
            "measured": f"{case['compare']['speedup']:.2f}x",
            "predicted": f"{told.speedup:.2f}x",
            "measured / predicted": f"{told.measured_over_predicted:.2f}",
            "by one alpha": f"{told.single_alpha_speedup:.2f}x",
        }
        for case in cases
        if (told := predicted.read(case)) and told.measured_over_predicted is not None
    ]
    if not rows:
        raise ValueError(f"{words[0]} has no case with a prediction.")
    return markdown(rows, [(name, "") for name in rows[0]])


def rows_table(words: Sequence[str], results: Path) -> str:
    """A list of objects of a JSON file."""
    if len(words) != 3:
        raise ValueError("rows takes a file, a path and columns.")
    rows = at(_read(results / words[0]), words[1])
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise ValueError(f"{words[0]} {words[1]} is no list of objects.")
    columns = [(c.partition(":")[0], c.partition(":")[2]) for c in words[2].split(",")]
    return markdown(rows, columns)


def value(words: Sequence[str], results: Path) -> str:
    """One value of a JSON file."""
    if len(words) not in (2, 3):
        raise ValueError("{{ }} takes a file, a path, and a format if need be.")
    return show(at(_read(results / words[0]), words[1]), words[2] if len(words) == 3 else "")


def markdown(rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str]]) -> str:
    """Rows as a table; of each column its name and format."""
    for name, _ in columns:
        if not any(name in row for row in rows):
            raise ValueError(f"no row has the column {name!r}.")
    lines = ["| " + " | ".join(name for name, _ in columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        cells = [escape.markdown(show(row.get(name), form)) for name, form in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def show(found: Any, form: str) -> str:
    """A value as text; nothing for None."""
    if found is None:
        return ""
    try:
        return format(found, form) if form else str(found)
    except (TypeError, ValueError):
        raise ValueError(f"{found!r} cannot be written as {form!r}.") from None


def at(found: Any, path: str) -> Any:
    """What lies at ``path``: names and indices with dots between them."""
    for part in path.split(".") if path != "." else ():
        try:
            found = found[int(part)] if isinstance(found, list) else found[part]
        except (KeyError, IndexError, TypeError, ValueError):
            raise ValueError(f"there is nothing at {path} (no {part!r}).") from None
    return found


def _chosen(words: Sequence[str], results: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A run's metrics.json and the cases that the filters leave."""
    summary = _read(results / words[0] / "metrics.json")
    cases = list(summary["cases"])
    for word in words[1:]:
        key, equals, wanted = word.partition("=")
        if not equals or key not in _FILTERS:
            raise ValueError(f"{word!r}: write KEY=VALUE, KEY one of {', '.join(_FILTERS)}.")
        cases = [c for c in cases if _label(c[key]) == wanted]
    if not cases:
        raise ValueError(f"no case of {words[0]} has {' '.join(words[1:])}.")
    return summary, cases


def _label(found: Any) -> str:
    return f"{found:g}" if isinstance(found, float) else str(found)


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such results.") from None


_BLOCKS: dict[str, Callable[[Sequence[str], Path], str]] = {
    "results": results_table,
    "predictions": predictions_table,
    "rows": rows_table,
}
