"""What the engine leaves behind, runs later and takes back, against transformers' own forward passes."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import family_configs
import numpy as np
import pytest
import torch
from family_configs import build_family
from rounding import logit_bounds, spread
from torch import Tensor

from offramp.decoding.engine.build import engine_of
from offramp.decoding.engine.cache import entries_of
from offramp.decoding.engine.capability_tests import random_ids
from offramp.decoding.engine.engine import ABILITIES, PARTS_OF_TIME, Engine, Meter
from offramp.decoding.engine.sequences import Sequences
from offramp.errors import ModelError
from offramp.policies.cost_breakdown import Item

FAMILIES = ["llama", "mistral", "deepseek_v3", "gpt2", "mamba", "jamba"]
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


def test_a_window_lets_go_of_what_it_kept_for_a_round_in_which_nothing_is_taken_back(
    engines: dict[str, Engine],
) -> None:
    engine = engines["mistral"]
    ids = random_ids(engine, 1, PROMPT + 3)
    sequences = begun(engine, ids[:, :PROMPT])
    held = [entry.keys.shape for entry in entries_of(sequences.cache)]
    sequences.record_past()
    for position in range(PROMPT, PROMPT + 3):
        step(sequences, ids[:, position : position + 1], engine.layers)
        assert [entry.keys.shape for entry in entries_of(sequences.cache)] != held
        sequences.crop(position + 1, 0, engine.layers)
        assert [entry.keys.shape for entry in entries_of(sequences.cache)] == held


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


@pytest.mark.parametrize("family", ["mistral", "deepseek_v3", "gpt2"])
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


@pytest.mark.parametrize("family", ["llama", "jamba"])
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


def test_picked_keys_and_blocks_are_not_trusted_where_they_cannot_be_tried() -> None:
    """A short prompt never reaches beyond what attention picks."""
    with patch.dict(family_configs.SMALL, index_topk=2048):
        keys = engine_of(build_family("deepseek_v32")).abilities
    with patch.dict(
        family_configs.SPECIAL, minimax_m3_vl_text={"index_topk_blocks": 16, "index_block_size": 128}
    ):
        blocks = engine_of(build_family("minimax_m3_vl_text")).abilities
    few = engine_of(build_family("minimax_m3_vl_text")).abilities
    for ability in ("recompute", "speculate", "lockstep"):
        assert "picks 2048 keys" in str(keys.reason(ability))
        assert "picks 2048 keys, too many to try" in str(blocks.reason(ability))
        assert (few.reason(ability) is None) == (ability != "lockstep")
    assert keys.reason("propagate") is None


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
