"""Which layers of a model are alike."""

from __future__ import annotations

from pathlib import Path

import family_configs
import pytest
from family_configs import build_family
from streaming_cases import write_family
from torch import nn

from offramp.models.skeleton import Skeleton, build_skeleton, kinds_of_layers
from offramp.models.streaming import plan_partial_model


def skeleton_of(hf: object, layers: nn.ModuleList) -> Skeleton:
    return Skeleton(hf, layers, "model.layers.", "test")


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("llama", [0, 0, 0, 0]),
        ("deepseek_v3", [0, 1, 1, 1]),  # the first without experts
        ("bamba", [0, 1, 0, 1]),
        ("smollm3", [0, 0, 0, 3]),  # the fourth without positions
        ("diffllama", [0, 0, 0, 0]),  # each with its own initial weight of the second attention map
    ],
)
def test_layers_are_told_apart_by_their_make(family: str, kinds: list[int], tmp_path: Path) -> None:
    source = write_family(tmp_path, family)
    skeleton = build_skeleton(source, dtype="float32")
    assert kinds_of_layers(skeleton) == kinds
    real = plan_partial_model(skeleton).real
    assert {0, 1, *kinds} <= set(real)
    assert all(kind == 0 or kind - 1 in real for kind in kinds)


def test_one_number_or_shape_makes_another_kind() -> None:
    model = build_family("llama")
    layers = model.model.layers
    assert kinds_of_layers(skeleton_of(model, layers)) == [0, 0, 0, 0]
    layers[2].self_attn.window = 8
    for index in (0, 1, 3):
        layers[index].self_attn.window = 16
    assert kinds_of_layers(skeleton_of(model, layers)) == [0, 0, 2, 0]
    layers[3].mlp.up_proj.weight = nn.Parameter(layers[3].mlp.up_proj.weight[:-1])
    assert kinds_of_layers(skeleton_of(model, layers)) == [0, 0, 2, 3]


def test_a_counter_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(family_configs.SMALL, "num_hidden_layers", 6)
    model = build_family("llama")
    layers = model.model.layers
    for number, index in enumerate((1, 3, 5)):
        layers[index].attention_number = number
    assert kinds_of_layers(skeleton_of(model, layers)) == [0] * 6


def test_numbers_that_grow_faster_than_layers_are_counted_are_no_counters() -> None:
    model = build_family("llama")
    layers = model.model.layers
    for index, window in enumerate((8, 16, 32, 64)):
        layers[index].self_attn.window = window
    assert kinds_of_layers(skeleton_of(model, layers)) == [0, 1, 2, 3]
