"""The page of a study and its tables: the gate, a paragraph for each claim, the charts, what was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from offramp_lab import charts
from offramp_lab.claims import Claim, claims_of, claims_table, judge, words_of
from offramp_lab.design import REPLICATION
from offramp_lab.effects import CORNERS_NAME, LEVEL, UNTOLD
from offramp_lab.equal_tokens import equal_tokens
from offramp_lab.families import CACHED, DEEPER, ROTARY, SPED, USED, WIDER, Findings
from offramp_lab.runs import (
    CALIBRATION,
    CONTINUED,
    DENSE,
    DEPTH,
    EXIT_LOSS,
    FROZEN,
    MAMBA,
    MIXTURE,
    ORACLE,
    PLAIN,
    PLANNED,
    REPLICATED,
    REPRESENTATION,
    REPRESENTATION_LENS,
    SKIPPED,
    SKIPPED_CODE,
    SKIPPED_LENS,
    SKIPPED_THIRD,
    TUNED,
)
from offramp_lab.scores import ScoreValidity
from offramp_lab.text import LabText

PAGE, TABLES = "report.html", "tables"

ENDPOINT_NAMES = {
    SKIPPED: "layers skipped",
    SKIPPED_LENS: "layers skipped, KL lens",
    **dict(
        zip(
            SKIPPED_THIRD,
            (f"layers skipped at {share} % agreement, exits from a third on" for share in (80, 90)),
            strict=True,
        )
    ),
    REPRESENTATION: "representation",
    REPRESENTATION_LENS: "representation, KL lens",
    CALIBRATION: "calibration error",
    SKIPPED_CODE: "layers skipped on code",
    SPED: "representation per doubling of tokens",
    DEPTH: "layers per step",
}
EFFECT_NAMES = {
    CORNERS_NAME: "Llama-like for GPT-2-like",
    "norm": "RMSNorm for LayerNorm",
    "mlp": "SwiGLU for GELU",
    "positions": "rotary for learned positions",
    "heads": "grouped for all key-value heads",
    "residual": "residuals scaled by depth",
    f"{DENSE} - {MIXTURE}": "dense for a mixture of experts",
    f"{MIXTURE} - {MAMBA}": "a mixture for a state space",
    f"{DENSE} - {MAMBA}": "dense for a state space",
    f"{EXIT_LOSS} - {CONTINUED}": "early-exit loss for training on",
    f"{FROZEN} - {CONTINUED}": "trained exits for training on",
    f"{TUNED} - {PLAIN}": "instructions for plain text",
    WIDER: "twice the width",
    DEEPER: "twice the depth",
    ROTARY: "rotary for learned positions",
}
SCORE_NAMES = {
    "eas_logit": "EAS, logit",
    "eas_centred_logit": "EAS, centred logit",
    "eas_hidden": "EAS, hidden state",
    "mean_kl": "mean KL (turned)",
    "block_influence": "block influence (turned)",
    ORACLE: "saturation oracle",
}
SAID = {
    "holds here": ("holds here", "hold here"),
    "opposite here": ("says the opposite", "say the opposite"),
    "does not": ("finds nothing that matters", "find nothing that matters"),
    "representation": ("lies in the representation", "lie in the representation"),
    "readout": ("lies in the readout", "lie in the readout"),
    UNTOLD: (UNTOLD, UNTOLD),
}
SCALES = {"sizes": ("1", "2", "6"), "6": ("1", "2", "3", "6"), REPLICATION: (REPLICATION,)}
"""Blocks that a claim is of, by the family that tests it, where these are not 1 and 2."""


def write_report(
    findings: Findings,
    folder: Path,
    *,
    text: LabText | None = None,
    command: str = "",
    notes: Sequence[str] = (),
) -> None:
    """Write the page and its tables. text: what the models were trained on. command: that made all this.
    notes: what was decided on the way."""
    (folder / TABLES).mkdir(parents=True, exist_ok=True)
    for name, table in tables_of(findings).items():
        table.to_csv(folder / TABLES / f"{name}.csv", index=False, lineterminator="\n")
    page = render(
        title="What makes a small model exit early?",
        headline=headline(findings),
        gate=gate_lines(findings.gate) if findings.passed or not findings.families else [],
        claims=[claim_part(claim, findings) for claim in claims_of(findings)],
        figures=charts.figures_of(findings, effect_name, endpoint_name, score_name)
        if findings.passed
        else [],
        pairs=pair_lines(findings),
        families=table_html(families_table(findings)),
        notes=[*notes, *family_notes(findings)],
        runs=table_html(runs_table(findings)),
        left_out=[f"{run}: {why}" for run, why in findings.study.left_out.items()],
        text=text_part(text),
        command=command,
    )
    (folder / PAGE).write_text(page, encoding="utf-8")


def render(**parts: Any) -> str:
    """The page of the one template; a name that it does not get is an error, and values are escaped."""
    loader = jinja2.PackageLoader("offramp_lab", ".")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(**parts)


def tables_of(findings: Findings) -> dict[str, pd.DataFrame]:
    """Tables by name, every figure unrounded; where nothing is concluded, only the runs left out."""
    left_out = pd.DataFrame(findings.study.left_out.items(), columns=["run", "why"])
    found = {"left_out": left_out}
    if not findings.families:
        return found
    found |= {"effects": findings.effects, "claims": claims_table(findings)}
    if len(exploratory := equal_tokens(findings.study)) and findings.passed:
        found["equal_tokens"] = exploratory
    if findings.validity is not None:
        found["scores"] = findings.validity.table
        if findings.validity.without_recurrent is not None:
            found["scores_without_recurrent"] = findings.validity.without_recurrent.table
    rows = [
        (key, run, endpoint, block.loss, value)
        for key in ("1", "3")
        if key in findings.families and (block := findings.families[key].block) is not None
        for run, values in zip(block.runs["run"], block.matched.tolist(), strict=True)
        for endpoint, value in zip(block.endpoints, values, strict=True)
    ]
    return found | {"matched": pd.DataFrame(rows, columns=["family", "run", "endpoint", "loss", "value"])}


def endpoint_name(endpoint: str) -> str:
    """An endpoint in words."""
    return ENDPOINT_NAMES.get(endpoint, endpoint)


def effect_name(name: str) -> str:
    """What is compared, in words: the level with what it takes the place of."""
    return EFFECT_NAMES.get(name, name)


def score_name(name: str) -> str:
    """A score in words."""
    return SCORE_NAMES.get(name, name)


def signed(value: float) -> str:
    """ "+0.012", "−0.012", "0.000"."""
    return ("+" if round(value, 3) > 0 else "") + number(value)


def number(value: float) -> str:
    """Three digits after the point, with a true minus sign."""
    return f"{round(value, 3) + 0.0:.3f}".replace("-", "−")


def probability(p: float) -> str:
    """A p-value."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def listed(names: Sequence[str]) -> str:
    """ "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def counted(count: int, noun: str) -> str:
    """ "1 claim", "2 claims"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def table_html(table: pd.DataFrame) -> Markup:
    """A table as the page has it; nothing for one without rows."""
    if table.empty:
        return Markup()
    return Markup(table.to_html(index=False, border=0, na_rep="–", float_format=number, escape=True))


def headline(findings: Findings) -> str:
    """The answer in one sentence."""
    if findings.passed is False:
        return "Nothing is concluded: these models do not use their depth."
    if not findings.families:
        return "Nothing is concluded: whether these models use their depth is not known yet."
    by_claim = [judge(claim, findings) for claim in claims_of(findings)]
    tests, untested = sum(map(len, by_claim)), sum(judged.empty for judged in by_claim)
    if not tests:
        return "Nothing is concluded: no claim of the study could be tested."
    judged = pd.concat([judged for judged in by_claim if len(judged)])
    told = [f"{count} {SAID[word][count != 1]}" for word, count in words_of(judged)]
    more = f"; {counted(untested, 'claim')} could not be tested" if untested else ""
    what = "of the study's claims on" if findings.passed else "registered for a replication with"
    return f"Of {counted(tests, 'test')} {what} small models {listed(told)}{more}."


def gate_lines(gate: pd.DataFrame) -> list[str]:
    """What the gate found, a line for each corner."""
    found = []
    for corner in gate.itertuples():
        if pd.isna(corner.gained):
            runs = (("its run of block 1", corner.deep), ("its run of the gate", corner.shallow))
            missing = listed([name for name, loss in runs if pd.isna(loss)])
            found.append(f"{corner.corner}: there is no last loss of {missing}.")
            continue
        wide = "" if pd.isna(corner.wide) else f" ({number(corner.wide)} with as many parameters)"
        found.append(
            f"{corner.corner}: {number(corner.deep)} nat a token with {corner.deep_layers} layers, "
            f"{number(corner.shallow)} with {corner.shallow_layers}{wide}: better by "
            f"{number(corner.gained)}, and {USED:g} are asked for."
        )
    return found


def claim_part(claim: Claim, findings: Findings) -> dict[str, Any]:
    """A claim: its words, what was found, and what it holds for."""
    judged = judge(claim, findings)
    if claim.families == ("6",):
        said = [] if findings.validity is None else choice_sentences(findings.validity)
    else:
        said = [
            f"{word.capitalize()}: {'; '.join(map(_test_text, _records(judged, word)))}."
            for word, count in words_of(judged)
            if count
        ]
    families = (findings.families[key] for key in claim.families)
    missing = "; ".join(note for family in families if family.effects.empty for note in family.notes)
    runs = findings.study.of(*SCALES.get(claim.families[0], ("1", "2")))
    sizes = [
        listed([*map(str, sorted({*runs[name]}))]) if len(runs) else "0" for name in ("layers", "hidden")
    ]
    tokens = runs["tokens"].max() / 1e6 if len(runs) else 0.0
    return {
        "said": claim.said,
        "words": words_of(judged),
        "sentences": said or [f"Nothing to test it by: {missing}."],
        "scale": f"Models of {sizes[0]} layers, {sizes[1]} wide, {tokens:.3g} million tokens.",
    }


def _records(judged: pd.DataFrame, word: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = judged[judged["claim_word"] == word].to_dict("records")
    return found


def effect_text(effect: Mapping[str, Any]) -> str:
    """ "−0.099 (−0.138 to −0.061)"; without an error of a seed the value alone."""
    limits = "" if pd.isna(effect["low"]) else f" ({number(effect['low'])} to {number(effect['high'])})"
    return f"{signed(effect['value'])}{limits}"


def _test_text(test: Mapping[str, Any]) -> str:
    """What one test of a claim says."""
    name = "" if test["endpoint"] in (SPED, DEPTH) else f"{effect_name(test['test'])}, "
    if test["claim_word"] == UNTOLD and test["of"] != test["endpoint"]:  # a lens beside the own reading
        return f"{name}{endpoint_name(test['endpoint'])}"
    text = f"{name}{endpoint_name(test['of'])} {effect_text(test)}"
    if test["claim_word"] in ("holds here", "opposite here"):
        return f"{text}, p {probability(test['adjusted'])}"
    return f"{text}{_why_untold(test)}" if test["claim_word"] == UNTOLD else text


def _why_untold(effect: Mapping[str, Any]) -> str:
    """Why an effect has no word: also where its interval leaves 0 out, which a reader would take for one."""
    if effect["name"].endswith(MAMBA) and effect["of"] in CACHED:
        return ", a fact about caches: recurrent layers run whatever exits say"
    if not effect["could_fail"]:
        reachable = number(effect["reachable"])
        return f", but these runs could have shown no more than {reachable}: the test could not have failed"
    why = []
    if effect["adjusted"] > LEVEL:
        why.append(f"p {probability(effect['adjusted'])} among all tests of its family")
    after, p_after = effect["with_loss"], effect["p_with_loss"]
    if not pd.isna(after) and (p_after > LEVEL or after * effect["value"] <= 0):
        why.append(f"{signed(after)} (p {probability(p_after)}) with the loss as covariate")
    after, p_after = effect["at_tokens"], effect["p_at_tokens"]
    if not pd.isna(after) and (p_after > LEVEL or after * effect["value"] <= 0):
        why.append(f"{signed(after)} (p {probability(p_after)}) after the same tokens")
    if effect["low"] * effect["high"] > 0 and why:
        return f", but {listed(why)}"
    return "" if pd.isna(effect["detectable"]) else f", detectable from {number(effect['detectable'])}"


def choice_sentences(found: ScoreValidity) -> list[str]:
    """The score that one half of the trainings chose, and what the other half says of it."""
    chosen, without = found.choice, found.without_recurrent
    if chosen is None:
        return [f"Cannot be told: {found.untold}."]
    name = score_name(chosen.score)
    said = [
        f"{name[0].upper()}{name[1:]} had the largest correlation with layers skipped on "
        f"code in one half of the trainings ({chosen.found:.2f}, {found.halves[0]} of them); in the "
        f"other it has {chosen.confirmed:.2f} (p {probability(chosen.p)}, {found.halves[1]} trainings). "
        f"A correlation is detectable from {chosen.detectable:.2f} on."
    ]
    if without is not None:
        recurrent = sum(found.halves) - sum(without.halves)
        what = "rests on them, and is no finding" if without.choice else "may rest on them"
        rests = f" So what was found {what}." if found.passed and not found.holds else ""
        said.append(
            f"In the {counted(recurrent, 'recurrent training')} among these all layers run whatever exits "
            f"say. Without: {' '.join(choice_sentences(replace(without, without_recurrent=None)))}{rests}"
        )
    return said


def pair_lines(findings: Findings) -> list[str]:
    """Pairs of factors that stand out: indications, no claims."""
    effects = findings.effects
    pairs = effects[effects["family"] == "2"].to_dict("records") if findings.passed else []
    found = [
        f"{effect['name']} on {endpoint_name(effect['endpoint'])}: {effect_text(effect)}, "
        f"p {probability(effect['adjusted'])}"
        for effect in pairs
        if effect["word"] == "indication"
    ]
    return found or (["No pair of factors stands out."] if pairs else [])


def families_table(findings: Findings) -> pd.DataFrame:
    """How many tests share an error rate of 0.05, and how many of them were made."""
    rows = []
    for key, family in findings.families.items():
        detectable, made = family.effects["detectable"].dropna().astype(float), len(family.effects)
        if key == "6" and findings.validity is not None:
            choice, made = findings.validity.choice, 1
            detectable = pd.Series([choice.detectable] if choice else [], dtype=float)
        spread = f"{number(detectable.min())} to {number(detectable.max())}" if len(detectable) else "–"
        rows.append((family.name, family.tests, made, spread))
    return pd.DataFrame(rows, columns=["Family", "Tests planned", "Made", "Detectable effects"])


def family_notes(findings: Findings) -> list[str]:
    """What is missing in each family, and what must be known to read it."""
    return [
        f"{family.name.capitalize()}: {'; '.join(family.notes)}."
        for family in findings.families.values()
        if family.notes
    ]


def runs_table(findings: Findings) -> pd.DataFrame:
    """How many runs of each block were planned, are there, and count."""
    study, rows = findings.study, []
    studies = [blocks for blocks in (PLANNED, REPLICATED) if study.runs["block"].isin(blocks).any()]
    for block, planned in ((block, planned) for blocks in studies for block, planned in blocks.items()):
        there = study.runs[study.runs["block"] == block]
        rows.append((block, planned, len(there), int(there["run"].isin(study.left_out).sum())))
    return pd.DataFrame(rows, columns=["Block", "Planned", "There", "Left out"])


def text_part(text: LabText | None) -> dict[str, Any]:
    """What the models were trained on; that it was not named is said."""
    if text is None:
        return {
            "caption": "",
            "table": Markup(),
            "lines": ["The text was not named: give its folder with --text."],
        }
    sources, absent = text.record["sources"], text.record["absent"]
    rows = [
        (
            one["name"],
            one["version"],
            one["licence"],
            one["sha256"][:12],
            f"{sum(one['characters'].values()):,}",
        )
        for one in sources
    ]
    lines = [f"Not to be had: {one['name']} ({one['fix']})." for one in absent]
    lines += [f"{one['name']}: {one['limits']}." for one in sources if one["limits"]]
    header = ["Source", "Version", "Licence", "SHA-256", "Characters"]
    caption = f"Text {text.fingerprint[:12]}, a vocabulary of {text.vocabulary:,}"
    return {"caption": caption, "table": table_html(pd.DataFrame(rows, columns=header)), "lines": lines}
