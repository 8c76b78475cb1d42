"""Passes over ranges and columns give what they give under masks."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import packed_rows
import pytest
import tiny

from specjax.core.cache import Full, Ring
from specjax.drafters import Eagle3
from specjax.drafters.columns import Columns
from specjax.drafters.eagle3.objective import Eagle3Objective
from specjax.train.state import Skeleton

CASES = ("eagle3", "eagle3, window", "mtp, sinks")


def objective_of(case: str) -> tuple[Any, dict[str, Any], Any]:
    """An objective of several steps, masters, and the target."""
    target = tiny.model("gpt_oss" if case.startswith("mtp") else "llama")
    if "window" not in case:
        return *packed_rows.trainee_of(case.split(",")[0], target, 3), target
    # Narrower than there are steps.
    spec = Eagle3.fresh(target, num_draft=4, seed=1, layers=2).windowed(2)
    skeleton, params = Skeleton.of(spec.net.module)
    rng = np.random.default_rng(7)
    shaken = {n: p + 0.02 * rng.normal(size=p.shape).astype(np.float32) for n, p in params.items()}
    return Eagle3Objective(skeleton, spec.net.config, jnp.float32, num_draft=4), shaken, target


@pytest.mark.parametrize("case", CASES)
def test_columns_are_a_growing_block_under_a_mask(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradients, of several texts a row and of rows without one."""
    objective, params, target = objective_of(case)
    batch = packed_rows.packed(packed_rows.some_texts())

    def slopes(net: Any) -> Any:
        def total(params: Any) -> Any:
            return objective(params, batch, net, jax.random.key(0))[0]

        return jax.jit(jax.value_and_grad(total))(params)

    made: list[Any] = []

    kind = Columns.instead_of

    def noted(*given: Any) -> Any:
        made.append(kind(*given))
        return made[-1]

    monkeypatch.setattr(Columns, "instead_of", noted)
    loss, found = slopes(target.net)
    assert made and None not in made and any(len(x.past) > 1 for x in made)
    assert any(x.window is not None for x in made) == ("window" in case)
    monkeypatch.setattr(Columns, "instead_of", lambda *args: None)
    want, wanted = slopes(target.net)
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    for name, gradient in found.items():
        size = max(np.abs(wanted[name]).max(), 1e-3)
        assert np.abs(gradient - wanted[name]).max() <= 5e-6 * size, name
    sinks = [name for name in found if name.endswith("sinks")]
    assert bool(sinks) == ("sinks" in case) and all(np.abs(found[n]).max() > 0 for n in sinks)


@pytest.mark.parametrize("family", ["gpt_oss", "gemma3_text"])
def test_a_pass_over_ranges_is_one_under_a_mask(family: str) -> None:
    """Of several texts a row, in layers with windows, with sinks and with another scale."""
    net, batch = tiny.model(family).net, packed_rows.packed(packed_rows.some_texts())
    both = (batch.view, dataclasses.replace(batch.view, ranges=None))
    one, other = jax.jit(lambda net: [net(batch.tokens, view=view).hidden for view in both])(net)
    np.testing.assert_allclose(one[:2], other[:2], atol=1e-5)
    assert both[0].known_ranges is not None


def test_a_mask_that_is_put_in_their_place_is_seen() -> None:
    view = packed_rows.packed(packed_rows.some_texts()).view
    itself = jnp.eye(view.visible.shape[2], dtype=bool)[None]
    alone = dataclasses.replace(view, visible=jnp.broadcast_to(itself, view.visible.shape))
    rows, width = view.visible.shape[:2]
    q, k, v = jax.random.normal(jax.random.key(0), (3, rows, 2, width, 4))
    entry = Full.empty(rows, 0, 2, 4, jnp.float32)
    for kind in (entry, Ring.empty(rows, 0, 2, 4, jnp.float32, window=width)):
        found = kind.attend(q, (k, v), jnp.zeros((rows,), jnp.int32), alone)
        np.testing.assert_allclose(found, v, atol=1e-6)
