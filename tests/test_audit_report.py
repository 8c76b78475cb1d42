"""What the audit shows, what it refuses, and its script."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import markov
import pytest
from markov import Markov, MarkovDrafter
from scripts import invoke, script

from specjax.core.types import Array, pytree
from specjax.lab.audit import AuditReport, Check, audit
from specjax.lab.audit.laws import VOCAB
from specjax.verify import Token

FILE = Path(markov.__file__)


def test_a_report_shows_and_escapes() -> None:
    bad = Check("texts", False, "1 < 2", 3.5, 1e-9, 0.99, 0.12, "after [1] <b>token</b> 2")
    report = AuditReport("<mine>", "rule token", "a target", (bad,), (("greedy", "no & no"),))
    page = report._repr_html_()
    assert "&lt;mine&gt;" in page and "<b>token</b>" not in page and "no &amp; no" in page
    assert "NOT LOSSLESS: <mine> with rule token fails 1 of 1 check (texts)" in str(report)
    assert "> after [1] <b>token</b> 2" in str(report)
    assert report.to_json()["checks"][0]["counterexample"] == bad.counterexample


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
