"""The audit of a target: each kind of entry passes, and planted faults are named by their layer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import tiny
import tiny_families
from flax import nnx
from test_audit_report import run

import specjax
from specjax.core.cache import full, latent, recurrent, ring
from specjax.core.types import Array
from specjax.lab.audit import TARGET_CHECKS, audit, passes, targets
from specjax.models.layers.attention import Attention
from specjax.models.layers.experts import Experts, Router
from specjax.models.layers.linear import Linear
from specjax.models.layers.norm import RMSNorm

Patch = pytest.MonkeyPatch


def test_a_target_with_every_kind_of_entry_passes() -> None:
    report = audit(target=tiny_families.model("mixed"), checks=["entries", "stale", "widths"])
    assert report.passed, str(report)
    assert "No fault found: the target tiny-mixed-0 passed 3 checks." in str(report)
    entries, stale, widths = report.checks
    assert "(Recurrent, Ring, Latent, Full)" in entries.tested
    assert 0 < entries.statistic < 1e-4 and stale.statistic == 0 and widths.statistic < 1e-4


def test_guessed_text_is_plain_text() -> None:
    report = audit("ngram", target=tiny_families.model("ring", layers=1))
    assert report.passed and [c.name for c in report.checks] == list(TARGET_CHECKS)
    coupling = report.checks[-1]
    accepted = re.search(r"240 tokens .* by the drafter \((\d+) guesses accepted", coupling.tested)
    assert accepted and int(accepted[1]) > 60


# --- planted faults: what is changed, in whose memory, and what must be said ----------------------


def a_stale_slot_is_read(patch: Patch) -> None:
    patch.setattr(full, "valid_slots", lambda size, n: jnp.arange(size)[None] <= n[:, None])


def a_window_is_one_too_long(patch: Patch) -> None:
    class Longer(ring.Ring):
        def attend(self, q: Array, new: Any, length: Array, view: Any, **kwargs: Any) -> Array:
            longer = dataclasses.replace(self, window=self.window + 1)
            return right(longer, q, new, length, view, **kwargs)

    right = ring.Ring.attend
    patch.setattr(ring.Ring, "attend", Longer.attend)


def a_state_takes_one_token_more(patch: Patch) -> None:
    def commit(self: Any, part: Any, length: Array, count: Array) -> Any:
        return right(self, part, length, jnp.where(count > 0, count + 1, 0))

    right = recurrent.Recurrent.commit
    patch.setattr(recurrent.Recurrent, "commit", commit)


def siblings_are_seen(patch: Patch) -> None:
    """A tree's place sees all before it."""

    def attend(self: Any, q: Array, new: Any, length: Array, view: Any, **kwargs: Any) -> Array:
        size, wide = view.visible.shape[-1], view.visible.shape[1]
        seen = jnp.arange(size)[None, None] <= jnp.arange(size - wide, size)[None, :, None]
        return right(self, q, new, length, dataclasses.replace(view, visible=seen), **kwargs)

    right = full.Full.attend
    patch.setattr(full.Full, "attend", attend)


def a_state_is_taken_for_another_text(patch: Patch) -> None:
    patch.setattr(recurrent.Recurrent, "cut", lambda self, length, to: (self, to))


PLANTED: dict[Callable[[Patch], None], tuple[str, str, str]] = {
    a_stale_slot_is_read: ("full", "stale", r"layer 0 \(Full\) at place 0 .* is not finite"),
    a_window_is_one_too_long: ("ring", "entries", r"layer 0 \(Ring\) at place \d+ of row \d"),
    a_state_takes_one_token_more: ("recurrent", "entries", r"Block \d.* layer 0 \(Recurrent\)"),
    a_state_is_taken_for_another_text: (
        "recurrent",
        "entries",
        r"Block 6, .* in another turn .* behind \d+: .* layer 0 \(Recurrent\).* of row 1",
    ),
    siblings_are_seen: ("full", "entries", r"Block 2, a tree of 7 tokens .* layer 0 \(Full\)"),
}


@pytest.mark.parametrize("fault", PLANTED, ids=lambda f: f.__name__)
def test_a_faulty_entry_is_found(fault: Callable[[Patch], None], monkeypatch: Patch) -> None:
    kind, check, words = PLANTED[fault]
    # Of a size of its own: what is compiled with the fault must serve nothing else.
    index, kinds = list(PLANTED).index(fault), [kind for kind, *_ in PLANTED.values()]
    layers = 1 + kinds[:index].count(kind)  # a cache does not know the vocabulary
    target = tiny_families.model(kind, layers=layers, vocab=20 + index)
    fault(monkeypatch)
    report = audit(target=target, checks=[check])
    assert not report.passed and "FAULTY: the target tiny" in report.verdict
    assert re.search(words, str(report.failed[0].counterexample)), report.failed[0].counterexample


# --- planted in what each entry commits: the passes that read are right ---------------------------


def ring_one_slot_off(self: Any, part: Any, length: Array, count: Array) -> Any:
    return COMMITS[ring.Ring](self, part, length + 1, count)


def ring_wraps_one_early(self: Any, part: Any, length: Array, count: Array) -> Any:
    """Its last slot is never written."""
    shorter = dataclasses.replace(self, keys=self.keys[:, :, :-1], values=self.values[:, :, :-1])
    short = COMMITS[ring.Ring](shorter, part, length, count)
    put = lambda new, old: jnp.concatenate([new, old[:, :, -1:]], axis=2)
    keys, values = put(short.keys, self.keys), put(short.values, self.values)
    return dataclasses.replace(self, keys=keys, values=values)


def state_of_the_last_place(self: Any, part: Any, length: Array, count: Array) -> Any:
    """As if the whole block had been accepted."""
    whole = jnp.where(count > 0, part[1].shape[2], 0).astype(count.dtype)
    return COMMITS[recurrent.Recurrent](self, part, length, whole)


def convolution_of_the_last_place(self: Any, part: Any, length: Array, count: Array) -> Any:
    """The matrix is of what was accepted, the inputs before it of the whole block."""
    right = COMMITS[recurrent.Recurrent](self, part, length, count)
    wrong = state_of_the_last_place(self, part, length, count)
    return dataclasses.replace(right, window=wrong.window)


def rotary_keys_stay(self: Any, part: Any, length: Array, count: Array) -> Any:
    right = COMMITS[latent.Latent](self, part, length, count)
    return dataclasses.replace(right, keys=self.keys)


def rotary_keys_one_place_early(self: Any, part: Any, length: Array, count: Array) -> Any:
    """Beside the compressed vectors of the tokens before theirs."""
    early = COMMITS[latent.Latent](self, part, jnp.maximum(length - 1, 0), count)
    right = COMMITS[latent.Latent](self, part, length, count)
    return dataclasses.replace(right, keys=early.keys)


COMMITS: dict[type, Any] = {
    cls: cls.commit for cls in (recurrent.Recurrent, ring.Ring, latent.Latent)
}
WRONG_COMMITS: dict[Callable[..., Any], type] = {
    ring_one_slot_off: ring.Ring,
    ring_wraps_one_early: ring.Ring,
    state_of_the_last_place: recurrent.Recurrent,
    convolution_of_the_last_place: recurrent.Recurrent,
    rotary_keys_stay: latent.Latent,
    rotary_keys_one_place_early: latent.Latent,
}


@pytest.mark.parametrize("wrong", WRONG_COMMITS, ids=lambda w: w.__name__)
def test_a_wrong_commit_is_found_in_its_layer(
    wrong: Callable[..., Any], monkeypatch: Patch
) -> None:
    """Of the target that passes above; only what commits is compiled anew."""
    cls = WRONG_COMMITS[wrong]
    monkeypatch.setattr(cls, "commit", wrong)
    anew = jax.jit(lambda cache, block, count, path: cache.commit(block, count, path))
    monkeypatch.setattr(passes, "commit", anew)
    report = audit(target=tiny_families.model("mixed"), checks=["entries"])
    assert not report.passed
    place = list(COMMITS).index(cls)  # of its layer
    found = str(report.failed[0].counterexample)
    assert f"layer {place} ({cls.__name__})" in found, found


# --- forgotten where few tokens are fed, as by a faster variant for decoding ----------------------

FORGOTTEN: dict[str, tuple[str, type, str, float]] = {
    "biases": ("qwen2", Linear, "bias", 0.0),
    "gains": ("llama", RMSNorm, "weight", 1.0),
    "sinks": ("gpt_oss", Attention, "sinks", 0.0),
    "biases of experts": ("gpt_oss", Experts, "gate_proj_bias", 0.0),
    "the router's bias": ("gpt_oss", Router, "bias", 0.0),
    "the bias of choosing": ("kimi_k25", Router, "e_score_correction_bias", 0.0),
}


@pytest.mark.parametrize("what", FORGOTTEN)
def test_what_passes_of_one_token_forget_is_found(what: str, monkeypatch: Patch) -> None:
    """A faster variant for decoding, for instance. Of a fresh model they compute the same."""
    family, cls, name, neutral = FORGOTTEN[what]
    right: Any = cls.__call__

    def call(self: Any, x: Array, *args: Any) -> Any:
        param = getattr(self, name, None)
        if param is None or x.shape[-2] > 1:
            return right(self, x, *args)
        kept = param[...]
        param[...] = jnp.full_like(kept, neutral)
        out = right(self, x, *args)
        param[...] = kept
        return out

    monkeypatch.setattr(cls, "__call__", call)
    vocab = 20 + list(FORGOTTEN).index(what)  # its own programs, as above
    layers = 2 if family == "kimi_k25" else 1  # its first has no experts
    report = audit(target=tiny.model(family, layers=layers, vocab=vocab), checks=["widths"])
    assert not report.passed
    found = str(report.failed[0].counterexample)
    assert f"Fed one token at a time, the output of layer {layers - 1}" in found, found


class Widthwise(tiny_families.Tiny):
    """What it gives depends on how many tokens are fed together."""

    def __call__(self, tokens: Array, cache: Any = None, **kwargs: Any) -> Any:
        out = super().__call__(tokens, cache, **kwargs)
        wider = 1.0 + 0.01 * tokens.shape[1]
        features = None if out.features is None else out.features * wider
        return dataclasses.replace(out, hidden=out.hidden * wider, features=features)


class NoHead(tiny_families.Tiny):
    """Its head forgets a token of the vocabulary."""

    def head(self, x: Array) -> Array:
        return super().head(x)[..., 1:]


class NoTaps(tiny_families.Tiny):
    def __call__(self, tokens: Array, cache: Any = None, **kwargs: Any) -> Any:
        kwargs.pop("taps", None)
        return super().__call__(tokens, cache, **kwargs)


class Unread:
    """No family."""


def of_class(cls: type) -> specjax.Model:
    right = tiny_families.model("full", layers=1)
    module = cls(right.config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    return targets.loud(module, cls.__name__, 6.0)


def test_a_width_that_matters_is_found() -> None:
    report = audit(target=of_class(Widthwise), checks=["widths"])
    found = str(report.failed[0].counterexample)
    assert "Fed one token at a time, the output of the embedding at token 0" in found


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "nothing": (lambda: audit(), "Nothing to audit: give a drafter, a target, or both"),
    "no target": (lambda: audit(target=3), "a int is no target"),  # type: ignore[arg-type]
    "no family": (lambda: audit(target=Unread), "Unread is no target"),
    "no such name": (lambda: audit(target="lama"), "'lama': no such file or directory"),
    "a head of another size": (
        lambda: audit(target=of_class(NoHead)),
        r"the head's logits is float32\[2, 5, 30\]; its shape must be \[2, 5, 31\]",
    ),
    "no taps": (lambda: audit(target=of_class(NoTaps)), "features of all taps is a NoneType"),
    "a rule": (lambda: audit("ngram", "token", target=tiny.model()), "rule: a target is audited"),
    "a check of drafters": (
        lambda: audit(target=tiny.model(), checks=["texts"]),
        "No check 'texts'; there are entries, stale, widths, coupling",
    ),
    "too many guesses": (lambda: audit(target=tiny.model(), num_draft=99), "at most 16 guesses"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str) -> None:
    call, words = BAD[case]
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


FAMILY = '''
from specjax.models.layers.decoder import Decoder
from specjax.models.llama import Llama, LlamaLayer


class Mine(Llama):
    """A family of one's own."""


class Wide(Mine):
    @staticmethod
    def read_config(raw):
        return raw["sliding_window"]
'''


def test_the_script_audits_a_family_in_a_file(capsys: Any, tmp_path: Path) -> None:
    file = tmp_path / "family.py"
    file.write_text(FAMILY)
    status, out, err = run(capsys, f"--target={file}:Mine", "--checks=widths,entries")
    assert (status, err) == (0, "")
    assert "the target mine-0 passed 2 checks" in out and "(Full)" in out
    status, out, err = run(capsys, f"--target={file}:Wide")
    assert status == 2 and re.search("a small Wide fails: KeyError: 'sliding_window' .*line 1", err)
