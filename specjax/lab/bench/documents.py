"""Documents whose numbers come from stored results: Jinja templates with a few functions.

    {{ results("NAME", temperature=0, batch=1) }}   the comparison table of NAME/metrics.json, of
                                                    the cases with these values, and remarks
    {{ predictions("NAME") }}                       measured and predicted speedups side by side
    {{ rows("FILE.json", "PATH", "a,b.c:.2f") }}    columns of a list of objects in any JSON file
    {{ value("FILE.json", "PATH", ".2f") }}         one value
    {{ depths("FOLDER") }}                          compile reports on some layers, for all of them
    {{ checked_depths("FOLDER") }}                  the same over reports on all layers
    {{ commands("FOLDER") }}                        what makes those reports
    {{ pods("FILE.json") }}                         plans of experiments.plan --topology
    {{ training("FILE.json") }}                     those of experiments.plan --training

PATH is names and indices with dots between them ("." is the whole file); a format is one of
Python's ``format``.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from specjax.core.files import write_atomically
from specjax.core.options import keywords, option
from specjax.lab.bench import depths
from specjax.lab.bench.outputs import remarks
from specjax.lab.records import codec
from specjax.lab.records.case import Case
from specjax.lab.records.peer import PeerReport
from specjax.lab.records.planned import PodPlan, TrainingPlan
from specjax.lab.records.run import Run, load_summary
from specjax.lab.view import escape, grid, peer, planned
from specjax.lab.view.grid import Cell, Column, Grid, Group
from specjax.lab.view.headline import ends
from specjax.lab.view.tables import table

_FILTERS = ("prompt_set", "drafter", "num_draft", "rule", "temperature", "batch", "mode")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is filled in, and where."""

    template: str = option("docs/benchmarks.in.md", "What to fill in.")
    results: str = option("docs/results", "Where the numbers are.")
    output: str = option("docs/benchmarks.md", "The document.", file="")
    check: bool = option(False, "Writes nothing, and says whether it would.")


@keywords(Options)
def benchmark_docs(options: Options) -> str:
    """Writes the document, and returns it.

    Raises:
      ValueError, OSError: in one line, on what cannot be filled in, or is not as it should be.
    """
    template, output = Path(options.template), Path(options.output)
    text = document(template, Path(options.results))
    if not options.check:
        write_atomically(output, text)
    elif not output.exists() or output.read_text(encoding="utf-8") != text:
        raise ValueError(
            f"{output} is not what {template} and {options.results} make: edit those, and run "
            "python -m experiments.benchmark_docs."
        )
    return text


def document(template: Path, results: Path) -> str:
    """The filled-in text, with a note for who would edit it."""
    note = f"<!-- Made of {template.name} by experiments.benchmark_docs: edit that. -->\n\n"
    return note + render(template.read_text(encoding="utf-8"), results)


@dataclasses.dataclass(frozen=True)
class Results:
    """The folder that names are relative to; its methods are what a template may call."""

    folder: Path

    def results(self, name: str, **wanted: Any) -> str:
        """The comparison table of a run, and its remarks."""
        run, cases = self._chosen(name, wanted)
        below = "".join(f"{escape.markdown(line)}  \n" for line in remarks(run, cases))
        return f"{table(cases, 'markdown')}\n{below}".rstrip("\n")

    def predictions(self, name: str, **wanted: Any) -> str:
        """Each case's speedup: measured, predicted, and the one over the other."""
        rows = [
            {
                "drafter": case.drafter,
                "k": case.num_draft,
                "T": f"{case.temperature:g}",
                "batch": case.batch,
                "measured": f"{case.speedup:.2f}x",
                "predicted": f"{told.speedup:.2f}x",
                "measured / predicted": f"{told.measured_over_predicted:.2f}",
                "by one alpha": f"{told.single_alpha_speedup:.2f}x",
            }
            for case in self._chosen(name, wanted)[1]
            if (told := case.predicted) is not None and told.measured_over_predicted is not None
        ]
        if not rows:
            raise ValueError(f"{name} has no case with a prediction.")
        return _markdown(rows, [(column, "") for column in rows[0]])

    def lengths(self, name: str, **wanted: Any) -> str:
        """Each case's tau by the length of the text, with its interval and cycles."""
        made: list[dict[str, str]] = []
        for case in self._chosen(name, wanted)[1]:
            told = lambda d: f"{d.tau:.2f}{ends(d.interval)}, {d.cycles:,} cycles"
            steps = {f"{d.low:,} to {d.high - 1:,}": told(d) for d in case.depths}
            if steps:
                made.append({"drafter": case.drafter, "k": f"{case.num_draft}", **steps})
        if not made:
            raise ValueError(f"{name} has no case with texts of several lengths.")
        columns = dict.fromkeys(column for row in made for column in row)
        return _markdown(made, [(column, "") for column in columns])

    def rows(self, file: str, path: str, columns: str) -> str:
        """A list of objects of a JSON file."""
        found = _at(self._read(file), path)
        if not isinstance(found, list) or not all(isinstance(r, dict) for r in found):
            raise ValueError(f"{file} {path} is no list of objects.")
        named = (column.partition(":") for column in columns.split(","))
        return _markdown(found, [(name, form) for name, _, form in named])

    def value(self, file: str, path: str, form: str = "") -> str:
        """One value of a JSON file."""
        return _show(_at(self._read(file), path), form)

    def depths(self, folder: str) -> str:
        """What whole targets would cost, of reports on some of their layers."""
        return _table(list(depths.rows(self.folder / folder)))

    def checked_depths(self, folder: str) -> str:
        """The same over what reports on whole targets say."""
        return _table(list(depths.checked(self.folder / folder)))

    def commands(self, folder: str) -> str:
        """What makes the reports of a folder, indented as code."""
        found = (program.command for program in depths.programs(self.folder / folder))
        return "\n".join(f"    {line}" for line in dict.fromkeys(found))

    def peer(self, file: str) -> str:
        """A row a contender, and the step against the memory floor."""
        report = codec.from_json(PeerReport, self._read(file), file)
        rates = _table([dict(zip(peer.COLUMNS, row)) for row in peer.rates(report)])
        lines = [f"{d}: {line}" for d in report.costs for line in peer.costs(report, d)]
        return "\n".join([rates, "", *(f"    {line}" for line in lines)])

    def pods(self, file: str) -> str:
        """Plans for devices that are not here."""
        made = [codec.from_json(PodPlan, x, file) for x in self._read(file)]
        return _table([dict(zip(planned.COLUMNS, line)) for line in planned.lines(made)])

    def training(self, file: str) -> str:
        """Plans of training for devices that are not here."""
        made = [codec.from_json(TrainingPlan, x, file) for x in self._read(file)]
        lines = planned.training_lines(made)
        return _table([dict(zip(planned.TRAINING_COLUMNS, line)) for line in lines])

    def _chosen(self, name: str, wanted: Mapping[str, Any]) -> tuple[Run, list[Case]]:
        """A run and those of its cases that the filters leave."""
        if not (self.folder / name / "metrics.json").exists():
            raise ValueError(f"{self.folder / name}: no such results.")
        summary = load_summary(self.folder / name / "metrics.json")
        told = " ".join(f"{key}={value}" for key, value in wanted.items())
        if not wanted.keys() <= set(_FILTERS):
            raise ValueError(f"{told!r}: write KEY=VALUE, KEY one of {', '.join(_FILTERS)}.")
        cases = [c for c in summary.cases if all(getattr(c, k) == v for k, v in wanted.items())]
        if not cases:
            raise ValueError(f"no case of {name} has {told}.")
        return summary.run, cases

    def _read(self, file: str) -> Any:
        try:
            return codec.read_file(self.folder / file)
        except FileNotFoundError:
            raise ValueError(f"{self.folder / file}: no such results.") from None


def render(template: str, folder: Path) -> str:
    """The document of a template's text, with names relative to ``folder``.

    Raises:
      ValueError: in one line that names the template's line, on what cannot be filled in.
    """
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    found = Results(folder)
    names = [name for name in vars(Results) if not name.startswith("_") and name != "folder"]
    try:
        made = environment.from_string(template)
        return made.render({name: getattr(found, name) for name in names})
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"template, line {error.lineno}: {error}") from None
    except (ValueError, TypeError, jinja2.TemplateError) as error:
        lines = traceback.extract_tb(error.__traceback__)
        number = [x.lineno for x in lines if x.filename == "<template>"][-1]
        raise ValueError(f"template, line {number}: {error}") from None


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """All columns of rows."""
    return _markdown(rows, [(name, "") for name in (rows[0] if rows else {})])


def _markdown(rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str]]) -> str:
    """Rows as a table; of each column its name and format."""
    for name, _ in columns:
        if not any(name.partition(".")[0] in row for row in rows):
            raise ValueError(f"no row has the column {name!r}.")

    def cell(row: Mapping[str, Any], name: str, form: str) -> Cell:
        first, _, rest = name.partition(".")
        found = row.get(first)
        return Cell(_show(_at(found, rest) if rest else found, form))

    cells = [tuple(cell(row, name, form) for name, form in columns) for row in rows]
    made = Grid(tuple(Column(name) for name, _ in columns), (Group("", tuple(cells)),))
    return grid.markdown(made).rstrip("\n")


def _show(found: Any, form: str) -> str:
    """A value as text; nothing for None."""
    if found is None:
        return ""
    try:
        return format(found, form) if form else str(found)
    except (TypeError, ValueError):
        raise ValueError(f"{found!r} cannot be written as {form!r}.") from None


def _at(found: Any, path: str) -> Any:
    """What lies at ``path``: names and indices with dots between them."""
    for part in path.split(".") if path != "." else ():
        try:
            found = found[int(part)] if isinstance(found, list) else found[part]
        except (KeyError, IndexError, TypeError, ValueError):
            raise ValueError(f"there is nothing at {path} (no {part!r}).") from None
    return found
