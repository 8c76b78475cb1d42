"""The house plan: which room may import from which, and a few things that are never written."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "specjax"
FILES = [
    p for room in ("specjax", "experiments", "tools") for p in sorted((ROOT / room).rglob("*.py"))
]

# Room -> what it may import besides itself. Arrows point down. A file that needs more than its
# neighbours is a room of its own.
MAY_IMPORT = {
    "core": (),
    "sampling": ("core",),
    "models": ("core",),
    "verify": ("core",),
    # A kind's folder has its network, drafter, objective and formats, which stand on these.
    "drafters": (
        *("models", "core", "sampling"),
        *("train.losses", "train.state", "train.step", "train.objectives.base"),
        *("train.chunks", "train.room"),
        *("checkpoint.errors", "checkpoint.export"),
        *(f"checkpoint.drafters.{part}" for part in ("fit", "format", "keys", "layouts")),
        *(f"checkpoint.drafters.{part}" for part in ("source", "speculators")),
    ),
    "train.losses": ("core",),
    "train.chunks": ("core", "train.room"),
    "train.room": ("core",),
    "train.state": ("models", "core"),
    "train.step": ("models", "core"),
    "train.objectives.base": ("models", "core"),
    "checkpoint.errors": (),
    "checkpoint.export": ("models", "core"),
    "checkpoint.drafters.fit": ("models", "core"),
    "checkpoint.drafters.format": ("models", "core"),
    "checkpoint.drafters.keys": ("models", "core"),
    "checkpoint.drafters.layouts": ("models", "core"),
    "checkpoint.drafters.source": ("core",),
    "checkpoint.drafters.speculators": ("models", "core"),
    "decode": ("drafters.base", "models.frozen", "verify", "sampling", "core"),
    "checkpoint": ("models", "drafters", "runs", "core"),
    "train": (
        "drafters",
        "models",
        "core",
        "checkpoint.chat",
        "checkpoint.load",
        "checkpoint.messages",
        "trace.replay",
        "runs",
    ),
    "trace": ("decode", "core"),
    "runs": ("core",),
    "session": (
        *("decode", "verify", "drafters", "models", "sampling", "trace", "checkpoint", "core"),
    ),
    "prompts": ("checkpoint", "core"),
    "text": ("checkpoint",),
    "stopping": ("text", "prompts", "checkpoint"),
    "recording": ("session", "text", "checkpoint", "drafters", "trace", "core"),
    "lab": (),
    # The lab: nothing below reaches it, `specjax/__init__` alone, when it is asked.
    "lab.records": ("session", "trace", "core"),
    "lab.costs": (
        *("lab.records", "session", "decode", "trace", "checkpoint"),
        *("verify", "drafters", "sampling", "models", "core"),
    ),
    "lab.diagnosis": (
        *("request", "prompts", "session", "trace", "checkpoint"),
        *("drafters", "models", "core"),
    ),
    "lab.audit": (
        *("session", "decode", "checkpoint"),
        *("verify", "drafters", "sampling", "models", "core"),
    ),
    "lab.view": ("lab.costs", "lab.records", "runs", "trace", "decode", "core"),
    "lab.bench": (
        *("lab.view", "lab.compiler", "lab.costs", "lab.records", "train", "api", "request"),
        "in_turn",
        *("prompts", "recording", "session", "text"),
        *("decode", "runs", "trace", "checkpoint"),
        *("verify", "drafters", "sampling", "models", "core"),
    ),
    "lab.compiler": (
        *("lab.costs", "lab.records", "session", "decode", "checkpoint"),
        *("verify", "drafters", "sampling", "models", "core"),
    ),
    # What files outside the package import: it hands on, and nothing in the package imports it.
    "extend": (*("prompts", "train", "verify", "drafters", "models", "sampling", "core"),),
    "request": (
        "session",
        "prompts",
        "stopping",
        "checkpoint",
        "sampling",
        "core",
    ),
    "in_turn": (
        *("recording", "request", "session", "stopping", "prompts", "checkpoint", "drafters"),
        *("trace", "core", "verify"),
    ),
    "api": (
        "in_turn",
        "session",
        "request",
        "prompts",
        "stopping",
        "text",
        "recording",
        "checkpoint",
        "verify",
        "drafters",
        "sampling",
        "trace",
        "core",
    ),
}
# The scripts stand on top of all, as files outside the package do: `import specjax` and any room.
MAY_IMPORT["jobs"] = tuple(MAY_IMPORT)
MAY_IMPORT["cli"] = tuple(MAY_IMPORT)
OUTSIDE = ("jobs", "cli")


def imports(tree: ast.AST) -> list[str]:
    """The modules that are imported, wherever in the file, as dotted names."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def room_of(module: str) -> str:
    """The narrowest room that a module below `specjax` is in: "trace" is in "measure"."""
    while module not in MAY_IMPORT and "." in module:
        module = module.rpartition(".")[0]
    return module


def strays(room: str, modules: list[str]) -> list[str]:
    """The modules of other rooms that ``room`` may not import."""
    whole = room if room.startswith("lab.") else room.split(".")[0]
    allowed = [f"specjax.{r}." for r in (whole, *MAY_IMPORT[room])]
    ours = [m + "." for m in modules if m.split(".")[0] in ("specjax", "experiments", "tools")]
    found = [m for m in ours if not m.startswith(tuple(allowed))]
    return [m for m in found if m != "specjax."] if room in OUTSIDE else found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_keeps_the_rules(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert path.name != "utils.py"
    assert text.count("\n") <= 450
    if not path.is_relative_to(PACKAGE):
        return
    attributes = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    assert not [a.lineno for a in attributes if a.attr == "value"], "params are read as p[...]"
    assert not [a.lineno for a in attributes if ast.unparse(a) == "nnx.jit"]
    room = room_of(".".join(path.relative_to(PACKAGE).with_suffix("").parts))
    if room != "__init__":
        assert not strays(room, imports(tree))


def test_the_test_sees_a_stray() -> None:
    source = "def f():\n    from specjax.drafters import lm\n    import specjax.core.cache\n"
    assert strays("decode", imports(ast.parse(source))) == ["specjax.drafters.lm."]
    assert strays("core", ["specjax.corelike.x", "jax.numpy"]) == ["specjax.corelike.x."]
    assert strays("jobs", ["specjax", "specjax.api", "specjax.cli.x"]) == ["specjax.cli.x."]
    assert strays("lab.view", ["specjax", "specjax.jobs"]) == ["specjax.", "specjax.jobs."]
