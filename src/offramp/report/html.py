"""The pages' templates, how values are escaped in them, and the pieces that cells and figures are made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib import resources
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.ext import Extension
from markupsafe import Markup

from offramp.scoring.card import STUDY

Kind = Literal["measured", "executed", "replayed", "predicted"]

KIND_MEANING: dict[Kind, str] = {
    "measured": "read off the model itself, layer by layer, or off the stopwatch",
    "executed": "of text that the policy itself generated, skipped layers not run, judged by the full model",
    "replayed": "a policy's choices applied to that measurement, without running the model again",
    "predicted": "computed, part by part, from what layers, probes and head cost, before a policy is timed",
}
DECISION_SIGNS: dict[str, str] = {
    "pays": "✓",
    "does not pay": "✕",
    "inconclusive": "?",
    "depends on the text": "±",
    "undefined": "?",
}
UNIT = re.compile(r"(?<=\d) (?=[%×]|[mµ]?s\b)")
UNIT_IN_TEMPLATE = re.compile(r"(?<=\d) (?=%(?!\})|×|[mµ]?s\b)")
COMMENT = re.compile(r"\{#.*?#\}\s*", re.DOTALL)
LEFT_OUT = re.compile(r"(?<=>)\s*\n\s*|(?<=%\})\s*\n\s*|(?<=\}\})\s*\n\s*(?=\{)|\s*\n\s*(?=<|\{%)")
"""Line breaks of a template beside tags and statements, and between two expressions."""
BREAK = re.compile(r"(?<=[,:+])")


class Joined(Extension):
    """Joins the lines of a template, so that a page has no white space beyond what its text needs."""

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        """Drop line breaks beside tags, make a space of those within text; units stay with their numbers."""
        source = UNIT_IN_TEMPLATE.sub("\u00a0", COMMENT.sub("", source))
        return re.sub(r"\s*\n\s*", " ", LEFT_OUT.sub("", source.strip()))


def with_units(value: Any) -> Any:
    """A number in a text stays with its unit on one line; what is HTML already is left as it is."""
    return UNIT.sub("\u00a0", value) if type(value) is str and " " in value else value


def escaped(value: str) -> str:
    """Text as HTML within a larger piece; what is HTML already stays."""
    return str(value) if isinstance(value, Markup) else escape(with_units(value))


def text(value: str) -> Markup:
    """Text as HTML, for pieces that are put together before a template lays them out."""
    return Markup(escaped(value))


@cache
def environment() -> Environment:
    """The templates: what a value holds is always escaped, and a value that is not given is an error."""
    made = Environment(
        loader=PackageLoader("offramp.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=with_units,
        extensions=[Joined],
        auto_reload=False,
    )
    made.globals.update(kinds=KIND_MEANING, signs=DECISION_SIGNS, asset=asset, study=STUDY)
    made.filters.update(slug=slug, breakable=breakable)
    return made


@cache
def macro(template: str, name: str) -> Callable[..., Markup]:
    """A macro of a template."""
    found: Callable[..., Markup] = getattr(environment().get_template(f"{template}.html").module, name)
    return found


def fragment(template: str, name: str, *values: Any, **named: Any) -> Markup:
    """What a macro of a template makes of values."""
    return macro(template, name)(*values, **named)


def asset(name: str) -> Markup:
    """A style sheet or script that goes into a page."""
    return Markup(resources.files("offramp.report").joinpath("assets", name).read_text(encoding="utf-8"))


def slug(name: str) -> str:
    """A name as an id: letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "workload"


def breakable(name: str, signs: re.Pattern[str] = BREAK) -> Markup:
    """A name that may break after some of its signs."""
    return Markup(signs.sub("<wbr>", escaped(name)))


# Pieces of cells are made here and not by macros: a page may have tens of thousands of them, and a call of a
# macro takes several times as long as its piece.


def policy_code(policy: str) -> Markup:
    """A policy's text, breakable after its signs and shortened by nothing."""
    return Markup(f"<code>{breakable(policy)}</code>")


def small(content: str) -> Markup:
    """A second, smaller line; nothing without content."""
    return Markup(f"<small>{escaped(content)}</small>") if content else Markup()


def stack(shown: str, *notes: str) -> Markup:
    """A text or piece with smaller lines below it; empty ones are left out."""
    lines = "".join([f"<small>{escaped(note)}</small>" for note in notes if note])
    return Markup(escaped(shown) + lines)


def pill(decision: str) -> Markup:
    """A decision with its sign and colour."""
    return fragment("macros", "pill", decision)


def styled(content: str, style: str) -> Markup:
    """A piece of text with a class of the page's style."""
    return Markup(f'<span class="{style}">{escaped(content)}</span>')


@dataclass(frozen=True)
class KeyNumber:
    """A figure in large on a card: what it is, where it comes from, and what it belongs to."""

    kind: Kind
    big: str
    what: str
    lines: Sequence[tuple[str, str]]
    title: str
    policy: str = ""


def bullets(lines: Sequence[str], style: str) -> Markup:
    """Texts as a list; nothing without any."""
    return fragment("macros", "bullets", lines, style)
