"""The audit finds every planted fault, says where, and lets what is right pass."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import markov
import numpy as np
import pytest
from markov import Markov, MarkovDrafter
from scipy import stats
from scripts import invoke, script

from specjax import decode, sampling
from specjax.core import keys
from specjax.core.cache import full
from specjax.core.noise import gumbel_argmax
from specjax.core.types import Array, pytree
from specjax.lab.audit import CHECKS, AuditReport, Check, audit, statistics
from specjax.lab.audit.laws import GROUPS, VOCAB, text_laws
from specjax.lab.audit.subject import make_target
from specjax.lab.audit.texts import impossible_text
from specjax.sampling import Counts
from specjax.verify import Token

Patch = pytest.MonkeyPatch
FILE = Path(markov.__file__)
TEXTS = 4000

# --- the drafters: one honest, one that only looks odd, and faulty ones ---------------------------

VARIANTS = (
    "honest",
    "stops behind an unlikely guess",  # which is itself verified: no guess decides about itself
    "argmax scored as sampled",
    "noise shared with the residual",
    "noise shared with the coin",
    "look-ahead",  # a guess is left out because of what it turned out to be
    "look at the next",  # the first guess is left out because of the second
)


@pytree
class Variant(MarkovDrafter):
    """Which one is traced, so that all share one compiled program."""

    variant: Array | None = None  # [] int32

    def is_(self, name: str) -> Array:
        assert self.variant is not None
        return self.variant == VARIANTS.index(name)

    def draw(self, key: Array, length: Array, index: int, logits: Array) -> Array:
        noise = jax.random.fold_in(keys.at(key, length, keys.DRAFT), index)
        if index == 0:
            for name, role in (("residual", keys.RESIDUAL), ("coin", keys.ACCEPT)):
                shared = self.is_(f"noise shared with the {name}")
                noise = jnp.where(shared, keys.at(key, length, role), noise)
        best = logits.argmax().astype(jnp.int32)
        guess = gumbel_argmax(noise, logits)
        return jnp.where(self.is_("argmax scored as sampled"), best, guess)

    def keep(self, guesses: Array, laws: Array) -> Array:
        chance = jnp.take_along_axis(laws, guesses[:, None], 1)[:, 0]
        unlikely = (chance < 0.3).astype(jnp.int32)
        upto = unlikely.cumsum()
        out = self.is_("stops behind an unlikely guess") & (upto - unlikely > 0)
        out |= self.is_("look-ahead") & (upto > 0)
        out |= self.is_("look at the next") & (chance[1] < 0.4)
        return jnp.where(out, -1, guesses)


@dataclasses.dataclass(frozen=True)
class Drafts:
    variant: str = "honest"

    def bind(self, target: Any, kind: str) -> Variant:
        inner = Markov().bind(target, kind)
        index = jnp.int32(VARIANTS.index(self.variant))
        return Variant(inner.logits, inner.num_draft, variant=index)


def test_an_honest_method_passes_every_check() -> None:
    seen: list[Check] = []
    report = audit(Drafts(), texts=TEXTS, watch=seen.append)
    assert report.passed and not report.failed, str(report)
    assert [c.name for c in report.checks] == list(CHECKS) and seen == list(report.checks)
    assert report.rule == "rule block and greedy" and report.drafter == "Drafts"
    for check in report.checks:
        assert check.counterexample is None and check.seconds > 0
        if check.name in ("guesses", "verdicts", "texts", "stops"):
            assert check.p_value > 1e-3 and check.power == 0.99 and 0.1 < check.detects < 0.16
    assert report.checks[0].statistic < 1e-12
    text = str(report)
    assert "No fault found: Drafts with rule block and greedy passed 9 checks" in text
    assert "the first guess was accepted in" in text
    assert json.loads(json.dumps(report.to_json()))["passed"] is True


def test_stopping_behind_an_unlikely_guess_passes() -> None:
    drafter = Drafts("stops behind an unlikely guess")
    report = audit(drafter, texts=TEXTS, checks=["guesses", "verdicts", "texts"])
    assert report.passed, str(report)


VERDICT = r"first guess is \d: \d accepted and then token \d came .* the rule says"
FAULTY = {
    "argmax scored as sampled": (
        "guesses",
        r"guess 1: token \d came \d+ times in \d+, with probability .* q says 0\.\d+",
    ),
    "noise shared with the residual": ("verdicts", VERDICT),
    "noise shared with the coin": ("verdicts", VERDICT),
    "look-ahead": ("guesses", r"Prompt \[2\].*guess 1: token \d came"),
    "look at the next": ("guesses", r"guess 1: token \d came"),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_faulty_drafter_is_found(fault: str) -> None:
    name, words = FAULTY[fault]
    checks = ["guesses"] if name == "guesses" else ["guesses", "verdicts"]
    report = audit(Drafts(fault), texts=TEXTS, checks=checks)
    assert [c.name for c in report.failed] == [name], str(report)  # and no other
    assert report.failed[0].p_value < 1e-5
    assert re.search(words, str(report.failed[0].counterexample)), report.failed[0].counterexample
    assert "NOT LOSSLESS: Drafts" in report.verdict


def test_shared_noise_is_a_method_under_coupling() -> None:
    report = audit("ngram", "coupled", texts=500, checks=["guesses", "coupling"])
    assert report.passed and [c.name for c in report.checks] == ["guesses", "coupling"]
    assert "of one_hot kind" in report.checks[0].tested


# --- planted faults: the target's side ------------------------------------------------------------


def temperature_after_top_p(patch: Patch) -> None:
    def warp_row(logits: Array, options: Any) -> Array:
        heat = options.temperature
        at_1 = dataclasses.replace(options, temperature=jnp.where(heat > 0, 1.0, 0.0))
        return right(logits, at_1) / jnp.where(heat > 0, heat, 1.0)

    right = sampling._warp_row
    patch.setattr(sampling, "_warp_row", warp_row)


def penalties_ignore_the_guesses(patch: Patch) -> None:
    def counts(counts: Counts | None, guesses: Array, parents: Any = None) -> Counts | None:
        if counts is None:
            return None
        output = jnp.repeat(counts.output[:, None], guesses.shape[1] + 1, axis=1)
        return Counts(counts.prompt, output)

    patch.setattr(decode, "count_prefixes", counts)


def one_stale_slot_is_read(patch: Patch) -> None:
    def valid_slots(size: int, length: Array) -> Array:
        return jnp.arange(size)[None, :] <= length[:, None]

    patch.setattr(full, "valid_slots", valid_slots)


def a_rejected_stop_token_stops(patch: Patch) -> None:
    """The stop is looked for among the guesses, accepted or not."""

    def commit_count(verdict: Any, request: Any, state: Any) -> tuple[Array, Array]:
        count, stopped = right(verdict, request, state)
        last = jnp.take_along_axis(verdict.tokens, verdict.num_accepted[:, None], 1)
        seen = (verdict.tokens == 1) & (request.stop_ids == 1)
        return count, stopped | (seen[:, -1] & (last[:, 0] != 1) & ~state.done)

    right = decode.commit_count

    def verify(rule: Any, request: Any, length: Any, logits: Any, proposal: Any) -> Any:
        verdict = checked(rule, request, length, logits, proposal)
        guesses = jnp.pad(proposal.tokens, ((0, 0), (0, 1)), constant_values=-1)
        behind = jnp.arange(guesses.shape[1])[None, :] > verdict.num_accepted[:, None]
        tokens = jnp.where(behind, jnp.roll(guesses, 1, axis=1), verdict.tokens)
        return dataclasses.replace(verdict, tokens=tokens)

    checked = decode.verify
    patch.setattr(decode, "verify", verify)
    patch.setattr(decode, "commit_count", commit_count)


PLANTED: dict[Callable[[Patch], None], tuple[str, str]] = {
    temperature_after_top_p: (
        "texts",
        r"Prompt \[1, 3, 0\], temperature 1.6 with top-p 0.75: after \[.*\] token \d ",
    ),
    penalties_ignore_the_guesses: (
        "texts",
        r"Prompt \[0, 2\], temperature 1 with penalties: after \[.*\] token \d came \d+ times",
    ),
    a_rejected_stop_token_stops: ("stops", r"Prompt \[2, 0\], .* ends without a stop token"),
    one_stale_slot_is_read: ("stale", r"the cycle that starts at position \d+ guesses .* is read"),
}


@pytest.mark.parametrize("fault", PLANTED, ids=lambda f: f.__name__)
def test_a_faulty_cycle_is_found(fault: Callable[[Patch], None], monkeypatch: Patch) -> None:
    name, words = PLANTED[fault]
    fault(monkeypatch)
    # Compiled anew: nothing traced without the fault may serve with it, nor the other way.
    for program, static in (("run", {"static_argnames": "rule"}), ("prefill", {})):
        old = getattr(decode, program)
        fresh = jax.jit(
            lambda *args, f=old, **kwargs: f(*args, **kwargs),
            static_argnums=2 if static else None,
            static_argnames=None if static else "width",
        )
        monkeypatch.setattr(decode, f"{program}_program", fresh)
    report = audit(Markov(), texts=2000, checks=[name])
    assert [c.name for c in report.failed] == [name], str(report)
    assert re.search(words, str(report.failed[0].counterexample)), report.failed[0].counterexample


@pytest.mark.parametrize("rule", [markov.forgotten, Token()], ids=lambda r: r.name)
def test_the_exact_law_of_a_rule(rule: Token) -> None:
    report = audit(Markov(), rule, checks=["rule"])
    assert report.passed == (rule.name == "token")
    if not report.passed:
        found = report.checks[0]
        assert re.search(r"Rule forgotten, .*'random'.* the text \[", str(found.counterexample))
        assert found.statistic > 1e-3


# --- the statistics -------------------------------------------------------------------------------


def test_the_stated_power_is_that_of_the_test() -> None:
    """Counts are drawn from a law that is off by what the test says it detects."""
    rng, rows, alpha = np.random.default_rng(0), 4000, 1e-3
    law = np.append(0.1, np.full(9, 0.1))
    fit = statistics.fit(rng.multinomial(rows, law)[None], rows * law[None])
    assert fit.df == 9 and fit.p_value > alpha
    off = fit.detects(alpha)
    wrong = np.append(off, np.full(9, (1 - off) / 9))  # its variance is larger, too
    found = [
        statistics.fit(rng.multinomial(rows, wrong)[None], rows * law[None]).p_value < alpha
        for _ in range(2000)
    ]
    assert 0.97 < np.mean(found) < 0.999
    lost = [
        statistics.fit(rng.multinomial(rows, law)[None], rows * law[None]).p_value < 0.05
        for _ in range(2000)
    ]
    assert abs(np.mean(lost) - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 2000)


def test_what_cannot_happen_is_found_once() -> None:
    want = np.array([[900.0, 100.0, 0.0]])
    assert statistics.fit(np.array([[900, 100, 0]]), want).p_value == 1.0
    assert statistics.fit(np.array([[899, 100, 1]]), want).p_value == 0.0
    assert statistics.furthest(np.array([[899, 100, 1]]), want, 1e-5) == (0, 2)
    assert statistics.furthest(np.array([[905, 95, 0]]), want, 1e-5) is None
    assert statistics.fit(want[:, :1], want[:, :1]).df == 0


def test_the_laws_of_texts_are_laws() -> None:
    for law, group in zip(text_laws(make_target()), GROUPS):
        texts, chance = law.texts()
        assert abs(chance.sum() - 1) < 1e-12 and len(texts) == len(np.unique(texts, axis=0))
        if group.options.temperature > 0 and group.options.top_p == 1.0:
            entropy = stats.entropy(chance) / stats.entropy(np.ones(VOCAB))
            assert entropy > 2  # in tokens: the texts vary
        for stop in group.stop_token_ids:
            assert (texts[:, :-1][texts[:, 1:] == VOCAB] % VOCAB == stop % VOCAB).any()


def test_texts_that_cannot_be_are_said_to_be() -> None:
    laws = {law.group.words: law for law in text_laws(make_target())}
    until, truncated = (
        laws["temperature 1.3 until token 1"],
        laws["temperature 1.6 with top-p 0.75"],
    )
    end = VOCAB
    fine = np.array([[0, 2, 1, end, end], [3, 3, 2, 0, 1], [1, end, end, end, end]])
    assert impossible_text(until, fine) is None
    for text, words in (
        (
            [0, 1, 2, 3, 0],
            r"until token 1: the text \[0, 1, 2, 3, 0\] goes on after its stop token",
        ),
        ([0, 2, end, end, end], r"the text \[0, 2\] ends without a stop token or limit"),
    ):
        assert re.search(words, str(impossible_text(until, np.array([*fine, text]))))
    never = int(truncated.tables[0][0].argmin())
    assert truncated.tables[0][0, never] == 0
    text = np.array([[never, 0, 0, 0, 0]])
    assert f"after [] token {never} has probability 0" in str(impossible_text(truncated, text))


# --- reports --------------------------------------------------------------------------------------


def test_a_report_shows_and_escapes() -> None:
    bad = Check("texts", False, "1 < 2", 3.5, 1e-9, 0.99, 0.12, "after [1] <b>token</b> 2")
    report = AuditReport("<mine>", "rule token", "a target", (bad,), (("greedy", "no & no"),))
    page = report._repr_html_()
    assert "&lt;mine&gt;" in page and "<b>token</b>" not in page and "no &amp; no" in page
    assert "NOT LOSSLESS: <mine> with rule token fails 1 of 1 check (texts)" in str(report)
    assert "> after [1] <b>token</b> 2" in str(report)
    assert report.to_json()["checks"][0]["counterexample"] == bad.counterexample


# --- bad input ------------------------------------------------------------------------------------


@pytree
class NoUpdate:
    num_draft = 1
    kind = "sampled"
    init = prefill = propose = MarkovDrafter.init


@dataclasses.dataclass(frozen=True)
class Binds:
    to: Any

    def bind(self, target: Any, kind: str) -> Any:
        if isinstance(self.to, Exception):
            raise self.to
        return self.to


class OneGuessTooMany(MarkovDrafter):
    def keep(self, guesses: Array, laws: Array) -> Array:
        return jnp.append(guesses, 0)


def logits() -> Array:
    return jnp.zeros((VOCAB, VOCAB))


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "no such drafter": (lambda: audit("eagle9"), "No drafter 'eagle9'; there are dflash"),
    "no drafter": (lambda: audit(3), "a int is no drafter.*bind"),
    "a class": (lambda: audit(Markov), "Markov is a class; hand over an instance"),
    "a function of nothing": (lambda: audit(lambda target: 3), "returned a int"),
    "lacks methods": (
        lambda: audit(Binds(NoUpdate())),
        r"NoUpdate, which lacks update\(\), grow\(\), taps",
    ),
    "no such kind": (lambda: audit(Binds(MarkovDrafter(logits(), 1, "beam"))), "kind is 'beam'"),
    "no pytree": (lambda: audit(Binds(OneGuessTooMany(logits(), 1))), "no pytree of arrays"),
    "guesses of another shape": (
        lambda: audit(Binds(pytree(OneGuessTooMany)(logits(), 1))),
        r"int32\[2, 2\] .*must be int32\[2, 1\]",
    ),
    "fits another target": (
        lambda: audit(Binds(ValueError("The vocabulary is 9."))),
        "does not fit the audit's target.*vocabulary is 9.*lambda target",
    ),
    "no such rule": (lambda: audit(Markov(), "typical"), "no verification rule 'typical'"),
    "no rule": (lambda: audit(Markov(), Token), "Token is no rule"),
    "unsuitable": (lambda: audit(Markov(), "coupled"), "'coupled' does not take sampled guesses"),
    "few texts": (lambda: audit(Markov(), texts=10), "texts=10: must be a whole number"),
    "alpha": (lambda: audit(Markov(), alpha=0.5), "alpha=0.5"),
    "seed": (lambda: audit(Markov(), seed=-1), "seed=-1"),
    "no such check": (
        lambda: audit(Markov(), checks=["vibes"]),
        "No check 'vibes'; there are",
    ),
    "no checks": (lambda: audit(Markov(), checks=[]), "at least one"),
    "check without sense": (
        lambda: audit("lm", "greedy", checks=["texts"]),
        "texts does not apply: .*temperature 0 only",
    ),
    "num_draft": (lambda: audit("lm", num_draft=0), "num_draft=0"),
    "no field": (lambda: audit(Binds(None), num_draft=3), "Binds has no field num_draft"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str) -> None:
    call, words = BAD[case]
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


# --- the script -----------------------------------------------------------------------------------


def run(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of the script, in this process."""
    module = script("audit")
    return invoke(module, capsys, "audit", *arguments)


def test_a_method_in_a_file_is_audited(capsys: Any, tmp_path: Path) -> None:
    output = tmp_path / "audit.json"
    files = [f"--drafter={FILE}:honest", f"--rule={FILE}:rule"]
    status, out, err = run(capsys, *files, "--checks=rule", f"--output={output}")
    assert (status, err) == (0, "")
    assert "No fault found: Markov with rule my_token" in out and "ok   rule" in out
    report = json.loads(output.read_text())
    assert report["passed"] and [c["name"] for c in report["checks"]] == ["rule"]
    status, out, err = run(
        capsys, f"--drafter={FILE}:argmax", "--checks=guesses", "--texts=500", f"--output={output}"
    )
    assert (status, err) == (1, "")
    assert "FAIL guesses" in out and "> Prompt [2]" in out and "NOT LOSSLESS" in out
    assert not json.loads(output.read_text())["passed"]


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["--drafter=nowhere.py:x"], "there is no file nowhere.py"),
        ([f"--drafter={FILE}:missing"], "has no 'missing'; it has .*honest"),
        ([f"--drafter={FILE}"], "write it FILE.py:NAME"),
        (["--drafter={broken}:x"], "broken.py, line 2: ZeroDivisionError"),
        ([f"--drafter={FILE}:rule"], "a MyToken is no drafter"),
        (["--rule=typical"], "no verification rule 'typical'"),
        (["--texts=7"], "texts=7"),
        (["--checks=vibes"], "No check 'vibes'"),
        (["--output=nowhere/x.json"], "existing directory"),
        (["--drafter=ngram", "--rule=coupled", "--num_draft=-1"], "num_draft=-1"),
    ],
)
def test_bad_flags_are_one_line(
    arguments: list[str], words: str, capsys: Any, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("x = 1\nx / 0\n")
    status, _, err = run(capsys, *(a.format(broken=broken) for a in arguments))
    assert status == 2 and re.fullmatch(r"error: .*\n", err) and re.search(words, err), err
