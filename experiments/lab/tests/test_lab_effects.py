"""Effects against loops written out, in null worlds, where little is claimed, and in known ones."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from lab_worlds import make_runs
from scipy import stats

from offramp_lab.design import FACTORS, LEVELS, half_fraction
from offramp_lab.effects import (
    Cells,
    fitted,
    flip_effects,
    flipped_t,
    flips,
    group_t,
    kind_effects,
    largest_by_label,
    main_effects,
    orders,
    pair_effects,
    relabelings,
    step_down,
    tells_apart,
)
from offramp_lab.families import _untested
from offramp_lab.runs import Block, Values

CELLS = np.array([[2 * LEVELS[one].index(cell[one]) - 1 for one in FACTORS] for cell in half_fraction()])
SIGNS = np.concatenate([CELLS, CELLS[[0, 0, 15, 15]]])
"""The 20 runs of the design: 16 cells, the two corners with three seeds."""
KINDS = ["dense"] * 3 + ["mixture"] * 4 + ["mamba2"] * 4
ENDPOINTS = ("a", "b", "c", "d")
SMALLEST = dict.fromkeys(ENDPOINTS, 0.5)


def block_of(seed: int, runs: Any, added: Values | float = 0.0) -> Block:
    """Runs with errors of size 1 that endpoints half share. added: [runs, endpoints]."""
    generator, count = np.random.default_rng(seed), len(runs)
    shared, own = generator.normal(size=(count, 1)), generator.normal(size=(count, 4))
    values = (shared + own) / np.sqrt(2) + added
    runs = runs.assign(loss=generator.normal(4.0, 0.05, count))
    last = values + 0.2 * generator.normal(size=values.shape)
    return Block(ENDPOINTS, runs, 4.0, values, last, {}, ())


DENSE = make_runs(["dense"] * 20, [4.0] * 20, SIGNS.tolist())
OF_KINDS = make_runs(KINDS, [4.0] * 11)


def world(seed: int, effects: Values | None = None) -> Block:
    """20 runs. effects: [factors, endpoints]."""
    return block_of(seed, DENSE, 0.0 if effects is None else SIGNS @ effects / 2)


def test_a_fit_is_that_of_a_plain_calculation() -> None:
    block = world(3)
    cells = Cells.of(SIGNS, block.matched, block.runs["loss"].to_numpy())
    by_hand: dict[tuple[int, ...], list[Values]] = {tuple(signs): [] for signs in CELLS.tolist()}
    for signs, row in zip(SIGNS.tolist(), block.matched, strict=True):
        by_hand[tuple(signs)].append(row)
    spread = sum(((np.array(rows) - np.mean(rows, axis=0)) ** 2).sum(0) for rows in by_hand.values())
    assert cells.freedom == 4
    assert cells.variance == pytest.approx(spread / 4)
    columns = cells.signs.astype(np.float64)
    effects, t, residuals = fitted(columns, cells.values)
    for place, endpoint in itertools.product(range(5), range(4)):
        means = {signs: np.mean(rows, axis=0)[endpoint] for signs, rows in by_hand.items()}
        high = np.mean([mean for signs, mean in means.items() if signs[place] == 1])
        low = np.mean([mean for signs, mean in means.items() if signs[place] == -1])
        assert effects[place, endpoint] == pytest.approx(high - low)
    expected = 2 * np.sqrt(cells.variance) * np.sqrt(14 + 2 / 3) / 16  # docs/preregistered.md, family 1
    assert cells.seed_errors(columns) == pytest.approx(np.tile(expected, (5, 1)))
    chance = fitted(columns, residuals[orders(16, 3, 0)])[1]
    for row, order in zip(chance, orders(16, 3, 0), strict=True):
        assert row == pytest.approx(fitted(columns, residuals[order])[1])
    assert t.shape == (5, 4)


def test_step_down_is_that_of_a_plain_loop() -> None:
    generator = np.random.default_rng(0)
    t, chance = generator.normal(size=(3, 2)) * 2, np.abs(generator.normal(size=(50, 3, 2)))
    flat, left, largest, expected = np.abs(t).ravel(), list(range(6)), 0.0, {}
    while left:
        place = max(left, key=lambda one: flat[one])
        hits = sum(max(row.ravel()[left]) >= flat[place] for row in chance)
        expected[place] = largest = max(largest, (1 + hits) / 51)
        left.remove(place)
    assert step_down(t, chance).ravel() == pytest.approx([expected[place] for place in range(6)])


def test_effects_beside_the_loss_are_those_of_a_plain_regression() -> None:
    block = world(2)
    last = Cells.of(SIGNS, block.last, block.runs["loss"].to_numpy())
    design = np.column_stack([np.ones(16), last.signs, last.losses - last.losses.mean()])
    coefficients, squares, *_ = np.linalg.lstsq(design, last.values[:, 1], rcond=None)
    inverse = np.linalg.inv(design.T @ design)
    found = main_effects(block, SMALLEST, permutations=19).set_index(["name", "endpoint"])
    one = found.loc["mlp", "b"]
    assert one["with_loss"] == pytest.approx(2 * coefficients[2])
    error = math.sqrt(squares[0] / 9 * inverse[2, 2])
    assert one["p_with_loss"] == pytest.approx(2 * stats.t.sf(abs(coefficients[2]) / error, 9))
    corner = found.loc["Llama-like - GPT-2-like", "b"]
    assert corner["with_loss"] == pytest.approx(2 * coefficients[1:5].sum())
    error = math.sqrt(squares[0] / 9 * inverse[1:5, 1:5].sum())
    assert corner["p_with_loss"] == pytest.approx(2 * stats.t.sf(abs(coefficients[1:5].sum()) / error, 9))
    kinds = block_of(2, OF_KINDS)
    group = np.repeat([0, 1, 2], (3, 4, 4))
    design = np.column_stack([np.ones(11), group == 1, group == 2, kinds.runs["loss"]])
    coefficients, squares, *_ = np.linalg.lstsq(design, kinds.last[:, 0], rcond=None)
    of_a = kind_effects(kinds, SMALLEST).query("endpoint == 'a'")
    assert of_a["with_loss"].tolist() == pytest.approx([-coefficients[1], coefficients[1] - coefficients[2]])
    error = math.sqrt(squares[0] / 7 * np.linalg.inv(design.T @ design)[1, 1])
    assert of_a["p_with_loss"].iloc[0] == pytest.approx(2 * stats.t.sf(abs(coefficients[1]) / error, 7))


def test_an_endpoint_on_which_seeds_do_not_differ_gives_no_indications() -> None:
    block = world(2)
    floor = np.where(np.arange(4) == 1, 0.0, block.matched)  # no layer is skipped anywhere, say
    plain = pair_effects(block, permutations=199)
    found = pair_effects(replace(block, matched=floor), permutations=199)
    assert len(found) == len(plain) == 40
    idle = found["endpoint"] == "b"
    assert (found[idle]["value"] == 0.0).all()
    assert (found[idle]["adjusted"] == 1.0).all()
    assert found[idle]["low"].isna().all()
    assert set(found[idle]["word"]) == {"cannot be told"}
    assert (found["adjusted"] <= plain["adjusted"])[~idle].all(), "fewer are tested together"


def test_null_worlds_make_no_more_false_claims_than_they_may() -> None:
    worlds, false, claims, covered = 120, np.zeros(6), 0, np.zeros(6)
    for seed in range(worlds):
        generator = np.random.default_rng(seed)
        shared = generator.normal(size=(16, 1))
        pairs = (shared[:6] + generator.normal(size=(6, 4))) / np.sqrt(2)
        cells = shared / np.where(np.arange(16) % 15, 1, np.sqrt(3))[:, None]  # two of them means of three
        tests = [("x", one) for one in ENDPOINTS]
        factors = main_effects(world(seed), SMALLEST, permutations=199, seed=seed)
        families = (
            factors[factors["family"] == "1"],
            factors[factors["family"] == "corners"],
            pair_effects(world(seed), permutations=199),
            kind_effects(block_of(seed, OF_KINDS), SMALLEST),
            flip_effects("4", tests, pairs, SMALLEST, permutations=0),
            flip_effects("7", tests[:1], cells, SMALLEST, permutations=499, seed=seed),
        )
        for place, effects in enumerate(families):
            false[place] += (effects["adjusted"] <= 0.05).any()
            claims += effects["word"].isin(["lower", "higher"]).any()
            covered[place] += ((effects["low"] <= 0) & (effects["high"] >= 0)).mean()
    assert (false <= 0.05 * worlds + 3 * np.sqrt(worlds * 0.05 * 0.95)).all(), false
    assert claims <= false.sum()
    assert (np.abs(covered / worlds - 0.95) < 0.04).all(), covered


def test_known_effects_are_found_with_their_signs_and_sizes() -> None:
    effects, kinds = np.zeros((5, 4)), np.zeros((3, 4))
    effects[0], effects[3, 1], kinds[0, 0], kinds[2, 1] = 3.0, -4.0, 5.0, 5.0
    found, of_kinds = [], []
    for seed in range(40):
        found.append(main_effects(world(seed, effects), SMALLEST, permutations=199, seed=seed))
        block = block_of(seed, OF_KINDS, np.repeat(kinds, (3, 4, 4), axis=0))
        of_kinds.append(kind_effects(block, SMALLEST))
    groups = pd.concat(found).groupby(["name", "endpoint"])
    for (name, endpoint), mean in groups["value"].mean().items():
        place = ENDPOINTS.index(endpoint)
        expected = effects[:4, place].sum() if " - " in name else effects[FACTORS.index(name), place]
        assert mean == pytest.approx(expected, abs=4 * (0.82 if " - " in name else 0.48) / np.sqrt(40))
    words = groups["word"].agg(list)
    assert words["norm", "a"].count("higher") > 32
    assert words["heads", "b"].count("lower") > 36
    assert "lower" not in words["norm", "a"]
    kinds_found = pd.concat(of_kinds).groupby(["name", "endpoint"])
    means = kinds_found["value"].mean()
    assert means["dense - mixture", "a"] == pytest.approx(5.0, abs=4 * 0.77 / np.sqrt(40))
    assert means["mixture - mamba2", "b"] == pytest.approx(-5.0, abs=4 * 0.77 / np.sqrt(40))
    assert kinds_found["word"].agg(list)["mixture - mamba2", "b"].count("lower") > 32


def test_missing_cells_and_factors_of_one_level_are_named() -> None:
    assert [*_untested(SIGNS)] == []
    (few,) = _untested(SIGNS[1:16])
    assert few.startswith("15 of 16 cells are there")
    kept = SIGNS[:, 1] == -1
    assert next(_untested(SIGNS[kept])) == "mlp is gelu in every run that counts, and is not tested"
    assert tells_apart(SIGNS[kept])
    assert not tells_apart(SIGNS[:6])
    block = world(5)
    less = replace(block, runs=block.runs[kept], matched=block.matched[kept], last=block.last[kept])
    assert {*main_effects(less, SMALLEST, permutations=99)["name"]} == {
        "norm",
        "positions",
        "heads",
        "residual",
    }


def test_without_an_error_of_a_seed_nothing_is_told() -> None:
    block = world(4, np.full((5, 4), 3.0))
    alike = replace(block, matched=np.concatenate([block.matched[:16], block.matched[[0, 0, 15, 15]]]))
    one_seed = replace(block, runs=block.runs[:16], matched=block.matched[:16], last=block.last[:16])
    for one in (alike, one_seed):
        found = main_effects(one, SMALLEST, permutations=99)
        assert set(found["word"]) == {"cannot be told"}
        assert found[["low", "detectable"]].isna().all(axis=None)


def test_the_largest_effect_of_any_labels_is_that_of_all_of_them() -> None:
    """By hand: of 1, 2, 3 and 6 the two largest less the two smallest are 4.5 - 1.5, and one of them less
    the three others at most 6 - 2; whatever the labels are now."""
    values = np.array([[1.0], [6.0], [2.0], [3.0]])
    halves, one = [-0.5, 0.5, -0.5, 0.5], [1.0, -1 / 3, -1 / 3, -1 / 3]
    assert largest_by_label(np.array([halves, one]), values)[:, 0].tolist() == pytest.approx([3.0, 4.0])
    generator = np.random.default_rng(2)
    weights, values = generator.normal(size=(3, 6)), generator.normal(size=(6, 2))
    every = [np.abs(weights @ values[list(order)]) for order in itertools.permutations(range(6))]
    assert largest_by_label(weights, values) == pytest.approx(np.max(every, axis=0))


def test_no_difference_is_said_only_where_some_labels_would_have_shown_one() -> None:
    """The same errors twice: in a world where nothing moves the endpoint by what matters, and in one where a
    factor does, so that the same cells labelled otherwise show it."""

    def told(effects: Values) -> pd.DataFrame:
        block = world(6)
        small = replace(block, matched=0.05 * block.matched + SIGNS @ effects / 2)
        return main_effects(small, SMALLEST, permutations=99).set_index(["name", "endpoint"])

    moved = np.zeros((5, 4))
    moved[0, 0] = 1.0
    still, some = told(np.zeros((5, 4))), told(moved)
    for name in FACTORS[1:]:
        assert still.loc[name, "a"]["word"] == "cannot be told"
        assert not still.loc[name, "a"]["could_fail"]
        assert some.loc[name, "a"]["word"] == "no difference"
        assert some.loc[name, "a"]["value"] == pytest.approx(still.loc[name, "a"]["value"])
        assert some.loc[name, "b"]["word"] == "cannot be told"
    cells = Cells.of(SIGNS, 0.05 * world(6).matched, DENSE["loss"].to_numpy()).values
    ordered = np.sort(cells[:, 0])
    reachable = still.loc["mlp", "a"]["reachable"]
    assert reachable == pytest.approx(ordered[8:].mean() - ordered[:8].mean())
    # Groups of seeds: had one of them nothing of what the other has.
    kinds = block_of(2, OF_KINDS, 10.0)
    first = kind_effects(kinds, SMALLEST | {"a": 20.0}).iloc[0]
    assert first["reachable"] == pytest.approx(max(kinds.matched[:3, 0].mean(), kinds.matched[3:7, 0].mean()))
    assert (first["could_fail"], first["word"]) == (False, "cannot be told")
    assert kind_effects(kinds, SMALLEST | {"a": 9.0}).iloc[0]["word"] == "no difference"


def test_all_relabelings_are_there_once() -> None:
    ways = relabelings((3, 4, 4))
    assert ways.shape == (11_550, 11)
    assert ways[0].tolist() == [0] * 3 + [1] * 4 + [2] * 4
    small = {tuple(way) for way in relabelings((1, 2, 2)).tolist()}
    assert small == set(itertools.permutations([0, 1, 1, 2, 2]))
    assert len(relabelings((1, 2, 2))) == len(small)


def test_kinds_are_tested_as_a_plain_loop_does() -> None:
    """5 runs of 3 kinds on 2 endpoints: every order, t by hand, the largest of all, step-down."""
    values = np.random.default_rng(1).normal(size=(5, 2))

    def by_hand(order: tuple[int, ...]) -> list[list[float]]:
        groups = [values[list(order[:2])], values[list(order[2:4])], values[list(order[4:])]]
        within = sum(((one - one.mean(0)) ** 2).sum(0) for one in groups) / 2
        return [
            ((one.mean(0) - other.mean(0)) / np.sqrt(within * (1 / len(one) + 1 / len(other)))).tolist()
            for one, other in itertools.pairwise(groups)
        ]

    found = by_hand((0, 1, 2, 3, 4))
    t, differences, _ = group_t(values, (2, 2, 1), relabelings((2, 2, 1)))
    assert t[0] == pytest.approx(np.array(found))
    assert differences[0, 0] == pytest.approx(values[:2].mean(0) - values[2:4].mean(0))
    largest = [np.abs(by_hand(order)).max() for order in itertools.permutations(range(5))]
    expected = np.mean(np.array(largest) >= np.abs(found).max() - 1e-12)
    assert step_down(t[0], t[1:]).min() == pytest.approx(expected)


def test_flips_are_tested_as_a_plain_loop_does() -> None:
    values = np.random.default_rng(3).normal(0.4, size=(4, 2))
    signs = flips(4, 99, 0)
    assert (signs.shape, signs[0].tolist()) == ((16, 4), [1.0] * 4)
    by_hand = [
        [abs(stats.ttest_1samp(np.array(row) * values[:, place], 0).statistic) for place in range(2)]
        for row in itertools.product((1, -1), repeat=4)
    ]
    t, errors = flipped_t(values, signs)
    assert np.abs(t) == pytest.approx(np.array(by_hand))
    assert errors[0] == pytest.approx(stats.sem(values))
    largest = np.array(by_hand).max(1)
    found = flip_effects("4", [("x", "a"), ("x", "b")], values, SMALLEST, permutations=99)
    assert found["adjusted"].min() == pytest.approx(np.mean(largest >= largest[0] - 1e-12))
    assert flips(16, 500, 0).shape == (501, 16)


def test_six_pairs_reach_what_they_can_and_none_that_are_equal_tell_anything() -> None:
    six = np.array([0.9, 1.0, 1.1, 1.0, 0.8, 1.2])[:, None]

    def told(values: Values) -> pd.Series:
        return flip_effects("5", [("x", "a")], values, SMALLEST, permutations=99).iloc[0]

    assert (told(six)["adjusted"], told(six)["word"]) == (2 / 64, "higher")
    assert (told(-six[:5])["adjusted"], told(-six[:5])["word"]) == (2 / 32, "cannot be told")
    for equal in (np.zeros((6, 1)), np.full((6, 1), 0.1)):
        assert told(equal)["word"] == "cannot be told"
        assert pd.isna(told(equal)["low"])
    assert flip_effects("5", [("x", "a")], six[:1], SMALLEST, permutations=99).empty
