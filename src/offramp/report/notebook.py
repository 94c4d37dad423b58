"""What a notebook shows of a value: the page's own fragments, in a frame of their own."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from offramp.policies.replay import ReplayResult
from offramp.report.curves import FIGURES, layer_figure
from offramp.report.drawing import ramp_rules
from offramp.report.findings import Finding
from offramp.report.formats import counted, thousandths
from offramp.report.html import fragment
from offramp.report.page import identities
from offramp.report.passage import generation_section, passage_part
from offramp.report.replayed import layers_of, replay_section
from offramp.report.run_findings import Findings
from offramp.report.sections.first_screen import verdict_section
from offramp.report.sections.potential import component_figure, eas_figure, readings_charts
from offramp.scoring.card import ScoreCard
from offramp.scoring.scoring import score
from offramp.studies.work.trace import Passages
from offramp.tracing.trace import Trace

if TYPE_CHECKING:
    from offramp.decoding.generation.result import Generation

HEIGHT = 640
"""Pixels of a frame; its lower right corner can be pulled."""


def html_of(value: Any) -> str:
    """HTML of a value that is `offramp.display.ShownAsHtml`. Raises TypeError for any other."""
    for kind in type(value).__mro__:
        if kind.__name__ in SHOWN:
            return SHOWN[kind.__name__](value)
    raise TypeError(f"no page shows a {type(value).__name__}")


def framed(title: str, content: Markup, layers: int = 0) -> str:
    """A whole page within a frame, so that its style and script touch nothing around it."""
    page = fragment("notebook", "page", title, Markup(ramp_rules(layers)) if layers else "", content)
    style = f"width:100%;height:{HEIGHT}px;border:1px solid #8884;border-radius:8px;resize:vertical"
    return f'<iframe title="{escape(title)}" style="{style}" srcdoc="{escape(str(page))}"></iframe>'


def _findings(findings: Findings) -> str:
    result = findings.result
    layers = max([result.layers, *[int(one.trace.exits[-1]) for one in result.workloads]])
    parts = [verdict_section(result)]
    for workload, name in zip(result.workloads, identities(result.workloads), strict=True):
        parts += [fragment("notebook", "heading", workload.name), passage_part(workload.passage, name)]
    return framed(f"Would early exit pay for {result.model_name}?", Markup().join(parts), layers)


def _finding(finding: Finding[Any]) -> str:
    facts = {name: value for name, value in finding.to_dict().items() if value not in (None, "", [])}
    return str(
        fragment(
            "notebook", "facts", finding.place, finding.decision, {n: _shown(v) for n, v in facts.items()}
        )
    )


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return thousandths(value)
    return ", ".join(value) if isinstance(value, list) else str(value)


def _card(card: ScoreCard) -> str:
    figures = [component_figure(card), *readings_charts(card), eas_figure(card)]
    figures += [layer_figure(figure, card.curves) for figure in FIGURES]
    title = f"How suited: {counted(card.tokens, 'token')} of {counted(card.documents, 'document')}"
    return framed(title, fragment("notebook", "figures", title, figures, card.notes))


def _trace(trace: Trace) -> str:
    return _card(score(trace))


def _passages(passages: Passages) -> str:
    passage = passages.passage
    return framed(f"Document {passage.document}", passage_part(passage, "text"), max(passage.exits))


def _replay(result: ReplayResult) -> str:
    return framed(f"Replay of {result.policy}", replay_section(result), layers_of(result))


def _generation(generation: Generation) -> str:
    return framed("A generated text", generation_section(generation), generation.layers)


# By name: a page of results needs no torch, which a generation has.
SHOWN: dict[str, Callable[[Any], str]] = {
    "Findings": _findings,
    "Finding": _finding,
    "ScoreCard": _card,
    "Trace": _trace,
    "Passages": _passages,
    "ReplayResult": _replay,
    "Generation": _generation,
}
