"""Reads a page as a reader sees it."""

from __future__ import annotations

import html.parser


class Reader(html.parser.HTMLParser):
    """The text of a page: of elements by class, and what is struck out."""

    def __init__(self, page: str):
        super().__init__()
        self.stack: list[tuple[str, list[str]]] = []
        self.found: list[tuple[list[str], str]] = []  # of each .tk: its classes and its text
        self.tags: set[str] = set()
        self.feed(page)
        self.close()
        assert not self.stack, f"left open: {self.stack}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag in ("meta", "input", "br"):
            return
        classes = (dict(attrs).get("class") or "").split()
        self.stack.append((tag, classes))
        if "tk" in classes or "pr" in classes:
            self.found.append((classes, ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack.pop()[0] == tag, tag

    def handle_data(self, data: str) -> None:
        if any({"tk", "pr"} & set(classes) for _, classes in self.stack):
            classes, text = self.found[-1]
            self.found[-1] = (classes, text + data)
