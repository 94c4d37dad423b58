"""The whole chain of work on the bundled model, with very few tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from work_cases import Bench, planned, result_of

from offramp.costs.hardware import find_machine, machine_facts, save_local_profile
from offramp.costs.machine import machine_fingerprint
from offramp.decoding.measurement.contenders import GENERATE, NEVER
from offramp.decoding.measurement.machine_profiler import measure_hardware
from offramp.decoding.measurement.results import BenchResult
from offramp.records.typed import from_json
from offramp.studies.work.context import Context
from offramp.studies.work.inputs import model_of
from offramp.studies.work.profile import stating

pytestmark = [pytest.mark.real_model, pytest.mark.slow]

TOKENS, DOCUMENTS = 96, 24


@pytest.fixture
def threads() -> Iterator[int]:
    """Work sets torch's threads to those of its recipe; here those that it has."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_the_chain_on_the_bundled_model(tmp_path: Path, threads: int) -> None:
    bench = Bench(tmp_path, "smollm2", "prose")
    common = {**bench.common(), "threads": threads}

    def run(kind: str, recipe: dict[str, Any], inputs: dict[str, Path], **options: Any) -> Path:
        needs = dict.fromkeys(inputs, "key")
        return bench.run(
            planned(kind, {"seed": 0, **recipe, "threads": threads}, needs=needs, **options), inputs
        )

    traced = bench.run(bench.trace_task(tokens=TOKENS, document_tokens=TOKENS // DOCUMENTS, threads=threads))
    # Of one batch size only, and kept: timing all of them takes a minute on a busy machine.
    recipe = {**common, "machine": machine_facts(threads), "seconds": 1.0}
    timing = planned("profile", recipe, exclusive=True, sources=bench.sources())
    model = model_of(timing, Context(tmp_path, {}, bench.models, tmp_path))
    save_local_profile(stating(measure_hardware(model, batches=[1], budget_seconds=0.1), timing))
    profile = bench.run(timing)
    here = {"trace": traced, "profile": profile}
    score = result_of(run("score", {"draws": 50}, {"trace": traced}))
    assert len(score["documents"]) == DOCUMENTS
    # English prose under a small model: about four bytes a token, one to two bits a byte.
    assert 3 < score["text"]["bytes"] / score["text"]["tokens"] < 6
    assert 0.5 < score["bits_per_byte"] < 2.5
    league = run("league", {"floors": [0.5], "worth": 0.05, "details": True}, here)
    (tuned,) = result_of(run("tune", {"floors": [0.5], "delta": 0.1}, here))["tuned"]
    assert tuned["machine"] == "local"
    h100 = find_machine("h100")
    replayed = result_of(
        run(
            "replay",
            {"policy": "static:exit=20", "kv": "propagate", "batch": 1, "machine": machine_fingerprint(h100)},
            {"trace": traced},
            sources={"machine": "h100"},
        )
    )
    assert replayed["skip_ratio"]["value"] == pytest.approx(1 - 20 / score["layers"])
    decoded = result_of(
        run(
            "decode",
            {
                **common,
                "workload": bench.workload_recipe(),
                "best": 1,
                "floor": 0.5,
                "new_tokens": 4,
                "prompts": 1,
                "rounds": 2,
                "seconds": 10.0,
                "machine": machine_facts(threads),
            },
            {**here, "league": league},
            sources=bench.sources(),
        )
    )
    measured = from_json(BenchResult, decoded["bench"])
    (chosen,) = decoded["chosen"]
    assert {chosen["contender"], NEVER, GENERATE} <= {one.name for one in measured.contenders}
    assert 1 < decoded["characters_per_token"] < 10
    (forecast,) = measured.forecasts
    assert forecast.predicted is not None
    assert 0 < forecast.predicted < forecast.plain_predicted
