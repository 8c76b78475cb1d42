"""Training data: texts, conversations, what of them is a label, and batches that resume."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_checkpoint import END, TEXT, write_tiny

from specjax.checkpoint.chat import ChatTemplate
from specjax.checkpoint.tokenizer import load_tokenizer
from specjax.train.data.batches import Batches, stack
from specjax.train.data.jsonl import read_rows
from specjax.train.data.rows import Fixed, Joined, Row, Windows, heldout_rows
from specjax.train.data.sources import Sources
from specjax.train.data.text import Speech, encode

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% if m.role == 'assistant' %}" + END + "{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TALK = {
    "messages": [
        {"role": "user", "content": "width?"},
        {"role": "assistant", "content": "return width"},
        {"role": "user", "content": "height?"},
        {"role": "assistant", "content": "return height"},
    ]
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    path = write_tiny(tmp_path_factory.mktemp("data") / "model")
    settings = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
    return path


@pytest.fixture(scope="module")
def speech(directory) -> Speech:
    return Speech(load_tokenizer(directory), 272, separator=0, stop_token_ids=(0,))


def lines(path: Path, *values: object) -> Path:
    path.write_text("".join(json.dumps(v) + "\n" for v in values))
    return path


def rows_of(path, speech, directory, seq_len=200) -> list[Row]:
    read = read_rows(path, speech, lambda: ChatTemplate.load(directory), seq_len=seq_len)
    return [read.row(i, np.random.default_rng(0)) for i in range(len(read))]


def test_responses_alone_are_supervised(tmp_path, speech, directory):
    (row,) = rows_of(lines(tmp_path / "a.jsonl", TALK), speech, directory)
    whole = speech.tokenizer.decode(row.tokens, skip_special_tokens=False)
    assert whole == (
        f"{END}[user]width?\n[assistant]return width{END}\n"
        f"[user]height?\n[assistant]return height{END}\n"
    )
    said = [speech.tokenizer.decode([t], skip_special_tokens=False) for t in row.tokens]
    labels = "".join(s for s, kept in zip(said, row.supervised, strict=True) if kept)
    assert labels == f"return width{END}return height{END}"
    # After the shift: position t answers for token t + 1, so the first label has its question as
    # context, and no padding is ever a label.
    batch = stack([row], len(row.tokens) + 9)
    assert int(batch.length[0]) == len(row.tokens)
    assert not batch.supervised[0, len(row.tokens) :].any() and not batch.supervised[0, 0]


def test_the_same_conversation_in_other_words(tmp_path, speech, directory):
    names = {"user": "human", "assistant": "gpt"}
    share = [{"from": names[m["role"]], "value": m["content"]} for m in TALK["messages"]]
    pair = {"prompt": "width?", "response": "return width"}
    path = lines(tmp_path / "a.jsonl", TALK, {"conversations": share}, pair)
    first, second, third = rows_of(path, speech, directory)
    np.testing.assert_array_equal(first.tokens, second.tokens)
    np.testing.assert_array_equal(first.supervised, second.supervised)
    np.testing.assert_array_equal(third.tokens, first.tokens[: len(third.tokens)])


def test_rows_of_tokens_are_taken_as_they_are(tmp_path, speech, directory):
    path = lines(tmp_path / "a.jsonl", {"tokens": [5, 6, 7, 8], "prompt_tokens": 2})
    (row,) = rows_of(path, speech, directory, seq_len=3)
    assert row.tokens.tolist() == [5, 6, 7] and row.supervised.tolist() == [False, False, True]


EMPTY = [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("{", "line 1: not JSON"),
        ("[1]", "line 1: not an object"),
        ("\n" + json.dumps({"messages": EMPTY}), r"line 2, message 2: the response is empty"),
        (json.dumps({"messages": EMPTY[:1]}), "line 1: no response"),
        (json.dumps({"messages": []}), "must be a list"),
        (json.dumps({"messages": [{"role": "boss", "content": "a"}]}), "role 'boss'"),
        (json.dumps({"text": "a"}), "line 1: neither"),
        (json.dumps({"tokens": [1, 999]}), "token 999"),
        (json.dumps({"tokens": [1, 2], "prompt_tokens": 2}), "response is empty"),
        (json.dumps({"tokens": [1] * 300, "prompt_tokens": 250}), "no supervised token"),
    ],
)
def test_bad_lines_are_named(tmp_path, speech, directory, text, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        rows_of(path, speech, directory)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_templates_are_read_and_kept_in_their_sandbox(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<e>"}}))
    with pytest.raises(ValueError, match="no chat template"):
        ChatTemplate.load(tmp_path)
    source = "{% generation %}{{ messages[0].content }}{% endgeneration %}{{ eos_token }}"
    (tmp_path / "chat_template.jinja").write_text(source)
    said = [{"role": "user", "content": "hi"}]
    assert ChatTemplate.load(tmp_path).render(said) == "hi<e>"
    for bad in ("{{ ''.__class__.__mro__ }}", "{{ raise_exception('no') }}", "{{ messages[9].x }}"):
        with pytest.raises(ValueError, match="refuses it"):
            ChatTemplate(bad, {}, where="t").render(said)
    with pytest.raises(ValueError, match="not a chat template"):
        ChatTemplate("{% if %}", {}, where="t")


def numbers(size: int) -> Windows:
    return Windows(np.arange(size), 10, where="text")


def test_windows_cover_the_text():
    rows = numbers(1000)
    rng = np.random.default_rng(0)
    starts = [int(rows.row(i % len(rows), rng).tokens[0]) for i in range(40 * len(rows))]
    assert min(starts) < 10 and max(starts) > 970 and len(set(starts)) > 900
    assert all(len(rows.row(i, rng).tokens) == 10 for i in range(len(rows)))
    assert numbers(10).row(0, rng).tokens.tolist() == list(range(10))
    with pytest.raises(ValueError, match="less than one window"):
        numbers(9)


def test_batches_resume_where_they_were():
    def batches(**changes) -> Batches:
        kept = Fixed([Row(np.full(4, 1000 + i, np.int32), np.ones(4, bool)) for i in range(3)])
        settings = {"micro": 2, "accumulate": 2, "seq_len": 10, "seed": 1, **changes}
        return Batches(Joined([numbers(100), kept]), **settings)

    def take(data: Batches, num: int) -> list:
        return [jax.device_get(next(data)) for _ in range(num)]

    data = batches()
    take(data, 3)
    state = json.loads(json.dumps(data.get_state()))
    rest = take(data, 5)
    resumed = batches()
    resumed.set_state(state)
    for a, b in zip(rest, take(resumed, 5), strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    assert rest[0].tokens.shape == (2, 2, 10) and rest[0].length.shape == (2, 2)
    # Other seeds and epochs are in another order; every epoch has every row.
    assert not np.array_equal(take(batches(seed=2), 1)[0].tokens, take(batches(), 1)[0].tokens)
    epoch = np.concatenate([b.tokens[..., 0].ravel() for b in take(batches(), 3)])
    assert {1000, 1001, 1002} <= set(epoch.tolist())
    short = [b for b in take(batches(), 3) if (b.length == 4).any()]
    assert all(not b.supervised[b.length == 4][:, 4:].any() for b in short)


def test_sources_hold_something_out(tmp_path, speech, directory):
    text = tmp_path / "a.txt"
    text.write_text(TEXT * 20)
    talks = lines(tmp_path / "t.jsonl", *[TALK] * 3)

    def sources(train, heldout, seq_len=16) -> Sources:
        read = lambda path: read_rows(
            path, speech, lambda: ChatTemplate.load(directory), seq_len=99
        )
        return Sources(train, heldout, seq_len=seq_len, speech=speech, read_jsonl=read)

    both = sources([str(text), str(talks)], [str(talks), str(text)])
    assert len(both.train) > 20 and len(heldout_rows(both.heldout, 4)) == 4
    prompts = both.prompts(5, 8)
    assert len(prompts) == 5 and [len(p) for p in prompts[3:]] == [8, 8]
    said = speech.tokenizer.decode(prompts[0], skip_special_tokens=False)
    assert said == f"{END}[user]width?\n[assistant]"
    with pytest.raises(ValueError, match="yield 3 prompts"):
        sources([str(text)], [str(talks)]).prompts(9, 8)
    with pytest.raises(ValueError, match="less than one window"):
        sources([str(text)], [str(talks)], seq_len=9999)
    with pytest.raises(ValueError, match="no such file"):
        sources([str(tmp_path / "none.txt")], [str(talks)])


def test_tokens_are_kept_and_damage_is_noticed(tmp_path, speech):
    texts = [TEXT, "def f():\n    pass\n" * 40]
    said: list[str] = []
    first = encode(speech, texts, cache=tmp_path, say=said.append)
    (kept,) = tmp_path.iterdir()
    whole = kept.read_bytes()
    encode(speech, texts, cache=tmp_path, say=said.append)
    assert not said
    damaged = (b"x", b"", whole[:300], whole[:-4], whole + b"\0" * 4, b"\0" + whole[1:])
    for num, data in enumerate((*damaged, whole[:40] + b"\x01" + whole[41:])):
        kept.write_bytes(data)
        again = encode(speech, texts, cache=tmp_path, say=said.append)
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(a, b)
        assert kept.read_bytes() == whole and [*tmp_path.iterdir()] == [kept]
        assert len(said) == num + 1 and str(kept) in said[-1] and "made again" in said[-1]
    assert first[1][0] == 0 and speech.tokenizer.decode(first[1]) == texts[1]


def test_a_text_holds_a_share_of_itself_out(tmp_path, speech, directory):
    def sources(*names: str, share: float = 0.05, seq_len: int = 16) -> Sources:
        read = lambda path: read_rows(
            path, speech, lambda: ChatTemplate.load(directory), seq_len=99
        )
        return Sources(
            [str(tmp_path / name) for name in names],
            [],
            seq_len=seq_len,
            speech=speech,
            read_jsonl=read,
            heldout_share=share,
        )

    path = tmp_path / "a.txt"
    path.write_text("".join(f"<{i}>" for i in range(1000, 6000)))
    total = len(speech.document(path.read_text()))
    for share in (0.05, 0.3):
        found = sources("a.txt", share=share)
        (note,) = found.notes
        assert str(path) in note and "are held out, in" in note and "\n" not in note
        held, kept = (
            {t for i in range(len(rows)) for t in texts(rows, i, speech)}
            for rows in (found.heldout, found.train)
        )
        assert held and kept and not held & kept
        # A separator where a piece was cut out, and no other token more or less.
        pieces = int(note.split("in ")[1].split(" ")[0])
        assert abs(found.num_tokens - (1 - share) * total - pieces) < 0.03 * total
        assert len(found.prompts(4, 8)) == 4
        again = sources("a.txt", share=share)
        np.testing.assert_array_equal(
            found.heldout.row(0, RNG()).tokens, again.heldout.row(0, RNG()).tokens
        )
    path.write_text("too short")
    with pytest.raises(ValueError, match=r"a.txt: \d+ tokens are too few to hold some of them out"):
        sources("a.txt")


def RNG() -> np.random.Generator:
    return np.random.default_rng(0)


def tokens_text(tokens: np.ndarray, speech: Speech) -> str:
    return speech.tokenizer.decode(tokens, skip_special_tokens=False)


def texts(rows, index: int, speech: Speech) -> set[str]:
    """The whole numbers in what a few visits of a row show."""
    shown = [rows.row(index, np.random.default_rng(i)).tokens for i in range(3)]
    return {n for t in shown for n in re.findall(r"<(\d{4})>", tokens_text(t, speech))}


def test_conversations_hold_a_share_of_themselves_out(tmp_path, speech, directory):
    def talk(i: int, answer: str = "so") -> dict:
        said = [("user", str(i)), ("assistant", answer), ("user", "?"), ("assistant", "no")]
        return {"messages": [{"role": r, "content": c} for r, c in said]}

    first = lines(tmp_path / "a.jsonl", *[talk(i % 30) for i in range(60)])
    second = lines(tmp_path / "b.jsonl", *[talk(i) for i in range(20, 40)])
    found = Sources(
        [str(first), str(second)],
        [],
        seq_len=99,
        speech=speech,
        read_jsonl=lambda path: read_rows(
            path, speech, lambda: ChatTemplate.load(directory), seq_len=99
        ),
        heldout_share=0.2,
    )
    held, kept = (
        {rows.row(i, RNG()).tokens.tobytes() for i in range(len(rows))}
        for rows in (found.heldout, found.train)
    )
    assert len(held) == 8 and len(kept) == 32 and not held & kept
    assert len(found.heldout) + len(found.train) == 80
    assert (
        "a.jsonl: " in found.notes[0]
        and "of 60 conversations are held out, lines" in found.notes[0]
    )
    alone = lines(tmp_path / "c.jsonl", talk(1), talk(1))
    with pytest.raises(
        ValueError, match=r"Nothing is held out: .*c.jsonl has a single conversation"
    ):
        Sources(
            [str(alone)],
            [],
            seq_len=99,
            speech=speech,
            read_jsonl=lambda path: read_rows(
                path, speech, lambda: ChatTemplate.load(directory), seq_len=99
            ),
        )
