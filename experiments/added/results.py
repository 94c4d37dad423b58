"""What exits add: the figures of docs/results/added again, from what the studies beside this file measured.

`keep STUDY_FOLDER` copies what was measured, `write` makes tables, picture and the marked parts of the pages,
`check` fails where one of them differs from what the kept measurements say.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import under_load
from measured import (
    FITTED_ON,
    KEPT,
    LOOKUP_CHANCE,
    LOOKUP_FLOOR,
    PLANNED,
    ROOT,
    Measured,
    as_csv,
    beside_lookup,
    certified_after,
    contender_rows,
    credit_rows,
    keep,
    kept_measurements,
    lookup_losses,
    measured_share,
    pairs_of,
    prediction_rows,
    slope_of,
    stack_rows,
    stacks,
    timed_pairs,
)
from offramp.defaults import LOCAL
from offramp.report.formats import percent, thousandths, timed_text
from offramp.scoring.estimate import Estimate
from offramp.timing.accelerations import JOINED, LLAMA_CPP, PROMPT_LOOKUP, SHORT_LIST
from offramp.timing.contenders import CUT_HEAD
from offramp.timing.results import A_A, LOOKUP, PLAIN, BenchResult, CombineResult, Contender
from offramp.tuning.verdict import Decision, Speed, decide, decision_of
from picture import Bar, Dot, forest, scatter
from right_answers import accuracy_markdown, answered

IMAGES = ROOT / "docs" / "images"
PAGE = ROOT / "docs" / "results" / "README.md"
BY_SIZE, SHOWN_FLOOR = ("smollm2", "qwen-0.5b", "qwen-1.5b"), 0.95
ROUNDING = 0.0005
"""Of shares in tables."""
LESS = ", but keeps less"
"""Behind the credit of those that do."""
SHOWN = {str(CUT_HEAD): "the cut head", LOOKUP: "transformers' prompt lookup"}
PARTS = {SHORT_LIST: "cut head", PROMPT_LOOKUP: "prompt lookup"}
"""What decoders without exits, and parts of combinations, are called in tables."""


def called(contender: str) -> str:
    """What a contender is called in tables."""
    parts = contender.split(JOINED)
    return SHOWN.get(contender) or JOINED.join(PARTS.get(part, part) for part in parts)


def interval(estimate: Estimate[float] | None) -> str:
    """ "1.021 (0.973 to 1.071)"."""
    return "not timed" if estimate is None else timed_text(estimate, thousandths)


def share(value: float | None) -> str:
    """ "97.1 %", empty for none."""
    return "" if value is None else percent(value)


def keeps_less(agreement: float | None, floor: float) -> bool:
    """Whether timed answers keep less than the floor that rivals have to."""
    return (agreement or 1.0) < floor - ROUNDING


def credits_markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """What exits add, a line for each model, text and floor."""
    lines = [
        "| model, text | floor | certificate | kept of all | over plain decoding | it kept | exits add "
        "| answer |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        certificate = f"after {row['documents']} documents" if row["certified"] else "none"
        speed, credit = (
            None if row[name] is None else Estimate(row[name], row[low], row[high])
            for name, low, high in (("speed", "speed_low", "speed_high"), ("credit", "low", "high"))
        )
        less = LESS if keeps_less(row["agreement_timed"], row["floor"]) else ""
        over = f", over {called(row['over'])}{less}" if credit else ""
        lines.append(
            f"| {row['model']}, {row['text']} | {100 * row['floor']:.0f} % | {certificate} "
            f"| {share(row['kept_of_decoded'])} of {row['decoded']} | {interval(speed)} "
            f"| {share(row['agreement_timed'])} | {interval(credit)}{over} | **{row['verdict']}** |"
        )
    return "\n".join(lines)


def calibration_markdown(measurements: Sequence[Measured]) -> str:
    """How predictions did, in a few sentences."""
    pairs = pairs_of(measurements)
    fitted, others = ([pair for pair in pairs if (pair.model == FITTED_ON) is own] for own in (True, False))
    found = measured_share(fitted)
    here = [pair for pair in timed_pairs(measurements) if pair.model == FITTED_ON]
    said = (
        f"On {FITTED_ON} {len(here)} policies were predicted before they were timed here, on traces of the "
        f"model's own text; they saved {measured_share(here).value:.2f} of what was predicted (mean). Over "
        f"all {len(fitted)} such pairs that these pages hold, most of given text, it is {found.value:.2f}, "
        f"and a further one lies between {found.low:.2f} and {found.high:.2f}: what `offramp predict` says."
    )
    if others:
        models = ", ".join(sorted({pair.model for pair in others}))
        said += (
            f" Held against {models}, which did not fit it: of {len(others)} policies the slope of measured "
            f"on predicted savings is {slope_of(others):.2f}, and {slope_of(others, found.value):.2f} once "
            "predictions are shrunk so."
        )
    misses = [row["measured_agreement"] - row["predicted_agreement"] for row in prediction_rows(measurements)]
    said += (
        f" The agreement foretold was missed by up to {100 * max(misses):.1f} points upwards and "
        f"{-100 * min(misses):.1f} downwards."
    )
    return said


def stack_markdown(name: str, result: CombineResult) -> str:
    """Combinations from the fastest on."""
    beside = {"in PyTorch": "exits add, within PyTorch"}
    if result.combination(LLAMA_CPP) is not None:
        beside["all"] = f"exits add, beside {LLAMA_CPP}"
    lines = [
        f"| decoder | over plain decoding | kept | {' | '.join(beside.values())} |",
        "|---|---|---|" + "---|" * len(beside),
    ]
    rows = [row for row in stack_rows([(name, result)]) if row["speed"] is not None]
    for row in sorted(rows, key=lambda row: -row["speed"]):
        less = LESS if keeps_less(row["agreement"], row["floor"]) else ""
        added = [
            f"{interval(Estimate(*values))}, over {called(over)}{less}" if values[0] is not None else ""
            for among in beside
            for over in [row[f"over, {among}"]]
            for values in [[row[f"{name}, {among}"] for name in ("credit", "credit_low", "credit_high")]]
        ]
        speed = Estimate(row["speed"], row["low"], row["high"])
        shown = called(row["combination"])
        shown = shown if row["without_exits"] else f"**{shown}**"
        lines.append(f"| {shown} | {interval(speed)} | {share(row['agreement'])} | {' | '.join(added)} |")
    return "\n".join(lines)


def beside_markdown(result: BenchResult, floor: float) -> str:
    """A policy with drafts from the text beside what needs no exits, from the fastest on."""
    lines = ["| decoder | over plain decoding | kept | exits add |", "|---|---|---|---|"]
    timed = [
        contender
        for contender in result.contenders
        if contender.ratio is not None
        if contender.name == result.plain or contender.role not in (PLAIN, A_A)
    ]
    for contender in sorted(timed, key=lambda contender: -fastest(contender)):
        credit = None if contender.without_exits else result.credit(contender.name, floor)
        kept = contender.executed_agreement
        cells = (
            "**cut head + exits + prompt lookup**" if contender is result.main else called(contender.name),
            interval(contender.ratio),
            share(None if kept is None else kept.value),
            "" if credit is None else f"{interval(credit.estimate)}, over {called(credit.over)}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def together_markdown(losses: Sequence[float], after: int | None, answer: Decision) -> str:
    """What a policy with drafts from the text keeps, after how many documents certified, and the answer."""
    own = f"certified after {after}, but for a chance of {percent(LOOKUP_CHANCE)} of its own"
    return (
        f"Decoded with both, {share(1.0 - fmean(losses))} of the tokens of {len(losses)} documents are kept "
        f"({'not certified' if after is None else own}); at {percent(LOOKUP_FLOOR)} exits beside prompt "
        f"lookup: **{answer}**."
    )


def fastest(contender: Contender) -> float:
    """Its speed over plain decoding, of one that was timed."""
    assert contender.ratio is not None
    return contender.ratio.value


def between(values: Iterable[float]) -> str:
    """ "1.08 to 1.17", or the one that all are."""
    found = sorted(values)
    shown = [f"{value:.2f}" for value in (found[0], found[-1])]
    return shown[0] if shown[0] == shown[1] else " to ".join(shown)


def in_words(rows: Iterable[Mapping[str, Any]], contender: str) -> str:
    """What a decoder without exits is beside plain decoding, model by model: speeds, and what is kept."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["contender"] == contender and row["speed"] is not None:
            found.setdefault(row["model"], []).append(row)
    said = []
    for model, of_model in found.items():
        kept = ", ".join(f"{share(row['agreement'])} on {row['text']}" for row in of_model)
        lossless = all(row["agreement"] == 1.0 for row in of_model)
        speeds = between(row["speed"] for row in of_model)
        said.append(
            f"{speeds} times as fast on {model}" + ("" if lossless else f" (its timed answers keep {kept})")
        )
    return ", and ".join(said)


def head_share(measurements: Iterable[Measured]) -> str:
    """What the cut head saves, as a share of what the faster policy saves, by model and text."""
    shares: dict[str, list[str]] = {}
    for measured in measurements:
        bench = measured.decoded.bench
        ways = {
            contender.name: contender.ratio for contender in bench.contenders if contender.ratio is not None
        }
        cut, chosen = ways.get(str(CUT_HEAD)), [ways[choice.contender] for choice in measured.decoded.chosen]
        if cut is None or bench.defects or not chosen:
            continue
        best = max(ratio.value for ratio in chosen)
        part = (1.0 - 1.0 / cut.value) / (1.0 - 1.0 / best)
        shares.setdefault(measured.model, []).append(f"{percent(part)} on {measured.text}")
    return "; ".join(f"{model}: {', '.join(of_model)}" for model, of_model in shares.items())


def rule_markdown(credits: Iterable[Mapping[str, Any]], contenders: Iterable[Mapping[str, Any]]) -> str:
    """What grows with a model's size on math: speeds, and what is kept for them."""
    policies = {row["model"]: row for row in credits if row["text"] == "math" and row["floor"] == SHOWN_FLOOR}
    cut = {
        row["model"]: row
        for row in contenders
        if row["text"] == "math" and row["contender"] == str(CUT_HEAD) and not row["transform"]
    }

    def listed(rows: Mapping[str, Mapping[str, Any]], name: str, shown: Callable[[float], str]) -> str:
        *most, last = [shown(rows[model][name]) for model in BY_SIZE]
        return f"{', '.join(most)} and {last}"

    return (
        f"On math, from the smallest model to the largest, the policy that was tried for "
        f"{percent(SHOWN_FLOOR)} is {listed(policies, 'speed', '{:.2f}'.format)} times as fast as plain "
        f"decoding, and its timed answers keep {listed(policies, 'agreement_timed', percent)}: what grows is "
        f"what is given up. The cut head alone is {listed(cut, 'speed', '{:.2f}'.format)} times as fast, and "
        f"keeps {listed(cut, 'agreement', percent)}."
    )


def bars_of(rows: Iterable[Mapping[str, Any]]) -> list[Bar]:
    """What exits add, where it was timed."""
    return [
        Bar(
            f"{row['model']}, {row['text']}, {100 * row['floor']:.0f} %",
            row["credit"],
            row["low"],
            row["high"],
            row["verdict"],
            keeps_less(row["agreement_timed"], row["floor"]),
        )
        for row in rows
        if row["credit"] is not None
    ]


def dots_of(result: CombineResult) -> list[Dot]:
    """Every combination as a point, and peers, whose drafts are verified by all layers."""
    peers = [
        Dot(called(peer.name), 1.0, 1.0 - 1.0 / peer.ratio.value, False)
        for peer in result.others
        if peer.role == "peer" and peer.ratio is not None
    ]
    return peers + [
        Dot(
            called(way.name),
            way.quality.free_running.agreement.value,
            1.0 - 1.0 / way.speedup.value,
            not way.contender.without_exits,
        )
        for way in result.combinations
        if way.speedup is not None and way.quality is not None
    ]


def outputs() -> dict[Path, str]:
    """All that is written, by path."""
    measurements, combined = kept_measurements(), stacks()
    credits, contenders = credit_rows(measurements), contender_rows(measurements)
    tables = {
        "credits": credits,
        "contenders": contenders,
        "predictions": prediction_rows(measurements),
        "stack": stack_rows(combined),
    }
    found = {KEPT / f"{name}.csv": as_csv(rows) for name, rows in tables.items()}
    beside, losses = beside_lookup(), lookup_losses()
    after = certified_after(losses, LOOKUP_FLOOR, LOOKUP_CHANCE, PLANNED)
    credit = beside.credit(beside.main.name, LOOKUP_FLOOR)
    assert credit is not None
    speed = Speed(credit.value, credit.low, credit.high, "measured", LOCAL, at_hand=True)
    answer = decision_of(decide(worth=beside.worth, credit=speed, certified=after is not None))
    name = f"qwen-0.5b, math, {100 * LOOKUP_FLOOR:.0f} %, and lookup"
    both = Bar(name, credit.value, credit.low, credit.high, answer)
    if bars := [*bars_of(credits), both]:
        found[IMAGES / "added.svg"] = forest("What early exit adds", bars)
    for name, result in combined:
        title = f"A tuned stack: {', '.join(name.rsplit('-', 1))}"
        found[IMAGES / f"stack-{name}.svg"] = scatter(title, dots_of(result))
    marked = {
        "credits": credits_markdown(credits),
        "calibration": calibration_markdown(measurements),
        "head": "Cut to the same 8,192 tokens, without any exit, it is "
        f"{in_words(contenders, str(CUT_HEAD))}. As a share of what the faster policy saves that is, "
        f"on {head_share(measurements)}; beyond 100 % it saves more than the exits do.",
        "lookup": f"Prompt lookup (transformers'), which loses nothing, is {in_words(contenders, LOOKUP)}.",
        "together": together_markdown(losses, after, answer),
        "rule": rule_markdown(credits, contenders),
        "beside-lookup": beside_markdown(beside, LOOKUP_FLOOR),
        "accuracy": accuracy_markdown(list(answered(KEPT / "accuracy"))),
        **{f"stack-{name}": stack_markdown(name, result) for name, result in combined},
    }
    loaded = under_load.loads()
    found |= {IMAGES / name: drawn for name, drawn in under_load.pictures(loaded).items()}
    return found | {
        PAGE: filled(PAGE, marked),
        under_load.PAGE: filled(under_load.PAGE, under_load.marked(loaded)),
    }


def filled(page: Path, marked: Mapping[str, str]) -> str:
    """A page whose parts between <!-- added:NAME --> and <!-- /added:NAME --> are these."""
    text = page.read_text()
    for name, content in marked.items():
        first, last = f"<!-- added:{name} -->", f"<!-- /added:{name} -->"
        before, there, rest = text.partition(first)
        if not there:
            raise ValueError(f"{page} has no place for {first}")
        text = f"{before}{first}\n{content}\n{last}{rest.partition(last)[2]}"
    return text


def main() -> int:
    """Keep, write or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["keep", "write", "check"])
    parser.add_argument("folders", nargs="*", type=Path, help="of studies, to keep")
    asked = parser.parse_args()
    if asked.what == "keep":
        for folder in asked.folders:
            keep(folder)
        return 0
    due = outputs()
    wrong = [path for path, text in due.items() if not path.exists() or path.read_text() != text]
    for path in wrong:
        if asked.what == "write":
            path.write_text(due[path])
        print(f"{'written' if asked.what == 'write' else 'differs'}: {path.relative_to(ROOT)}")
    return 1 if wrong and asked.what == "check" else 0


if __name__ == "__main__":
    sys.exit(main())
