"""Drafters by name: one form in the API and on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_bad_input import complain
from tiny_checkpoint import write_tiny

import specjax
from specjax.checkpoint.drafters.named import Named, as_spec, parse
from specjax.drafters import LM, DFlash, NGram, NoDraft
from specjax.lab.audit.subject import make_subject

FORMS = {
    "ngram": Named("ngram"),
    "ngram:4": Named("ngram", None, 4),
    "none": Named("none"),
    "demo:dflash": Named(None, "demo:dflash"),
    "demo:dflash:7": Named(None, "demo:dflash", 7),
    "dflash:demo:dflash:7": Named("dflash", "demo:dflash", 7),
    "lm:owner/name": Named("lm", "owner/name"),
    "eagle3:/a:b/c:12": Named("eagle3", "/a:b/c", 12),
    "owner/name:3": Named(None, "owner/name", 3),
    "lm:owner/name:8@0.5": Named("lm", "owner/name", 8, 0.5),
    "lm:8@1": Named("lm", None, 8, 1.0),
    "stories.bin": Named(None, "stories.bin"),
}


@pytest.mark.parametrize("text", FORMS)
def test_forms(text: str) -> None:
    assert parse(text) == FORMS[text]


def test_what_exists_is_a_checkpoint(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "run:4").mkdir()
    assert parse("mine:4") == Named(None, "mine", 4)
    assert parse("run:4") == Named(None, "run:4")
    assert parse("lm:run:4") == Named("lm", "run", 4)


@pytest.mark.parametrize(
    ("text", "words"),
    {
        "ngrm": ("No drafter 'ngrm'", "mean ngram"),
        "dflsh:demo:dflash": ("No drafter 'dflsh'", "mean dflash"),
        "": ("No drafter ''", "medusa"),
        "ngram:": ("colon",),
        "ngram:x": ("ngram takes no checkpoint", "'x'"),
        "ngram:0": ("num_draft=0", "at least 1"),
        "none:3": ("num_draft=3", "guesses nothing"),
        "lm": ("lm for target needs a checkpoint", "lm:CHECKPOINT"),
        "demo:nothing": ("demo:nothing", "demo:dflash"),
        "no/where/at/all": ("no such file",),
        "ngram:4@0.5": ("@0.5", "ngram", "use lm or dspark"),
        "ngram:4@2": ("behind @", "4@0.5"),
        "lm:owner/name:4@": ("behind @", "4@0.5"),
    }.items(),
)
def test_refused(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    target = specjax.load(write_tiny(tmp_path / "target"))
    complain(lambda: as_spec(text, target), *words)


def test_loaded_for_the_demo() -> None:
    target = specjax.load("demo:target")
    spec: Any = as_spec("lm:3", target)
    assert isinstance(spec, LM) and spec.num_draft == 3 and spec.model.name == "demo:draft"
    assert isinstance(as_spec("dflash", target), DFlash)
    complain(lambda: as_spec("dflash:demo:eagle3", target), "DFlash|block", "Eagle3")
    complain(lambda: as_spec("eagle3:demo:draft", target), "a language model, which is not eagle3")
    complain(lambda: as_spec(target, target), "is a model", "LM")  # type: ignore[arg-type]
    complain(lambda: as_spec(NGram, target), "a class")  # type: ignore[arg-type]
    complain(lambda: as_spec(3, target), "an? int is no drafter")  # type: ignore[arg-type]
    assert as_spec(None, target) == as_spec("none", target) == NoDraft()


def test_everywhere(tmp_path: Path) -> None:
    target = specjax.load(write_tiny(tmp_path / "target"))
    request: dict[str, Any] = {"max_new_tokens": 6}
    out = specjax.generate(target, "ngram:2", "def a(def", **request)
    assert out.trace.setup["num_draft"] == 2 and out.trace.setup["drafter"] == "ngram"
    streamed = list(specjax.stream(target, "ngram:2", "def a(def", **request))
    assert [t for p in streamed for t in p.tokens] == out.tokens[0]
    complain(lambda: specjax.check(target, "ngrm", "def"), "No drafter")
    assert specjax.check_drafter(target, "ngram:2", prompts="a a a a", cycles=2).num_draft == 2
    hot = make_subject("ngram:3", None, None).hot
    assert hot is not None and hot.drafter.num_draft == 3
    complain(lambda: make_subject("ngram:3", None, 2), "say two things")
    complain(lambda: make_subject("some/checkpoint", None, None), "methods are audited")
