"""The frame of every page: head, brand and foot, self-contained."""

from __future__ import annotations

from importlib import resources

from offramp.report.markup import element, text

MARK = (
    '<svg class="mark" viewBox="0 0 32 32" aria-hidden="true"><path d="M11 31V1M21 31V21"/>'
    '<path d="M21 21C21 12 25 8 31 5M31 14C27 16 21 19 21 31"/><path class="lane" d="M11 31V1"/></svg>'
)
FOOTER = element("footer", element("p", "Made by offramp. This file needs no network and sends nothing."))


def whole_page(title: str, body: str, *, style: str = "") -> str:
    """A page around a body that is HTML. style: rules besides the common ones."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        + element("title", text(title))
        + element("style", asset("page.css") + style)
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def brand() -> str:
    """Name and mark."""
    return element("span", MARK + "offramp", class_="brand")


def asset(name: str) -> str:
    """A style sheet or script that goes into the page."""
    return resources.files("offramp.report").joinpath("assets", name).read_text(encoding="utf-8")
