"""Gates of a tiny model's exits: what they are trained on, and that everything reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fitting_cases import texts
from random_heads import random_heads, random_output_heads
from tracing_models import tiny_llama, workload_of

from offramp.costs.machine_registry import find_machine
from offramp.decoding.generation.generate import generate
from offramp.decoding.rerun.rerunner import rerun
from offramp.errors import InputError
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.file import read_heads, write_heads
from offramp.policies.replay import replay
from offramp.tracing.tracer import trace
from offramp.training.gate import steps_of
from offramp.training.gate_training import TrainedGates, train_gates
from offramp.tuning.splits import split_roles

WORK = texts(60)
POLICY = "threshold:signal=gate,value=0.5,exits=1+2"
QUICK: dict[str, Any] = {"machine": "h100", "floor": 0.4, "steps": 40, "progress": False}


def trained(heads: ExitHeads | None = None, **options: Any) -> TrainedGates:
    return train_gates(tiny_llama(), WORK, heads=heads, **{"at": "1,2", **QUICK, **options})


@pytest.fixture(scope="module")
def gates() -> TrainedGates:
    """Of exits behind a lens and a network."""
    return trained(through_networks())


def through_networks() -> ExitHeads:
    """Heads of exits 1 and 2 that change little of the states, and have seen the last three documents."""
    heads = random_heads(tiny_llama(), [1, 2], mlp_units=5, facts=("correctness",))
    assert heads.lens is not None
    assert heads.mlp is not None
    whole = np.broadcast_to(np.eye(heads.lens.weight.shape[-1]), heads.lens.weight.shape)
    lens = replace(heads.lens, weight=whole.astype(np.float32), bias=0 * heads.lens.bias)
    mlp = replace(heads.mlp, down=heads.mlp.down / 50)
    last = tuple(document.id for document in WORK.documents[-3:])
    return replace(heads, lens=lens, mlp=mlp, documents={WORK.fingerprint: last}, texts=None)


def test_a_trace_rerun_and_decoding_read_the_gates_that_a_file_keeps(
    gates: TrainedGates, tmp_path: Path
) -> None:
    write_heads(gates.heads, tmp_path / "heads.safetensors")
    heads = read_heads(tmp_path / "heads.safetensors")
    assert heads.fingerprint == gates.heads.fingerprint == gates.record.heads
    model, machine = tiny_llama(), find_machine("h100")
    found = trace(model, WORK, tokens=300, heads=heads, exits=[1, 2], progress=False)
    replayed = replay(found, POLICY, machine=machine)
    gate = found.fact("gate")[:, :2] >= 0.5
    np.testing.assert_array_equal(replayed.exits, np.select([gate[:, 0], gate[:, 1]], [1, 2], found.layers))
    assert 0 < gate.mean() < 1
    # Up to the first exit every token's K and V are exact, and so is what its gate decides.
    again, later = rerun(model, found, POLICY, heads=heads), found.position > 0
    np.testing.assert_array_equal((again.exits == 1)[later], (replayed.exits == 1)[later])
    assert 0 < (replayed.exits == 1).mean() < 1
    answer = generate(model, WORK.documents[0].text, policy=POLICY, heads=heads, max_new_tokens=4)
    assert set(answer.exits.tolist()) <= {1, 2, model.layers}


def test_gates_join_what_the_heads_have_and_say_what_they_saw(gates: TrainedGates) -> None:
    before = through_networks()
    heads = gates.heads
    assert list(heads.classifiers) == ["correctness", "gate"]
    assert heads.lens is not None
    assert before.lens is not None
    np.testing.assert_array_equal(heads.lens.weight, before.lens.weight)
    assert heads.mlp is not None
    assert heads.provenance["gate"]["floor"] == 0.4
    seen = heads.documents[WORK.fingerprint]
    names = [document.id for document in WORK.documents]
    assert seen[:3] == tuple(names[-3:])
    assert seen[3] == names[-4], "the last that nothing has seen comes first"
    assert len(set(seen)) == len(seen) > 10
    assert not set(seen) & set(names[: len(names) // 2]), "left for tuning"
    assert sum(gates.record.rows) <= sum(len(document.text.split()) + 1 for document in WORK.documents)
    found = trace(tiny_llama(), WORK, tokens=1200, heads=heads, exits=[1, 2], progress=False)
    roles = split_roles(found, 0)
    used = {found.documents[place].id for place in (*roles.search, *roles.certify, *roles.report)}
    assert used
    assert not used & set(seen)


def test_where_the_later_half_was_seen_the_quarter_before_it_is_read() -> None:
    names = [document.id for document in WORK.documents]
    heads = replace(through_networks(), documents={WORK.fingerprint: tuple(names[30:])})
    seen = trained(heads).heads.documents[WORK.fingerprint]
    assert seen[30:] == tuple(names[29:14:-1])


def test_the_same_seed_gives_the_same_gates(gates: TrainedGates) -> None:
    assert trained(through_networks()).heads.fingerprint == gates.heads.fingerprint


def test_steps_follow_from_the_rows_where_they_are_not_said() -> None:
    found = trained(steps=None, at="1")
    assert found.record.steps == found.heads.provenance["gate"]["steps"] == steps_of(found.record.rows[0])


def test_gates_of_some_exits_by_the_logit_lens_and_of_heads() -> None:
    alone = trained(at="2")
    assert alone.heads.exits == (2,)
    assert alone.heads.lens is None
    assert alone.record.exits == (2,)
    assert alone.record.gate.policy.endswith("exits=2")
    of_two = trained(through_networks(), at=[2])
    assert of_two.heads.exits == (1, 2)
    assert of_two.heads.classifiers["gate"].biases[-1][0] == pytest.approx(-20.0)


def test_what_cannot_be_is_refused() -> None:
    model = tiny_llama()
    for options, why in (
        ({"at": None}, "at must be given"),
        ({"at": "3"}, "no exit below the last layer"),
        ({"floor": 1.0}, "floor must be below 1"),
        ({"machine": "abacus"}, "abacus"),
        ({"heads": random_output_heads(model, [1, 2])}, "output heads of their own"),
        ({"heads": random_heads(model, [1], facts=())}, "hold none at 2"),
    ):
        with pytest.raises(InputError, match=why):
            train_gates(model, WORK, **{"at": "1,2", **QUICK, **options})
    with pytest.raises(InputError, match="2 documents for gates"):
        train_gates(model, workload_of(lengths=[20, 21, 22, 23]), at="1", **QUICK)
