"""The race: speculation against plain decoding on one clock, replayed from recorded times."""

from __future__ import annotations

import html
import json
import math

from specjax.lab.view.html import STYLE, Page, escaped, token_span
from specjax.lab.view.palette import MONO
from specjax.lab.view.tokens import check_row, finish_time, name_of, text_of, tokens
from specjax.trace.trace import Trace

REPLAY_SECONDS = 8.0  # that the slower side takes at the speed at which the replay begins

RACE_STYLE = f"""
.rc{{--gap:14px}}
.rc .bar{{display:flex;flex-wrap:wrap;gap:8px 14px;align-items:center;margin:0 0 12px}}
.rc .bar[hidden]{{display:none}}
.rc button{{font:inherit;font-weight:600;color:var(--ink);background:var(--panel);
 border:1px solid var(--line);border-radius:6px;padding:4px 12px;cursor:pointer;min-width:76px}}
.rc button:hover{{border-color:var(--muted)}}
.rc input[type=range]{{accent-color:var(--own);width:150px;vertical-align:middle}}
.rc output{{font-variant-numeric:tabular-nums;display:inline-block;min-width:4.2em}}
.rc .clock{{font:600 20px {MONO};font-variant-numeric:tabular-nums;margin-left:auto}}
.rc .track{{position:relative;border:1px solid var(--line);border-radius:8px;padding:10px 64px 10px
 12px;margin:0 0 var(--gap);background:var(--panel)}}
.rc .lane{{display:grid;grid-template-columns:10.5em 1fr;gap:10px;align-items:center;height:26px}}
.rc .lane>span{{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}}
.rc .plain .tk{{background:none;color:var(--ink);font-weight:400;text-decoration:none}}
.rc .way{{position:relative;height:12px;border-radius:6px;background:var(--line)}}
.rc .run{{position:absolute;inset:0 auto 0 0;border-radius:6px;width:100%}}
.rc .fast .run,.rc .key.fast{{background:var(--accepted)}}
.rc .plain .run,.rc .key.plain{{background:var(--plain)}}
.rc .plain .run{{background-image:repeating-linear-gradient(90deg,transparent 0 6px,
 var(--panel) 6px 7px)}}
.rc .way::after{{content:"";position:absolute;right:0;top:-7px;bottom:-7px;width:3px;
 background:repeating-linear-gradient(var(--ink) 0 3px,transparent 3px 6px)}}
.rc .at{{position:absolute;left:calc(100% + 8px);top:-5px;font:12px {MONO};white-space:nowrap;
 color:var(--ink)}}
.rc .panes{{display:grid;grid-template-columns:1fr 1fr;gap:var(--gap)}}
.rc .pane{{min-width:0;display:flex;flex-direction:column}}
.rc .name{{font-weight:650;display:flex;gap:8px;align-items:center}}
.rc .key{{width:10px;height:10px;border-radius:3px;display:inline-block}}
.rc .nums{{display:flex;align-items:baseline;gap:16px;font-size:12.5px;color:var(--muted);
 margin:2px 0 8px;font-variant-numeric:tabular-nums;flex-wrap:wrap}}
.rc .nums b{{color:var(--ink);font-weight:650;font-size:14px}}
.rc .tx{{height:340px;overflow:auto;scrollbar-width:thin}}
.rc .f{{visibility:hidden}}
.rc .new{{outline:1.5px solid var(--ink);outline-offset:-1px}}
.rc .result{{font-weight:600;margin:12px 0 0}}
@media(max-width:640px){{.rc .panes{{grid-template-columns:1fr}}.rc .tx{{height:200px}}
 .rc .lane{{grid-template-columns:5.5em 1fr;font-size:12px}}}}
"""

# Time of the replay = recorded seconds; the script only decides what is visible at that time.
RACE_SCRIPT = """
document.querySelectorAll('.rc:not([data-on])').forEach(function(root){
  root.dataset.on='1';
  var q=function(s){return root.querySelector(s)},data=JSON.parse(root.dataset.race);
  var sides=['fast','plain'].map(function(name){
    var pane=q('.pane.'+name);
    return {ends:data[name].ends,last:data[name].last,text:pane.querySelector('.tx'),
      spans:pane.querySelectorAll('.tx .tk'),count:pane.querySelector('.count'),
      rate:pane.querySelector('.rate'),run:q('.lane.'+name+' .run'),at:q('.lane.'+name+' .at'),
      shown:-1}});
  var end=Math.max(sides[0].last,sides[1].last),now=end,playing=false,before=0;
  var button=q('.play'),slider=q('.speed'),label=q('output'),clock=q('.clock');
  function speed(){return Math.pow(10,+slider.value)}
  function rateOf(n,t){return t>0?Math.round(n/t).toLocaleString('en-US'):'0'}
  function draw(){
    sides.forEach(function(s){
      var n=s.ends.length;while(n&&s.ends[n-1]>now+1e-9)n--;
      if(n!==s.shown){
        var newest=n?s.ends[n-1]:-1;
        for(var i=0;i<s.spans.length;i++){
          s.spans[i].classList.toggle('f',i>=n);
          s.spans[i].classList.toggle('new',i<n&&n<s.ends.length&&s.ends[i]===newest)}
        s.shown=n;s.count.textContent=n;
        s.run.style.width=100*n/Math.max(s.ends.length,1)+'%';
        var span=s.spans[Math.max(n-1,0)];
        if(span){var y=span.offsetTop-s.text.offsetTop;
          if(n===0)s.text.scrollTop=0;
          else s.text.scrollTop=Math.max(0,y-s.text.clientHeight+60)}
      }
      s.rate.textContent=rateOf(n,Math.min(now,s.last));
      s.at.textContent=now>=s.last-1e-9?s.last.toFixed(3)+' s':'';
    });
    clock.textContent=now.toFixed(3)+' s';
    q('.result').style.visibility=now>=end?'visible':'hidden';
    button.textContent=playing?'Pause':'Play';
  }
  function frame(time){
    if(!playing)return;
    now=Math.min(end,now+(time-before)/1000*speed());before=time;
    if(now>=end)playing=false;
    draw();
    if(playing)requestAnimationFrame(frame);
  }
  function play(){playing=true;draw();requestAnimationFrame(function(t){before=t;frame(t)})}
  function relabel(){label.textContent=speed()<.1?speed().toFixed(3)+'×':speed().toFixed(2)+'×'}
  button.onclick=function(){
    if(playing){playing=false;draw();return}
    if(now>=end)now=0;
    play()};
  q('.again').onclick=function(){now=0;if(playing)draw();else play()};
  slider.oninput=relabel;
  q('.bar').hidden=false;relabel();draw();
});
"""


def race(fast: Trace, plain: Trace, row: int = 0) -> Page:
    """Both texts as they came, on one clock; play, pause, restart and the speed are buttons.

    Each token appears when its cycle was over, counted from the beginning of the generation, so
    that prefill is part of the race. Without scripts the page shows the end of it.

    Args:
      fast: of speculation, with times.
      plain: of plain decoding, of the same prompts.
      row: which row of both.

    Raises:
      ValueError: in one line, if there is no such row, a time is unknown or the prompts differ.
    """
    check_race(fast, plain, row)
    sides = {"fast": fast, "plain": plain}
    end = max(finish_time(t, row) for t in sides.values())
    data = {
        name: {
            "ends": [t.end for t in tokens(trace, row, rejected=False)],
            "last": finish_time(trace, row),
        }
        for name, trace in sides.items()
    }
    start = math.log10(end / REPLAY_SECONDS) if end > 0 else 0.0
    low, high = min(-3.0, start - 0.5), max(1.0, start + 1.0)
    panes = "".join(_pane(name, trace, row) for name, trace in sides.items())
    lanes = "".join(_lane(name, trace, row) for name, trace in sides.items())
    body = (
        f'<div class="sj rc" data-race="{html.escape(json.dumps(data))}">'
        f"<style>{STYLE}{RACE_STYLE}</style>"
        '<div class="bar" hidden><button class="play">Play</button>'
        '<button class="again">Restart</button>'
        f'<label class="mu">speed <input class="speed" type="range" min="{low:.3f}" '
        f'max="{high:.3f}" step="0.001" value="{start:.3f}"> <output></output></label>'
        '<span class="clock" title="recorded seconds since the generation began"></span></div>'
        f'<div class="track">{lanes}</div><div class="panes">{panes}</div>'
        f'<div class="result">{html.escape(verdict(fast, plain, row))}</div>'
        f"<script>{RACE_SCRIPT}</script></div>"
    )
    return Page(body, "specjax race")


def check_race(fast: Trace, plain: Trace, row: int) -> None:
    """Raises ValueError, in one line, unless the two rows can be raced."""
    for name, trace in (("the first trace", fast), ("the second trace", plain)):
        check_row(trace, row)
        cycles = trace.rows[row]
        if not cycles:
            raise ValueError(f"Row {row} of {name} has no cycles to replay.")
        if any(math.isnan(c.end) for c in cycles):
            raise ValueError(
                f"Row {row} of {name} has cycles without times; a race replays recorded ones."
            )
    prompts = [text_of(t, row).prompt_tokens for t in (fast, plain)]
    if prompts[0] != prompts[1]:
        raise ValueError(f"Row {row} has another prompt in either trace: race them on the same.")


def verdict(fast: Trace, plain: Trace, row: int) -> str:
    """Who was there first, in one sentence."""
    times = finish_time(fast, row), finish_time(plain, row)
    counts = [sum(c.committed for c in t.rows[row]) for t in (fast, plain)]
    names = name_of(fast), "plain decoding"
    told = [f"{n} tokens in {t:.3f} s" for n, t in zip(counts, times)]
    if counts[0] != counts[1]:  # sampled texts may end elsewhere: time alone says nothing
        rates = counts[0] / times[0], counts[1] / times[1]
        win = 0 if rates[0] >= rates[1] else 1
        ratio = rates[win] / rates[1 - win]
        return (
            f"{names[win]} wrote {ratio:.2f}x the tokens per second ({told[0]} against {told[1]})."
        )
    win = 0 if times[0] <= times[1] else 1
    ratio = times[1 - win] / times[win]
    return (
        f"{names[win]} finished first: {ratio:.2f}x as fast on this prompt, prefill included "
        f"({counts[0]} tokens in {times[0]:.3f} s against {times[1]:.3f} s)."
    )


def _name(name: str, trace: Trace) -> str:
    return html.escape(name_of(trace) if name == "fast" else "plain decoding")


def _pane(name: str, trace: Trace, row: int) -> str:
    shown = tokens(trace, row, rejected=False)
    seconds = finish_time(trace, row)
    spans = "".join(token_span(t, hover=False) for t in shown)
    rate = f"{len(shown) / seconds:,.0f}" if seconds > 0 else "0"
    return (
        f'<div class="pane {name}"><div class="name"><span class="key {name}"></span>'
        f'{_name(name, trace)}</div><div class="nums"><span><b class="count">{len(shown)}</b> '
        f'tokens</span><span><b class="rate">{rate}</b> tokens/s</span>'
        f"<span>{len(trace.rows[row])} target passes</span></div>"
        f'<pre class="tx"><span class="pr">{escaped(text_of(trace, row).prompt)}</span>{spans}'
        "</pre></div>"
    )


def _lane(name: str, trace: Trace, row: int) -> str:
    return (
        f'<div class="lane {name}"><span>{_name(name, trace)}</span><div class="way">'
        f'<div class="run"></div><span class="at">{finish_time(trace, row):.3f} s</span>'
        "</div></div>"
    )
