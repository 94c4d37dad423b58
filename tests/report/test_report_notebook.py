"""What a notebook shows of a replay and of a generated text."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from report_examples import example_run

from offramp.decoding.generation.result import Generation
from offramp.policies.cost_breakdown import CostBreakdown, Line
from offramp.policies.replay import replay
from offramp.report.notebook import html_of
from offramp.report.replayed import charges
from page_reader import Page, require_self_contained

LAYERS = 12


def page_of(value: object) -> tuple[str, str]:
    """The page within the frame, and its text."""
    frame = html_of(value)
    assert frame.startswith("<iframe")
    (inner,) = re.findall(r'srcdoc="([^"]*)"', frame)
    source = html.unescape(inner)
    page = Page(source)
    assert page.faults == []
    require_self_contained(source, page, links=("#",))
    return source, page.text.replace("\N{NO-BREAK SPACE}", " ")


def spans(page: str) -> Iterator[tuple[str, str, str]]:
    """Style, label and text of each token of the running text."""
    for style, label, text in re.findall(r'<span class="(t e[^"]*)" title="([^"]*)">(.*?)</span>', page):
        yield style, html.unescape(label), html.unescape(text)


def decode(tokens: list[int]) -> str:
    """Words, and a character of two tokens."""
    words = {1: "the", 2: " <b>cat", 3: "\N{REPLACEMENT CHARACTER}", 4: " sat\n"}
    return "".join(words[token] for token in tokens).replace(2 * words[3], "é")


def test_a_generated_text_is_coloured_by_where_its_tokens_left() -> None:
    tokens = [1, 2, 3, 3, 4]
    made = Generation(
        text=decode(tokens),
        tokens=tokens,
        chosen=[1, 2, 3, 3, 1],
        exits=np.array([12, 3, 6, 9, 12]),
        layers=LAYERS,
        layers_executed=12 + 30,
        prompt_layers=12,
        prompt_tokens=4,
        stopped="problem",
        problem="a logit is not finite",
        decode=decode,
    )
    assert made.pieces == ("the", " <b>cat", "", "é", " sat\n")
    page, text = page_of(made)
    assert list(spans(page)) == [
        ("t e12", "the: left after layer 12 of 12", "the"),
        ("t e3", "·<b>cat: left after layer 3 of 12", " <b>cat"),
        ("t e9", "é: left after layer 9 of 12", "é"),  # with the token that completes it
        ("t e12 other", "·sat⏎: left after layer 12 of 12; the model chose another token", " sat⏎<br>"),
    ]
    for said in ("5 new tokens after 4 of the prompt, 37.5 % of the layers", "a logit is not finite"):
        assert said in text
    assert "layer 9120.0 %60.0 %" in text  # the same as a table: one token, and three up to here
    assert f".e{LAYERS}{{" in page
    assert "A dotted underline" in text
    assert "A dotted underline" not in page_of(replace(made, chosen=tokens))[1]


@pytest.mark.parametrize(
    "policy", ["threshold:signal=max_prob,value=0.5,exits=3+6", "oracle:which=saturation"]
)
def test_a_replay_shows_its_figures_where_tokens_leave_and_what_is_charged(policy: str) -> None:
    trace = example_run().workloads[0].trace
    found = replay(trace, policy, machine="h100", kv="recompute")
    page, text = page_of(found)
    for exit, count in zip(*np.unique(found.exits, return_counts=True), strict=True):
        assert f"layer {exit}{count}{100 * count / len(found.exits):.1f} %" in text
    for said in (f"full model{100 * found.agreement:.1f} %", f"{found.predicted_speedup:.3f} ×", found.kv):
        assert said in text
    assert ("This is an oracle" in text) == (not found.reachable)
    shares = [line.total / found.breakdown.plain for line in found.breakdown.lines if line.total]
    assert all(f"{100 * share:.1f} %" in text for share in shares)
    assert f".e{trace.layers}{{" in page


def test_layers_that_ran_equally_often_are_one_line_of_the_charges() -> None:
    """With a price of its own for each; the sums stay."""
    lines = [Line("layers", (layer,), 1, "", 200 if layer < 3 else 50, 0.1 * layer) for layer in (1, 2, 3, 4)]
    probes = [Line("probe", (exit,), 1, "full head", 200, 1.0) for exit in (2, 4)]
    shown = charges(CostBreakdown("seconds", 200, (*lines, *probes), tuple(lines)))
    assert [(line.where, line.count) for line in shown] == [
        ("layers 1-2", 400),
        ("layers 3-4", 100),
        ("exits 2, 4", 400),
    ]
    assert sum(line.total for line in shown) == pytest.approx(sum(line.total for line in (*lines, *probes)))


def test_what_has_no_page_is_refused() -> None:
    with pytest.raises(TypeError, match="no page shows a str"):
        html_of("text")
