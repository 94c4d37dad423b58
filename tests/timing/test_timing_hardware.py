"""Measuring a machine on tiny models: what runs in each step, what is left behind, how tables are made."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from generation_cases import counted_layers
from tracing_models import build_family, llama, tiny_model

from offramp.costs.machine import Machine
from offramp.costs.machine_registry import OWN_LOOP, machine_facts
from offramp.costs.probes import PROBES
from offramp.costs.timings import LENS, MAPS, OTHER_LOAD, TimingsProfile
from offramp.decoding.engine.build import cache_keyword
from offramp.decoding.generation.early_exit import early_exit
from offramp.errors import BusyMachineError, ModelError
from offramp.models.model import Model
from offramp.timing import local_profile
from offramp.timing.local_profile import (
    BUSY,
    MachineProfiler,
    measure_hardware,
    timing_positions,
)
from offramp.timing.timed_steps import CANDIDATES, CHOICE, PLAIN, PROBED, WHOLE, KindOfStep, prefill, widen
from offramp.timing.timing_tables import PriceTables, StepSamples

LAYERS = 4


def left_behind(model: Model) -> int:
    """Hooks and replaced methods on any module."""
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + ("forward" in module.__dict__)
        for module in model.hf.modules()
    )


def test_a_tiny_model_end_to_end() -> None:
    model = tiny_model(llama(num_hidden_layers=LAYERS))
    progress: list[float] = []
    profile = measure_hardware(model, budget_seconds=0.3, batches=(1, 2), progress=progress.append)
    machine: Machine = profile
    costs = machine.token_costs(model.shape, 20, batch=1)
    assert profile.layers_count == model.layers
    assert set(profile.probe_seconds) == set(PROBES)
    assert profile.lens_seconds is not None
    assert profile.map_seconds is not None
    assert profile.sizes.map_rank == min(64, model.shape.hidden_size)
    # What the profile itself says of batch sizes that were not timed stands before what the measurement says.
    assert profile.notes[0].startswith("timed at batch 1, 2;")
    assert set(profile.notes[1:]) <= {BUSY}
    assert 1e-6 < costs.layers.min() < costs.layers.max() < 1.0
    assert costs.probes["full head"] > 0
    assert all(seconds > 0 for seconds in costs.probes.values())
    assert (costs.key_value < costs.layers + 1.0).all()
    assert costs.overhead > 0
    assert len(progress) == profile.details["rounds"] >= 3
    assert progress == sorted(progress)
    details = profile.details
    assert details["machine"]["threads"] == torch.get_num_threads()
    assert details["model"]["fingerprint"] == model.identity.fingerprint
    assert details["samples"]["2"]["head"]["count"] == 2 * details["rounds"]
    assert details["other_load"] >= 0
    assert 0.1 < details["check"]["parts_over_step"]["1"] < 10.0  # whatever else the machine does
    assert left_behind(model) == 0


@pytest.mark.parametrize("name", [WHOLE, PLAIN, PROBED])
def test_every_step_runs_each_layer_once_and_probes_add_none(name: str) -> None:
    model = tiny_model(llama(num_hidden_layers=LAYERS))
    session = MachineProfiler(model, (1, 2), (4, 8))
    stream = widen(session.singles[8], 2)
    for step in range(3):
        with counted_layers(model.hf) as counts:
            times = session._run(stream, KindOfStep(name))
        assert counts == dict.fromkeys(range(LAYERS), stream.batch)
        assert len(times.layers) == (0 if name == WHOLE else model.layers)
        assert times.whole > 0
        assert (times.position, times.cut) == (8 + step, frozenset())
        assert bool(times.probes) == (name == PROBED)
    assert stream.cache.get_seq_length() == stream.length == 11
    assert stream.cache.layers[0].keys.shape[0] == stream.batch == 2
    assert left_behind(model) == 0


def test_cut_layers_write_the_keys_and_values_of_the_state_they_are_given() -> None:
    model = tiny_model(llama(num_hidden_layers=LAYERS))
    session = MachineProfiler(model, (1, 2), (4, 8))
    stream = widen(session.singles[8], 2)
    times = session._run(stream, KindOfStep("cut 2", 2))
    assert times.cut == {2, 3}
    assert len(times.layers) == model.layers
    assert min(times.layers) > 0.0  # the last one's ends with the step
    # By hand: the state after layer 2 goes into the norm and K projection of layers 3 and 4.
    before = widen(session.singles[8], 2)
    states: list[torch.Tensor] = []
    handle = model.stack.layers[1].register_forward_hook(
        lambda module, arguments, output: states.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        model.hf(input_ids=before.tokens, use_cache=True, **{before.keyword: before.cache})
    handle.remove()
    for index in (2, 3):
        layer: Any = model.stack.layers[index]
        values = layer.self_attn.v_proj(layer.input_layernorm(states[0]))
        kept = stream.cache.layers[index].values[:, :, -1]
        assert torch.equal(kept.flatten(1), values[:, 0])
    assert stream.cache.get_seq_length() == 9
    assert left_behind(model) == 0
    assert "update" not in stream.cache.__dict__


def test_an_error_within_a_step_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(llama(num_hidden_layers=LAYERS))
    session = MachineProfiler(model, (1,), (4, 8))
    monkeypatch.setattr(model.stack.layers[3].mlp, "forward", lambda values: values.missing)
    with pytest.raises(ModelError, match="decoding at position 8 fails: AttributeError"):
        session._run(widen(session.singles[8], 1), KindOfStep(PLAIN))
    monkeypatch.undo()
    assert left_behind(model) == 0


def test_a_stream_that_grew_is_filled_anew_within_the_context() -> None:
    model = tiny_model(llama(max_position_embeddings=12))
    session = MachineProfiler(model, (1, 2), timing_positions(12))
    assert session.positions == (3, 9)
    lengths = []
    for _ in range(8):
        stream = session._fresh((2, 9))
        session._run(stream, KindOfStep(PLAIN))
        lengths.append(stream.length)
    assert lengths == [10, 11, 12] * 2 + [10, 11]


@pytest.mark.parametrize(("ratio", "noted"), [(1.05, False), (0.8, True), (1.3, True)])
def test_parts_that_do_not_add_up_are_noted(
    monkeypatch: pytest.MonkeyPatch, ratio: float, noted: bool
) -> None:
    build = local_profile.build_tables

    def tables(samples: StepSamples) -> PriceTables:
        return dataclasses.replace(build(samples), parts_over_step={1: 1.0, 2: ratio})

    monkeypatch.setattr(local_profile, "build_tables", tables)
    model = tiny_model(llama(num_hidden_layers=LAYERS))
    profile = measure_hardware(model, budget_seconds=0.05, batches=(1, 2))
    assert (BUSY in profile.notes) == noted
    assert profile.details["check"]["parts_over_step"] == {"1": 1.0, "2": ratio}


QUIET, LOUD = 0.1, 0.9


@pytest.mark.parametrize(
    ("loads", "timings"),
    [
        ([QUIET, QUIET], 1),
        ([LOUD, LOUD, QUIET, QUIET], 1),  # it waits for the others to end
        ([QUIET, LOUD, QUIET, QUIET], 2),  # what they disturbed is timed once more
        ([QUIET, LOUD, QUIET, LOUD], None),
        ([LOUD] * 1000, None),
        ([QUIET, LOUD, *[LOUD] * 1000], None),
    ],
)
def test_what_others_disturb_is_timed_when_it_is_quiet_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, loads: list[float], timings: int | None
) -> None:
    """loads: by others, of each look at them and of each timing."""
    monkeypatch.setattr("offramp.costs.timings.TOLERABLE_LOAD", 0.3)
    monkeypatch.setattr("offramp.costs.machine_registry.os.cpu_count", torch.get_num_threads)
    monkeypatch.setattr(local_profile, "PATIENCE", 0.2)
    left = iter(loads)
    monkeypatch.setattr(
        local_profile.MachineLoad,
        "describe",
        lambda self: {"load_average": [0.2, 0.3], OTHER_LOAD: next(left)},
    )
    model = tiny_model(llama(num_hidden_layers=1))

    def timing(profiler: MachineProfiler, *arguments: object) -> TimingsProfile:
        machine, zeros = machine_facts(torch.get_num_threads()), [[0.0], [0.0]]
        details = {"machine": machine, **local_profile.MachineLoad().describe()}
        return TimingsProfile(
            "local", "made up", "float32", 1, profiler.batches, zeros, zeros, [0.0] * 2, {}, None, None,
            [0.0] * 2, details,
        )  # fmt: skip

    timed = mock.Mock(side_effect=timing)
    monkeypatch.setattr(local_profile, "_timed", timed)
    if timings is None:
        with pytest.raises(BusyMachineError, match=r"the machine is busy: other work kept 0\.9 of"):
            measure_hardware(model, budget_seconds=0.05, batches=(1, 2))
    else:
        profile = measure_hardware(model, budget_seconds=0.05, batches=(1, 2))
        assert profile.details[OTHER_LOAD] == QUIET
        assert timed.call_count == timings
        assert list(left) == []


@pytest.mark.parametrize("family", ["gpt2", "jamba", "deepseek_v32"])
def test_other_families(family: str) -> None:
    model = tiny_model(build_family(family))
    profile = measure_hardware(model, budget_seconds=0.05, batches=(1, 2))
    assert (profile.token_costs(model.shape, 100, batch=2).layers > 0).all()
    kinds = {layer.kind for layer in model.shape.layers}
    said = " ".join(profile.notes)
    assert ("charged whole" in said) == bool(kinds & {"recurrent", "hybrid"})
    assert "could not be stopped" not in said
    assert profile.details["steps"] == OWN_LOOP
    assert left_behind(model) == 0


@pytest.mark.parametrize("layers", [1, 2, LAYERS])
def test_every_kind_of_probe_is_read_by_the_decoder_itself(layers: int) -> None:
    model = tiny_model(llama(num_hidden_layers=layers))
    session = MachineProfiler(model, (2,), (4, 8))
    probing, seen, waiting = session.loop.probing, set[str](), list[str]()
    for _ in range(8):
        placed = probing.draw(session.random, waiting)
        assert list(placed) == sorted(set(placed)) or len(placed) > 1
        assert set(placed) <= set(probing.exits)
        if CANDIDATES in placed.values():
            assert placed[probing.exits[0]] == CHOICE
        times = session.loop.run(widen(session.singles[8], 2), KindOfStep(PROBED), placed)
        assert set(times.probes) == set(placed.values()) - {CHOICE}
        assert all(seconds > 0 for seconds in times.probes.values())
        assert sum(times.layers) + times.head + sum(times.probes.values()) < times.whole
        assert times.cut == frozenset()
        seen |= set(times.probes)
    every = {*PROBES, LENS, MAPS}
    expected = {1: set[str](), 2: every - {CANDIDATES}}
    assert seen == expected.get(layers, every)


def test_steps_of_the_loop_are_those_that_generation_makes() -> None:
    model = tiny_model(llama(num_hidden_layers=LAYERS))
    session = MachineProfiler(model, (1,), (4, 8))
    stream = prefill(model, session.keyword, 1, 12)
    ids = torch.randint(model.shape.vocabulary_size, (1, 12), generator=torch.Generator().manual_seed(12))
    for policy, cut_from in (("never", None), ("static:exit=2", 2)):
        whole = model.hf.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=6,
            min_new_tokens=6,
            do_sample=False,
            pad_token_id=0,
            custom_generate=early_exit(policy),
        )
        tokens = whole[0, 12:].tolist()
        decisions = widen(stream, 1)
        decisions.tokens = torch.tensor([tokens[:1]])
        made = tokens[:1]
        for _ in range(5):
            session._run(decisions, KindOfStep("cut" if cut_from else PLAIN, cut_from))
            made.append(int(decisions.tokens))
        assert made == tokens


@pytest.mark.parametrize("trial", ["engine", "never_exit"])
def test_a_model_that_the_loop_cannot_run_cannot_be_timed(
    trial: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moves(model: Model) -> Any:
        if trial == "engine":
            raise ModelError("it moves", where="here")
        return SimpleNamespace(abilities=SimpleNamespace(reason=lambda ability: "it moves"))

    monkeypatch.setattr(local_profile, "engine_of", moves)
    with pytest.raises(ModelError, match=r"cannot be timed: it moves(.|\n)*offramp list hardware"):
        measure_hardware(tiny_model(llama(num_hidden_layers=LAYERS)), budget_seconds=0.05, batches=(1, 2))


@pytest.mark.parametrize("family", ["openai-gpt", "rwkv"])
def test_a_model_without_a_cache_is_refused(family: str) -> None:
    model = tiny_model(build_family(family))
    with pytest.raises(ModelError, match="cannot decode token by token with a cache"):
        measure_hardware(model, budget_seconds=0.05)


def test_a_cache_that_is_not_read_is_found() -> None:
    model = tiny_model(llama(num_hidden_layers=LAYERS))
    forward = model.hf.forward

    def forgetful(
        input_ids: Any = None, cache: Any = None, past_key_values: Any = None, **options: Any
    ) -> Any:
        return forward(input_ids=input_ids, **options)

    model.hf.forward = forgetful
    with pytest.raises(ModelError, match="its logits with a cache differ"):
        cache_keyword(model)


def test_positions_fit_the_context() -> None:
    assert timing_positions(None) == timing_positions(8192) == (64, 448)
    assert timing_positions(128) == (32, 96)
    assert timing_positions(8) == (2, 6)
    with pytest.raises(ModelError, match="too short"):
        timing_positions(7)
