"""Texts: they say what the trace says, to every reader, and let no text steer a page."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET

import made_traces
import pytest
from page_reader import Reader

import specjax
from specjax.lab.view.html import CLASSES
from specjax.lab.view.tokens import lay_out, visible
from specjax.trace.trace import Trace
from tools import text_svg as svg

TRACE, PLAIN = made_traces.speculative(), made_traces.plain()


def body(page: str) -> str:
    return page[page.index('class="row"') :]


def test_the_page_holds_each_piece_once_and_escaped() -> None:
    shown_page = str(specjax.show(TRACE, 0))
    for bad in ("<script>alert", "<!--", "\x1b", "http"):  # the last: no network
        assert bad not in shown_page
    reader = Reader(shown_page)
    shown = [(c, t) for c, t in reader.found if t != "abc"]  # the legend's
    prompt, *rest = shown
    assert prompt == (["pr"], made_traces.PROMPT)
    kept = [(c, t) for c, t in rest if "r" not in c]
    assert [t for _, t in kept] == [visible(p) for p in TRACE.texts[0].pieces]
    assert [c[1] for c, _ in kept] == [CLASSES[label] for label in TRACE.labels(0)]
    rejected = sum(len(c.proposed) - c.accepted for c in TRACE.rows[0])
    assert len(rest) - len(kept) == rejected
    # The first rejected guess stands before the token that took its place.
    order = ["".join(c[1]) for c, _ in rest][:12]
    assert order[:6] == ["a", "a", "a", "a", "b", "r"] and "c" in order
    assert f"tau {TRACE.tau:.2f}" in shown_page
    assert "committed tokens per target pass, the target's own included" in shown_page
    assert TRACE._repr_html_().count('class="row"') == len(TRACE.rows)
    # Without a style sheet, as where notebooks are looked at, indentation stays: all is in <pre>.
    for whole, many in ((shown_page, 1), (str(specjax.race(TRACE, PLAIN)), 2)):
        bare = re.sub(r"<style>.*?</style>|<pre .*?</pre>", "", whole, flags=re.S)
        assert whole.count('<pre class="tx">') == many and "pr" not in re.findall(
            r'class="(\w+)', bare
        )


def test_hovering_tells_what_the_trace_knows() -> None:
    first = re.search(r'title="([^"]*)"', body(str(specjax.show(TRACE, 0))))
    assert first is not None
    assert first[1].split("\n") == [
        "accepted guess: guess 1 of 4",
        "position 5 · cycle 1 · token 100",
        "p 0.75 (target) · q 1 (draft)",
        "rank 1 in the target&#x27;s order",
        "after 0.012 s",
    ]
    bare = dataclasses.replace(
        TRACE, rows=tuple(tuple(dataclasses.replace(c, detail=None) for c in r) for r in TRACE.rows)
    )
    assert "p 0." not in str(specjax.show(bare, 0))
    numbers = Trace(TRACE.rows)  # no texts at all: ids stand for them
    assert "⟨100⟩" in str(specjax.show(numbers, 0))


def test_the_figures_are_those_of_what_is_shown() -> None:
    taus = [sum(c.committed for c in row) / len(row) for row in TRACE.rows]
    for row, tau in enumerate(taus):
        assert f'<span class="big">tau {tau:.2f}</span>' in str(specjax.show(TRACE, row))
    assert f'<span class="big">tau {TRACE.tau:.2f}</span>' in str(specjax.show(TRACE))


def test_the_svg_of_the_text_is_well_formed_and_whole() -> None:
    image = svg.text_svg(TRACE, 0)
    root = ET.fromstring(image)
    texts = [e.text or "" for e in root.iter() if e.tag.endswith("}text") and e.get("textLength")]
    shown = "".join(texts).replace("abc", "")
    want = visible(made_traces.PROMPT + "".join(TRACE.texts[0].pieces))
    assert "".join(shown.split()) == "".join(want.split())
    assert "prefers-color-scheme" in image and "script>" not in image.replace("/script&gt;", "")
    with pytest.raises(ValueError, match="width=3"):
        svg.text_svg(TRACE, 0, width=3)


def test_layout_keeps_columns() -> None:
    assert lay_out(["ab\n", "\tc", "日本語"], 8) == [
        [(0, 0, "ab")],
        [(1, 0, "    c")],
        [(1, 5, "日"), (2, 0, "本語")],
    ]
