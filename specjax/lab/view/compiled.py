"""The report of experiments.compile in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console

from specjax.lab.records.compiled import (
    CompileReport,
    Conditional,
    CycleCost,
    PrefillCost,
    ProgramCost,
)
from specjax.lab.view.plain import table

_MEMORY = ("arguments", "outputs", "temporaries", "aliased", "code")


def show(console: Console, report: CompileReport) -> None:
    """Prints it."""
    setup = report.setup
    layers = f", {setup.layers} layers" if setup.layers else ""
    mesh = ", ".join(f"{axis}:{size}" for axis, size in report.mesh.items()) or "one device"
    console.print(
        f"\n{setup.target}{layers}, {setup.dtype}, drafter {setup.drafter}"
        f" (K = {report.num_draft}), rule {report.rule}, {setup.rows} rows of"
        f" {setup.slots} slots; {report.topology} ({report.device_kind}), {mesh}",
        soft_wrap=True,
    )
    _show_programs(console, report.programs)
    of = "" if report.hbm_bytes is None else f" of {report.hbm_bytes / 1e6:,.0f} MB"
    most = max(p.peak_bytes for p in report.programs.values())
    console.print(
        f"{len(report.programs_of_a_generation)} programs a generation; at most"
        f" {most / 1e6:,.0f} MB{of} a device.\n"
    )
    _show_prefills(console, report.prefills, setup.context)
    _show_cycle(console, report.cycle)


def _show_programs(console: Console, programs: Mapping[str, ProgramCost]) -> None:
    kinds = _MEMORY if all(p.memory for p in programs.values()) else ()
    rows = [
        (
            *(name, f"{p.seconds.total:.1f}"),
            *(f"{getattr(p.memory, kind) / 1e6:,.0f}" for kind in kinds),
            f"{p.peak_bytes / 1e6:,.0f}",
        )
        for name, p in programs.items()
    ]
    console.print(table(("program, MB", "s", *kinds, "peak"), rows))


def _show_prefills(console: Console, prefills: Mapping[str, PrefillCost], context: int) -> None:
    """Prints what each prefill pass costs against what it cannot do without."""
    if not prefills:
        return
    rows = [
        (
            f"{name.removeprefix('prefill ')}",
            f"{p.tokens}",
            *(f"{p.bytes / 1e6:,.0f}", f"{p.bytes_over_floor:.2f}"),
            *(f"{p.flops / 1e9:,.1f}", f"{p.flops_over_floor:.2f}"),
            *(f"{p.kernels}", f"{p.cache_copies}"),
            f"{sum(found.count for found in p.collectives.values())}",
        )
        for name, p in prefills.items()
    ]
    header = ("prefill", "tokens", "MB", "x floor", "GFLOP", "x floor", "kernels", "copies", "sums")
    console.print(table(header, rows))
    console.print(
        f"Passes of all rows behind {context} tokens each, on one device. x floor: over the least"
        " that feeding must move and compute. copies: of caches; sums: collectives.\n",
        soft_wrap=True,
    )


def _show_cycle(console: Console, cycle: CycleCost) -> None:
    """Prints what a cycle costs, and what is not known of that."""
    header = ("a cycle, on one device", "", "floor", "over it")
    rows = ([*row, "", "", ""][: len(header)] for row in _of_cycle(cycle))
    console.print(table(header, rows))
    _show_branches(console, cycle.conditionals)
    if cycle.xla_bytes_accessed is not None:
        console.print(
            f"XLA's own count, which takes a buffer that is updated in place for read and written"
            f" whole, is {cycle.xla_bytes_accessed / 1e6:,.0f} MB for the program.",
            soft_wrap=True,
        )
    for line in cycle.unknown:
        console.print(f"[dim]not known: {line}[/dim]", soft_wrap=True)


def _of_cycle(cycle: CycleCost) -> Iterator[tuple[str, ...]]:
    """The rows: name, figure, floor, and how often the figure is the floor."""
    for way, moved in (("read", cycle.bytes_read), ("written", cycle.bytes_written)):
        for kind in ("weights", "caches", "rest"):  # not "near"
            if moved.get(kind):
                yield f"{kind} {way}, MB", f"{moved[kind] / 1e6:,.1f}"
    for name, unit, figure, floor, over in (
        ("bytes, MB", 1e6, cycle.bytes, cycle.floor.bytes, cycle.bytes_over_floor),
        ("GFLOP", 1e9, cycle.flops, cycle.floor.flops, cycle.flops_over_floor),
    ):
        yield name, f"{figure / unit:,.1f}", f"{floor / unit:,.1f}", f"{over:.2f}"
        if name == "bytes, MB" and cycle.near_bytes:
            yield "temporaries that fit into L2, MB", f"{cycle.near_bytes / 1e6:,.1f}"
    if (kernels := cycle.kernels) is not None:
        yield "kernels", f"{kernels.total}"
        for scope, number in kernels.by_scope.items():
            yield f"  {scope}", f"{number}"
        if kernels.a_layer is not None:
            yield "  a layer of the target's pass", f"{kernels.a_layer:.1f}"
    for kind, found in cycle.collectives.items():
        yield kind, f"{found.count}", "", f"{found.bytes / 1e6:,.2f} MB"
    yield "copies of caches", f"{cycle.cache_copies}"
    yield "caches joined with a block", f"{cycle.cache_joins}"
    yield "prefetches of caches", f"{cycle.cache_prefetches}"
    yield "copies of weights", f"{cycle.weight_copies}"


def _show_branches(console: Console, conditionals: Sequence[Conditional]) -> None:
    """Prints what each branch of each conditional costs, where there are any."""
    if not conditionals:
        return
    rows = [
        (
            f"{index} of conditional {number}"
            + (f", counted {one.times} times" if index == one.counted else ""),
            *(f"{branch.bytes / 1e6:,.1f}", f"{branch.flops / 1e9:,.1f}"),
            *(f"{branch.kernels}", f"{branch.cache_copies + branch.weight_copies}"),
        )
        for number, one in enumerate(conditionals, 1)
        for index, branch in enumerate(one.branches)
    ]
    console.print(table(("a branch, one run", "MB", "GFLOP", "kernels", "copies"), rows, words=5))


def show_comparison(console: Console, figures: Sequence[tuple[str, float, float]]) -> None:
    """Prints (name, before, after) as rows of a Markdown table, and which rose: less is better."""
    console.print("\n| figure | before | after | |\n| --- | --- | --- | --- |")
    for name, before, after in figures:
        change = f"{after / before - 1:+.2%}" if before else ""
        word = "" if after == before else f"{'WORSE' if after > before else 'less'} {change}"
        console.print(f"| {name} | {before:.4g} | {after:.4g} | {word.strip()} |")


def show_depth(console: Console, figures: Mapping[str, float]) -> None:
    """Prints what the layers that were not compiled add, figures by their names."""
    rows = [(name.replace("_", " "), f"{figure:,.4g}") for name, figure in figures.items()]
    console.print(table(("all layers, on one device", ""), rows))
