"""What was fitted on documents of its own, and whether it tells more than chance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from offramp.report.formats import counted, decimal, listed, percent
from offramp.report.markup import element, table, text
from offramp.report.run_result import RunResult


def heads_block(run: RunResult) -> str:
    """The lens and the classifiers; nothing if nothing was fitted."""
    if run.heads is None:
        return ""
    came = "imported" if run.heads.get("imported") else "fitted"
    content = element("h3", f"What was {came} for the checks")
    content += element("p", text(fitted_sentence(run.heads)))
    classifiers: Mapping[str, Mapping[str, Any]] = run.heads["classifiers"]
    if not classifiers:
        return content
    rows = [
        [
            name.replace("_", " "),
            f"{values['better_than_chance']} of {values['exits']}",
            "undefined" if values["auroc"] is None else decimal(values["auroc"]),
        ]
        for name, values in classifiers.items()
    ]
    header = ["Classifier", "Exits where it beats chance", "Median AUROC"]
    return content + table(
        header, rows, caption="Classifiers on documents that fitting did not see; AUROC 0.5 is guessing"
    )


def fitted_sentence(heads: Mapping[str, Any]) -> str:
    """What was fitted, on how many documents, and what is no better than chance; or what was imported."""
    if heads.get("imported"):
        kind = "an output head of its own" if heads.get("output") else "a linear lens"
        return (
            f"Others trained {kind} at {counted(heads['exits'], 'exit')}. Which documents they used is not "
            "known: on these it looks better than on new text."
        )
    parts = [f"On {counted(heads['documents'], 'document')}, kept apart from all that is judged below:"]
    made = []
    if heads["lens"]:
        explained = heads["lens_explained"]
        says = (
            ""
            if explained is None
            else f" (it explains {percent(explained, 0)} of the last state's variance on others)"
        )
        made.append(f"a linear lens at {counted(heads['exits'], 'exit')}{says}")
    classifiers: Mapping[str, Mapping[str, Any]] = heads["classifiers"]
    if classifiers:
        made.append(counted(len(classifiers), "classifier"))
    parts.append(f"{listed(made) if made else 'nothing that could be used'}.")
    chance = [name.replace("_", " ") for name, v in classifiers.items() if v["better_than_chance"] == 0]
    if chance:
        parts.append(f"No better than chance at any exit: {listed(chance)}.")
    return " ".join(parts)
