"""K and V that grow in place, against transformers' own layers of a cache, which make them anew each time."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from generation_cases import PROMPTS, generate_batch, tiny_llama
from map_cases import maps_for
from strategy_cases import build_windowed, decode, ids_of
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from offramp.decoding.engine import cache as caching
from offramp.decoding.engine import sequences
from offramp.decoding.engine.cache import GrowingLayer, crop, grow_in_place, restore, snapshot
from offramp.decoding.generation.prompts import prompt_batch
from offramp.decoding.generation.result import BatchGeneration
from offramp.decoding.strategies.registry import STRATEGIES

# Beyond the room that is made first, so that buffers grow on the way.
ROOM, NEW = 8, 20
BATCHINGS = ("lockstep", "rebatch")


@pytest.fixture(autouse=True)
def _little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "LEAST_ROOM", ROOM)


def layers() -> tuple[GrowingLayer, DynamicLayer]:
    """A layer that grows in place and one of transformers' own, both with the same prompt of 5 positions."""
    cache = DynamicCache()
    cache.layers.append(DynamicLayer())
    grow_in_place(cache)
    both = (cache.layers[0], DynamicLayer())
    write(both, 5, seed=0)
    return both


def write(both: tuple[Any, ...], new: int, seed: int, rows: int = 2) -> None:
    """The same new positions to each: K and V of 3 heads, of 4 and 6 features."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(rows, 3, new, features, generator=generator) for features in (4, 6))
    found = [entry.update(keys, values) for entry in both]
    for entry, (all_keys, all_values) in zip(both, found, strict=True):
        assert torch.equal(all_keys, found[-1][0])
        assert torch.equal(all_values, found[-1][1])
        assert torch.equal(entry.keys, all_keys)
        assert entry.get_seq_length() == all_keys.shape[-2]


def buffer(entry: GrowingLayer) -> int:
    assert entry.room is not None
    return entry.room.keys.data_ptr()


def test_many_updates_give_what_concatenation_gives_and_few_of_them_copy() -> None:
    both = layers()
    buffers = set()
    for seed in range(1, 1 + NEW):
        write(both, 1 + seed % 2, seed)
        buffers.add(buffer(both[0]))
        assert both[0].keys.data_ptr() == buffer(both[0])
    assert 1 < len(buffers) <= 1 + 3 * NEW // 2 // ROOM


def test_what_was_cropped_is_written_over_in_place() -> None:
    both = layers()
    write(both, 4, seed=1)
    before = buffer(both[0])
    for entry in both:
        entry.crop(-3)
    write(both, 2, seed=2)
    assert buffer(both[0]) == before


def test_snapshots_hold_what_they_held_whatever_is_written_later() -> None:
    cache = DynamicCache()
    cache.layers.append(DynamicLayer())
    grow_in_place(cache)
    entry = cache.layers[0]
    write((entry,), 5, seed=0)
    write((entry,), 2, seed=1)
    pasts, expected = [], []
    for seed in range(2, 6):
        pasts.append(snapshot(cache, [0], 0, [0]))
        expected.append(entry.keys.clone())
        write((entry,), 1, seed)
        if seed == 3:
            # Below what the snapshots hold: these positions may not be written over.
            crop(cache, [0], 4)
            write((entry,), 3, seed=30)
    for place in (1, 3, 0, 2, 1, 0):
        restore(cache, pasts[place])
        assert torch.equal(entry.keys, expected[place])
        write((entry,), 2, seed=40 + place)
        assert torch.equal(entry.keys[..., :-2, :], expected[place])


def test_of_a_layer_of_another_make_nothing_is_asked() -> None:
    """Whatever it calls by the names that layers that grow in place have."""

    class Other(DynamicLayer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.keep = self.release = 7

    layer = Other()
    cache = DynamicCache()
    cache.layers = [layer]
    ones = torch.ones(1, 1, 3, 2)
    layer.update(ones, ones)
    past = snapshot(cache, [0], 0, [3])
    layer.update(ones, ones)
    restore(cache, past)
    assert layer.get_seq_length() == 3
    assert layer.keep == 7


def test_chosen_rows_and_copies_go_on_alone() -> None:
    both = layers()
    write(both, 1, seed=1)
    kept = both[0].keys.clone()
    copied = copy.deepcopy(both)
    write(copied, 3, seed=2)
    assert torch.equal(both[0].keys, kept)
    for entry in both:
        entry.reorder_cache(torch.tensor([1]))
    write(both, 2, seed=3, rows=1)
    for entry in both:
        entry.batch_repeat_interleave(2)
        entry.batch_select_indices(torch.tensor([1, 0]))
    write(both, 1, seed=4)
    # The first row alone begins where the buffer begins, and yet is not all of it.
    for entry in both:
        entry.keys, entry.values = entry.keys[:1], entry.values[:1]
    write(both, 1, seed=5, rows=1)
    for entry in both:
        entry.reset()
    write(both, 2, seed=6)


def test_positions_of_other_rows_or_another_type_are_treated_as_before() -> None:
    grown, own = layers()
    write((grown, own), 1, seed=1)
    wrong = torch.zeros(1, 3, 1, 4), torch.zeros(1, 3, 1, 6)
    for entry in (grown, own):
        with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
            entry.update(*wrong)
    doubles = torch.ones(2, 3, 1, 4).double(), torch.ones(2, 3, 1, 6).double()
    assert grown.update(*doubles)[0].dtype == own.update(*doubles)[0].dtype == torch.float64


def test_only_plain_layers_of_full_attention_are_replaced() -> None:
    cache = DynamicCache()
    cache.layers += [DynamicLayer(), DynamicSlidingWindowLayer(8)]
    sliding = cache.layers[1]
    grow_in_place(cache)
    assert isinstance(cache.layers[0], GrowingLayer)
    assert cache.layers[1] is sliding
    cache.update(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), 2)
    assert isinstance(cache.layers[2], GrowingLayer), "also a layer that is only made when it is written to"
    grow_in_place(object())  # a cache of another make


class Recorded:
    """A logits processor that keeps what it is given."""

    def __init__(self) -> None:
        self.scores: list[Tensor] = []

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        self.scores.append(scores.clone())
        return scores


@contextmanager
def concatenating() -> Iterator[None]:
    """The loop with transformers' own layers of a cache."""
    with patch.object(sequences, "grow_in_place", lambda cache: None):
        yield


def assert_same_run(ours: tuple[BatchGeneration, Recorded], own: tuple[BatchGeneration, Recorded]) -> None:
    """The same numbers in every logit, and the same layers."""
    assert len(ours[1].scores) == len(own[1].scores)
    assert all(torch.equal(one, other) for one, other in zip(ours[1].scores, own[1].scores, strict=True))
    assert [list(row.tokens) for row in ours[0].rows] == [list(row.tokens) for row in own[0].rows]
    assert ours[0].usage == own[0].usage


@pytest.mark.parametrize(
    ("kv", "batching"),
    [
        (kv, batching)
        for kv in STRATEGIES
        for batching in BATCHINGS
        if (kv, batching) != ("speculate", "rebatch")
    ],
)
def test_every_strategy_computes_the_same_numbers(kv: str, batching: str) -> None:
    """Three rows of unequal length, one of which ends early and leaves the batch."""
    model = tiny_llama()
    policy = "threshold:signal=margin,value=0.01,exits=1+2"
    if kv == "monotone":
        policy = f"monotone:policy=[{policy}]"
    heads = maps_for(model) if kv == "mapped" else None
    batch = prompt_batch(model, list(PROMPTS[:3]), chat=False)

    def run(ends: int | None) -> tuple[BatchGeneration, Recorded]:
        recorded = Recorded()
        found = generate_batch(
            model, batch.ids, batch.mask, policy=policy, kv=kv, heads=heads, batching=batching,
            max_new_tokens=NEW, logits_processor=[recorded], eos_token_id=ends,
        )  # fmt: skip
        return found, recorded

    token = int(run(None)[0].rows[1].tokens[9])
    ours = run(token)
    assert len({len(row.tokens) for row in ours[0].rows}) > 1
    with concatenating():
        assert_same_run(ours, run(token))


@pytest.mark.parametrize("kv", ["recompute", "speculate"])
@pytest.mark.parametrize("family", ["mistral", "jamba", "deepseek_v3"])
def test_beside_windows_states_and_latents_the_same_numbers_come_out(family: str, kv: str) -> None:
    hf = build_windowed(family)
    ids = ids_of(hf, 9)

    def run() -> tuple[BatchGeneration, Recorded]:
        recorded = Recorded()
        policy = "threshold:signal=max_prob,value=0.005,exits=1+2"
        return decode(hf, ids, policy, kv, new=24, logits_processor=[recorded]), recorded

    ours = run()
    with concatenating():
        assert_same_run(ours, run())
