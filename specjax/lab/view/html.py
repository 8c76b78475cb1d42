"""Coloured text as a page: which tokens were guessed, which the target wrote itself.

One self-contained string: no network, no identifiers that could collide in a notebook, and the few
lines of script only make the hover faster; everything is there without them. What the tokens say is
escaped, and taking the markup away gives the text exactly: marks of line breaks and special tokens
are drawn by the style sheet. Text is in <pre>: viewers of notebooks drop style sheets, and typeset
what stands between dollars elsewhere.
"""

from __future__ import annotations

import dataclasses
import html
import itertools
import math
import re
from pathlib import Path

from specjax.core.files import write_atomically
from specjax.lab.view.palette import MEANING, MONO, REJECTED, SANS, css
from specjax.lab.view.tokens import Token, describe, text_of, tokens, visible
from specjax.trace.metrics import figures, select
from specjax.trace.trace import ACCEPTED, BONUS, CORRECTION, Trace

MOST_ROWS = 16  # that are shown when none is named
TAU = "committed tokens per target pass, the target's own included"
CLASSES = {ACCEPTED: "a", CORRECTION: "c", BONUS: "b", REJECTED: "r"}

STYLE = (
    css(".sj")
    + f"""
.sj{{font:14px/1.5 {SANS};color:var(--ink);background:var(--page);box-sizing:border-box;
 text-align:left}}
.sj *{{box-sizing:border-box}}
.sj .tx{{font:13px/1.85 {MONO};white-space:pre-wrap;overflow-wrap:anywhere;tab-size:4;margin:0;
 padding:14px 16px;border:1px solid var(--line);border-radius:8px;background:var(--page);
 color:var(--ink);unicode-bidi:isolate}}
.sj .pr{{color:var(--muted)}}
.sj .tk{{border-radius:3px;padding:2px 0;box-shadow:inset 1px 0 var(--page);cursor:default}}
.sj .a{{background:var(--accepted-ground)}}
.sj .c,.sj .b{{background:var(--own-ground);color:var(--own);font-weight:700;
 text-decoration:underline;text-decoration-thickness:1.5px;text-underline-offset:3px}}
.sj .b{{text-decoration-style:double}}
.sj .r{{color:var(--rejected);font-size:10px;text-decoration:line-through;user-select:none;
 white-space:pre;padding:0 1px;vertical-align:1px}}
.sj .n::before{{content:"↵";color:var(--muted);opacity:.6;font-weight:400;font-size:.8em;
 display:inline-block;text-decoration:none}}
.sj .e::before{{content:attr(data-e);font-size:9px;opacity:.75;border:1px solid currentColor;
 border-radius:3px;padding:0 2px;margin:0 1px;font-weight:400;display:inline-block;line-height:1.3}}
.sj .cy:hover .tk{{box-shadow:inset 1px 0 var(--page),0 1.5px 0 var(--ink),0 -1.5px 0 var(--ink)}}
.sj .cy:hover .r{{box-shadow:none}}
.sj .hd{{display:flex;flex-wrap:wrap;gap:4px 18px;align-items:baseline;margin:0 0 8px}}
.sj .big{{font-size:22px;font-weight:650;letter-spacing:-.01em;font-variant-numeric:tabular-nums}}
.sj .mu{{color:var(--muted);font-size:12.5px}}
.sj .lg{{display:flex;flex-wrap:wrap;gap:6px 16px;align-items:center;margin:0 0 12px;font-size:12px;
 color:var(--muted)}}
.sj .lg .tk{{font:12px {MONO};padding:2px 5px}}
.sj .lg .a{{color:var(--ink)}}
.sj .lg .r{{font-size:11px}}
.sj .lg label{{display:inline-flex;gap:6px;align-items:center;cursor:pointer;color:var(--ink);
 margin-left:auto}}
.sj .lg input{{accent-color:var(--own);margin:0}}
.sj:has(.hide:checked) .tx .r{{display:none}}
.sj .row+.row{{margin-top:18px}}
.sj .tip{{position:fixed;z-index:9;pointer-events:none;background:var(--ink);color:var(--page);
 font:12px/1.5 {MONO};white-space:pre;padding:8px 10px;border-radius:6px;max-width:90vw;
 box-shadow:0 4px 16px rgba(0,0,0,.25)}}
"""
)

# The browser's own tooltips are slow and small: the same words at once, beside the token.
SCRIPT = """
document.querySelectorAll('.sj:not([data-tip])').forEach(function(root){
  root.dataset.tip='1';
  var tip=document.createElement('div');tip.className='tip';tip.hidden=true;root.appendChild(tip);
  root.addEventListener('mouseover',function(event){
    var token=event.target.closest('.tk');
    if(!token||!root.contains(token)||!(token.title||token.dataset.title)){tip.hidden=true;return}
    if(token.title){token.dataset.title=token.title;token.removeAttribute('title')}
    tip.textContent=token.dataset.title;tip.hidden=false;
    var box=token.getClientRects()[0],top=box.bottom+8;
    if(top+tip.offsetHeight>innerHeight)top=box.top-tip.offsetHeight-8;
    tip.style.top=Math.max(4,top)+'px';
    tip.style.left=Math.max(4,Math.min(box.left,innerWidth-tip.offsetWidth-12))+'px';
  });
  root.addEventListener('mouseleave',function(){tip.hidden=true});
});
"""


@dataclasses.dataclass(frozen=True)
class Page:
    """A piece of HTML that notebooks show and `save` writes as a page of its own."""

    body: str
    title: str = "specjax"

    def _repr_html_(self) -> str:
        return self.body

    def __str__(self) -> str:
        return self.body

    def __repr__(self) -> str:
        return f"<{self.title}: {len(self.body):,} characters of HTML; save(path) writes a page>"

    def page(self) -> str:
        """A whole document."""
        return document(self.title, f'<div class="sj" style="padding:24px">{self.body}</div>')

    def save(self, path: str | Path) -> None:
        """Writes a page that opens anywhere, without network.

        Raises:
          OSError: if it cannot be written.
        """
        write_atomically(Path(path).expanduser(), self.page())


def document(title: str, body: str) -> str:
    """``body`` as a document of its own."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{html.escape(title)}</title>"
        f"<style>{css(':root')}body{{margin:0;background:var(--page)}}</style></head>"
        f"<body>{body}</body></html>\n"
    )


def show(trace: Trace, row: int | None = None) -> Page:
    """The text of a trace, coloured by whose token is whose.

    Accepted guesses have a green ground, the target's own tokens are blue, bold and underlined,
    rejected guesses small, red and struck through; they can be hidden. Pointing at a token tells
    its position, cycle, probabilities (if the trace has details), rank and time.

    Args:
      trace: of `specjax.generate`, or from a file.
      row: the row to show; None: all, at most 16.

    Raises:
      ValueError: if there is no such row.
    """
    rows = range(min(len(trace.rows), MOST_ROWS)) if row is None else [row]
    parts = [f'<div class="row">{coloured(trace, r, label=len(rows) > 1)}</div>' for r in rows]
    told = trace if row is None else select(trace, rows)
    left = len(trace.rows) - len(rows) if row is None else 0
    more = f'<p class="mu">{left} more rows: show(trace, row=...)</p>' if left else ""
    body = (
        f'<div class="sj"><style>{STYLE}</style>{headline(told)}{legend()}'
        f"{''.join(parts)}{more}<script>{SCRIPT}</script></div>"
    )
    return Page(body, f"specjax: {describe(trace)}")


def headline(trace: Trace) -> str:
    """One line: tau and which tau it is, then the counts."""
    found = figures(trace)
    if found["tau"] is None:
        return '<div class="hd"><span class="mu">no cycles: nothing was generated</span></div>'
    counts = [f"{found['tokens']} tokens in {found['cycles']} target passes"]
    if found["survival"]:
        curve = " ".join(f"{s:.2f}" for s in found["survival"][:8] if s is not None)
        counts.append(f"survival {curve}{' …' if len(found['survival']) > 8 else ''}")
    if found["tpot_ms"] is not None:
        counts.append(f"{1e3 / found['tpot_ms']:,.0f} tokens/s a row, prefill not included")
    return (
        f'<div class="hd"><span class="big">tau {found["tau"]:.2f}</span>'
        f'<span class="mu">{TAU}</span>'
        f'<span class="mu">{html.escape(" · ".join([*counts, describe(trace)]))}</span></div>'
    )


def legend() -> str:
    """What the looks mean, and the switch that hides rejected guesses."""
    keys = "".join(
        f'<span><span class="tk {CLASSES[label]}">{word}</span> {meaning}</span>'
        for label, word, meaning in (
            (ACCEPTED, "abc", MEANING[ACCEPTED]),
            (CORRECTION, "abc", MEANING[CORRECTION]),
            (BONUS, "abc", MEANING[BONUS]),
            (REJECTED, "abc", MEANING[REJECTED]),
        )
    )
    switch = '<label><input type="checkbox" class="hide">hide rejected guesses</label>'
    return f'<div class="lg">{keys}{switch}</div>'


def coloured(trace: Trace, row: int, *, label: bool = False, hover: bool = True) -> str:
    """The prompt and the tokens of one row; ``label`` puts its number and tau above."""
    shown = tokens(trace, row)
    text, cycles = text_of(trace, row), trace.rows[row]
    head = ""
    if label and cycles:
        tau = sum(c.committed for c in cycles) / len(cycles)
        kind = f" · {text.category}" if text.category else ""
        head = f'<div class="mu">row {row}{html.escape(kind)} · tau {tau:.2f}</div>'
    groups = itertools.groupby(shown, key=lambda t: t.cycle)
    body = "".join(
        f'<span class="cy">{"".join(token_span(t, hover=hover) for t in group)}</span>'
        for _, group in groups
    )
    return f'{head}<pre class="tx"><span class="pr">{escaped(text.prompt)}</span>{body}</pre>'


def token_span(token: Token, *, hover: bool = True, extra: str = "") -> str:
    """One token; ``extra`` are attributes of its element."""
    tag = "del" if token.label == REJECTED else "span"
    text, more = escaped(token.text), ""
    if token.label == REJECTED:
        text = escaped(shortened(token.text))
    elif not token.text:
        more = " e"
        extra += f' data-e="{token.id}"'
    title = f' title="{html.escape(tooltip(token))}"' if hover else ""
    return f'<{tag} class="tk {CLASSES[token.label]}{more}"{title}{extra}>{text}</{tag}>'


def shortened(text: str) -> str:
    """A rejected guess takes little room: a picture for each run of white space in it."""
    text = re.sub(r"\n\s*", lambda found: "↵" * found[0].count("\n"), text)
    return re.sub(r"[ \t]{2,}", "␣", text)


def tooltip(token: Token) -> str:
    """What is known of a token, a line each."""
    which = f"guess {token.guess} of {token.num_guesses}" if token.guess else ""
    lines = [MEANING[token.label] + (f": {which}" if which else "")]
    lines.append(f"position {token.position} · cycle {token.cycle + 1} · token {token.id}")
    if token.p is not None:
        p = f"p {token.p:.3g} (target)"
        lines.append(p if token.q is None else f"{p} · q {token.q:.3g} (draft)")
    if token.rank:
        lines.append(f"rank {token.rank} in the target's order")
    if token.label == REJECTED and token.p is not None and token.guess > 1:
        lines.append("given the guesses before it")
    if not math.isnan(token.end):
        lines.append(f"after {token.end:.4g} s")
    if not token.text:
        lines.append("no characters of its own (special, or a part of a character)")
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Safe in HTML; every line break is preceded by an empty element that draws its mark."""
    return html.escape(visible(text)).replace("\n", '<i class="n"></i>\n')
