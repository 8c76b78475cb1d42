"""From questions to prompts: template, system prompt, thinking mode, turns, and their hash.

Speedups and acceptance depend on the exact text that the target reads, so the rendered prompts are
hashed, and results with different hashes are never compared (`bench.outputs.compare`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from specjax.checkpoint.chat import ChatTemplate
from specjax.prompts.prompt_sets import PromptSet, Question, spread


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What the target is asked to continue."""

    id: str  # SET/QUESTION, and /TURN behind the first
    category: str
    prompt_set: str
    text: str
    tokens: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Rendering:
    """How questions become text."""

    template: str = "none"  # or "chat", the target's own
    system: str = ""
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # enable_thinking, ...
    turns: int = 1  # of a conversation, each a prompt of its own; 0: all

    def __post_init__(self) -> None:
        if self.template not in ("none", "chat"):
            raise ValueError(f"template={self.template!r}: none, or chat for the target's own.")
        if self.template == "none":
            for name, value in (("system", self.system), ("template_args", self.variables)):
                if value:
                    raise ValueError(f"{name} is for chat templates: set template=chat.")
            if self.turns != 1:
                raise ValueError(
                    f"turns={self.turns}: a conversation needs template=chat; without, the first "
                    "turn alone is a prompt."
                )
        if self.turns < 0:
            raise ValueError(f"turns={self.turns}: how many, or 0 for all.")


# (prompt) -> the target's own answer, kept so that it is written once.
Answer = Callable[[Prompt], str]


def render(
    sets: Sequence[PromptSet],
    how: Rendering,
    tokenizer: Any,
    chat: ChatTemplate | None,
    answer: Answer | None = None,
) -> list[Prompt]:
    """The prompts of all sets, in order.

    Args:
      sets: what is asked.
      how: as what.
      tokenizer: of the target.
      chat: its template, where ``how`` wants one.
      answer: writes what the target says between two turns; None: first turns only.

    Raises:
      ValueError: if the template refuses a conversation.
    """
    prompts = []
    for prompt_set in sets:
        for question in prompt_set.questions:
            if chat is None:
                prompts.append(_prompt(prompt_set.name, question, 0, question.turns[0], tokenizer))
                continue
            messages = [{"role": "system", "content": how.system}] if how.system else []
            turns = question.turns if how.turns == 0 else question.turns[: how.turns]
            for turn, said in enumerate(turns[:1] if answer is None else turns):
                messages.append({"role": "user", "content": said})
                text = chat.render(messages, prompt=True, **how.variables)
                prompt = _prompt(prompt_set.name, question, turn, text, tokenizer, chat=True)
                prompts.append(prompt)
                if answer is not None and turn + 1 < len(turns):
                    messages.append({"role": "assistant", "content": answer(prompt)})
    return prompts


def draw(
    sets: Sequence[PromptSet],
    how: Rendering,
    tokenizer: Any,
    chat: ChatTemplate | None,
    *,
    count: int,
    most: int,
) -> tuple[list[PromptSet], int]:
    """``count`` questions of each set (0: all) out of those whose first prompt is short enough.

    Args:
      sets: whole.
      how: they are rendered.
      tokenizer: of the target.
      chat: its template, where ``how`` wants one.
      count: of each set, spread over it.
      most: tokens of a prompt; 0: any number.

    Returns:
      The sets, and how many questions were left out for their length.

    Raises:
      ValueError: if a set has fewer of that length.
    """
    drawn, left_out = [], 0
    for prompt_set in sets:
        questions = prompt_set.questions
        if most:
            prompts = render([prompt_set], how, tokenizer, chat)
            questions = tuple(q for q, p in zip(questions, prompts) if len(p.tokens) <= most)
            if not questions:
                shortest = min(len(p.tokens) for p in prompts)
                raise ValueError(
                    f"max_prompt_tokens={most}: the shortest of the {len(prompts)} prompts of "
                    f"{prompt_set.name} has {shortest} tokens."
                )
        left_out += len(prompt_set.questions) - len(questions)
        which = f" of at most max_prompt_tokens={most} tokens" if most else ""
        questions = spread(questions, count, which)
        drawn.append(dataclasses.replace(prompt_set, questions=questions))
    return drawn, left_out


def _prompt(
    name: str, question: Question, turn: int, text: str, tokenizer: Any, *, chat: bool = False
) -> Prompt:
    label = f"{name}/{question.id}" + (f"/{turn + 1}" if turn else "")
    # A template writes the text of the BOS token itself.
    tokens = tuple(tokenizer.encode(text, add_bos=not chat))
    return Prompt(label, question.category, name, text, tokens)


def prompts_sha256(prompts: Sequence[Prompt]) -> str:
    """The hash of what was asked: ids and rendered texts, in order."""
    lines = [json.dumps([p.id, p.text], ensure_ascii=False) for p in prompts]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
