"""The report of `experiments.benchmark_peer` as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.benchmarking.contest import Contest


def print_rates(console: Console, contest: Contest, report: Mapping[str, Any]) -> None:
    """One row a contender."""
    table = Table(box=None)
    table.add_column("contender", no_wrap=True)
    for column in ("tokens/s", "ms/token", "tau", "x plain", "text"):
        table.add_column(column, justify="right")
    for group in report["names"].values():
        plain = group["specjax plain"]
        for name in group.values():
            rate, difference = contest.rate(name), report["texts"][name]
            same = "equal"
            if difference is not None:
                same = f"{difference[0] + 1}: {difference[1] + 1}"
            table.add_row(
                name,
                f"{rate:.1f}",
                f"{1e3 / rate:.2f}",
                f"{contest.tau(name):.2f}",
                f"{contest.ratio(name, plain).median:.2f}",
                same,
            )
    console.print(table)
    console.print(
        "x plain: over specjax plain of the type; text: equal to its text, or prompt: token of the"
        " first difference.",
        soft_wrap=True,
    )


def print_costs(console: Console, contest: Contest, report: Mapping[str, Any]) -> None:
    """The step against the memory floor, per type."""
    for dtype, cost in report["costs"].items():
        plain = report["names"][dtype]["specjax plain"]
        floor, step = cost["floor_seconds"], cost["step"]
        per_token = 1 / contest.rate(plain)
        ceilings = cost["bandwidth"]
        large = ceilings["256 MiB"]
        console.print(
            f"\n[bold]{dtype}[/bold] a step reads {cost['weight_bytes'] / 1e6:.1f} MB of weights"
            f" and {cost['cache_bytes'] / 1e6:.2f} MB of cache; measured ceiling"
            f" {max(ceilings['model_size'].values()) / 1e9:.1f} GB/s at this size,"
            f" {max(large.values()) / 1e9:.1f} GB/s at 256 MiB",
            soft_wrap=True,
        )
        console.print(
            f"  floor {1e3 * floor:.2f} ms/token, step {1e3 * step:.2f} ms: distance"
            f" {step / floor:.2f}x; whole request {1e3 * per_token:.2f} ms/token:"
            f" {per_token / floor:.2f}x",
            soft_wrap=True,
        )
        console.print(
            f"  of the step: matrix products {1e3 * cost['products']:.2f} ms, the model pass"
            f" {1e3 * cost['pass']:.2f} ms; host loop {1e3 * cost['host_loop_step']:.2f} ms",
            soft_wrap=True,
        )
        verify = ", ".join(f"v({k}) = {s / step:.2f}" for k, s in cost["verify"].items())
        console.print(
            f"  in plain steps: {verify}; a draft step c = {cost['draft_cost']:.3f}", soft_wrap=True
        )
        for name, sweep in report["sweeps"][dtype].items():
            rates = "  ".join(
                f"{k}: {r['tokens_per_second']:.0f} ({r['tau']:.2f})" for k, r in sweep.items()
            )
            console.print(f"  {name}, k: tokens/s (tau)  {rates}", soft_wrap=True)


def print_verdicts(console: Console, report: Mapping[str, Any]) -> None:
    """PASS or FAIL, a line an expectation."""
    console.print("\n[bold]expectations[/bold] (median of ratios within a round, quartiles)")
    for v in report["expectations"]:
        word = "[green]PASS[/green]" if v["passed"] else "[red]FAIL[/red]"
        low, high = v["quartiles"]
        console.print(
            f"  {word} {v['ratio']:.2f} ({low:.2f} to {high:.2f}), at least {v['least']:.1f}:"
            f" {v['what']}  [dim]{v['of'][0]} / {v['of'][1]}[/dim]",
            soft_wrap=True,
        )
    failed = sum(not v["passed"] for v in report["expectations"])
    console.print(f"  {len(report['expectations']) - failed} met, {failed} not met")
    before, after = report["load_before"][0], report["load_after"][0]
    console.print(f"  load {before:.1f} before, {after:.1f} after")
