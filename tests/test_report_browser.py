"""The report in a real browser, from a file and without network: it renders, runs, and is true."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_traces
import pytest

from specjax.lab.view.report import write_report
from specjax.lab.view.tokens import visible
from specjax.trace import metrics, trace_file

CHROMIUM = next(
    (p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None
)
IN_CI = os.environ.get("CI", "").lower() in ("1", "true")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium. In CI its absence fails the test, elsewhere it is skipped."""
    if CHROMIUM is None and not IN_CI:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    assert CHROMIUM is not None, "CI needs chromium: apt-get install chromium"
    if not IN_CI:
        pytest.importorskip("playwright", reason="no playwright: pip install '.[test]'")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(made_traces.result_directory(tmp_path_factory.mktemp("result")))


class Opened:
    """A page, and whatever it complained of or asked the network for."""

    def __init__(self, browser: Any, path: Path, **options: Any):
        self.context = browser.new_context(**options)
        self.context.set_offline(True)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.ask(request.url))
        self.page.goto(path.as_uri())

    def ask(self, url: str) -> None:
        if not url.startswith("file:"):
            self.complaints.append(f"asked for {url}")

    def text(self, selector: str) -> str:
        found: str = self.page.locator(selector).first.inner_text()
        return found


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Opened]:
    page = Opened(browser, report)
    yield page
    page.context.close()
    assert not page.complaints


def summary(report: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((report.parent / "metrics.json").read_text())
    return found


def best(report: Path) -> tuple[dict[str, Any], Any, Any]:
    """The fastest case, its trace, and that of plain decoding."""
    cases = summary(report)["cases"]
    case = max(
        (c for c in cases if c["compare"]), key=lambda c: (c["compare"]["speedup"], c["name"])
    )
    traces = [
        trace_file.load(report.parent / "cases" / name / "trace.jsonl")
        for name in (case["name"], case["plain"])
    ]
    return case, traces[0], traces[1]


def test_what_it_says_is_what_was_measured(opened: Opened, report: Path) -> None:
    case, trace, _ = best(report)
    pooled = max(
        (row for row in summary(report)["pooled"] if row["compare"]),
        key=lambda row: row["compare"]["speedup"],
    )
    cells = [
        c["compare"]["speedup"]
        for c in summary(report)["cases"]
        if (c["drafter"], c["num_draft"]) == (pooled["drafter"], pooled["num_draft"])
    ]
    assert min(cells) < pooled["compare"]["speedup"] < max(cells)
    speedup, tau = pooled["compare"]["speedup"], pooled["metrics"]["tau"]
    assert f"{speedup:.2f}x" in opened.text(".lead") and f"{tau:.2f}" in opened.text(".lead")
    tiles = opened.page.locator(".tile b").all_inner_texts()
    assert tiles[:2] == [f"{speedup:.2f}x", f"{tau:.2f}"]
    want = visible(made_traces.PROMPT + "".join(trace.texts[0].pieces))
    shown = opened.page.evaluate(
        """() => { const text = document.querySelector('.row .tx').cloneNode(true);
        text.querySelectorAll('del').forEach(e => e.remove()); return text.textContent }"""
    )
    assert shown == want
    rows = opened.page.locator("table tbody tr:not(.g)").all_inner_texts()
    assert len(rows) == len(summary(report)["pooled"]) + len(summary(report)["cases"])
    speedup, tau = case["compare"]["speedup"], case["metrics"]["tau"]
    assert any(f"{tau:.2f}" in r and f"{speedup:.2f}x" in r for r in rows)
    assert opened.page.locator("dl dt", has_text=re.compile("^tau_lockstep$")).count() == 1
    assert len(metrics.METRICS) <= opened.page.locator("dl dt").count()


def test_rejected_guesses_can_be_hidden_and_tokens_asked(opened: Opened) -> None:
    struck = opened.page.locator(".row .tx del").first
    assert struck.is_visible()
    opened.page.locator("input.hide").check()
    assert not struck.is_visible()
    opened.page.locator("input.hide").uncheck()
    assert struck.is_visible()
    opened.page.locator(".row .tx .tk.a").first.hover()
    assert opened.text("main > .tip").startswith("accepted guess: guess 1 of")
    assert "p 0.75 (target)" in opened.text("main > .tip")


def test_the_race_runs_to_the_recorded_times(opened: Opened, report: Path) -> None:
    _, trace, plain = best(report)
    ends = [t.rows[0][-1].end for t in (trace, plain)]

    def clock() -> float:
        return float(opened.text(".rc .clock").split()[0])

    assert clock() == pytest.approx(max(ends), abs=5e-4)  # the end, as without scripts
    play = opened.page.locator(".rc .play")
    opened.page.evaluate(  # as slow as to be caught in the middle
        """() => { const s = document.querySelector('.rc .speed'); s.value = -2;
        s.dispatchEvent(new Event('input')) }"""
    )
    play.click()
    opened.page.wait_for_function(
        "() => +document.querySelector('.rc .pane.fast .count').textContent > 0"
    )
    assert play.inner_text() == "Pause"
    play.click()
    early = clock()
    # What is shown at this time is what was there at this time.
    for name, t in (("fast", trace), ("plain", plain)):
        want = sum(c.committed for c in t.rows[0] if c.end <= early)
        near = sum(c.committed for c in t.rows[0] if abs(c.end - early) < 6e-4)
        count = int(opened.text(f".rc .pane.{name} .count"))
        assert abs(count - want) <= near
        shown = opened.page.locator(f".rc .pane.{name} .tk:not(.f)").count()
        assert shown == count
    assert 0 < early < max(ends)
    opened.page.evaluate(
        """() => { const s = document.querySelector('.rc .speed'); s.value = s.max;
        s.dispatchEvent(new Event('input')) }"""
    )
    play.click()
    opened.page.wait_for_function(
        "() => document.querySelector('.rc .play').textContent === 'Play'"
    )
    assert clock() == pytest.approx(max(ends), abs=5e-4)
    for name, t, end in (("fast", trace, ends[0]), ("plain", plain, ends[1])):
        assert opened.text(f".rc .lane.{name} .at") == f"{end:.3f} s"
        num = sum(c.committed for c in t.rows[0])
        assert int(opened.text(f".rc .pane.{name} .count")) == num
        rate = float(opened.text(f".rc .pane.{name} .rate").replace(",", ""))
        assert rate == pytest.approx(num / end, abs=0.51)
    assert "finished first" in opened.text(".rc .result")


def test_dark_and_narrow_and_without_scripts(browser: Any, report: Path) -> None:
    looks = """() => { const style = e => getComputedStyle(document.querySelector(e));
        return [style('body').backgroundColor, style('.rp').color,
                style('figure svg text').fill,
                document.documentElement.scrollWidth - innerWidth] }"""
    seen = {}
    for scheme in ("light", "dark"):
        page = Opened(browser, report, color_scheme=scheme, viewport={"width": 390, "height": 800})
        page_ground, ink, figure_ink, overflow = page.page.evaluate(looks)
        seen[scheme] = (page_ground, ink, figure_ink)
        assert overflow <= 0, "the page scrolls sideways"
        assert not page.complaints
        page.context.close()
    assert seen["light"][0] == "rgb(255, 255, 255)" and seen["dark"][0] == "rgb(15, 19, 24)"
    assert all(a != b for a, b in zip(seen["light"], seen["dark"]))
    page = Opened(browser, report, java_script_enabled=False)
    assert page.page.locator(".rc .pane.fast .tk").last.is_visible()
    assert not page.page.locator(".rc .play").is_visible()
    page.context.close()
