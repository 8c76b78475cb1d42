"""Templates of strangers, rendered within bounds of time and size.

A chat template is a program that comes with a checkpoint. Jinja's sandbox keeps it from files and
from Python's internals, but not from looping for hours or asking for a text of a terabyte. Here
every loop, call, operator and filter is counted: a step asks for the time, and what makes a value
pays for its size, before it is made where a small request could make a large one.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import jinja2
import jinja2.ext
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils
from jinja2 import nodes
from jinja2.visitor import NodeTransformer

SECONDS = 2.0  # of this thread's own work, a rendering
SIZE = 2**24  # characters of one value; an item of a list counts for _ITEM
TOTAL = 2**28  # of all values of a rendering together
SOURCE = 2**18  # characters of a template
_ITEM = 64
_BITS = 4096  # of an integer


class TooMuch(Exception):
    """The template asks for more than its bounds."""


class Budget:
    """What one rendering has used."""

    def __init__(self) -> None:
        self._end, self._total, self._steps = time.thread_time() + SECONDS, 0, 0
        # By id, with the value itself, so that no id is given away twice meanwhile.
        self._sizes: dict[int, tuple[Any, int]] = {}

    def step(self) -> None:
        self._steps += 1  # asking for the time takes longer than most steps
        if self._steps % 8 == 0 and time.thread_time() > self._end:
            raise TooMuch(f"it takes longer than {SECONDS:.0f} seconds")

    def pay(self, size: int) -> None:
        self._total += size
        if size > SIZE or self._total > TOTAL:
            raise TooMuch(f"it makes texts or lists of more than {SIZE:,} characters")

    def made(self, value: Any) -> Any:
        """The value, paid for."""
        self.pay(self.size(value))
        return value

    def size(self, value: Any) -> int:
        """Characters that a value would be written with, about; shared parts count every time."""
        if isinstance(value, (str, bytes)):
            return len(value)
        if isinstance(value, int):
            if value.bit_length() > _BITS:
                raise TooMuch(f"it makes numbers of more than {_BITS} bits")
            return 1
        if not isinstance(value, (list, tuple, dict)):
            return 1
        if id(value) not in self._sizes:
            size = _ITEM * (len(value) + 1)
            if size <= SIZE:
                # Not value.items(): a message may note who reads it.
                keys: Iterable[Any] = dict.keys(value) if isinstance(value, dict) else ()
                parts = dict.values(value) if isinstance(value, dict) else value
                size += sum(map(self.size, keys)) + sum(map(self.size, parts))
            self._sizes[id(value)] = (value, min(size, 2 * SIZE))
        return self._sizes[id(value)][1]


_budget: ContextVar[Budget] = ContextVar("budget")


class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox with bounds. Render inside `within_bounds`."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any):
        super().__init__(finalize=_finalize, **options)
        self.concat = _concat  # type: ignore[method-assign]
        self.globals["namespace"] = _Namespace
        del self.globals["lipsum"]
        self.filters |= {"tojson": to_json, "sum": _sum}
        self.filters = {name: _bounded(name, f) for name, f in self.filters.items()}
        self.filters |= {"(each)": _Each, "(made)": _made, "(joined)": _joined}

    def _generate(
        self, source: nodes.Template, name: Any, filename: Any, defer_init: bool = False
    ) -> str:
        guarded = _Guards().visit(source)
        guarded.set_environment(self)
        return super()._generate(guarded, name, filename, defer_init)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = _budget.get()
        budget.step()
        args = _before_call(budget, obj, args, kwargs)
        return budget.made(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        budget = _budget.get()
        budget.step()
        if operator == "%" and isinstance(left, str):
            budget.pay(_percent_size(budget, left, right))
        elif operator == "*" and not _numbers(left, right):
            # A negative number makes nothing.
            many, one = (left, right) if isinstance(left, int) else (right, left)
            budget.pay(budget.size(one) * max(many, 0) if isinstance(many, int) else 0)
        elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length(), (right if operator == "**" else right.bit_length())
            if (bits[0] * bits[1] if operator == "**" else sum(bits)) > _BITS:
                raise TooMuch(f"it makes numbers of more than {_BITS} bits")
        return budget.made(super().call_binop(context, operator, left, right))


def within_bounds(work: Callable[[], Any]) -> Any:
    """What ``work`` returns, compiling or rendering templates of an `Environment`."""
    token = _budget.set(Budget())
    try:
        return work()
    finally:
        _budget.reset(token)


class _Guards(NodeTransformer):
    """Loops count their turns; literals and joined texts pay for what they make."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "(each)")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "(joined)")

    def _literal(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        simple = all(isinstance(child, nodes.Const) for child in node.iter_child_nodes())
        stored = getattr(node, "ctx", "load") != "load"
        return node if simple or stored else _filtered(node, "(made)")

    visit_List = visit_Tuple = visit_Dict = _literal


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Each:
    """What a loop runs over, a step an item."""

    def __init__(self, inner: Any):
        self._inner = inner

    def __iter__(self) -> Iterator[Any]:
        budget = _budget.get()
        for item in self._inner:
            budget.step()
            budget.pay(1)
            yield item

    def __len__(self) -> int:
        return len(self._inner)


def _made(value: Any) -> Any:
    return _budget.get().made(value)


@jinja2.pass_eval_context
def _joined(context: Any, parts: list[Any]) -> str:
    _budget.get().made(parts)
    join = jinja2.runtime.markup_join if context.autoescape else jinja2.runtime.str_join
    return join(parts)


def _finalize(value: Any) -> Any:
    return _made(value if isinstance(value, str) else str(value))


def _concat(parts: Iterable[str]) -> str:
    """``"".join(parts)``, counted while they come."""
    budget = _budget.get()
    kept, size = [], 0
    for part in parts:
        size += len(part)
        budget.pay(len(part))
        if size > SIZE:
            budget.pay(size)
        kept.append(part)
    return "".join(kept)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's; written out, its values would be, however large they are together."""

    def __repr__(self) -> str:
        return "<Namespace>"


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter of Transformers: Jinja's own escapes what HTML could read."""
    options: dict[str, Any] = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
    _indent_pays(indent)
    _made(list(separators or ()))
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, **options)
    return _concat(encoder.iterencode(value))


def _indent_pays(indent: int | str | None) -> None:
    """One step of it; `iterencode` then comes in parts that each pay."""
    _budget.get().pay(1000 * (indent if isinstance(indent, int) else len(indent or "")))


@jinja2.pass_environment
def _sum(environment: Any, iterable: Any, attribute: Any = None, start: Any = 0) -> Any:
    """Jinja's, without the quadratic time of adding up lists at once."""
    if attribute is not None:
        iterable = map(jinja2.filters.make_attrgetter(environment, attribute), iterable)
    for item in _Each(iterable):
        start = environment.call_binop(None, "+", start, item)
    return start


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that pays for what it makes."""
    before = _FILTERS.get(name)
    passed = hasattr(function, "jinja_pass_arg")

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        budget = _budget.get()
        budget.step()
        if before:
            head, rest = args[:passed], list(args[passed:])
            if name == "join" and rest and not isinstance(rest[0], (str, dict)):
                rest[0] = list(rest[0])
            _estimate(budget, before, rest, kwargs)
            args = (*head, *rest)
        return budget.made(function(*args, **kwargs))

    return run


def _before_call(
    budget: Budget, obj: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...]:
    """Pays for a method of texts and numbers that makes much of little; the arguments to use."""
    method = getattr(obj, "__wrapped__", obj)  # Jinja wraps str.format
    name, value = getattr(method, "__name__", ""), getattr(method, "__self__", None)
    if isinstance(value, (str, bytes, int)) and name in _METHODS:
        if name == "join" and args:
            args = (list(args[0]), *args[1:])
        _estimate(budget, _METHODS[name], [value, *args], kwargs)
    return args


def _estimate(
    budget: Budget, function: Callable[..., int], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    try:
        size = function(budget, *args, **kwargs)
    except (TypeError, ValueError, AttributeError, LookupError):
        return  # what is wrong with the arguments, the function itself says
    budget.pay(size)


def _numbers(left: Any, right: Any) -> bool:
    return isinstance(left, (int, float)) and isinstance(right, (int, float))


def _width(budget: Budget, value: Any, width: int = 80, *rest: Any) -> int:
    return int(width)


def _replace_size(budget: Budget, value: Any, old: Any, new: Any, *rest: Any, **more: Any) -> int:
    value, new = (value, new) if isinstance(value, bytes) else (str(value), str(new))
    return len(value) + value.count(old) * len(new)


def _join_size(budget: Budget, items: Any, between: Any = "", *rest: Any, **more: Any) -> int:
    return budget.size(items) + len(items) * len(str(between))


def _indent_size(budget: Budget, value: str, width: int | str = 4, *rest: Any, **more: Any) -> int:
    lines = 1 + len(value.splitlines())
    return len(value) + lines * (width if isinstance(width, int) else len(width))


def _wrap_size(
    budget: Budget,
    value: str,
    width: int = 79,
    break_long_words: bool = True,
    wrapstring: str | None = None,
    *rest: Any,
) -> int:
    return len(value) * (16 + len(wrapstring or ""))


_PERCENT = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(\*|\d+)?(?:\.(\*|\d+))?")
_BRACES = re.compile(r"\{[^{}]*:([^{}]*)(\{?)")


def _percent_size(budget: Budget, form: str, values: Any, *rest: Any, **more: Any) -> int:
    """An upper bound of what ``form % values`` makes."""
    values = (values, *rest, *more.values())
    found = _PERCENT.findall(form)
    widths = [int(w) for pair in found for w in pair if w.isdigit()]
    if any("*" in pair for pair in found):
        flat = [v for value in values for v in (value if isinstance(value, tuple) else (value,))]
        widths += [abs(v) for v in flat if isinstance(v, int)]
    most = max([*widths, *map(budget.size, values), 0])
    return len(form) + form.count("%") * most


def _format_size(budget: Budget, form: str, *args: Any, **kwargs: Any) -> int:
    """An upper bound of what ``form.format(*args, **kwargs)`` makes."""
    values = [*args, *kwargs.values()]
    specs = _BRACES.findall(form)
    widths = [int(w) for spec, _ in specs for w in re.findall(r"\d+", spec)]
    if any(nested for _, nested in specs):
        inner = [v for a in args if isinstance(a, (dict, list, tuple)) for v in _values(a)]
        widths += [abs(v) for v in [*values, *inner] if isinstance(v, int)]
    most = max([*widths, *map(budget.size, values), 0])
    return len(form) + form.count("{") * most


def _values(value: Any) -> Iterable[Any]:
    return dict.values(value) if isinstance(value, dict) else value


def _translate_size(budget: Budget, value: str, table: Mapping[Any, Any]) -> int:
    most = max((len(v) for v in table.values() if isinstance(v, str)), default=1)
    return len(value) * most


def _tabs_size(budget: Budget, value: str, tabsize: int = 8) -> int:
    return len(value) + value.count("\t") * tabsize


def _coded_size(budget: Budget, value: Any, encoding: str = "utf-8", *rest: Any) -> int:
    if encoding.lower() not in ("utf-8", "utf8", "ascii", "latin-1"):
        raise TooMuch(f"it asks for the text encoding {encoding!r}")
    return len(value)


# What a method or filter makes at most, where that is not about as much as it was given.
_METHODS: dict[str, Callable[..., int]] = {
    **dict.fromkeys(("rjust", "ljust", "center", "zfill", "to_bytes"), _width),
    "to_bytes": lambda budget, value, length=1, *rest, **more: length,
    "replace": _replace_size,
    "join": lambda budget, value, items: _join_size(budget, items, value),
    "format": _format_size,
    "format_map": _format_size,
    "translate": _translate_size,
    "expandtabs": _tabs_size,
    "encode": _coded_size,
    "decode": _coded_size,
}


def _slow(budget: Budget, value: Any, *rest: Any, **more: Any) -> int:
    """The cost of filters that look at every letter in Python."""
    return 16 * budget.size(value)


_FILTERS: dict[str, Callable[..., int]] = {
    "center": _width,
    "indent": _indent_size,
    "join": _join_size,
    "replace": _replace_size,
    "format": _percent_size,
    "wordwrap": _wrap_size,
    "batch": lambda budget, value, linecount, *rest, **more: _ITEM * linecount,
    "slice": lambda budget, value, slices, *rest, **more: _ITEM * slices,
    "round": lambda budget, value, precision=0, *rest, **more: 2**20 * (abs(precision) // 300),
    **dict.fromkeys(("pprint", "striptags", "title", "urlize", "xmlattr"), _slow),
}
