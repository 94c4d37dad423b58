"""The page of the lab's study: the gate, a paragraph for each claim, the charts, what was left out."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from offramp.lab.effects.claims import CLAIMS, Claim, judge
from offramp.lab.effects.gate import USED, Gate
from offramp.lab.effects.runs import BLOCKS
from offramp.lab.effects.score_validity import ScoreValidity
from offramp.lab.effects.study import PLANNED, LabFindings
from offramp.lab.text.folder import TextRecord
from offramp.report.formats import counted, decimal, listed, thousandths
from offramp.report.html import bullets, fragment, table
from offramp.report.lab.charts import depth_figure, forests, reading_figures, score_figures, training_figures
from offramp.report.lab.words import (
    effect_text,
    endpoint_name,
    scale,
    score_name,
    sentences,
    words_of,
)
from offramp.report.names import in_sentence
from offramp.report.sections.claims import probability

TITLE = "What makes a small model exit early?"
SCALES = {"sizes": ("1", "2", "6"), "6": ("1", "2", "3", "6")}
"""Blocks that a claim is of, by the family that tests it, where these are not 1 and 2."""


def render_lab(findings: LabFindings, text: TextRecord | None, command: str) -> str:
    """The whole page as HTML; where the gate is not passed it says only that.

    text: what the models were trained on, if it is at hand. command: that made the table of runs.
    """
    passed = bool(findings.gate.passed)
    return fragment(
        "lab",
        "page",
        title=TITLE,
        headline=headline(findings),
        gate=gate_lines(findings.gate),
        claims=[claim_part(claim, findings) for claim in CLAIMS] if passed else [],
        figures=_figures(findings) if passed else [],
        pairs=pair_lines(findings) if passed else [],
        families=families_table(findings) if passed else Markup(),
        notes=family_notes(findings),
        runs=runs_table(findings),
        left_out=[f"{name}: {why}" for name, why in findings.left_out.items()],
        text=text_part(text),
        command=command,
    )


def headline(findings: LabFindings) -> str:
    """The answer in one sentence."""
    if findings.gate.passed is None:
        return "Nothing is concluded: whether these models use their depth is not known yet."
    if not findings.gate.passed:
        return "Nothing is concluded: these models do not use their depth."
    by_claim = [judge(claim, findings) for claim in CLAIMS]
    judged, untested = [one for some in by_claim for one in some], by_claim.count(())
    if not judged:
        return "Nothing is concluded: no claim of the study could be tested."
    said = {
        "holds here": ("holds here", "hold here"),
        "opposite here": ("says the opposite", "say the opposite"),
        "does not": ("finds nothing that matters", "find nothing that matters"),
        "representation": ("lies in the representation", "lie in the representation"),
        "readout": ("lies in the readout", "lie in the readout"),
        "cannot be told": ("cannot be told", "cannot be told"),
    }
    told = [f"{count} {said[word][count != 1]}" for word, count in words_of(judged)]
    more = f"; {counted(untested, 'claim')} could not be tested" if untested else ""
    return f"Of {counted(len(judged), 'test')} of the study's claims on small models {listed(told)}{more}."


def gate_lines(gate: Gate) -> list[str]:
    """What the gate found, a line for each corner."""
    found = []
    for one in gate.corners:
        if one.gained is None or one.deep is None or one.shallow is None:
            runs = (("its run of block 1", one.deep), ("its run of the gate", one.shallow))
            missing = listed([name for name, loss in runs if loss is None])
            found.append(f"{one.corner}: there is no last loss of {missing}.")
            continue
        wide = "" if one.wide is None else f" ({thousandths(one.wide)} with as many parameters)"
        found.append(
            f"{one.corner}: {thousandths(one.deep)} nat a token with {one.layers[0]} layers, "
            f"{thousandths(one.shallow)} with {one.layers[1]}{wide}: better by {thousandths(one.gained)}, "
            f"and {decimal(USED)} are asked for."
        )
    return found


def claim_part(claim: Claim, findings: LabFindings) -> dict[str, Any]:
    """A claim: its words, what was found, and what it holds for."""
    judged = judge(claim, findings)
    missing = [
        note
        for key in claim.families
        if not findings.families[key].effects
        for note in findings.families[key].notes
    ]
    said = score_sentences(findings) if claim.families == ("6",) else sentences(judged)
    blocks = SCALES.get(claim.families[0], ("1", "2"))
    return {
        "said": claim.said,
        "words": words_of(judged),
        "sentences": said or [f"Nothing to test it by: {'; '.join(missing)}."],
        "scale": f"Models of {scale(findings, *blocks)}.",
    }


def score_sentences(findings: LabFindings) -> list[str]:
    """What family 6 found."""
    return [] if findings.validity is None else choice_sentences(findings.validity)


def choice_sentences(found: ScoreValidity) -> list[str]:
    """The score that one half of the trainings chose, and what the other half says of it."""
    chosen, without = found.choice, found.without_recurrent
    if chosen is None:
        return [f"Cannot be told: {found.untold}."]
    name = score_name(chosen.score)
    said = [
        f"{name[0].upper()}{name[1:]} had the largest correlation with layers skipped on "
        f"code in one half of the trainings ({decimal(chosen.found)}, {found.halves[0]} of them); in the "
        f"other it has {decimal(chosen.confirmed)} (p {probability(chosen.p)}, {found.halves[1]} trainings). "
        f"A correlation is detectable from {decimal(chosen.detectable)} on."
    ]
    if without is not None:
        recurrent = sum(found.halves) - sum(without.halves)
        alone = found.passed and not found.holds
        what = "rests on them, and is no finding" if without.choice else "may rest on them"
        rests = f" So what was found {what}." if alone else ""
        said.append(
            f"In the {counted(recurrent, 'recurrent training')} among these all layers run whatever exits "
            f"say. Without: {' '.join(choice_sentences(without))}{rests}"
        )
    return said


def _figures(findings: LabFindings) -> list[tuple[str, str, list[Markup]]]:
    """Headings, notes and charts; those without a chart are left out."""
    sections = (
        ("What each thing does", "Each row is one comparison, each chart one endpoint.", forests(findings)),
        ("Over training", "", training_figures(findings)),
        (
            "Readout or representation",
            "The head's own reading of the middle layers beside what a lens finds there. What moves the "
            "first and not the second changes the reading, not what is held.",
            reading_figures(findings),
        ),
        ("Required against used depth", "", [depth_figure(findings)]),
        ("Does a score tell savings?", "", score_figures(findings)),
    )
    return [(name, note, [one for one in made if one]) for name, note, made in sections if any(made)]


def pair_lines(findings: LabFindings) -> list[str]:
    """Pairs of factors that stand out: indications, no claims."""
    effects = findings.families["2"].effects
    found = [
        f"{one.name} on {in_sentence(endpoint_name(one.endpoint))}: {effect_text(one)}, "
        f"p {probability(one.adjusted)}"
        for one in effects
        if one.word == "indication"
    ]
    return found or (["No pair of factors stands out."] if effects else [])


def families_table(findings: LabFindings) -> Markup:
    """How many tests share an error rate, and how many of them were made."""
    rows = []
    for key, family in findings.families.items():
        made = len(family.effects) if key != "6" else int(findings.validity is not None)
        found = [one.detectable for one in family.effects if one.detectable is not None]
        if key == "6" and findings.validity is not None and findings.validity.choice is not None:
            found = [findings.validity.choice.detectable]
        range_ = f"{thousandths(min(found))} to {thousandths(max(found))}" if found else "–"
        rows.append([family.name, str(family.tests), str(made), range_])
    header = ["Family", "Tests planned", "Made", "Detectable effects"]
    return table(header, rows, caption="Tests that share an error rate of 0.05")


def family_notes(findings: LabFindings) -> list[str]:
    """What is missing in each family, and what must be known to read it."""
    return [
        f"{family.name.capitalize()}: {'; '.join(family.notes)}."
        for family in findings.families.values()
        if family.notes
    ]


def runs_table(findings: LabFindings) -> Markup:
    """How many runs of each block were planned, are there, and count."""
    rows = []
    for block in BLOCKS:
        there = [run for run in findings.runs if run.block == block]
        out = sum(run.name in findings.left_out for run in there)
        rows.append([block, str(PLANNED[block]), str(len(there)), str(out)])
    return table(["Block", "Planned", "There", "Left out"], rows, caption="Runs of the study")


def text_part(text: TextRecord | None) -> Markup:
    """What the models were trained on; that it was not named is said."""
    if text is None:
        return bullets(["The text was not named: give its folder with --text."], "note")
    rows = [
        [one.name, one.version, one.licence, one.sha256[:12], f"{sum(one.characters.values()):,}"]
        for one in text.sources
    ]
    lines = [f"Not to be had: {one.name} ({one.fix})." for one in text.absent]
    lines += [f"{one.name}: {one.limits}." for one in text.sources if one.limits]
    header = ["Source", "Version", "Licence", "SHA-256", "Characters"]
    caption = f"Text {text.fingerprint[:12]}, a vocabulary of {text.vocabulary:,}"
    return table(header, rows, caption=caption, numeric_from=4) + bullets(lines, "note")
