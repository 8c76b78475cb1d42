"""Conversations as training data: what of them reaches the template, and what is supervised."""

from __future__ import annotations

import dataclasses
import datetime
import json
import shutil
from pathlib import Path

import pytest
from tiny_checkpoint import END, write_tiny

from specjax.checkpoint.chat import ChatTemplate
from specjax.checkpoint.tokenizer import load_tokenizer
from specjax.train.data.holdout import split_lines
from specjax.train.data.jsonl import Reading, read_rows
from specjax.train.data.text import Speech

CALL = {"type": "function", "function": {"name": "clock", "arguments": {}}}
TOOLS = [{"type": "function", "function": {"name": "clock"}}]
PLAIN = (
    "{% if tools %}[tools]{% endif %}{% for m in messages %}[{{ m.role }}]"
    "{% if m.reasoning_content %}<{{ m.reasoning_content }}>{% endif %}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}(call {{ c.function.name }}){% endfor %}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
# The last response alone has its thoughts.
REWRITING = (
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' and loop.last %}<thought>"
    "{% endif %}{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def user(text, **more) -> dict:
    return {"role": "user", "content": text, **more}


def told(text, **more) -> dict:
    return {"role": "assistant", "content": text, **more}


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Speech:
    directory = write_tiny(tmp_path_factory.mktemp("talk") / "model")
    return Speech(load_tokenizer(directory), 272, separator=0, stop_token_ids=(0,))


def read(path: Path, speech: Speech, source: str, *values, seq_len: int = 500, **how):
    if values:
        path.write_text("".join(json.dumps(v) + "\n" for v in values))
    template = lambda: ChatTemplate(source, {"eos_token": END}, where="T")
    return read_rows(path, speech, template, seq_len=seq_len, reading=Reading(**how))


def shown(rows, speech: Speech) -> list[tuple[str, str]]:
    """Of each row its text, and what of it is supervised."""
    result = []
    for i in range(len(rows)):
        row = rows.row(i, None)
        own = row.tokens[row.supervised]
        result.append(
            tuple(speech.tokenizer.decode(t, skip_special_tokens=False) for t in (row.tokens, own))
        )
    return result


def last_of(path: Path, speech: Speech, source: str, *values, **how) -> tuple[str, str]:
    return shown(read(path, speech, source, *values, **how), speech)[-1]


@pytest.fixture(scope="module")
def cases(shared) -> Path:
    return shared / "cases" / "data"


def case_rows(shared, tmp_path, template: str, file: str, **how) -> list[tuple[str, str]]:
    """What rows a file becomes for the Qwen3 of the parity models with another template."""
    for path in (shared / "parity" / "qwen3").glob("*.json"):
        shutil.copy(path, tmp_path)
    shutil.copy(shared / "cases" / "data" / template, tmp_path / "chat_template.jinja")
    stops = json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"]
    speech = Speech(load_tokenizer(tmp_path), 512, None, (stops,))
    rows = read_rows(
        shared / "cases" / "data" / file,
        speech,
        lambda: ChatTemplate.load(tmp_path),
        seq_len=500,
        reading=Reading(**how),
    )
    return shown(rows, speech)


def test_published_shapes_of_messages(shared, tmp_path):
    rows = case_rows(shared, tmp_path, "template_plain.jinja", "messages.jsonl")
    end = "<|im_end|>"
    assert [own for _, own in rows] == [
        f"<think>add them</think>4{end}",
        f"I look.[call clock]{end}",
        f"good{end}",
        f"b{end}",
        f"[call clock]{end}noon{end}",
    ]
    assert rows[1][0].startswith("[tools]") and "[call clock]" in rows[1][0]
    assert f"bad{end}" in rows[2][0]
    assert rows[3][0].startswith(f"<|im_start|>system\nBe brief.{end}")
    assert f"<|im_start|>tool\n12:00{end}" in rows[4][0]


@pytest.mark.parametrize("turns", ["", "each", "last"])
def test_templates_that_rewrite_earlier_turns(shared, tmp_path, turns):
    rows = case_rows(shared, tmp_path, "template_rewriting.jinja", "multi_turn.jsonl", turns=turns)
    think, end = "<think>\n\n</think>\n\n", "<|im_end|>"
    texts = ["d", "y"] if turns == "last" else ["b", "d", "y"]
    assert [own for _, own in rows] == [f"{think}{text}{end}" for text in texts]
    assert all(text.endswith(own + "\n") for text, own in rows)
    second = rows[-2][0]
    assert f"assistant\nb{end}" in second and second.count("<think>") == 1


def test_turns_all_is_refused_where_a_mask_would_be_guessed(shared, tmp_path):
    with pytest.raises(ValueError, match=r"line 1: the tokens before message 2 change .*each"):
        case_rows(shared, tmp_path, "template_rewriting.jinja", "multi_turn.jsonl", turns="all")


def test_half_a_surrogate_pair(shared, speech, tmp_path):
    path = shared / "cases" / "data" / "lone_surrogate.jsonl"
    with pytest.raises(ValueError, match=r"lone_surrogate.jsonl, line 1: \\ud83d alone"):
        read(path, speech, PLAIN)
    assert "look \ufffd" in last_of(path, speech, PLAIN, replace_bad_text=True)[0]
    good = {"messages": [user("\ud83d\ude00"), told("x")]}  # a whole pair
    assert "\U0001f600" in last_of(tmp_path / "a.jsonl", speech, PLAIN, good)[0]


@pytest.mark.parametrize(
    ("line", "text", "own"),
    [
        (
            {"messages": [user("q"), told(None, tool_calls=[CALL])], "tools": TOOLS},
            "[tools][user]qE[assistant](call clock)E",
            "(call clock)E",
        ),
        ({"messages": [user("q"), told("", thinking="hm")]}, None, "<hm>E"),
        ({"messages": [user("q"), told("a", weight=0), user("r"), told("b")]}, None, "bE"),
        ({"messages": [user("q"), told("a", weight=1.0, name=None)], "id": None}, None, "aE"),
        (
            {"tools": json.dumps(TOOLS), "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": '{"name": "clock", "arguments": {}}'},
                {"from": "observation", "value": "12"},
                {"from": "gpt", "value": "noon"},
            ]},
            "[tools][user]qE[assistant](call clock)E[tool]12E[assistant]noonE",
            "(call clock)EnoonE",
        ),
        ({"prompt": "q", "completion": "a"}, "[user]qE[assistant]aE", "aE"),
        (
            {"prompt": [user("q"), told("a"), user("r")], "completion": [told("b")]},
            "[user]qE[assistant]aE[user]rE[assistant]bE",
            "bE",
        ),
        ({"system": "s", "prompt": "q", "response": "a"}, "[system]sE[user]qE[assistant]aE", "aE"),
        (
            {"messages": [user([{"type": "text", "text": "q"}, {"type": "text", "text": "r"}]),
                          told([{"type": "text", "text": "a"}])]},
            "[user]qrE[assistant]aE",
            "aE",
        ),
        ({"conversation": [user("q"), told("a")]}, "[user]qE[assistant]aE", "aE"),
        (
            {"messages": [{"role": "developer", "content": "d"}, user("q"), told("a")]},
            "[developer]dE[user]qE[assistant]aE",
            "aE",
        ),
    ],
)  # fmt: skip
def test_everything_that_is_read_reaches_the_template(tmp_path, speech, line, text, own):
    found = last_of(tmp_path / "a.jsonl", speech, PLAIN, line)
    assert found[1] == own.replace("E", END)
    assert text is None or found[0] == text.replace("E", END)


def test_variables_of_a_line_reach_the_template(tmp_path, speech):
    source = "{{ style }}{{ documents | length }}" + PLAIN
    talk = {"messages": [user("q"), told("a")]}
    line = {**talk, "chat_template_kwargs": {"style": "short"}, "documents": [{"text": "d"}]}
    assert last_of(tmp_path / "a.jsonl", speech, source, line)[0].startswith("short1[user]")


def test_templates_whose_prompt_begins_thoughts(tmp_path, speech):
    source = PLAIN.replace(
        "[assistant]{% endif %}", "[assistant]{{ '' if plain else '<' }}{% endif %}"
    )
    talk = {"messages": [user("q"), told("a")]}
    path = tmp_path / "a.jsonl"
    with pytest.raises(ValueError, match=r"cannot be told apart; .*template_args"):
        read(path, speech, source, talk)
    for found in (
        last_of(path, speech, source, talk, template_args={"plain": True}),
        last_of(path, speech, source, {**talk, "chat_template_kwargs": {"plain": True}}),
    ):
        assert found[1] == f"a{END}"
    thought = {"messages": [user("q"), told("a", reasoning_content="hm")]}
    assert last_of(path, speech, source, thought)[1] == f"hm>a{END}"
    with pytest.raises(ValueError, match="nobody reads plane"):
        read(path, speech, source, talk, template_args={"plane": True})


def test_a_response_to_nothing(tmp_path, speech):
    source = "{{ messages[0].role[:0] }}" + PLAIN
    talk = {"messages": [told("hi"), user("q"), told("a")]}
    with pytest.raises(ValueError, match=r"message 1 is a response to nothing .* weight 0"):
        read(tmp_path / "a.jsonl", speech, source, talk)
    talk["messages"][0]["weight"] = 0
    assert last_of(tmp_path / "a.jsonl", speech, source, talk)[1] == f"a{END}"
    assert last_of(tmp_path / "a.jsonl", speech, PLAIN, talk)[1] == f"a{END}"


IMAGE = [{"type": "image_url", "image_url": {"url": "x"}}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"messages": [user("q"), told("a", mood="gay")]}, "message 2: nobody reads mood"),
        ({"messages": [user("q"), told("a")], "source": "web"}, "nobody reads source"),
        ({"messages": [user("q"), told("a")], "bos_token": "x"}, "nobody reads bos_token"),
        ({"messages": [user("q"), told("a")], "prompt": "q"}, "nobody reads prompt"),
        ({"messages": [user("q"), told("a")], "chat_template_kwargs": {"x": 1}}, "reads x"),
        ({"messages": [user("q"), told("a", weight=0.5)]}, "message 2: weight 0.5 is neither"),
        ({"messages": [user("q"), told("a", weight=True)]}, "weight True is neither"),
        ({"messages": [user("q"), told("a", weight="0")]}, "weight '0' is neither"),
        ({"messages": [user("q", weight=1), told("a")]}, "message 1: weight 1 of role 'user'"),
        ({"messages": [user("q"), told("a", weight=0)]}, "every response has weight 0"),
        ({"messages": [user("q"), told(None, name="x")]}, "message 2: the response is empty"),
        ({"messages": [user(None), told("a")]}, "message 1: no content"),
        ({"messages": [user(IMAGE), told("a")]}, "message 1: a content part of type 'image_url'"),
        ({"messages": [user({"a": 1}), told("a")]}, "message 1: the content is dict"),
        ({"system": "s", "messages": [{"role": "system", "content": "t"}, told("a")]}, "both"),
        ({"tools": "clock", "messages": [user("q"), told("a")]}, "tools is a text"),
        ({"tools": [1], "messages": [user("q"), told("a")]}, "tools must be a list"),
        ({"chosen": [], "rejected": []}, "neither .* it has 'chosen', 'rejected'"),
        ({"conversations": [{"from": "tool_call", "value": "x"}]}, "function_call is not JSON"),
    ],
)
def test_what_nobody_reads_is_named(tmp_path, speech, line, message):
    good = {"messages": [user("q"), told("a")]}
    path = tmp_path / "a.jsonl"
    with pytest.raises(ValueError, match=rf"a.jsonl, line 2.*{message}") as error:
        read(path, speech, PLAIN, good, line)
    assert "\n" not in str(error.value)


def test_what_is_listed_is_left_out(tmp_path, speech):
    line = {"messages": [user("q"), told("a", mood="x")], "source": "web", "tools": TOOLS}
    ignore = ("mood", "source", "tools")
    found = last_of(tmp_path / "a.jsonl", speech, PLAIN, line, ignore=ignore)
    assert found[0] == f"[user]q{END}[assistant]a{END}"


def test_what_a_template_passes_over_is_said(tmp_path, speech):
    line = {"messages": [user("q", name="Ann"), told("a")]}
    rows = read(tmp_path / "a.jsonl", speech, PLAIN, line, line)
    (note,) = rows.notes
    assert "name of 2 messages is not looked at" in note and "line 1, message 1)" in note
    silent = PLAIN.replace("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}")
    line = {"messages": [user("q"), {"role": "tool", "content": "x"}, told("a")]}
    with pytest.raises(ValueError, match=r"line 1: message 2: .* leaves out the content"):
        read(tmp_path / "a.jsonl", speech, silent, line)
    looks = silent.replace("m.role != 'tool'", "m.content and m.role != 'tool'")
    with pytest.raises(ValueError, match=r"message 2: the chat template writes nothing .*'tool'"):
        read(tmp_path / "a.jsonl", speech, looks, line)
    whole = "{{ messages | tojson }}"  # everything reaches the text, but nothing can be told apart
    with pytest.raises(ValueError, match=r"cannot be told apart"):
        read(tmp_path / "a.jsonl", speech, whole, {"messages": [user("q", mood=1), told("a")]})


def test_rewritten_turns_become_rows_of_their_own(tmp_path, speech):
    talk = {
        "messages": [user("a"), told("b"), user("c"), told("d", weight=0), user("e"), told("f")]
    }
    path = tmp_path / "a.jsonl"
    rows = shown(read(path, speech, REWRITING, talk), speech)
    assert [own for _, own in rows] == [f"<thought>b{END}", f"<thought>f{END}"]
    assert len(read(path, speech, REWRITING).lines) == 1  # they stay together
    (last,) = shown(read(path, speech, REWRITING, turns="last"), speech)
    assert last == rows[1]
    (whole,) = shown(read(path, speech, PLAIN), speech)
    assert whole[1] == f"b{END}f{END}"
    with pytest.raises(ValueError, match=r"--config.data.turns='some'"):
        Reading(turns="some")


def test_a_response_ends_with_its_end_token(speech, tmp_path):
    """Whichever the model's files call so; a line break between turns is none of it."""
    other = dataclasses.replace(speech, stop_token_ids=())
    source = PLAIN.replace("{{ eos_token }}", "{{ eos_token }}\n")
    talk = {"messages": [user("q"), told("a\n")]}
    for found in (speech, other):
        assert last_of(tmp_path / "a.jsonl", found, source, talk)[1] == f"a\n{END}"
    bare = PLAIN.replace("{{ eos_token }}", "{{ '\n' }}")  # no end token: nothing is guessed
    assert last_of(tmp_path / "a.jsonl", other, bare, talk)[1] == "a\n\n"


def test_bad_lines_end_the_run_or_are_counted(tmp_path, speech):
    good, bad = {"messages": [user("q"), told("a")]}, {"messages": [user("q")]}
    path = tmp_path / "a.jsonl"
    with pytest.raises(ValueError, match="line 2: no response"):
        read(path, speech, PLAIN, good, bad)
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(good).encode() + b'\r\n{"a\n[1]\n\xff\xfe\n\n'
        b'{"prompt": "\\ud83d", "response": "x"}\n' + b"[" * 100_000 + b"\n"
        + json.dumps(bad).encode() + b"\n" + json.dumps(good).encode()
    )  # fmt: skip
    rows = read(path, speech, PLAIN, bad_lines="skip")
    (note,) = rows.notes
    assert len(rows) == 2 and [line.num for line in rows.lines] == [1, 9]
    assert f"{path}: 6 of 8 lines are skipped: line 2: not JSON" in note
    assert "line 3: not an object; line 4: not UTF-8 at byte 0" in note
    assert "line 6: \\ud83d alone" in note and "line 7: JSON nested" in note
    assert note.endswith("and 1 more") and "line 8" not in note and "\n" not in note
    with pytest.raises(ValueError, match=r"No line can be used.*1 of 1 lines are skipped: line 1"):
        read(tmp_path / "b.jsonl", speech, PLAIN, bad, bad_lines="skip")
    with pytest.raises(ValueError, match=r"--config.data.bad_lines='no'"):
        Reading(bad_lines="no")


def test_responses_behind_the_end_of_a_row_are_counted(tmp_path, speech):
    short = {"messages": [user("q"), told("a")]}
    long = {"messages": [user("q" * 90), told("a")]}
    rows = read(tmp_path / "a.jsonl", speech, PLAIN, short, long, seq_len=80)
    assert len(rows) == 1 and "1 of 2 rows have no response within the first" in rows.notes[0]


OBJECTS = PLAIN.replace("(call {{ c.function.name }})", "({{ c.function.arguments | tojson }})")
TEXTS = PLAIN.replace("(call {{ c.function.name }})", "({{ '' + c.function.arguments }})")
BOTH = PLAIN.replace(
    "(call {{ c.function.name }})",
    "({{ c.function.arguments if c.function.arguments is string"
    " else c.function.arguments | tojson }})",
)


@pytest.mark.parametrize("source", [OBJECTS, TEXTS, BOTH])
@pytest.mark.parametrize("arguments", [{"zone": "Tōkyō"}, '{"zone": "Tōkyō"}'])
def test_arguments_of_calls_are_what_the_template_writes(source, arguments, speech, tmp_path):
    """OpenAI's formats have JSON text, which most templates would quote once more."""
    call = {"type": "function", "function": {"name": "clock", "arguments": arguments}}
    line = {"messages": [user("q"), told("", tool_calls=[call])]}
    _, own = last_of(tmp_path / "x.jsonl", speech, source, line)
    assert own == f'({{"zone": "Tōkyō"}}){END}'


def test_arguments_that_are_no_json(speech, tmp_path):
    calls = [
        {"type": "function", "function": {"name": "clock", "arguments": text}} for text in "{ "
    ]
    talk = {"messages": [user("q"), told("", tool_calls=calls[1:])]}
    assert last_of(tmp_path / "x.jsonl", speech, OBJECTS, talk)[1] == "({})" + END
    with pytest.raises(ValueError, match=r"line 1: the arguments of tool call 'clock' are a text"):
        read(
            tmp_path / "x.jsonl",
            speech,
            OBJECTS,
            {"messages": [user("q"), told("", tool_calls=calls[:1])]},
        )


DATED = "{{ strftime_now('%d %b %Y') }}" + PLAIN


def test_what_is_held_out_does_not_depend_on_the_day(speech, tmp_path):
    lines = [{"messages": [user(f"q{i}"), told(f"a{i}")]} for i in range(40)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def split(day: int):
        chat = ChatTemplate(DATED, {"eos_token": END}, where="T")
        chat = chat.on(datetime.datetime(2026, 5, day))
        rows = read_rows(tmp_path / "x.jsonl", speech, lambda: chat, seq_len=500)
        kept, held, _ = split_lines([("x", rows)], 0.2)
        return [line.num for line in kept[0]], [line.num for line in held[0]], shown(rows, speech)

    kept, held, texts = split(3)
    assert len(held) == 8 and not {*kept} & {*held} and len(kept) == 32
    assert texts[0][0].startswith("03 May 2026[user]q0")
    assert split(4)[:2] == (kept, held) and split(4)[2][0][0].startswith("04 May 2026")


NOT_SILENT = {
    "twice": ('{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "'content' sta"),
    "reasoning of parts": (
        {"messages": [user("q"), told("a", reasoning_content=["r"])]},
        "message 2: reasoning_content is list, not text",
    ),
    "two reasonings": (
        {"messages": [user("q"), told("a", thinking="r", reasoning_content="s")]},
        "message 2: reasoning_content and thinking differ",
    ),
    "more in a part": (
        {"messages": [user([{"type": "text", "text": "q", "cache_control": 1}]), told("a")]},
        "message 1: nobody reads cache_control of a content part",
    ),
    "empty parts": (
        {"messages": [user("q"), told([{"type": "text", "text": " "}])]},
        "message 2: the response is empty",
    ),
    "more than tokens": ({"tokens": [1, 2], "weight": 0}, "nobody reads weight of a row of tokens"),
}


@pytest.mark.parametrize("case", NOT_SILENT)
def test_nothing_is_dropped_without_a_word(case, speech, tmp_path):
    line, said = NOT_SILENT[case]
    text = line if isinstance(line, str) else json.dumps(line)
    (tmp_path / "x.jsonl").write_text(text + "\n")
    with pytest.raises(ValueError, match="x.jsonl, line 1.*" + said):
        read(tmp_path / "x.jsonl", speech, PLAIN)


@pytest.mark.parametrize("tools", ["[]", "null", "", [], None])
def test_no_tools_are_none(tools, speech, tmp_path):
    source = PLAIN.replace("{% if tools %}[tools]{% endif %}", "")  # reads none
    line = {"messages": [user("q"), told("a")], "tools": tools}
    assert last_of(tmp_path / "x.jsonl", speech, source, line)[1] == f"a{END}"


def test_a_line_of_no_kind_is_named_before_a_template_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"tokens": [1, 2], "prompt_tokens": 1}\n{"tokn": [1, 2]}\n')
    speech = Speech(None, 8, separator=None, stop_token_ids=())
    with pytest.raises(ValueError, match=r"x\.jsonl, line 2: neither .* it has 'tokn'"):
        read_rows(path, speech, lambda: pytest.fail("there is no template"), seq_len=8)
