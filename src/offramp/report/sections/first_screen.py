"""What a hurried reader needs: question, answer, picture, what to do next; then each floor and its texts."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import numpy as np
from markupsafe import Markup

from offramp.defaults import MAIN_FLOOR, WORTH
from offramp.policies.figures import PLAIN_DECODING
from offramp.policies.policy import ExitPolicy
from offramp.policies.short_names import SHORT_HEAD, short_name
from offramp.report.answer_words import caveats, grounds_of, how_words, reference_line, short_answer
from offramp.report.curves import rounded
from offramp.report.drawing import nice_range
from offramp.report.findings import main_verdict, run_decision
from offramp.report.formats import (
    counted,
    interval_text,
    limits_of,
    listed,
    percent,
    short_source,
    times,
    too_wide,
    visible_text,
    whole_percent,
)
from offramp.report.html import fragment
from offramp.report.names import distinct
from offramp.report.plots import PANEL, Axis, Plot, PlotSeries, ReferenceLine
from offramp.report.run_findings import next_step
from offramp.report.run_result import Decoded, RunResult
from offramp.report.table import NOTHING, Cell, Column, Table
from offramp.report.timing import Way, best_without_exits, kept_text, ways_by_text, with_interval
from offramp.scoring.estimate import Estimate
from offramp.studies.work.decode import DecodedChoice
from offramp.tuning.verdict import Verdict, from_main
from offramp.tuning.verdict_words import ANSWER_TOKENS


def verdict_section(run: RunResult) -> Markup:
    """The first screen."""
    return fragment(
        "run",
        "verdict",
        decision=run_decision(run),
        asked=question(run),
        answer=short_answer(run),
        grounds=grounds_line(run),
        picture=picture(run),
        next=next_step(run),
    )


def question(run: RunResult) -> str:
    """What was asked, in one sentence."""
    verdicts = [one for workload in run.workloads if (one := main_verdict(workload)) is not None]
    worth = verdicts[0].worth if verdicts else WORTH
    floor = verdicts[0].floor if verdicts else MAIN_FLOOR
    texts = listed([short_source(workload.name) for workload in run.workloads]) or "no text yet"
    return (
        f"Do early exits make {run.model_name} more than {whole_percent(worth)} faster while "
        f"{whole_percent(floor)} of its tokens stay the full model's choice? On {texts}, one sequence at a "
        "time."
    )


def grounds_line(run: RunResult) -> str:
    """What the answer rests on, below it."""
    grounds = grounds_of(run)
    if run_decision(run) == "depends on the text":  # it begins with a text's name
        return grounds
    return grounds[:1].upper() + grounds[1:]


OfText = tuple[str, Verdict]
"""A verdict with the name of its text."""


def verdicts_of(run: RunResult) -> list[OfText]:
    """Every verdict of a run, text by text, in the order of its floors."""
    return [(workload.name, verdict) for workload in run.workloads for verdict in workload.verdicts]


def policy_of(verdict: Verdict) -> tuple[ExitPolicy, str | None]:
    """The policy that a verdict's figures are of, and its K,V strategy: certified, or tried so far."""
    if verdict.policy == PLAIN_DECODING and verdict.tried is not None:
        return verdict.tried.policy, verdict.tried.kv
    return verdict.policy, verdict.kv


def _answer_cell(row: OfText) -> Cell:
    _, verdict = row
    missing = (f"Missing: {'; '.join(verdict.missing)}.",) if verdict.missing else ()
    return Cell(verdict.decision, tone=verdict.decision, why=(verdict.reason, *missing))


def _policy_cell(row: OfText) -> Cell:
    policy, _ = policy_of(row[1])
    if policy == PLAIN_DECODING:
        return Cell(short_name(policy))
    tried = "tried: " if row[1].policy == PLAIN_DECODING else ""
    return Cell(f"{tried}{short_name(policy)}", code=str(policy))


def _kept_cell(row: OfText) -> Cell:
    """What the row's policy kept of its own tokens, of how many documents, and whether that is certified."""
    _, verdict = row
    kept = Cell(NOTHING) if policy_of(verdict)[0] == PLAIN_DECODING else _kept(verdict)
    return replace(kept, below=(*kept.lines, reference_line(verdict.reference_agreement)))


def _kept(verdict: Verdict) -> Cell:
    certificate, tried, kept = verdict.certificate, verdict.tried, verdict.kept
    if certificate is None or not certificate.executed:
        replayed = verdict.agreement.value
        return Cell(NOTHING) if replayed is None else Cell(percent(replayed), below="replayed")
    if verdict.policy == PLAIN_DECODING and tried is not None:
        if tried.executed is None:
            return Cell("not executed")
        return Cell(percent(tried.executed), below=(counted(tried.documents, "document"), "not certified"))
    if kept is None or kept.value is None:
        return Cell("not known")
    documents = counted(certificate.stopped_after or 0, "document")
    certified = "certified" if verdict.certified else "not certified"
    return Cell(
        percent(kept.value), below=(interval_text(kept.low, kept.high, percent), documents, certified)
    )


def _speed_cell(row: OfText) -> Cell:
    speed = row[1].speed
    if speed is None or policy_of(row[1])[0] == PLAIN_DECODING:
        return Cell(NOTHING)
    return with_interval(speed, times, how_words(speed))


def _credit_cell(row: OfText) -> Cell:
    plain = policy_of(row[1])[0] == PLAIN_DECODING
    return with_interval(None if plain else row[1].credit, times)


VERDICTS: Table[OfText] = Table(
    (
        Column("Keep", lambda row: whole_percent(row[1].floor)),
        Column("Answer", _answer_cell),
        Column("Policy", _policy_cell),
        Column("Kept", _kept_cell, kind="executed"),
        Column("Over plain decoding", _speed_cell),
        Column("Over the best without exits", _credit_cell),
    ),
    caption="The answer by text and quality floor, one sequence at a time",
    groups=Column("Text", lambda row: row[0], short_source),
    nothing="no policy could be judged on this text",
    style="floors",
)
"""The verdict of each text at each floor, on the page and on a terminal."""


def floors_section(run: RunResult) -> Markup:
    """The verdict of each text at each floor."""
    verdicts = verdicts_of(run)
    table = VERDICTS.html(verdicts, groups=[workload.name for workload in run.workloads])
    return fragment("run", "floors", table if verdicts else "")


def texts_section(run: RunResult) -> Markup:
    """What a floor leaves of an answer, and what the full model and each policy answered to one prompt."""
    texts = [shown for decoded in run.decoding if (shown := _text(decoded)) is not None]
    floors = sorted(
        {verdict.floor for workload in run.workloads for verdict in workload.verdicts}, reverse=True
    )
    unchanged = [
        f"{percent(floor**ANSWER_TOKENS, 0 if floor > 0.96 else 1)} at {whole_percent(floor)}"
        for floor in floors
    ]
    return fragment("run", "texts", texts, listed(unchanged), ANSWER_TOKENS) if texts or floors else Markup()


def _text(decoded: Decoded) -> dict[str, Any] | None:
    plain = decoded.plain_answer
    answered = [(one, one.answer) for one in decoded.policies if one.answer is not None]
    if decoded.prompt is None or plain is None or not answered:
        return None
    answers = [("The full model", visible_text(plain), "")]
    for policy, answer in answered:
        alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(plain, answer, strict=False)))
        answers.append((_title(policy), visible_text(answer[:alike]), visible_text(answer[alike:])))
    return {"name": decoded.workload, "prompt": visible_text(decoded.prompt), "answers": answers}


def _title(policy: DecodedChoice) -> str:
    """ "At 95 %: exit 20+25 if margin ≥ 0.9, which kept 97.9 % of the timed prompts"."""
    judged = policy.free_running
    kept = "" if judged is None else f", which kept {percent(judged.agreement.value)} of the timed prompts"
    return f"At {whole_percent(policy.floor)}: {short_name(policy.policy)}{kept}"


def caveats_section(run: RunResult) -> Markup:
    """What to bear in mind before quoting the headline, and what the kinds of figures mean."""
    return fragment("run", "caveats", caveats(run))


LOWEST = 0.7
"""What keeps less is named below its panel, and not drawn: nobody decodes with it."""

LABELS = {SHORT_HEAD: "short list", "never exit": "never exit", "prompt lookup": "lookup"}
"""Ways whose names stand beside their points; those of policies are letters."""

RING = 4
"""The marker of what was not timed, or on too few prompts."""


def picture(run: RunResult) -> Markup:
    """A panel a text, and what the letters mean; nothing where no way was decoded."""
    by_text = ways_by_text(run)
    exiting = [one.name for ways in by_text.values() for one in ways if one.exits and one.kept is not None]
    letters = {name: _letter(place) for place, name in enumerate(dict.fromkeys(exiting))}
    panels = [drawn for name, ways in by_text.items() if (drawn := _panel(run, name, ways, letters))]
    if not panels:
        return Markup()
    data = WAYS.html([(name, way) for name, ways in by_text.items() for way in ways])
    return fragment("run", "picture", panels, [(letter, name) for name, letter in letters.items()], data)


def _letter(place: int) -> str:
    letters = string.ascii_uppercase
    return letters[place] if place < len(letters) else f"{letters[place % 26]}{place // 26}"


def speed_text(way: Way) -> str:
    """A speed with its interval, and how it is known."""
    speed = way.speed
    if speed is None:
        return "not known"
    if way.timed is None:
        return f"{times(speed.value)} predicted"
    limits = limits_of(speed, times)
    return f"{times(speed.value)} measured{f' ({limits})' if limits else ''}"


WAYS: Table[tuple[str, Way]] = Table(
    (
        Column("Text", lambda row: row[0]),
        Column("Way to decode", lambda row: row[1].name),
        Column("Agreement kept", lambda row: kept_text(row[1])),
        Column("Speed over plain decoding", lambda row: speed_text(row[1])),
    ),
    caption="Agreement kept and speed of every way to decode",
)


def _panel(run: RunResult, name: str, ways: Sequence[Way], letters: dict[str, str]) -> dict[str, Any] | None:
    """One text; None without a point."""
    known = [(way, way.kept, way.speed) for way in ways if way.kept is not None and way.speed is not None]
    drawn = [(one, kept, speed) for one, kept, speed in known if kept.value >= LOWEST]
    if not drawn:
        return None
    verdicts = next((workload.verdicts for workload in run.workloads if workload.name == name), ())
    floors = sorted({verdict.floor for verdict in verdicts})
    rules = [ReferenceLine("x", floor, whole_percent(floor)) for floor in floors]
    main = min(verdicts, key=lambda verdict: from_main(verdict.floor), default=None)
    best = best_without_exits(ways, *((MAIN_FLOOR,) if main is None else (main.floor, main.without)))
    levels: list[float] = []
    if best is not None and best.speed is not None:
        worth = verdicts[0].worth if verdicts else WORTH
        levels = [best.speed.value, best.speed.value * (1 + worth)]
        rules.append(ReferenceLine("y", levels[0], "best without exits", "below"))
        rules.append(ReferenceLine("y", levels[1], f"{whole_percent(worth)} above it"))
    lost = 1.0 - min([*floors, *[kept.value for _, kept, _ in drawn], 0.98])
    heights = [end for _, _, speed in drawn for end in _ends(speed)]
    groups = (
        ("without exits", 5, 1, [point for point in drawn if not point[0].exits]),
        ("exits, timed", 0, 0, [point for point in drawn if point[0].exits and not point[0].unsure]),
        ("exits, unsure", 0, RING, [point for point in drawn if point[0].exits and point[0].unsure]),
    )
    plot = Plot(
        title=f"Agreement kept and speed on {name}",
        description="Up is faster than plain decoding, right is closer to the full model's choices.",
        x=Axis("agreement kept", (1 - 1.12 * lost, 1 + 0.12 * lost), rounded, _shares(lost)),
        y=Axis("speed, plain decoding = 1", nice_range([*heights, *levels], include=(1.0,)), "{:.2f}".format),
        series=tuple(_series(*group, letters) for group in groups if group[3]),
        rules=tuple(rules),
        size=PANEL,
    )
    below = distinct([letters.get(one.name, one.name) for one, kept, _ in known if kept.value < LOWEST])
    return {
        "name": short_source(name),
        "plot": plot.svg(),
        "below": f"Below {percent(LOWEST, 0)} agreement, not drawn: {', '.join(below)}." if below else "",
    }


def _shares(lost: float) -> tuple[float, ...]:
    """Ticks at whole shares: the full model's, and how much is lost at most."""
    step = 0.01 if lost <= 0.03 else 0.02 if lost <= 0.06 else 0.05 if lost <= 0.2 else 0.1
    return tuple(1.0 - step * place for place in range(int(lost / step + 1e-9) + 1))


def _ends(speed: Estimate[float]) -> list[float]:
    """What the axis has to hold of a speed: an interval that says nothing needs no room."""
    if speed.low is None or speed.high is None or too_wide(speed):
        return [speed.value]
    return [speed.low, speed.high]


def _series(
    name: str,
    colour: int,
    shape: int,
    points: list[tuple[Way, Estimate[float], Estimate[float]]],
    letters: dict[str, str],
) -> PlotSeries:
    """The points of one kind, with their intervals as lines."""
    ends = [_ends(speed) for _, _, speed in points]
    return PlotSeries(
        name,
        np.array([kept.value for _, kept, _ in points]),
        np.array([speed.value for _, _, speed in points]),
        colour,
        shape,
        np.array([end[0] for end in ends]),
        np.array([end[-1] for end in ends]),
        style="",
        markers=len(points),
        whiskers=True,
        said=[f"{one.name}: {speed_text(one)}, keeps {kept_text(one)}" for one, _, _ in points],
        labels=[letters.get(one.name) or LABELS.get(one.name, "plain") for one, _, _ in points],
    )
