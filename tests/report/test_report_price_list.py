"""A machine's prices as the page holds them."""

from dataclasses import dataclass, replace
from typing import Any

import jsonschema
import numpy as np
import pytest
from report_examples import example_run, model_shape

from offramp.costs.token import TokenCosts, token_costs
from offramp.errors import InputError
from offramp.report.page import render
from offramp.report.run_result import price_list
from offramp.report.summary import summarise, summary_schema


@dataclass(frozen=True)
class Bench:
    name: str = "local"
    source: str = "a bench"
    kind: str = "timings"

    def token_costs(self, *arguments: Any, **options: Any) -> TokenCosts:
        return COSTS

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name}


COSTS = TokenCosts(
    unit="seconds",
    layers=np.array([0.001, 0.003]),
    head=0.006,
    exit_head=0.007,
    probes={"full head": 0.008, "cosine": 0.0001},
    key_value=np.array([0.0002, 0.0004]),
    overhead=0.002,
)


def test_prices_by_hand():
    prices = price_list(Bench(), COSTS, self_check_ratio=0.98, threads=2, load=0.3, note="just now")
    assert prices == {
        "name": "local",
        "source": "a bench",
        "layer_seconds": pytest.approx(0.002),
        "head_seconds": 0.006,
        "probe_seconds": {"full head": 0.008, "cosine": 0.0001},
        "overhead_seconds": 0.002,
        "plain_seconds_per_token": pytest.approx(0.012),
        "key_value_seconds": pytest.approx(0.0003),
        "self_check_ratio": 0.98,
        "threads": 2,
        "load": 0.3,
        "note": "just now",
    }


def test_they_fit_page_and_schema():
    run = replace(example_run(), hardware=price_list(Bench(), COSTS))
    jsonschema.Draft202012Validator(summary_schema()).validate(summarise(run))
    assert "4.0 layers" in render(run).replace("\u00a0", " ")


@pytest.mark.parametrize(
    "costs", [replace(COSTS, batch=4), token_costs(model_shape(2), 8.0, "bytes")], ids=["batch", "bytes"]
)
def test_other_prices_are_refused(costs):
    with pytest.raises(InputError, match="cannot be shown in seconds per token"):
        price_list(Bench(), costs)
