"""What is asked for, spread over the prompts: one row of options each."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from specjax.checkpoint.load import Model
from specjax.core.options import is_integer
from specjax.core.seeds import check_seed, seed_of
from specjax.prompts.forms import is_array, is_list, read_array, scalar, type_name
from specjax.prompts.ids import Prompts, prompt_ids
from specjax.sampling import Options
from specjax.session import Row
from specjax.stopping import read_stops, special_ids


def prepare(
    target: Model,
    prompts: Prompts,
    max_new_tokens: int | Sequence[int],
    seed: int | Sequence[int],
    stop: str | Sequence[str],
    stop_token_ids: Sequence[int] | Sequence[Sequence[int]] | None,
    options: Mapping[str, Any],
    template_args: Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> tuple[list[Row], list[str]]:
    """Spreads what was given over the prompts. Raises ValueError on what does not fit together."""
    encoded = prompt_ids(target, prompts, template_args=template_args, tools=tools)
    num = len(encoded)
    fields = {f.name for f in dataclasses.fields(Options)}
    for name in options:
        if name not in fields:
            raise ValueError(f"Unknown option {name!r}; there are {', '.join(sorted(fields))}.")
    columns = {name: spread(name, value, num) for name, value in options.items()}
    if "logit_bias" in columns:
        columns["logit_bias"] = [read_bias(bias) for bias in columns["logit_bias"]]
    seeds = spread("seed", seed, num)
    if is_integer(first := scalar(seed)):
        check_seed(first)
        seeds = [seed_of(int(first), i) for i in range(num)]
    limits = spread("max_new_tokens", max_new_tokens, num)
    if stop_token_ids is None:
        stop_ids: list[Any] = [target.stop_token_ids] * num
    else:
        stop_ids = spread_ids("stop_token_ids", stop_token_ids, num)
    stops = read_stops(target, stop)
    ending = special_ids(target, stops)
    rows = [
        Row(
            prompt=encoded[i],
            options=Options(**{name: column[i] for name, column in columns.items()}),
            seed=seeds[i],
            max_new_tokens=limits[i],
            stop_token_ids=(*stop_ids[i], *ending),
        )
        for i in range(num)
    ]
    return rows, stops


def spread(name: str, value: Any, num: int) -> list[Any]:
    """One value for all prompts, or one for each: a list, a tuple or an array."""
    value = scalar(value)
    if is_array(value):
        value = read_array(value, name, kinds="iufb")
        if value.ndim != 1:
            raise ValueError(
                f"{name} is an array of {value.ndim} dimensions: give one value for all prompts, "
                "or one each."
            )
        value = value.tolist()
    if is_list(value):
        if len(value) != num:
            raise ValueError(
                f"{name} has {len(value)} values for {num} prompts; give one for all, or one each."
            )
        return [scalar(v) for v in value]
    return [value] * num


def spread_ids(name: str, value: Any, num: int) -> list[tuple[Any, ...]]:
    """One list of token ids for all prompts, or one for each; a single id is a list of one."""
    value = scalar(value)
    if is_array(value):
        value = read_array(value, name).tolist()
    if isinstance(value, numbers.Number):
        value = (value,)
    if not is_list(value):
        raise ValueError(
            f"{name} is {type_name(value)}: give token ids, or a list for each prompt."
        )
    if not any(is_list(v) or (is_array(v) and v.shape) for v in value):
        return [tuple(scalar(v) for v in value)] * num
    rows = spread(name, value, num)
    return [spread_ids(name, row, 1)[0] for row in rows]


def read_bias(bias: Any) -> Any:
    """A mapping's values as numbers where they are arrays; whatever else, to be refused later."""
    return {k: scalar(v) for k, v in bias.items()} if isinstance(bias, Mapping) else bias
