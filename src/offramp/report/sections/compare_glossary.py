"""What the words on a comparison's page mean: those of the report that it uses, and its own."""

from __future__ import annotations

from offramp.report.markup import element, text
from offramp.report.sections.glossary import TERMS
from offramp.studies.comparison.results import Comparison

OWN: dict[str, str] = {
    "Cell": "One model on one workload through one kind of exit heads, with a machine where time is asked.",
    "Independently trained model": (
        "A training run of its own. Quantised, pruned or tuned variants of it are the same model read again, "
        "so they are no further evidence about models in general."
    ),
    "Bits per byte": (
        "The full model's surprise at the text, in bits, over the size of the text. It does not depend on "
        "how a model cuts text into tokens."
    ),
}
OF_PAIRS: dict[str, str] = {
    "Matched pair": (
        "Two models that differ in one thing, on the same documents: base and tuned, dense and mixture of "
        "experts, one generation and the next."
    ),
    "p, adjusted after Holm": (
        "The chance of so large a difference if there were none, made larger for the number of differences "
        "that were looked at."
    ),
}
OF_TRENDS: dict[str, str] = {
    "Theil–Sen slope": "The median of the slopes through all pairs of points (Theil 1950, Sen 1968).",
}
OF_VALIDITY: dict[str, str] = {
    "Kendall τ-b, Spearman ρ": (
        "How far two orders agree: by pairs that stand the same way round, and by ranks. From −1 to 1."
    ),
    "Error, model left out": (
        "How far the saving of a model is from what the score says, when the relation was fitted without it; "
        "the median, as a share of plain decoding's time."
    ),
}
SHARED = (
    "Exit",
    "Exit head",
    "Agreement",
    "Policy",
    "Family",
    "Oracle",
    "Skip ratio",
    "Net speedup",
    "Probe",
    "Faster, slower, equivalent, unresolved, defect",
    "Document",
    "Certificate",
    "First-match oracle",
    "Saturation oracle",
    "Representation quality",
    "Information increment",
    "Calibration",
    "EAS",
    "Interval",
)


def glossary_section(comparison: Comparison) -> str:
    """The definitions as a list; those of a part that the page lacks are left out."""
    terms = dict(OWN)
    terms |= OF_PAIRS if comparison.pairs else {}
    terms |= OF_TRENDS if comparison.trends else {}
    terms |= OF_VALIDITY if comparison.validity else {}
    terms |= {name: TERMS[name] for name in SHARED}
    items = "".join(
        element("div", element("dt", text(term)) + element("dd", text(meaning)))
        for term, meaning in terms.items()
    )
    content = element("h2", "What the words mean") + element("dl", items, class_="glossary")
    return element("section", content, id_="glossary", class_="part", aria_label="Glossary")
