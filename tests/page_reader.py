"""A page read back: its elements, its text, and what is wrong about its nesting."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "br", "img", "link", "hr", "input", "base", "col", "source", "wbr"}
LOADING = {"src", "srcset", "data", "poster", "action", "background", "xlink:href", "formaction"}


class Page(HTMLParser):
    """Elements in order, with what is wrong about their nesting."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.faults: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None], tuple[str, ...]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        self.faults += [f"left open: {name}" for name in self.open]

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        if len(names) != len(set(names)):
            self.faults.append(f"attribute twice in {tag}")
        self.elements.append((tag, dict(attrs), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), tuple(self.open)))

    def handle_endtag(self, tag):
        if not self.open or self.open[-1] != tag:
            self.faults.append(f"</{tag}> closes {self.open[-1:]}")
        else:
            self.open.pop()

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def require_self_contained(html: str, page: Page, *, links: tuple[str, ...]) -> None:
    """Nothing is loaded from anywhere. links: what the address of one may begin with."""
    for tag, values, _ in page.elements:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "use"}
        assert not LOADING & set(values)
        if "href" in values:
            assert values["href"].startswith(links)
        assert not any(name.startswith("on") for name in values)
    assert "url(" not in html
    assert "@import" not in html
    assert not re.search(r"\bfetch\(|XMLHttpRequest|WebSocket|import\(", html)
