"""How good the texts are, in words: on the page, on a terminal, in the summary."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import jsonschema
import pytest
from decoding_examples import decoded_run
from report_examples import example_run
from rich.console import Console

from offramp.policies.rules.fixed import StaticExit
from offramp.report.answer_words import quality_short, quality_words
from offramp.report.page import print_summary, render
from offramp.report.run_result import RunResult
from offramp.report.summary import summarise, summary_schema
from offramp.scoring.estimate import Estimate
from offramp.scoring.text_quality import NOT_COUNTED, TextQuality
from page_reader import Page

WORDS = TextQuality(
    measure="word error rate",
    normaliser="in lower case without punctuation",
    full=Estimate(0.173, 0.12, 0.23),
    policy=Estimate(0.238, 0.18, 0.31),
    difference=Estimate(0.065, 0.021, 0.109),
    documents=60,
    new_tokens=48,
    full_cut=0,
    policy_cut=2,
)
MATCHES = replace(
    WORDS,
    measure="exact match",
    normaliser=None,
    full=Estimate(0.5),
    policy=Estimate(0.375),
    difference=Estimate(-0.125),
    documents=8,
    policy_cut=0,
)
UNKNOWN = replace(
    WORDS, **dict.fromkeys(("full", "policy", "difference"), Estimate(None, undefined=NOT_COUNTED))
)


@pytest.mark.parametrize(
    ("quality", "short", "said"),
    [
        (
            WORDS,
            "words wrong: 17.3 → 23.8 %",
            "words wrong: 17.3 % full model, 23.8 % with exits: +6.5 points (2.1 to 10.9) on 60 documents, "
            "in lower case without punctuation; 0 and 2 of the answers ran into the limit of 48 tokens",
        ),
        (
            MATCHES,
            "answers exactly right: 50.0 → 37.5 %",
            "answers exactly right: 50.0 % full model, 37.5 % with exits: −12.5 points on 8 documents (no "
            "interval: 20 are needed); none of the answers ran into the limit of 48 tokens",
        ),
        (
            UNKNOWN,
            "words wrong: not counted",
            "words wrong: not counted, it takes the package jiwer: pip install 'offramp[speech]', then the "
            "same command again",
        ),
    ],
)
def test_it_is_said_in_plain_words(quality: TextQuality, short: str, said: str) -> None:
    assert (quality_short(quality), quality_words(quality)) == (short, said)


@pytest.fixture(scope="module")
def run() -> RunResult:
    """One whose first text's certified policy has it, at two floors."""
    found = decoded_run(example_run())
    first, *others = found.workloads
    policies = {floor: StaticExit(20) for floor in (0.95, 0.9)}
    verdicts = tuple(
        replace(verdict, text_quality=WORDS, policy=policies[verdict.floor])
        if verdict.floor in policies
        else verdict
        for verdict in first.verdicts
    )
    return replace(found, workloads=(replace(first, verdicts=verdicts), *others))


def test_page_and_terminal_say_it_beside_the_agreement_once_for_the_same_answers(run: RunResult) -> None:
    page = Page(render(run)).text.replace("\N{NO-BREAK SPACE}", " ")
    out = io.StringIO()
    print_summary(run, Console(file=out, width=2000))
    for text in (page, out.getvalue()):
        assert f"At 95 % and 90 %: {quality_words(WORDS)}." in text
        assert text.count(quality_short(WORDS)) == 2
    assert "How good the texts are" not in Page(render(example_run())).text


def test_the_summary_has_it_where_it_is_known(run: RunResult) -> None:
    summary = json.loads(json.dumps(summarise(run)))
    jsonschema.validate(summary, summary_schema())
    by_floor = {
        (row["workload"], row["floor"]): row.get("text_quality") for row in summary["verdict"]["by_workload"]
    }
    first = run.workloads[0].name
    assert by_floor[first, 0.95]["difference"]["value"] == 0.065
    assert by_floor[first, 0.99] is None
