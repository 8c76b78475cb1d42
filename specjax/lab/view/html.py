"""Pages: templates, style sheets and scripts of `assets/`, put together into one string.

Self-contained: no network, and no identifiers that could collide in a notebook. Everything that
templates are given is escaped unless it is markup already.
"""

from __future__ import annotations

import dataclasses
import functools
import html
import re
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from specjax.core.files import write_atomically
from specjax.lab.view.palette import MEANING, REJECTED, css
from specjax.lab.view.tokens import CLASSES, Token, tooltip, visible

_ASSETS = resources.files("specjax.lab.view") / "assets"


@functools.cache
def asset(name: str) -> str:
    """A file of `assets/`, without what only its editors need: indentation and comments."""
    lines = [line.strip() for line in (_ASSETS / name).read_text(encoding="utf-8").splitlines()]
    return "\n".join(line for line in lines if line and not line.startswith("//"))


def style(*names: str) -> Markup:
    """Style sheets by name, with the colours before them."""
    sheets = "".join(asset(f"{name}.css") for name in names).replace("\n", "")
    return Markup(css(".sj") + re.sub(r"(?<=[:,;{]) | (?=\{)", "", sheets))


def script(*names: str) -> Markup:
    """Scripts by name."""
    return Markup("\n".join(asset(f"{name}.js") for name in names))


def characters(text: str) -> Markup:
    """Generated text, seen and not obeyed; an empty element before each line break draws its mark.

    What is left when the markup is taken away is the text.
    """
    return Markup(html.escape(visible(text)).replace("\n", '<i class="n"></i>\n'))


def shortened(text: str) -> str:
    """A rejected guess takes little room: a picture for each run of white space in it."""
    text = re.sub(r"\n\s*", lambda found: "↵" * found[0].count("\n"), text)
    return re.sub(r"[ \t]{2,}", "␣", text)


def _title(token: Token) -> Markup:
    """What an attribute says of a token."""
    return Markup(html.escape(tooltip(token)))


@functools.cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    made.filters |= {"characters": characters, "shortened": shortened, "tooltip": _title}
    made.globals |= {
        "style": style,
        "script": script,
        "colours": lambda selector: Markup(css(selector)),
        **{"CLASSES": CLASSES, "MEANING": MEANING, "REJECTED": REJECTED},
    }
    return made


def render(name: str, **values: Any) -> str:
    """The template ``name`` of `assets/`, of ``values``."""
    return _environment().get_template(f"{name}.html.j2").render(values)


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
        return render("document", title=self.title, body=Markup(self.body))

    def save(self, path: str | Path) -> None:
        """Writes a page that opens anywhere, without network.

        Raises:
          OSError: if it cannot be written.
        """
        write_atomically(Path(path).expanduser(), self.page())
