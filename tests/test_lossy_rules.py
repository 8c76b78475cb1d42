"""A rule that is not lossless says so wherever its figures are seen."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import tiny
from rich.console import Console

import specjax
from specjax.core import own
from specjax.lab.costs.explain import marked
from specjax.lab.records.run import Run, Summary
from specjax.lab.view import headline, marks, summary, tables
from specjax.trace import trace_file

TYPICAL = Path(__file__).parent.parent / "examples" / "typical_acceptance.py"


def test_a_rule_that_is_not_lossless_says_so_wherever_it_is_seen(tmp_path: Path) -> None:
    target, ask_for = tiny.model(), {"max_new_tokens": 24, "temperature": 1.0, "seed": 3}
    ngram, prompts = specjax.drafters.NGram(3), [[1, 2, 3, 1, 2, 3], [4, 5, 4, 5]]
    out = specjax.generate(target, ngram, prompts, rule=f"{TYPICAL}:rule", **ask_for)
    exact = specjax.generate(target, ngram, prompts, **ask_for)
    assert out.trace.setup["lossless"] is False and "lossless" not in exact.trace.setup
    trace_file.save(out.trace, tmp_path / "t.jsonl")
    again = trace_file.load(tmp_path / "t.jsonl")
    assert again.setup["lossless"] is False
    for trace, words in ((again, True), (exact.trace, False)):
        shown = specjax.show(trace)._repr_html_()
        assert ("not lossless" in shown) == words
        (case,) = tables.cases_of({"mine": trace})
        found = marks.marks(Run(), [case])
        assert (marks.Kind.LOSSY in {m.kind for m in found}) == words
        assert ("the text is not the target's own" in "".join(marks.lines(found))) == words
        assert ("not lossless" in marks.words(case)) == words
        assert ("(not lossless)" in "".join(headline.headline(Summary(Run(), (case,))))) == words
    console = Console(file=io.StringIO(), width=200)
    record = {"cycles": [[3, 1, 2]]}
    summary.summary(console, summary.Report([record], rule="typical", lossless=False))
    assert "Not lossless: the rule typical" in console.file.getvalue()  # type: ignore[attr-defined]


def test_an_explanation_says_that_a_rule_is_lossy() -> None:
    found: Any = dataclasses.make_dataclass("Found", [("hints", tuple)])(("short",))
    assert marked(found, True, "token").hints == ("short",)
    said = marked(found, False, "typical").hints
    assert said[0].startswith("Not lossless: the rule typical keeps") and said[1:] == ("short",)


def test_the_audit_says_what_a_lossy_rule_deviates_by() -> None:
    """By design the text is another; all else must hold, also of such a rule."""
    report = specjax.audit("ngram:2", f"{TYPICAL}:rule", texts=500, checks=["rule"])
    assert report.passed and not report.lossless and not report.failed
    assert {c.name: (c.passed, c.by_design) for c in report.checks}["rule"] == (False, True)
    assert re.search(
        r"NOT LOSSLESS, as its rule says: .* deviates from the target's law by up to 0\.\d+",
        report.verdict,
    )
    assert "diff rule" in str(report) and "FAIL" not in str(report)
    # A rule that promises more than it keeps is still a fault.
    typical = own.find(f"{TYPICAL}:Typical")

    class Boasting(typical):  # type: ignore[misc, valid-type]
        lossless = True

    assert not specjax.audit("ngram:2", Boasting(), texts=500, checks=["rule"]).passed
