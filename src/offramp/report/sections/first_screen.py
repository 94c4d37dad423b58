"""What a hurried reader needs: question, answer, picture, what to do next; then each floor and its texts."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from markupsafe import Markup

from offramp.kit.defaults import MAIN_FLOOR, WORTH
from offramp.policies.short_names import short_name
from offramp.report.caveats import caveats
from offramp.report.findings import main_verdict, run_decision
from offramp.report.formats import listed, percent, short_source, visible_text, whole_percent
from offramp.report.headline import grounds_of, short_answer
from offramp.report.html import Column, cards, fragment, pill, stack
from offramp.report.next_step import next_step
from offramp.report.run_result import Decoded, RunResult
from offramp.report.sections.picture import picture
from offramp.report.verdict_rows import VerdictRow, verdict_rows
from offramp.report.verdict_words import reference_line
from offramp.studies.work.decode import DecodedChoice
from offramp.tuning.answers import ANSWER_TOKENS
from offramp.tuning.verdict import NEVER, Verdict

COLUMNS = (
    Column("Keep"),
    Column("Answer"),
    Column("Policy"),
    Column("Kept", "executed"),
    Column("Over plain decoding"),
    Column("Over the best without exits"),
)


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


def floors_section(run: RunResult) -> Markup:
    """The verdict of each text at each floor."""
    verdicts = [one for workload in run.workloads for one in workload.verdicts]
    groups: dict[str, list[list[str]]] = {workload.name: [] for workload in run.workloads}
    for row, verdict in zip(verdict_rows(run), verdicts, strict=True):
        groups[row.text].append(_cells(row, verdict))
    nothing = "no policy could be judged on this text"
    caption = "The answer by text and quality floor, one sequence at a time"
    table = cards(COLUMNS, groups, caption=caption, style="floors", nothing=nothing)
    return fragment("run", "floors", table if verdicts else "")


def _cells(row: VerdictRow, verdict: Verdict) -> list[str]:
    shown = row.name if row.policy == NEVER else fragment("run", "policy", row.name, row.policy)
    return [
        row.floor,
        pill(row.decision) + fragment("run", "why", verdict.reason, verdict.missing),
        shown,
        stack(row.kept, reference_line(verdict.reference_agreement)),
        row.speed,
        row.credit,
    ]


def texts_section(run: RunResult) -> Markup:
    """What a floor leaves of an answer, and what the full model and each policy answered to one prompt."""
    texts = [shown for decoded in run.decoding if (shown := _text(decoded)) is not None]
    floors = sorted({one.floor for workload in run.workloads for one in workload.verdicts}, reverse=True)
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
    return fragment("run", "caveats", caveats(run), True)
