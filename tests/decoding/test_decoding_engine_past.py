"""What the engine leaves behind, runs later and takes back, against transformers' own forward passes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

for room in ("models", "tracing"):
    sys.path.insert(0, str(Path(__file__).parents[1] / room))

import family_configs
from family_configs import build_family
from rounding import logit_bounds, spread

from offramp.decoding.engine.build import engine_of
from offramp.decoding.engine.cache import entries_of
from offramp.decoding.engine.capability_tests import random_ids
from offramp.decoding.engine.engine import ABILITIES, PARTS_OF_TIME, Engine, Meter
from offramp.decoding.engine.sequences import Sequences
from offramp.errors import ModelError
from offramp.policies.cost_breakdown import Item

FAMILIES = ["llama", "mistral", "gemma2", "deepseek_v3", "gpt2", "mamba", "jamba", "falcon_h1"]
PROMPT = 70  # longer than the small models' sliding windows of 64


@pytest.fixture(scope="module")
def engines() -> dict[str, Engine]:
    return {family: engine_of(build_family(family)) for family in FAMILIES}


def begun(engine: Engine, ids: Tensor) -> Sequences:
    sequences = Sequences(engine, ids, None, Meter())
    inputs = sequences.inputs(0, sequences.length)
    sequences.run(inputs.hidden, inputs, 0, engine.layers)
    return sequences


def assert_same_logits(engine: Engine, ids: Tensor, found: Tensor, expected: Tensor) -> None:
    """Two ways to the logits of these ids differ by rounding alone."""
    (deviation,) = spread(engine, lambda: (full_logits(engine, ids).double().numpy(),))
    allowed = 2 * float(logit_bounds(deviation).max())
    assert allowed < 0.01 * float(expected.abs().max()), "the bound would hide what is tested"
    torch.testing.assert_close(found, expected, rtol=0, atol=allowed)


def step(sequences: Sequences, token: Tensor, last: int) -> Tensor:
    sequences.feed(token)
    inputs = sequences.inputs(sequences.length - 1, sequences.length)
    return sequences.run(inputs.hidden, inputs, 0, last)


def full_logits(engine: Engine, ids: Tensor) -> Tensor:
    """The model's own logits of every position, without a cache."""
    return engine.hf(input_ids=ids, use_cache=False).logits


def replaced_after(engine: Engine, exit: int) -> list[Any]:
    """Hooks on the later layers that put the exit's output in the place of theirs: CALM's propagation."""
    kept: list[Tensor] = []

    def keep(module: Any, arguments: Any, output: Any) -> None:
        kept[:] = [output[0] if isinstance(output, tuple) else output]

    def replace(module: Any, arguments: Any, output: Any) -> Any:
        return (kept[0], *output[1:]) if isinstance(output, tuple) else kept[0]

    layers = engine.stack.layers
    return [
        layers[exit - 1].register_forward_hook(keep),
        *(layer.register_forward_hook(replace) for layer in layers[exit:]),
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_written_layers_hold_what_the_model_leaves_when_later_layers_pass_the_state_on(
    engines: dict[str, Engine], family: str
) -> None:
    engine = engines[family]
    ids = random_ids(engine, 1, PROMPT + 2)
    name, exit = engine.cache_name, 2
    output = engine.hf(input_ids=ids[:, :PROMPT], use_cache=True)
    handles = replaced_after(engine, exit)
    places = {"position_ids": torch.tensor([[PROMPT]])} if engine.takes_positions else {}
    output = engine.hf(input_ids=ids[:, PROMPT:-1], use_cache=True, **places, **{name: output[name]})
    for handle in handles:
        handle.remove()
    sequences = begun(engine, ids[:, :PROMPT])
    hidden = step(sequences, ids[:, PROMPT:-1], exit)
    sequences.write(hidden, sequences.inputs(PROMPT, PROMPT + 1), exit, engine.layers)
    for ours, theirs in zip(entries_of(sequences.cache), entries_of(output[name]), strict=True):
        for kind in ("keys", "values"):
            own, expected = getattr(ours, kind, None), getattr(theirs, kind, None)
            assert (own is None) == (expected is None)
            if own is not None:
                torch.testing.assert_close(own, expected, rtol=1e-6, atol=1e-6)
    places = {"position_ids": torch.tensor([[PROMPT + 1]])} if engine.takes_positions else {}
    expected = engine.hf(input_ids=ids[:, -1:], use_cache=True, **places, **{name: output[name]}).logits[
        :, -1
    ]
    found = sequences.read_out(step(sequences, ids[:, -1:], engine.layers))
    assert_same_logits(engine, ids, found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_that_run_later_get_the_full_models_logits(engines: dict[str, Engine], family: str) -> None:
    engine = engines[family]
    ids = random_ids(engine, 2, PROMPT + 4)
    sequences = begun(engine, ids[:, :PROMPT])
    waiting = [step(sequences, ids[:, place : place + 1], 1) for place in range(PROMPT, PROMPT + 4)]
    assert sequences.lengths == [PROMPT + 4, *[PROMPT] * (engine.layers - 1)]
    hidden = sequences.run_block(torch.cat(waiting, 1), PROMPT, PROMPT + 4, 1, engine.layers)
    assert sequences.lengths == [PROMPT + 4] * engine.layers
    expected = full_logits(engine, ids)[:, PROMPT:]
    difference = (sequences.read_out_all(hidden) - expected).abs().max() / expected.abs().max()
    assert float(difference) <= 2e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_taken_back_leaves_no_trace(engines: dict[str, Engine], family: str) -> None:
    engine = engines[family]
    ids = random_ids(engine, 2, PROMPT + 4)
    kept, drafted = ids[:1], ids[1:]
    sequences = begun(engine, kept[:, :PROMPT])
    sequences.record_past()
    step(sequences, kept[:, PROMPT : PROMPT + 1], engine.layers)
    past = [sequences.snapshot(layer, layer + 1) for layer in range(engine.layers)]
    for place in range(PROMPT + 1, PROMPT + 4):
        step(sequences, drafted[:, place : place + 1], engine.layers)
    sequences.unfeed(PROMPT + 1)
    for layer in range(engine.layers):
        if engine.recurrent[layer]:
            sequences.restore(past[layer])
    sequences.crop(PROMPT + 1, 0, engine.layers)
    assert sequences.lengths == [PROMPT + 1] * engine.layers
    expected = full_logits(engine, kept)
    for place in range(PROMPT + 1, PROMPT + 4):
        found = sequences.read_out(step(sequences, kept[:, place : place + 1], engine.layers))
        assert_same_logits(engine, kept, found, expected[:, place])


def test_a_snapshot_can_be_restored_twice(engines: dict[str, Engine]) -> None:
    engine = engines["jamba"]
    ids = random_ids(engine, 1, 10)
    sequences = begun(engine, ids[:, :9])
    past = sequences.snapshot(0, engine.layers)
    found = []
    for _ in range(3):
        found.append(step(sequences, ids[:, -1:], engine.layers))
        sequences.restore(past)
        sequences.unfeed(9)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_recurrent_state_is_not_cropped(engines: dict[str, Engine]) -> None:
    engine = engines["mamba"]
    sequences = begun(engine, random_ids(engine, 1, 9))
    sequences.crop(9, 0, engine.layers)  # nothing to remove
    with pytest.raises(ModelError, match="recurrent state of layer 1") as refusal:
        sequences.crop(8, 0, engine.layers)
    assert "snapshot" in refusal.value.fix


def test_a_layer_takes_only_the_positions_that_follow_its_own(engines: dict[str, Engine]) -> None:
    engine = engines["llama"]
    ids = random_ids(engine, 1, 11)
    sequences = begun(engine, ids[:, :9])
    hidden = step(sequences, ids[:, 9:10], 2)
    step(sequences, ids[:, 10:], 2)
    newest = sequences.inputs(10, 11)
    with pytest.raises(IndexError, match="layer 3 holds 9 positions, and is given those from 10 on"):
        sequences.run(hidden, newest, 2, 4)


def test_inputs_are_recorded_once_until_more_is_fed(engines: dict[str, Engine]) -> None:
    engine = engines["llama"]
    sequences = begun(engine, random_ids(engine, 1, 9))
    assert sequences.inputs(0, 9) is sequences.inputs(0, 9)
    before = sequences.inputs(0, 9)
    sequences.feed(sequences.ids[:, :1])
    assert sequences.inputs(0, 9) is not before


@pytest.mark.parametrize("family", ["llama", "mistral", "deepseek_v3", "gpt2"])
def test_rows_that_go_on_and_rows_that_left_find_what_they_would_have_found_alone(
    engines: dict[str, Engine], family: str
) -> None:
    """Row 1 leaves after layer 1, row 3 after layer 2; rows 0 and 2 run deep."""
    engine, exits = engines[family], {0: None, 1: 1, 2: None, 3: 2}
    ids = random_ids(engine, 4, PROMPT + 2)
    token, next_token = ids[:, PROMPT : PROMPT + 1], ids[:, -1:]
    together = begun(engine, ids[:, :PROMPT])
    meter = together.meter
    meter.start()
    hidden = step(together, token, 1)
    left = hidden[[1]]
    hidden = together.run_rows(hidden[[0, 2, 3]], left, np.array([0, 2, 3]), PROMPT, 1, 2)
    left = torch.cat([left, hidden[[2]]])
    hidden = together.run_rows(hidden[:2], left, np.array([0, 2]), PROMPT, 2, engine.layers)
    items = {(item.part, item.place, item.rows) for item in meter.usage}
    assert items >= {("layers", 2, 3), ("K,V projection", 2, 1), ("layers", 3, 2), ("K,V projection", 4, 2)}
    assert meter.executed == 4 * PROMPT * engine.layers + 4 + 3 + 2 * (engine.layers - 2)
    after = together.read_out(step(together, next_token, engine.layers))
    deep = together.engine.stack.readout(hidden)[:, -1]
    for row, exit in exits.items():
        alone = begun(engine, ids[row : row + 1, :PROMPT])
        state = step(alone, token[row : row + 1], exit or engine.layers)
        if exit is None:
            assert_same_logits(engine, ids, deep[[0, None, 1][row]][None], alone.read_out(state))
        else:
            alone.write(state, alone.inputs(PROMPT, PROMPT + 1), exit, engine.layers)
        expected = alone.read_out(step(alone, next_token[row : row + 1], engine.layers))
        assert_same_logits(engine, ids, after[row : row + 1], expected)


@pytest.mark.parametrize("family", ["llama", "mamba", "jamba", "falcon_h1"])
def test_selected_rows_go_on_as_if_the_others_had_never_been(engines: dict[str, Engine], family: str) -> None:
    engine = engines[family]
    ids = random_ids(engine, 3, 10)
    sequences = begun(engine, ids[:, :9])
    sequences.select_rows([2, 0])
    found = sequences.read_out(step(sequences, ids[[2, 0], 9:], engine.layers))
    assert_same_logits(engine, ids, found, full_logits(engine, ids)[[2, 0], -1])


def test_abilities_say_why_not(engines: dict[str, Engine]) -> None:
    llama, mamba = engines["llama"].abilities, engines["mamba"].abilities
    assert {ability: llama.reason(ability) for ability in ABILITIES} == dict.fromkeys(ABILITIES)
    assert mamba.reason("rebatch") == "a layer with a recurrent state moves all rows at once"
    assert [mamba.reason(name) for name in ("recompute", "speculate", "lockstep")] == [None] * 3


def test_abilities_notice_what_is_not_exact(
    monkeypatch: pytest.MonkeyPatch, engines: dict[str, Engine]
) -> None:
    """Each primitive is broken in turn; the ability that rests on it must be refused."""
    from offramp.decoding.engine.capability_tests import try_ability

    engine = engines["llama"]
    exact_run, exact_block, exact_write = Sequences.run, Sequences.run_block, Sequences.write
    exact_rows = Sequences.select_rows

    def forgetful(self: Sequences, length: int, first: int, last: int) -> None:
        self.lengths[first:last] = [length] * (last - first)

    def shifted(self: Sequences, hidden: Tensor, *place: Any) -> Tensor:
        return exact_block(self, hidden, *place) + 0.01

    def noisy(self: Sequences, hidden: Tensor, *place: Any) -> Tensor:
        return exact_run(self, hidden, *place) + (0.01 if self.batch > 1 else 0.0)

    def doubled(self: Sequences, hidden: Tensor, *place: Any) -> None:
        exact_write(self, hidden + 1, *place)

    def misplaced(self: Sequences, rows: list[int]) -> None:
        exact_rows(self, [rows[0], rows[0]])

    broken: list[tuple[str, str, Any]] = [
        ("speculate", "crop", forgetful),
        ("recompute", "run_block", shifted),
        ("speculate", "run_block", shifted),
        ("lockstep", "run", noisy),
        ("propagate", "write", doubled),
        ("rebatch", "run_rows", lambda self, hidden, *place: hidden),
        ("drop", "select_rows", misplaced),
    ]
    for ability, method, replacement in broken:
        with monkeypatch.context() as patched:
            patched.setattr(Sequences, method, replacement)
            assert try_ability(engine, ability) is not None, (ability, method)
        assert try_ability(engine, ability) is None


@pytest.mark.parametrize("ability", ["recompute", "speculate", "lockstep"])
def test_picked_keys_and_blocks_are_not_trusted_where_they_cannot_be_tried(ability: str) -> None:
    """A short prompt never reaches beyond what attention picks."""
    with patch.dict(family_configs.SMALL, index_topk=2048):
        engine = engine_of(build_family("deepseek_v32"))
    assert "picks 2048 keys" in str(engine.abilities.reason(ability))
    assert engine.abilities.reason("propagate") is None
    blocks = {"index_topk_blocks": 16, "index_block_size": 128}
    with patch.dict(family_configs.SPECIAL, minimax_m3_vl_text=blocks):
        engine = engine_of(build_family("minimax_m3_vl_text"))
    assert "picks 2048 keys, too many to try" in str(engine.abilities.reason(ability))
    engine = engine_of(build_family("minimax_m3_vl_text"))
    assert (engine.abilities.reason(ability) is None) == (ability != "lockstep")


def test_a_meter_counts_after_the_prompt_only_and_splits_time() -> None:
    meter = Meter(timing=True)
    meter.count("layers", 1, 5)
    meter.start()
    meter.count("layers", 1, 2)
    meter.count("layers", 1, 2)
    meter.count("probe", 1, 2, "head")
    meter.lap("layers")
    assert meter.usage == {Item("layers", 1, 2): 2, Item("probe", 1, 2, "head"): 1}
    assert (meter.executed, meter.prompt_layers) == (9, 5)
    assert meter.seconds["layers"] > 0
    assert sum(meter.seconds[part] for part in PARTS_OF_TIME) == meter.seconds["layers"]
