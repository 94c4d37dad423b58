"""What the words on the page mean."""

from __future__ import annotations

from offramp.report.markup import element, text
from offramp.scoring.reference import STUDY

TERMS: dict[str, str] = {
    "Exit": (
        "The point after a decoder layer where the model could stop and answer. The last exit is the "
        "full model."
    ),
    "Exit head": (
        "What turns the hidden state at an exit into a prediction. Here the logit lens: the model's "
        "own final norm and output head."
    ),
    "Agreement": (
        "The share of tokens for which an exit's most probable token is the full model's. It is not "
        "accuracy: the full model may be wrong."
    ),
    "Policy": (
        "A rule that decides at each checked exit whether to stop: a signal, a threshold, and the "
        "exits it checks."
    ),
    "Probe": (
        "One such check. It reads the exit head, which on small models costs as much as several layers."
    ),
    "Skip ratio": "The share of decoder layers not executed.",
    "Net speedup": (
        "Plain cost over the policy's cost per token: layers, probes, repair of the attention cache "
        "and head included. On this page it is predicted from bytes moved at batch size 1."
    ),
    "Certificate": (
        "A statistical guarantee that a quality floor holds on documents like these. This version gives "
        "none, and only says how many documents it would take at least."
    ),
    "First-match oracle": (
        "Stops at the first layer that agrees with the full model. It overstates what can be saved, "
        "since later layers may disagree again."
    ),
    "Saturation oracle": (
        "Stops at the first layer from which all later layers agree. No policy can know this."
    ),
    "Representation quality": (
        "Area under agreement over the share of layer work done. High: early layers are already right."
    ),
    "Information increment": (
        "How early the information about the final prediction arrives. High: nearly all of it early."
    ),
    "Calibration": (
        "How much an exit's confidence tells about its own agreement, after recalibration on other documents."
    ),
    "EAS": (
        "Early-exit Adaptability Score of the study “The Diminishing Returns of Early-Exit Decoding "
        f"in Modern LLMs” ({STUDY}), in several variants since its similarity is not published."
    ),
    "Interval": (
        "95 % interval from resampling whole documents, because tokens of one document depend on each other."
    ),
    "Pays, does not pay, too close to call": (
        "The lower limit of the net speedup is above 1.05; its upper limit is below that, or the "
        "choice was never to exit; neither, or too few documents for an interval."
    ),
}


def glossary_section() -> str:
    """The definitions as a list."""
    items = "".join(
        element("div", element("dt", text(term)) + element("dd", text(TERMS[term]))) for term in TERMS
    )
    content = element("h2", "What the words mean") + element("dl", items, class_="glossary")
    return element("section", content, id_="glossary", aria_label="Glossary")
