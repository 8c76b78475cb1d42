"""Plans for devices that are not here, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from specjax.lab.records.planned import Planned, PodPlan, TrainingPlan

COLUMNS = (
    *("topology", "rows", "mesh", "memory, GB", "fits", "plain, MB", "cycle, MB"),
    *("sums a cycle", "sent, MB", "plain, ms", "cycle, ms", "tau to beat", "plain tok/s"),
)


def row(topology: str, one: Planned) -> tuple[str, ...]:
    """A line of the table."""
    return (
        *(
            topology,
            f"{one.rows}",
            _mesh(one.mesh),
            f"{one.need / 1e9:.1f} of {one.memory / 1e9:.0f}",
        ),
        "yes" if one.fits else "no",
        *(f"{one.plain.bytes / 1e6:,.0f}", f"{one.cycle.bytes / 1e6:,.0f}"),
        *(f"{one.cycle.sums:.0f}", f"{one.cycle.sent / 1e6:,.1f}"),
        *(f"{one.plain.seconds * 1e3:.2f}", f"{one.cycle.seconds * 1e3:.2f}"),
        *(f"{one.break_even:.2f}", f"{one.plain_rate:,.0f}"),
    )


def _mesh(sizes: Mapping[str, int]) -> str:
    return ",".join(f"{axis}:{size}" for axis, size in sizes.items() if size > 1) or "one device"


def lines(plans: Sequence[PodPlan]) -> Iterator[tuple[str, ...]]:
    """One for each mesh, and for each number of rows that no mesh is for."""
    for made in plans:
        yield from (row(made.topology, one) for one in made.found)
        for rows in made.without:
            yield (made.topology, f"{rows}", "none divides", *["-"] * (len(COLUMNS) - 3))


TRAINING_COLUMNS = (
    *("topology", "texts", "mesh", "held, GB", "holds", "TFLOP", "exchanged, GB"),
    *("step, s", "texts/s", "tokens/s"),
)


def training_lines(plans: Sequence[TrainingPlan]) -> Iterator[tuple[str, ...]]:
    """One for each mesh, and for each number of texts that no mesh is for."""
    for made in plans:
        for one in made.found:
            rate = one.texts / one.seconds
            yield (
                *(made.topology, f"{one.texts}", _mesh(one.mesh)),
                *(f"{one.need / 1e9:.1f} of {one.memory / 1e9:.0f}", "yes" if one.fits else "no"),
                *(f"{sum(one.flops.values()) / 1e12:.1f}", f"{one.sent / 1e9:.1f}"),
                *(f"{one.seconds:.3f}", f"{rate:.1f}", f"{rate * made.setup.seq_len:,.0f}"),
            )
        for texts in made.without:
            yield (made.topology, f"{texts}", "none divides", *["-"] * (len(TRAINING_COLUMNS) - 3))


def text(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in lines: words on the left, numbers on the right."""
    every = [tuple(columns), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*every)]
    words = {columns.index(name) for name in ("topology", "mesh")}
    return [
        "  ".join(
            cell.ljust(w) if n in words else cell.rjust(w)
            for n, (cell, w) in enumerate(zip(line, widths))
        ).rstrip()
        for line in every
    ]
