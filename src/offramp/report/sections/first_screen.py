"""What a hurried reader needs: question, answer, picture, what to do next; then each floor and its texts."""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile
from typing import Any

from markupsafe import Markup

from offramp.defaults import MAIN_FLOOR, WORTH
from offramp.policies.figures import PLAIN_DECODING
from offramp.policies.policy import ExitPolicy
from offramp.policies.short_names import short_name
from offramp.report.answer_words import (
    caveats,
    grounds_of,
    how_words,
    quality_lines,
    quality_short,
    reference_line,
    short_answer,
)
from offramp.report.findings import main_verdict, run_decision
from offramp.report.formats import (
    counted,
    interval_text,
    listed,
    percent,
    short_source,
    timed_text,
    times,
    visible_text,
    whole_percent,
)
from offramp.report.html import fragment
from offramp.report.run_findings import next_step
from offramp.report.run_result import Decoded, RunResult
from offramp.report.sections.agreement_and_speed import picture
from offramp.report.table import NOTHING, Cell, Column, Table
from offramp.report.timing import with_interval
from offramp.studies.work.decode import DecodedChoice
from offramp.tuning.verdict import Verdict
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
    quality = quality_short(verdict.text_quality)
    return replace(kept, below=(*kept.lines, quality, reference_line(verdict.reference_agreement)))


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
    cell, decoding = with_interval(speed, times, how_words(speed)), row[1].decoding
    if decoding is None:
        return cell
    return replace(
        cell, below=(*cell.lines, "of a whole request", f"decoding: {timed_text(decoding, times)}")
    )


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
    return fragment("run", "floors", table if verdicts else "", quality_lines(run))


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
