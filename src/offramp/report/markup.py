"""HTML building blocks: escaped text, elements, tables, figures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

Kind = Literal["measured", "executed", "replayed", "predicted"]

KIND_MEANING: dict[Kind, str] = {
    "measured": "read off the model itself, layer by layer, or off the stopwatch",
    "executed": "of text that the policy itself generated, skipped layers not run, judged by the full model",
    "replayed": "a policy's choices applied to that measurement, without running the model again",
    "predicted": "computed, part by part, from what layers, probes and head cost, before a policy is timed",
}


def text(value: str) -> str:
    """Text as HTML; a number stays with its unit on one line."""
    return re.sub(r"(?<=\d) (?=[%×]|[mµ]?s\b)", "\u00a0", escape(value, quote=True))


def attributes(values: dict[str, str | int | float | bool | None]) -> str:
    """Attributes as HTML; True gives a bare attribute, False and None leave it out; "_" becomes "-"."""
    parts = []
    for name, value in values.items():
        name = name.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(f" {name}")
        elif value is not None and value is not False:
            parts.append(f' {name}="{escape(str(value), quote=True)}"')
    return "".join(parts)


def element(name: str, content: str = "", **values: str | int | float | bool | None) -> str:
    """An element around content that is HTML already."""
    return f"<{name}{attributes(values)}>{content}</{name}>"


def slug(name: str) -> str:
    """A name as an id: letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "workload"


def bullets(lines: Sequence[str], style: str) -> str:
    """Texts as a list; nothing without any."""
    return element("ul", "".join(element("li", text(line)) for line in lines), class_=style) if lines else ""


def kind_chip(kind: Kind) -> str:
    """The small label that says where a number comes from."""
    return element("span", kind, class_=f"kind {kind}", title=KIND_MEANING[kind])


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str, numeric_from: int = 1
) -> str:
    """A table of texts that scrolls sideways; columns from `numeric_from` are right-aligned."""
    head = "".join(element("th", text(name), scope="col") for name in header)
    body = "".join(
        element(
            "tr",
            "".join(
                element("th", text(cell), scope="row")
                if column == 0
                else element("td", text(cell), class_="number" if column >= numeric_from else None)
                for column, cell in enumerate(row)
            ),
        )
        for row in rows
    )
    inner = element(
        "table",
        element("caption", text(caption)) + element("thead", element("tr", head)) + element("tbody", body),
    )
    return element("div", inner, class_="scroll", tabindex=0, role="region", aria_label=caption)


@dataclass(frozen=True)
class Column:
    """A column of a wide table. head: HTML above it, the name if empty; kind: where its numbers come from."""

    name: str
    kind: Kind | None = None
    head: str = ""


def wide_table(
    columns: Sequence[Column],
    groups: Sequence[tuple[str, Sequence[Sequence[str]]]],
    *,
    caption: str,
    style: str,
) -> str:
    """A table of HTML cells in named groups of rows, whose rows become cards on a phone.

    The first cell of a row heads it; every other one carries its column's name for the cards. A group without
    a name has no heading row, one without rows is left out.
    """
    head = "".join(
        element("th", text(c.name) + (f"<br>{kind_chip(c.kind)}" if c.kind else "") + c.head, scope="col")
        for c in columns
    )
    labels = [f"{c.name}, {c.kind}" if c.kind else c.name for c in columns]
    bodies = ""
    for name, rows in groups:
        if not rows:
            continue
        inner = ""
        if name:
            heading = element("th", text(name), scope="rowgroup", colspan=len(columns))
            inner = element("tr", heading, class_="group")
        for cells in rows:
            row = element("th", cells[0], scope="row")
            row += "".join(
                element("td", cell, data_name=label)
                for cell, label in zip(cells[1:], labels[1:], strict=True)
            )
            inner += element("tr", row)
        bodies += element("tbody", inner)
    content = element("caption", text(caption)) + element("thead", element("tr", head)) + bodies
    whole = element("table", content, class_=f"cards {style}")
    return element("div", whole, class_="scroll", tabindex=0, role="region", aria_label=caption)


def policy_code(policy: str) -> str:
    """A policy's text, breakable after its signs and shortened by nothing."""
    broken = re.sub(r"([,:+])", r"\1<wbr>", text(policy))
    return element("code", broken)


def small(content: str) -> str:
    """A second, smaller line."""
    return element("small", text(content)) if content else ""


def disclosure(summary: str, content: str) -> str:
    """Content behind a summary that opens by mouse, keyboard and without scripts."""
    return element("details", element("summary", text(summary)) + content)


def figure(
    title: str, note: str, chart: str, data: str, *, legend: str = "", kind: Kind | None = None
) -> str:
    """A figure: title, note, legend, chart, and the same numbers as a table (chart and table are HTML)."""
    chip = " " + kind_chip(kind) if kind else ""
    caption = element("figcaption", element("h4", text(title) + chip) + element("p", text(note)))
    return element("figure", caption + legend + chart + disclosure("The same as a table", data))


def reason(why: str) -> str:
    """What stands in a figure's place when it is undefined."""
    return element("p", element("strong", "Not shown.") + " " + text(why), class_="reason")
