"""Trees of guesses through the whole cycle: every memory, penalties, records and pictures."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import tiny
import tiny_families
from checks import STEPS
from test_decode import OPTIONS
from told import TREE, told

import specjax
from specjax import decode
from specjax.core import trees
from specjax.lab.view.tokens import tokens
from specjax.trace import trace_file
from specjax.trace.metrics import figures
from specjax.trace.trace import BONUS, CORRECTION, Cycle, Trace

SEEDS = [3, 1, 4, 1]


def spoken(target: specjax.Model, **options: object) -> specjax.Output:
    """What a tree of known texts makes of them; the texts are those of plain decoding."""
    prompts = tiny.prompts(4)
    kwargs = {"max_new_tokens": STEPS, "seed": SEEDS, "rule": "coupled", **options}
    want = specjax.generate(target, None, prompts, **kwargs).tokens
    drafter = told(prompts, want, target.config.vocab_size)
    out = specjax.generate(target, drafter, prompts, details=True, **kwargs)
    assert out.tokens == want
    return out


@pytest.mark.parametrize("kind", tiny_families.KINDS)
def test_paths_are_kept_by_every_memory(kind: str) -> None:
    """Any path, of any length: the text is plain decoding's, greedy and sampled."""
    out = spoken(tiny_families.model(kind), temperature=[0.0, 1.0, 0.0, 1.0])
    ends = {c.path for c in out.trace}
    assert len(ends) >= 7
    assert 2.0 < out.tau < 4.0


@functools.cache
def penalised() -> specjax.Output:
    return spoken(tiny.model(), **OPTIONS)


def test_penalties_follow_ancestors() -> None:
    assert penalised().trace.num_cycles < 4 * STEPS / 2


def test_records_of_trees() -> None:
    trace = penalised().trace
    assert trace.setup["parents"] == list(TREE) and trace.setup["num_draft"] == len(TREE)
    for c in trace:
        assert c.parents == TREE and c.accepted == len(c.path) and c.detail is not None
        route = trees.routes(TREE)[c.last][1 : c.accepted + 1]
        assert tuple(route - 1) == c.path
        n = min(c.committed, c.accepted)
        assert tuple(c.proposed[i] for i in c.path)[:n] == c.emitted[:n]
        # Of an accepted guess p is noted twice: as that of the guess, and of the token.
        p = [c.detail.p[i] for i in c.path][:n]
        np.testing.assert_allclose(p, c.detail.p_emitted[:n], rtol=1e-5)
        if c.committed > c.accepted:
            has_children = c.last in TREE
            assert c.labels[-1] == (CORRECTION if has_children else BONUS)
    assert len(trace.survival()) == trees.num_levels(TREE) == 3
    found = figures(trace)
    assert list(found.survival) == trace.survival() and found.num_draft == len(TREE)
    assert found.alpha_hat == sum(c.accepted for c in trace) / sum(c.decided for c in trace)
    assert found.conditional[2] >= found.survival[2]


def test_empty_places_are_no_guesses() -> None:
    """Nor is what follows them; the rest of the tree is renumbered."""

    def array(*values: int) -> np.ndarray:
        return np.array([[values]])

    record = decode.Record(
        notes=array(5, -1, 7, 8, 9, 6, 4, 3, 2, 3, 5),  # the guesses, accepted, committed, leaf
        details=None,
        parents=TREE,
    )
    (cycle,) = Trace.from_device(record, np.array([[5, 9, 1]]), 1)
    # Guess 1 is none, so neither guess 5 nor 7 behind it is one; 6 follows guess 3.
    assert cycle.proposed == (5, 7, 8, 9, 4) and cycle.parents == (0, 0, 1, 1, 3)
    assert cycle.path == (0, 3) and cycle.levels == (1, 1, 2, 2, 3)


def test_trees_in_files(tmp_path: Path) -> None:
    trace, path = penalised().trace, tmp_path / "tree.jsonl"
    trace_file.save(trace, path)
    again = trace_file.load(path)
    plain = lambda t: [[dataclasses.replace(c, detail=None) for c in row] for row in t.rows]
    assert plain(again) == plain(trace) and again.setup["parents"] == list(TREE)
    head, text = path.read_text().split("\n", 1)
    for right, wrong, message in (
        ('"parents": [0, 0, 0, 1', '"parents": [0, 2, 0, 1', "are no tree of 8 guesses"),
        ('"path": []', '"path": [0]', "is no way through the tree"),
    ):
        assert right in text
        with pytest.raises(ValueError, match=message):
            trace_file.parse(f"{head}\n{text.replace(right, wrong, 1)}", "file")


def test_files_of_the_first_version_are_read() -> None:
    """Which had chains alone, and is otherwise what is written of them now."""
    chain = Trace(((Cycle(3, (5, 6), 1, 2, (5, 7)),),))
    lines = [*map(dict, trace_file.records(chain))]
    assert lines[0]["version"] == 2 and not {"parents", "path"} & lines[1].keys()
    old = (
        '{"type": "trace", "version": 1, "setup": {}}\n'
        '{"type": "cycle", "request": 0, "step": 0, "pos": 3, "k": 2, "draft_ids": [5, 6], '
        '"accepted": 1, "committed": 2, "emitted_ids": [5, 7], "begin": null, "end": null}\n'
        '{"type": "end", "rows": 1, "texts": 0, "cycles": 1}\n'
    )
    assert trace_file.parse(old, "old") == chain


def test_pictures_show_the_path() -> None:
    trace = penalised().trace
    row = next(
        b for b, cycles in enumerate(trace.rows) if any(c.path and c.path[0] for c in cycles)
    )
    shown = tokens(trace, row)
    index, cycle = next((i, c) for i, c in enumerate(trace.rows[row]) if c.path and c.path[0])
    kept = [t for t in shown if t.cycle == index and t.label == "accepted"]
    assert [t.guess for t in kept] == [i + 1 for i in cycle.path][: cycle.committed]
    rejected = [t for t in shown if t.cycle == index and t.label == "rejected"]
    assert [t.guess - 1 for t in rejected] == [i for i, p in enumerate(TREE) if p == cycle.last]
    assert all(t.position == cycle.position + cycle.accepted for t in rejected)
    assert trace._repr_html_()
    for draw in (specjax.plot_acceptance, specjax.plot_timeline):
        draw(trace)
        plt.close("all")


def test_eagles_trees_are_ours(shared: Path) -> None:
    """Mask, positions and ways of the dynamic tree that a reference run made."""
    want = np.load(shared / "parity" / "eagle3-llama3" / "golden.npz")
    mask = want["tree_mask"].astype(bool)
    lines = [np.flatnonzero(row) for row in mask]
    parents = tuple(int(line[-2]) for line in lines[1:])
    trees.check_parents(parents)
    depth, routes = trees.depths(parents), trees.routes(parents)
    assert (trees.ancestors(parents) == mask).all()
    assert (depth == want["tree_positions"] - want["tree_positions"][0]).all()
    leaves = set(range(len(parents) + 1)) - set(parents)
    ours = {tuple(routes[leaf, : depth[leaf] + 1].tolist()) for leaf in leaves}
    assert ours == {tuple(p for p in row if p >= 0) for row in want["tree_retrieve"].tolist()}
