"""The benchmark against Transformers in a terminal."""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp
from rich.console import Console

from specjax.lab.records.peer import LARGE, OWN, PeerReport
from specjax.lab.view.plain import table


def warn_of_load(console: Console, load: float) -> None:
    """Says so if others use the machine."""
    if load > 0.5:
        console.print(
            f"note: the load is {load:.1f} before anything runs here: other processes will distort"
            " every figure.",
            soft_wrap=True,
        )


def show(console: Console, report: PeerReport) -> None:
    """A row a contender, the step against the memory floor, and what was expected."""
    made = table(COLUMNS, rates(report))
    made.columns[0].no_wrap = True
    console.print(made)
    console.print(
        "x plain: over specjax plain of the type; text: equal to its text, or prompt: token of the"
        " first difference.",
        soft_wrap=True,
    )
    for dtype in report.costs:
        console.print(f"\n[bold]{dtype}[/bold]")
        for line in costs(report, dtype):
            console.print(f"  {line}", soft_wrap=True)
    for line in _verdicts(report):
        console.print(line, soft_wrap=True)


COLUMNS = ("contender", "tokens/s", "ms/token", "tau", "x plain", "text")


def rates(report: PeerReport) -> Iterator[tuple[str, ...]]:
    """A row a contender."""
    for dtype, group in report.names.items():
        plain = report.results[report.plain(dtype)]
        for name in group.values():
            found, at = report.results[name], report.texts[name]
            yield (
                name,
                f"{found.tokens_per_second:.1f}",
                f"{1e3 / found.tokens_per_second:.2f}",
                f"{found.tau:.2f}",
                f"{found.over(plain).median:.2f}",
                "equal" if at is None else f"{at[0] + 1}: {at[1] + 1}",
            )


def costs(report: PeerReport, dtype: str) -> Iterator[str]:
    """The step against the memory floor."""
    cost = report.costs[dtype]
    floor, step = cost.floor_seconds, cost.step
    per_token = 1 / report.results[report.plain(dtype)].tokens_per_second
    own, large = (cost.bandwidth[size].best / 1e9 for size in (OWN, LARGE))
    yield (
        f"a step reads {cost.weight_bytes / 1e6:.1f} MB of weights"
        f" and {cost.cache_bytes / 1e6:.2f} MB of cache; measured ceiling"
        f" {own:.1f} GB/s at this size, {large:.1f} GB/s at 256 MiB"
    )
    yield (
        f"floor {1e3 * floor:.2f} ms/token, step {1e3 * step:.2f} ms: distance"
        f" {step / floor:.2f}x; whole request {1e3 * per_token:.2f} ms/token:"
        f" {per_token / floor:.2f}x"
    )
    yield (
        f"of the step: matrix products {1e3 * cost.products[1]:.2f} ms, the model pass"
        f" {1e3 * cost.whole_pass:.2f} ms; host loop {1e3 * cost.host_loop_step:.2f} ms"
    )
    for tokens, seconds in cost.products.items():
        rate = cost.weight_bytes / seconds / 1e9
        yield (
            f"products of {tokens}-token passes: {1e3 * seconds:.2f} ms, {rate:.1f} GB/s of"
            f" weights, {tokens * rate / jnp.dtype(dtype).itemsize:.0f} billion products a second"
        )
    verify = ", ".join(f"v({k}) = {s / step:.2f}" for k, s in cost.verify.items())
    yield f"in plain steps: {verify}; a draft step c = {cost.draft_cost:.3f}"
    for name, sweep in report.sweeps[dtype].items():
        rates = (f"{k}: {r.tokens_per_second:.0f} ({r.tau:.2f})" for k, r in sweep.items())
        yield f"{name}, k: tokens/s (tau)  {'  '.join(rates)}"


def _verdicts(report: PeerReport) -> Iterator[str]:
    """PASS or FAIL, a line an expectation."""
    yield "\n[bold]expectations[/bold] (median of ratios within a round, quartiles)"
    for v in report.expectations:
        word = "[green]PASS[/green]" if v.passed else "[red]FAIL[/red]"
        low, high = v.quartiles
        yield (
            f"  {word} {v.ratio:.2f} ({low:.2f} to {high:.2f}), at least {v.least:.1f}:"
            f" {v.what}  [dim]{v.of[0]} / {v.of[1]}[/dim]"
        )
    failed = sum(not v.passed for v in report.expectations)
    yield f"  {len(report.expectations) - failed} met, {failed} not met"
    yield f"  load {report.load_before[0]:.1f} before, {report.load_after[0]:.1f} after"
