"""Chat templates: rendered as Transformers does, within bounds, and what they read."""

from __future__ import annotations

import datetime
import json

import pytest

from specjax.checkpoint import sandbox
from specjax.checkpoint.chat import ChatTemplate

ASKED = [{"role": "user", "content": "hi"}]
CALL = {"type": "function", "function": {"name": "clock", "arguments": {"tz": "é<"}}}


def template(source: str, **more) -> ChatTemplate:
    return ChatTemplate(source, {"eos_token": "<e>"}, where="T", **more)


MACRO = "{%% macro %s() %%}{{ %s }}{%% endmacro %%}"
GROW = (
    "{%% set ns = namespace(s=%s) %%}{%% for i in range(99) %%}{%% set ns.s = %s %%}{%% endfor %%}"
    "{{ ns.s | tojson }}"
)


def loops(*ranges: str) -> str:
    starts = "".join(f"{{% for i in {r} %}}" for r in ranges)
    return starts + "x" + "{% endfor %}" * len(ranges)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ 1/0 }}", "ZeroDivisionError"),
        ("{{ none|length }}", "TypeError"),
        ("{{ a.b.c }}", "'a' is undefined"),
        ("{{ messages[0].content.nothing() }}", "no attribute"),
        ("{% include 'x' %}", "no loader"),
        (MACRO % ("f", "f()") + "{{ f() }}", "calls itself"),
        (MACRO % ("f", "g()") + MACRO % ("g", "f()") + "{{ f() }}", "calls itself"),
        ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "calls itself"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "calls itself, or nests"),
        (loops("range(99999)", "range(99999)"), "takes longer"),
        ("{% set r = range(99999)|list %}" + loops("r", "r"), "takes longer"),
        ("{% set x %}" + loops("range(99999)", "range(99999)") + "{% endset %}", "takes longer"),
        (MACRO % ("f", "f() ~ f() if range(9**9) else f()") + "{{ f() }}", "Range too big"),
        (
            "{% for x in [1, 1] recursive %}{% if loop.depth < 60 %}{{ loop([1, 1]) }}{% endif %}"
            "{% endfor %}",
            "takes longer",
        ),
        ("{{ range(10**12)|list }}", "Range too big"),
        ('{{ "x" * 10**10 }}', "more than"),
        ("{{ 10**10 * [0] }}", "more than"),
        ('{{ "x".rjust(10**10) }}', "more than"),
        ('{{ ["x"]|map("center", 10**10)|list }}', "more than"),
        ('{{ "%10000000000d" % 1 }}', "more than"),
        ('{{ "%*d" % (10**10, 1) }}', "more than"),
        ('{{ "%.9999999999f"|format(1) }}', "more than"),
        ('{{ "{:>{w}}".format(1, w=10**10) }}', "more than"),
        ('{{ "{a:>{b}}".format_map({"a": 1, "b": 10**10}) }}', "more than"),
        ('{{ ("a" * 10**6).replace("a", "b" * 10**6) }}', "more than"),
        ('{{ range(99999)|join("b" * 10**6) }}', "more than"),
        ('{{ ("x" * 10**5).join(range(99999)|map("string")) }}', "more than"),
        ('{{ "\\t".expandtabs(10**10) }}', "more than"),
        ('{{ ("x" * 10**5).translate({120: "y" * 10**6}) }}', "more than"),
        ("{{ messages|tojson(indent=10**10) }}", "more than"),
        ('{{ [1]|batch(10**10, "y")|list }}', "more than"),
        ('{{ (1).to_bytes(10**10, "big") }}', "more than"),
        ("{{ 1.5|round(10**9, 'ceil') }}", "more than"),
        ("{{ 10**(10**10) }}", "bits"),
        ("{{ lipsum(10**6) }}", "undefined"),
        (GROW % ("'x'", "ns.s ~ ns.s"), "more than"),
        (GROW % ("'x'", "ns.s + ns.s"), "more than"),
        (GROW % ("1", "[ns.s, ns.s]"), "more than"),
        (GROW % ("1", "{'a': ns.s, 'b': ns.s}"), "more than"),
        (GROW % ("1", "dict(a=ns.s, b=ns.s)"), "more than"),
        (GROW % ("2", "ns.s * ns.s"), "bits"),
        ("x" * (sandbox.SOURCE + 1), "too many for a template"),
        ("{% while %}", "not a chat template"),
        ("{{ raise_exception('no\nsuch role') }}", "no such role"),
    ],
)
def test_hostile_and_broken_templates_end_in_one_line(monkeypatch, source, said):
    monkeypatch.setattr(sandbox, "SECONDS", 0.3)
    with pytest.raises(ValueError, match="T") as error:
        template(source).render(ASKED)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_what_real_templates_do_is_within_the_bounds():
    long = [{"role": "user", "content": "é" * 2**20}] * 4
    source = (
        "{%- set ns = namespace(s='', n=0) -%}{%- for m in messages[::-1] -%}"
        "{%- set ns.n = ns.n + m.content|length -%}{%- endfor -%}"
        "{% for m in messages %}{{ m.content.split('x')[-1].strip('\\n') + eos_token }}{% endfor %}"
    )
    assert template(source).render(long) == ("é" * 2**20 + "<e>") * 4
    formats = "{{ '%5s|%-4d' % ('a', 2) }}{{ '{:>3} 12345678901234'.format(1) }}{{ 'é'.encode() }}"
    assert template(formats).render(ASKED) == "    a|2     1 12345678901234b'\\xc3\\xa9'"
    sums = "{{ [1, 2]|sum }}{{ [[1], [2]]|sum(start=[]) }}{{ messages|map(attribute='role')|join }}"
    assert template(sums).render(ASKED) == "3[1, 2]user"
    looped = "{% for a, b in {'k': 1, 'l': 2}.items() %}{{ a ~ b ~ loop.length ~ loop.last }}"
    assert template(looped + "{% endfor %}").render(ASKED) == "k12Falsel22True"


def test_rendering_is_that_of_transformers():
    """The right sides were written by Transformers 5.24."""
    said = [
        {"role": "user", "content": "2+2"},
        {"role": "assistant", "content": None, "thinking": "add", "tool_calls": [CALL]},
    ]
    source = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ m.reasoning_content }}"
        "{% generation %}{% set x = 1 %}{{ (m.tool_calls or []) | tojson }}{% endgeneration %}"
        "{% if x is defined %}leaked{% endif %}{% endfor %}"
        "{{ tools is defined }}{{ tools }}{{ documents }}"
    )
    call = '[{"type": "function", "function": {"name": "clock", "arguments": {"tz": "é<"}}}]'
    assert template(source).render(said) == f"user:2+2[]assistant:add{call}TrueNoneNone"
    options = "ensure_ascii=true, indent=1, sort_keys=true, separators=(',', ':')"
    assert template(f"{{{{ messages | tojson({options}) }}}}").render(
        [{"role": "user", "content": "é"}]
    ) == ('[\n {\n  "content":"\\u00e9",\n  "role":"user"\n }\n]')
    assert len(template("{{ strftime_now('%d %b %Y') }}").render(ASKED)) == 11


def test_a_day_in_a_macro():
    """As harmony's template writes it, into a system message of its own."""
    source = (
        "{%- macro build_system_message() -%}"
        '{{- "Current date: " + strftime_now("%Y-%m-%d") + "\\n\\n" }}'
        "{%- endmacro -%}"
        '{{- "<|start|>system<|message|>" }}{{- build_system_message() }}{{- "<|end|>" }}'
        '{%- for m in messages %}{{- "<|start|>" + m.role + "<|message|>" + m.content }}'
        '{{- "<|end|>" }}{%- endfor %}'
        '{%- if add_generation_prompt %}{{- "<|start|>assistant" }}{%- endif -%}'
    )
    harmony = template(source)
    assert harmony.dated and not template("{{ messages[0].content }}").dated
    day = datetime.datetime(2025, 6, 28)
    assert harmony.on(day).render(ASKED, prompt=True) == (
        "<|start|>system<|message|>Current date: 2025-06-28\n\n<|end|>"
        "<|start|>user<|message|>hi<|end|><|start|>assistant"
    )


def test_rendering_equals_transformers_where_it_is_installed(shared):
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    talks = [ASKED, [*ASKED, {"role": "assistant", "content": "yes", "reasoning_content": "why"}]]
    paths = sorted((shared / "parity").glob("*/chat_template.jinja"))
    assert len(paths) > 5
    for path in [*paths, *(shared / "cases" / "data").glob("*.jinja")]:
        source = path.read_text()
        ours = ChatTemplate(source, {"bos_token": "<b>"}, where=str(path))
        for talk in talks:
            for prompt in (False, True):
                (theirs,), _ = utils.render_jinja_template(
                    [talk], chat_template=source, add_generation_prompt=prompt, bos_token="<b>"
                )
                assert ours.render(talk, prompt=prompt) == theirs


def test_templates_lie_where_transformers_puts_them(tmp_path):
    settings = tmp_path / "tokenizer_config.json"

    def config(chat_template) -> None:
        settings.write_text(json.dumps({"eos_token": "<e>", "chat_template": chat_template}))

    def said(**variables) -> str:
        return ChatTemplate.load(tmp_path).render(ASKED, **variables)

    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "processor"}))
    assert said() == "processor"
    config("{{ eos_token }}config")
    assert said() == "<e>config"
    config([{"name": n, "template": n} for n in ("default", "tool_use", "rag")])
    assert said() == "default" and said(tools=[CALL]) == "tool_use"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert said() == "file" and said(tools=[CALL]) == "file"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    assert said() == "file" and said(tools=[CALL]) == "with tools"
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="tool_use, and none is the default"):
        said()


@pytest.mark.parametrize("damaged", ["[1]", "{", '{"chat_template": 5}', '{"chat_template": [1]}'])
def test_damaged_settings_are_named(tmp_path, damaged):
    (tmp_path / "tokenizer_config.json").write_text(damaged)
    with pytest.raises(ValueError, match=r"tokenizer_config.json"):
        ChatTemplate.load(tmp_path)


def test_content_is_given_in_the_form_that_the_template_reads():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    text = template("{% for m in messages %}{{ m.content }}{% endfor %}")
    listed = template(
        "{% for m in messages %}{% for p in m.content %}"
        "{% if p.type == 'text' %}<{{ p.text }}>{% endif %}{% endfor %}{% endfor %}"
    )
    assert text.render([{"role": "user", "content": parts}]) == "ab"
    assert listed.render([{"role": "user", "content": parts}]) == "<a><b>"
    assert listed.render([{"role": "user", "content": "c"}]) == "<c>"
    picture = [{"type": "image", "url": "x"}]
    with pytest.raises(ValueError, match="content part of type 'image'"):
        listed.render([{"role": "user", "content": picture}])


def test_what_a_template_reads():
    source = (
        "{% for m in messages %}{{ m.content }}{% if m['role'] == 'assistant' %}"
        "{{ m.get('tool_calls') }}{% endif %}{% endfor %}{{ enable_thinking }}{{ eos_token }}"
    )
    found = template(source)
    assert {"content", "role", "tool_calls"} <= found.mentions and "name" not in found.mentions
    assert found.variables == {"enable_thinking"}
    inner = (
        "{% if not tools is defined %}{% set tools = none %}{% endif %}{% for m in messages %}"
        "{% if m.x %}{% set content = m.x %}{% endif %}{{ content }}{% endfor %}{{ tools }}"
    )
    assert template(inner).variables == {"tools"}
    macro = (
        "{% macro say(tools) %}{% if effort is not defined %}{% set effort = 'low' %}{% endif %}"
        "{{ effort }}{{ tools }}{% endmacro %}{{ say(tools) }}"
    )
    assert template(macro).variables == {"tools", "effort"}
    answered = [*ASKED, {"role": "assistant", "content": "x", "tool_calls": [CALL], "name": "n"}]
    first, second = found.looked_at([{**ASKED[0], "tool_calls": [CALL]}, answered[1]])
    assert "tool_calls" not in first and "tool_calls" in second and "name" not in second
    for whole in ("{{ messages[1] | tojson }}", "{{ messages }}", "{{ dict(messages[1]) }}"):
        assert "name" in template(whole).looked_at(answered)[1]
    other = template("{{ messages[1].reasoning_content }}")
    assert "thinking" in other.looked_at([ASKED[0], {**ASKED[0], "thinking": "hm"}])[1]
