"""Fitting K,V maps of small models, against plain ridge regressions on states collected by hand."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from fitting_cases import plain_ridge, states_by_hand, texts
from tracing_models import llama, tiny_model

from offramp.errors import InputError
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.parts import ExitMaps
from offramp.tracing.fitting.fit import fit_heads
from offramp.tracing.fitting.fitting_documents import plan_rows, split_documents
from offramp.tracing.fitting.maps import AUTO_DISTANCE, FittingMemory, fitting_memory
from offramp.tracing.tracer import trace

TOKENS = 700


@functools.cache
def model() -> Any:
    """Five layers, so that exits 1 to 3 have maps."""
    return tiny_model(llama(num_hidden_layers=5), head_scale=3.0)


def fit(**options: Any) -> ExitHeads:
    options = {"kv_maps": (1, 3), "lens": False, "classifiers": False, **options}
    return fit_heads(model(), texts(), tokens=TOKENS, progress=False, **options)


def maps_of(heads: ExitHeads, exit: int) -> ExitMaps:
    assert heads.kv_maps is not None
    return heads.kv_maps.maps[exit]


@functools.cache
def rows_by_hand() -> tuple[np.ndarray, np.ndarray]:
    """Every layer's output [layers, rows, hidden] of the rows that fitting reads, and which are held out."""
    parts = split_documents(texts(), [1.0], 0)
    planned = plan_rows(model(), [(texts(), parts[0])], TOKENS, context=None, shown=False)
    states, document = states_by_hand(model(), planned.contexts)
    return states, planned.held_out[document]


def change_of(maps: ExitMaps, layer: int) -> np.ndarray:
    """D of one layer, whole."""
    if maps.change is not None:
        return maps.change[layer]
    assert maps.inward is not None
    assert maps.outward is not None
    return maps.outward[layer] @ maps.inward


@pytest.mark.parametrize("rank", ["full", 10_000])
@pytest.mark.parametrize("exit", [1, 3])
def test_each_map_is_a_ridge_regression_of_its_layer(exit: int, rank: Any) -> None:
    """Of full rank the shared columns leave nothing out."""
    maps = maps_of(fit(kv_rank=rank), exit)
    states, held_out = rows_by_hand()
    x = states[exit - 1]
    weights = 1.0 / (x**2).mean(1)
    for place, layer in enumerate(range(exit + 1, 5)):
        change = states[layer - 1] - x
        expected, _ = plain_ridge(x, change, maps.penalty, weights)
        np.testing.assert_allclose(change_of(maps, place), expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(maps.bias[place], np.average(change, axis=0, weights=weights), atol=1e-5)
        fit_on = plain_ridge(x[~held_out], change[~held_out], maps.penalty, weights[~held_out])
        error = change[held_out] - x[held_out] @ fit_on[0].T - fit_on[1]
        about = change[held_out] - np.average(change[held_out], axis=0, weights=weights[held_out])
        shares = [(weights[held_out] * (part**2).sum(1)).sum() for part in (error, about)]
        assert maps.explained[-1, place] == pytest.approx(1 - shares[0] / shares[1], abs=1e-4)
    np.testing.assert_allclose(maps.centre, np.average(x, axis=0, weights=weights), atol=1e-5)


def test_low_rank_is_the_best_of_its_rank_for_all_layers_together() -> None:
    """No other columns of that rank leave less of the penalised error, each layer's over its variance."""
    fitted, full = maps_of(fit(kv_rank=4), 1), maps_of(fit(kv_rank="full"), 1)
    states, _ = rows_by_hand()
    x = states[0]
    weights = 1.0 / (x**2).mean(1)
    weights /= weights.sum()
    mean = weights @ x
    metric = (x - mean).T @ (weights[:, None] * (x - mean)) + fitted.penalty * np.eye(x.shape[1])
    changes = [states[layer] - x for layer in (1, 2, 3)]
    variances = [(weights @ (part - weights @ part) ** 2).sum() for part in changes]

    def loss(columns: np.ndarray) -> float:
        """Of the best maps with the row space of columns [rank, hidden]."""
        total = 0.0
        for place, variance in enumerate(variances):
            whole = full.change[place].T.astype(float)
            inner = columns @ metric @ columns.T
            best = columns.T @ np.linalg.solve(inner, columns @ metric @ whole)
            total += np.trace((whole - best).T @ metric @ (whole - best)) / variance
        return float(total)

    assert fitted.inward is not None
    chosen = fitted.inward.astype(float)
    generator = np.random.default_rng(0)
    for size in (1e-3, 0.1, 10.0):
        other = chosen + size * np.abs(chosen).mean() * generator.normal(size=chosen.shape)
        assert loss(chosen) < loss(other)
    for place in range(3):
        inner = chosen @ metric @ chosen.T
        whole = full.change[place].T.astype(float)
        best = chosen.T @ np.linalg.solve(inner, chosen @ metric @ whole)
        np.testing.assert_allclose(change_of(fitted, place), best.T, rtol=1e-2, atol=2e-4)


def test_a_truncated_fit_is_the_fit_of_that_rank() -> None:
    wide, narrow = fit(kv_rank=9).kv_maps, fit(kv_rank=4).kv_maps
    assert wide is not None
    assert narrow is not None
    for exit, maps in wide.truncated(4).maps.items():
        for place in range(len(maps.bias)):
            np.testing.assert_allclose(
                change_of(maps, place), change_of(narrow.maps[exit], place), rtol=1e-4, atol=1e-6
            )
        np.testing.assert_allclose(maps.explained, narrow.maps[exit].explained, atol=1e-9)


def test_auto_is_the_smallest_rank_that_explains_nearly_as_much() -> None:
    whole = fit(kv_rank=10_000)
    for exit in (1, 3):
        chosen = maps_of(fit(), exit)
        mean = maps_of(whole, exit).explained.mean(1)
        assert chosen.rank is not None
        assert mean[chosen.rank - 1] >= mean[-1] - AUTO_DISTANCE
        assert (mean[: chosen.rank - 1] < mean[-1] - AUTO_DISTANCE).all()


def test_maps_alone_change_nothing_that_is_traced() -> None:
    heads = fit()
    assert heads.exits == ()
    assert heads.shortlist is None
    plain = trace(model(), texts(), tokens=60, progress=False, signals=("restricted",))
    through = trace(model(), texts(), tokens=60, progress=False, signals=("restricted",), heads=heads)
    for fact in plain.fact_names:
        np.testing.assert_array_equal(getattr(through, fact), getattr(plain, fact))
    assert through.request["heads"]["reading"] is None
    assert set(through.request["heads"]["kv_maps"]["ranks"]) == {"1", "3"}


def test_lens_and_classifiers_are_those_without_maps() -> None:
    """One pass over the lens's documents gives both; nothing else of the heads moves."""
    options: Any = {"lens": True, "classifiers": ["correctness"]}
    alone, both = fit(kv_maps=None, **options), fit(**options)
    assert alone.lens is not None
    assert both.lens is not None
    np.testing.assert_array_equal(alone.lens.weight, both.lens.weight)
    assert both.reading_fingerprint == alone.fingerprint
    assert both.kv_maps is not None
    (lens_documents,) = both.kv_maps.documents.values()
    assert set(lens_documents) < set(both.documents[texts().fingerprint])
    without_lens = fit(classifiers=["correctness"])
    assert without_lens.lens is None
    assert without_lens.kv_maps is not None
    (of_maps,), (of_classifiers,) = without_lens.kv_maps.documents.values(), without_lens.documents.values()
    assert not set(of_maps) & set(of_classifiers)


def test_exits_with_nothing_to_map_to_and_ranks_that_are_none_are_refused() -> None:
    for exits in ((4,), (0,), (1, 9), ()):
        with pytest.raises(InputError) as caught:
            fit(kv_maps=exits)
        assert caught.value.where == "kv_maps= (--kv-maps)"
    for rank in (0, -1, "half", True, 1.5):
        with pytest.raises(InputError, match=r"kv.rank (cannot|must) be"):
            fit(kv_rank=rank)


def test_sizes_are_told_before_the_fit_and_refused_if_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[FittingMemory] = []
    fit(on_memory=told.append)
    assert "K,V maps at exits 1, 3 take" in told[0].parts[0]
    monkeypatch.setattr("offramp.tracing.fitting.maps.MEMORY_SHARE", 1e-9)
    with pytest.raises(InputError, match=r"sums of K,V maps at exits 1, 3 take .* the maps at most .* free"):
        fit()


def test_low_rank_maps_of_a_wide_model_fit_beside_it() -> None:
    """Hidden size 4,096, 32 layers, three exits: whole maps take gigabytes, those of rank 64 do not."""
    whole = fitting_memory(4096, 32, 0, (8, 16, 24), "full")
    low = fitting_memory(4096, 32, 0, (8, 16, 24), 64)
    layers = 23 + 15 + 7
    assert whole.maps == 4 * layers * (4096**2 + 4096)
    assert low.maps == 4 * (layers * (4096 * 64 + 4096) + 3 * 4096 * 64)
    assert low.maps < 0.06e9 < 3e9 < whole.maps
    assert low.map_sums == whole.map_sums == 2 * 8 * (layers + 3) * 4096**2
