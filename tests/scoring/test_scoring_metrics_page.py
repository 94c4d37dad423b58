from pathlib import Path

import pytest
from test_scoring_card import improving_trace

from offramp.scoring.card import ESTIMATES, PUBLISHED_EAS
from offramp.scoring.scoring import score
from offramp.tracing.facts import FACTS

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def card():
    return score(improving_trace(), draws=40)


def test_every_fact_curve_and_figure_is_explained(card):
    names = {fact.name for fact in FACTS} | set(card.curves.values) | set(card.candidates) | set(ESTIMATES)
    missing = sorted(name for name in names if f"`{name}`" not in PAGE)
    assert missing == []


def test_the_published_scores_on_the_page_are_the_reference_data():
    for published in PUBLISHED_EAS:
        assert f"| {published.model} | {published.eas:.2f} |" in PAGE
        assert published.source in PAGE


def test_what_the_published_values_contradict_is_named() -> None:
    eas = {published.model: published.eas for published in PUBLISHED_EAS}
    assert eas["Qwen3-8B"] > eas["Qwen2-7B"]
    assert max(eas, key=lambda model: eas[model]) == "GPT-OSS-20B"
    newer = f"Qwen2-7B {eas['Qwen2-7B']} → Qwen3-8B {eas['Qwen3-8B']} is higher"
    assert newer in PAGE
    assert f"the only mixture, GPT-OSS-20B, has the highest value of all, {eas['GPT-OSS-20B']}" in PAGE
