"""Measures the house: lines and files by room, how its rooms talk, how long its functions are.

    python -m tools.house [CHECKOUT ...]

Prints one row a measure and one column a checkout (this one, if none is named): docs/design.md
keeps the table of before and after.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

CORE = (
    *("core", "models", "drafters", "verify", "sampling", "decode", "session", "layout", "between"),
    *("limits", "memory", "request", "api", "text", "stopping", "recording", "prompts", "trace"),
)
# Where what is now in a room of specjax/lab was before.
LAB = ("lab", "measure", "bench", "auditing", "view", "compiler", "diagnosis")


def files(root: Path) -> list[Path]:
    """The tracked Python files of a checkout."""
    listed = subprocess.check_output(["git", "ls-files", "*.py"], cwd=root, text=True)
    return [root / name for name in listed.split() if (root / name).is_file()]


def room(path: Path, root: Path) -> str:
    """The part of the house that a file belongs to."""
    parts = path.relative_to(root).with_suffix("").parts
    if parts[0] != "specjax":
        return parts[0]
    name = parts[1] if len(parts) > 1 else "__init__"
    return "lab" if name in LAB else name


def functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Each function of a file, and how many lines it has."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def string_keys(tree: ast.AST) -> int:
    """How often something is indexed by a string that stands there, to be read."""
    return sum(
        isinstance(node, ast.Subscript)
        and isinstance(node.slice, ast.Constant)
        and isinstance(node.slice.value, str)
        and isinstance(node.ctx, ast.Load)
        for node in ast.walk(tree)
    )


def measure(root: Path) -> dict[str, str]:
    """What the table says of one checkout."""
    lines: Counter[str] = Counter()
    count: Counter[str] = Counter()
    longest, anys, keys, eagle = ("", 0), 0, 0, 0
    for path in files(root):
        text, name = path.read_text(), room(path, root)
        lines[name] += text.count("\n")
        count[name] += 1
        if name in ("tests", "tools", "examples", "notebooks"):
            continue
        tree = ast.parse(text)
        longest = max([longest, *functions(tree)], key=lambda f: f[1])
        anys += len(re.findall(r"\bAny\b", text)) - ("import Any" in text)
        keys += string_keys(tree) if name in ("lab", "experiments", "cli", "jobs") else 0
        eagle += "eagle3" in text.lower() and "drafters/eagle3/" not in str(path)
    whole = sum(lines[name] for name in lines if name not in ("tests", "tools", "examples"))
    core = sum(lines[name] for name in CORE)
    periphery = sum(lines[name] for name in ("lab", "cli", "jobs", "experiments", "configs"))
    table = {f"{name}: lines, files": f"{lines[name]:,}, {count[name]}" for name in sorted(lines)}
    return {
        **table,
        "share of the core": f"{core / whole:.0%}",
        "periphery (lab, cli, jobs, experiments, configs), lines": f"{periphery:,}",
        "longest function": f"{longest[1]} ({longest[0]})",
        "`Any`, without tests": f"{anys:,}",
        "string keys read in the periphery": f"{keys:,}",
        "files that name eagle3 outside its folder": str(eagle),
    }


def main(arguments: list[str]) -> None:
    roots = [Path(a) for a in arguments] or [Path.cwd()]
    measured = [measure(root) for root in roots]
    print("| measure |" + "".join(f" {root.name} |" for root in roots))
    print("| --- |" + " --- |" * len(roots))
    for name in dict.fromkeys(name for found in measured for name in found):
        print(f"| {name} |" + "".join(f" {found.get(name, '')} |" for found in measured))


if __name__ == "__main__":
    main(sys.argv[1:])
