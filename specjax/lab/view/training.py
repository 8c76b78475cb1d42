"""Training curves, from the metrics.jsonl of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from specjax.lab.view.style import canvas, grid, legend_above, literal
from specjax.runs import lines

# Panel -> fields of the records that it shows, with their names there.
PANELS = {
    "loss": {"loss": "training", "heldout_loss": "held out"},
    "accuracy": {"accuracy": "training"},
    "tau": {"predicted_tau": "predicted (replay)", "measured_tau": "measured (generation)"},
}


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The records of a run, a line each; a last line that was cut off by a kill is left out.

    Raises:
      ValueError: in one line, if the file is missing, holds no record, or a line is none.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        path = path / "metrics.jsonl"
    try:
        found = list(lines.scan(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as metrics of a run: {error}.") from None
    records = []
    for i, record in enumerate(found, 1):
        if record is None or not isinstance(record.get("step"), int):
            raise ValueError(f"{path}, line {i}: no record of a training run.")
        records.append(record)
    if not records:
        raise ValueError(f"{path} holds no record yet; train longer than log_every steps.")
    return records


def plot_training(
    run: str | Path | Sequence[Mapping[str, Any]], *, panel: str = "tau", ax: Axes | None = None
) -> Axes:
    """One panel of the curves of a training run against the step.

    Args:
      run: a working directory, its metrics.jsonl, or records.
      panel: "loss", "accuracy" or "tau" (committed tokens per target pass, the target's own
        included; predicted by replay, and measured by generation).
      ax: where to draw; None: a new figure.

    Raises:
      ValueError: for another panel, or if the run did not record what it shows.
    """
    if panel not in PANELS:
        raise ValueError(f"panel={panel!r}: there are {', '.join(PANELS)}.")
    records = read_metrics(run) if isinstance(run, str | Path) else list(run)
    curves = {
        name: [(r["step"], r[field]) for r in records if field in r]
        for field, name in PANELS[panel].items()
    }
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        raise ValueError(f"The run has not recorded {' or '.join(PANELS[panel])}.")
    with canvas(ax, (6.4, 2.9)) as (ax, palette):
        looks = zip(("-", "--"), (palette.own, palette.draft), ("o", "s"))
        for (name, points), (dash, colour, marker) in zip(curves.items(), looks):
            look: Any = {"ls": dash, "marker": marker if len(points) <= 40 else "", "ms": 4}
            told = f"{literal(name)}: {points[-1][1]:.3g} at the end"
            ax.plot(*zip(*points), color=colour, label=told, **look)
        ax.set_xlabel("step")
        ax.set_ylabel({"tau": "tau, tokens per target pass"}.get(panel, panel))
        if panel == "accuracy":
            ax.set_ylim(0, 1)
        grid(ax, palette)
        legend_above(ax)
    return ax
