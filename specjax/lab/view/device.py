"""The device benchmark in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from specjax.lab.records.device import ContextTime, DeviceReport, DeviceTraining, TrainingReport
from specjax.lab.view.plain import table

GOAL = 0.85  # share of the copy bandwidth that plain decoding should reach


def show(console: Console, found: DeviceReport, *, taus: Sequence[str], minutes: float) -> None:
    """Prints everything; speeds of drafters for each assumed tau."""
    say = lambda line: console.print(line, soft_wrap=True)
    say(
        f"\n{found.shape}, {found.dtype}, batch 1, {found.slots} slots on {found.device},"
        f" jax {found.jax}; weights {found.weight_bytes / 1e9:.2f} GB, drawn in"
        f" {found.init_seconds:.1f} s"
    )
    if found.copy_bandwidth is not None and found.product_bandwidth is not None:
        say(
            f"copy {found.copy_bandwidth / 1e9:.0f} GB/s (reads plus writes), one large"
            f" product {found.product_bandwidth / 1e9:.0f} GB/s"
        )
    plain = found.plain
    rows = [
        (
            *name.split(),
            f"{1e3 * p.seconds:.3f}",
            f"{p.seconds / plain.seconds:.2f}" if plain else "",
            *(f"{s:.1f}" for s in (p.trace_seconds, p.lower_seconds, p.compile_seconds)),
            f"{p.temp_bytes / 1e6:.1f}",
            f"{p.loop_copies} of {p.all_copies}",
        )
        for name, p in found.programs.items()
    ]
    header = ("loop", "k", "ms/cycle", "x step", "trace s", "lower s", "compile s", "temp MB")
    console.print(table((*header, "cache copies"), rows, words=2))
    console.print("cache copies: in the body of the loop, of those in the whole program.")
    if found.share_of_copy_bandwidth is not None:
        _show_step(console, found)
    if found.drafters:
        _show_drafters(console, found, taus)
    if found.contexts:
        _show_contexts(console, found.contexts)
    if found.training is not None:
        say(_training(found.training))
    for name in found.skipped:
        console.print(f"left out after {minutes:g} minutes: {name}")


def _show_step(console: Console, found: DeviceReport) -> None:
    """The plain step against the floor."""
    say = lambda line: console.print(line, soft_wrap=True)
    assert found.plain and found.copy_bandwidth and found.share_of_copy_bandwidth
    step, needed, share = found.plain.seconds, found.needed_bytes, found.share_of_copy_bandwidth
    word = "[green]PASS[/green]" if share >= GOAL else "[red]FAIL[/red]"
    say(
        f"{word} plain decoding reads {needed / step / 1e9:.0f} GB/s, {share:.0%} of the copy"
        f" bandwidth (goal {GOAL:.0%}): floor {1e3 * needed / found.copy_bandwidth:.3f} ms,"
        f" step {1e3 * step:.3f} ms, {1 / step:.1f} tokens/s"
    )
    products, whole = found.products_seconds, found.pass_seconds
    if products is None or whole is None:
        return
    say(
        f"of the step: matrix products {1e3 * products:.3f} ms; attention, norms and"
        f" rotation {1e3 * (whole - products):.3f} ms; verdict, commits and the loop"
        f" {1e3 * (step - whole):.3f} ms"
    )
    unused = found.cache_bytes_all_slots - found.cache_bytes
    say(
        f"reading the unused slots too would take {1e3 * unused / found.copy_bandwidth:.3f}"
        " ms at the copy bandwidth"
    )


def _show_contexts(console: Console, contexts: Sequence[ContextTime]) -> None:
    """Passes behind texts of several lengths, over that of the shortest."""
    first = {c.num_draft: c.seconds for c in reversed(contexts) if len(set(c.lengths)) == 1}
    rows = [
        (
            f"{c.num_draft}",
            f"{len(c.lengths)} of {c.lengths[0]}"
            if len(set(c.lengths)) == 1
            else f"1 of {c.lengths[0]}, {len(c.lengths) - 1} of {c.lengths[1]}",
            f"{c.slots}",
            f"{1e3 * c.seconds:.3f}",
            f"{c.seconds / first[c.num_draft]:.2f}",
        )
        for c in contexts
    ]
    header = ("k", "tokens in the caches", "slots", "ms/cycle", "x the first")
    console.print(table(header, rows, words=2))


def _show_drafters(console: Console, found: DeviceReport, taus: Sequence[str]) -> None:
    """Cycles of the drafters, and the speedup that each tau would give."""
    rows = [
        (
            name,
            f"{1e3 * d.seconds:.3f}",
            *(f"{x:.2f}" for x in (d.plain_steps, d.share, d.ideal_share)),
        )
        for name, d in found.drafters.items()
    ]
    console.print(table(("drafter", "ms/cycle", "x step", "speedup/tau", "ideal"), rows, words=5))
    console.print("ideal: if reading weights were all that takes time.")
    for name, d in found.drafters.items():
        speeds = [(t, float(t) / d.seconds, float(t) * d.share) for t in taus]
        rates = "; ".join(f"{t}: {rate:,.0f} ({gain:.2f}x)" for t, rate, gain in speeds)
        console.print(f"{name}, tokens/s at an assumed tau of {rates}", soft_wrap=True)


def _training(t: DeviceTraining) -> str:
    """Steps of DFlash training, in a sentence."""
    share = "" if t.share_of_peak is None else f", {t.share_of_peak:.0%} of the bf16 peak"
    peak = "" if t.peak_bytes is None else f", {t.peak_bytes / 1e9:.1f} GB at the peak"
    return (
        f"training DFlash, {t.rows} x {t.seq_len} tokens, {t.anchors} anchors:"
        f" {t.tokens_per_s or 0:,.0f} tokens/s, {(t.flops_per_s or 0) / 1e12:.0f} TFLOP/s{share};"
        f" temporaries {t.temporary_bytes / 1e9:.1f} GB, weights and moments"
        f" {t.argument_bytes / 1e9:.1f} GB{peak}"
    )


def show_training(console: Console, report: TrainingReport) -> None:
    """The training benchmark, a row a setting."""
    rows = [
        (
            *(f"{r.vocab:,}", str(r.anchors)),
            *(f"{b / 2**20:,.0f} MiB" for b in (r.temporary_bytes, r.argument_bytes)),
            "-" if r.tokens_per_s is None else f"{r.tokens_per_s:,.0f}",
            "-" if r.flops_per_s is None else f"{r.flops_per_s / 1e12:.3f} TFLOP/s",
        )
        for r in report.results
    ]
    header = ("vocabulary", "anchors", "temporaries", "weights, moments", "tokens/s", "arithmetic")
    console.print(table(header, rows, words=6))
