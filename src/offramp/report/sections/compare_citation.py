"""How to cite a comparison, and where its numbers come from."""

from __future__ import annotations

from offramp.report.markup import element, text
from offramp.report.sections.provenance import entries
from offramp.studies.comparison.results import Comparison


def citation_section(comparison: Comparison) -> str:
    """The citation with a button that copies it, and the provenance."""
    content = element("h2", "How to cite and repeat this")
    if comparison.citation:
        quoted = element(
            "pre",
            element("code", text(comparison.citation.strip())),
            id_="citation",
            tabindex=0,
            aria_label="Citation",
        )
        button = element("button", "Copy", type_="button", class_="copy", data_copy="citation")
        content += element("div", quoted + button, class_="command")
    content += element("dl", "".join(entries(comparison.provenance)), class_="provenance")
    return element("section", content, id_="cite", class_="part", aria_label="How to cite and repeat this")
