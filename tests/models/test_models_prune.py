"""Depth pruning as a transform: its text, what it refuses, and what is left of the model."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from typing import Any

import pytest
import torch
from family_configs import model_of

from offramp.errors import InputError, ModelError
from offramp.models.model import Model
from offramp.models.transforms.prune import Prune


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "drop must be named unless by= chooses them"),
        ({"layers": 6}, "layers= means nothing without by="),
        ({"drop": (2,), "layers": 6}, "layers= means nothing without by="),
        ({"drop": (2,), "trace": "t"}, "trace= means nothing without by=influence"),
        ({"drop": (0, 2)}, "drop must be at least 1"),
        ({"drop": (2, 2)}, "drop must be layers, each once"),
        ({"by": "angles", "layers": 6}, "unknown measure 'angles'(.|\n)*did you mean 'angular'"),
        ({"by": "angular"}, "layers must be named beside by="),
        ({"by": "angular", "layers": 0}, "layers must be at least 1"),
        ({"by": "angular", "layers": 6, "tokens": 0}, "tokens must be at least 1"),
        ({"by": "angular", "layers": 6, "drop": (2,)}, "drop must be named unless by= chooses them"),
        ({"by": "angular", "layers": 6, "trace": "t"}, "trace= means nothing without by=influence"),
        ({"by": "influence", "layers": 6, "trace": "t", "tokens": 9}, "tokens= means nothing beside trace="),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Prune(**settings)


@pytest.mark.parametrize(
    ("prune", "message"),
    [
        (Prune(drop=(1, 2, 3, 4)), "leaves out all of the model's 4 layers"),
        (Prune(by="angular", layers=4), "leaves out all of the model's 4 layers"),
        (Prune(by="angular", layers=9), "leaves out 9 of the model's 4 layers"),
        (Prune(drop=(2, 5)), "leaves out layer 5, but the model has 4 layers"),
    ],
)
def test_more_layers_than_can_go_are_refused(prune: Prune, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prune.check_depth(4, "here")
    prune.check()  # no matter of the machine


def test_the_layers_are_gone_and_the_model_is_another_one() -> None:
    whole, model = model_of("llama"), model_of("llama")
    ids = torch.arange(3, 12)[None]
    expected = by_hand(whole.hf, ids, [0, 3])

    pruned = Prune(drop=(2, 3)).apply(model)
    assert torch.equal(pruned.hf(input_ids=ids, use_cache=False).logits, expected)
    assert pruned.layers == len(pruned.shape.layers) == 2
    assert pruned.stack.largest_difference == 0.0
    assert pruned.shape == model_of_layers(whole, [0, 3])
    assert pruned.identity.transforms == ("prune:drop=2+3",)
    assert pruned.identity.base_fingerprint == whole.identity.fingerprint
    assert pruned.identity.fingerprint != whole.identity.fingerprint


def by_hand(hf: Any, ids: torch.Tensor, keep: list[int]) -> torch.Tensor:
    """A Llama's forward pass written out, through some of its layers."""
    inner = hf.model
    hidden = inner.embed_tokens(ids)
    positions = torch.arange(ids.shape[1])[None]
    rotary = inner.rotary_emb(hidden, positions)
    for index in keep:
        hidden = inner.layers[index](hidden, position_embeddings=rotary, position_ids=positions)
    return hf.lm_head(inner.norm(hidden))  # type: ignore[no-any-return]


def model_of_layers(model: Model, keep: list[int]) -> Any:
    return dataclasses.replace(model.shape, layers=tuple(model.shape.layers[index] for index in keep))


def test_the_shape_is_that_which_would_be_measured() -> None:
    from offramp.models.measuring import measure_shape

    pruned = Prune(drop=(2,)).apply(model_of("jamba"))
    # Positions are the config's, not measured.
    measured = dataclasses.replace(measure_shape(pruned.hf, pruned.stack), context_length=128)
    assert pruned.shape == measured
    assert [layer.kind for layer in pruned.shape.layers] == ["recurrent", "recurrent", "attention"]


def test_the_memory_of_the_layers_is_given_back() -> None:
    model = model_of("llama")
    dropped, kept = (weakref.ref(model.stack.layers[index].mlp.up_proj.weight) for index in (1, 2))
    model = Prune(drop=(2,)).apply(model)
    gc.collect()
    assert dropped() is None
    assert kept() is not None


def test_what_cannot_be_applied_says_why_and_changes_nothing() -> None:
    model = model_of("llama")
    with pytest.raises(ModelError, match="are not chosen yet"):
        Prune(by="angular", layers=1).apply(model)
    with pytest.raises(InputError, match="leaves out layer 5"):
        Prune(drop=(5,)).apply(model)
    with pytest.raises(ModelError, match="stay on disk"):
        Prune(drop=(2,)).apply(dataclasses.replace(model, streamed=object()))  # type: ignore[arg-type]
    assert len(model.hf.model.layers) == 4
    with pytest.raises(ModelError, match="pruned before: prune:drop=2"):
        Prune(drop=(1,)).apply(Prune(drop=(2,)).apply(model))
    with pytest.raises(ModelError, match="share the weight"):
        Prune(drop=(2,)).apply(model_of("zamba2"))
