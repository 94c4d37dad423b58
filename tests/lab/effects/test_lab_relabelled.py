"""Families 3, 4, 5, 7 and 8 against loops written out, in null worlds and in known ones."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from lab_worlds import make_runs
from offramp.lab.effects.effect import step_down
from offramp.lab.effects.matching import Block
from offramp.lab.effects.relabelled import (
    flip_effects,
    flipped_t,
    flips,
    group_t,
    kind_effects,
    relabelings,
)

Values = NDArray[np.float64]
ENDPOINTS = ("a", "b", "c", "d")
SMALLEST = dict.fromkeys(ENDPOINTS, 0.5)
KINDS = ["dense"] * 3 + ["mixture"] * 4 + ["mamba2"] * 4


def world(seed: int, effects: Values | None = None) -> Block:
    """11 runs with errors of size 1 that endpoints half share. effects: added, [kinds, endpoints]."""
    generator = np.random.default_rng(seed)
    shared, own = generator.normal(size=(11, 1)), generator.normal(size=(11, 4))
    values = (shared + own) / np.sqrt(2)
    if effects is not None:
        values += np.repeat(effects, (3, 4, 4), axis=0)
    last = values + 0.2 * generator.normal(size=values.shape)
    return Block(ENDPOINTS, make_runs(KINDS, generator.normal(4.0, 0.05, 11)), 4.0, values, last, {})


def test_all_relabelings_are_there_once() -> None:
    ways = relabelings((3, 4, 4))
    assert ways.shape == (11_550, 11)
    assert ways[0].tolist() == [0] * 3 + [1] * 4 + [2] * 4
    small = {tuple(way) for way in relabelings((1, 2, 2)).tolist()}
    assert small == set(itertools.permutations([0, 1, 1, 2, 2]))
    assert len(relabelings((1, 2, 2))) == len(small)


def test_kinds_are_tested_as_a_plain_loop_does() -> None:
    """4 runs of 3 kinds on 2 endpoints: every order, t by hand, the largest of all, step-down."""
    values = np.random.default_rng(1).normal(size=(5, 2))
    sizes = (2, 2, 1)

    def by_hand(order: tuple[int, ...]) -> list[list[float]]:
        groups = [values[list(order[:2])], values[list(order[2:4])], values[list(order[4:])]]
        within = sum(((one - one.mean(0)) ** 2).sum(0) for one in groups) / 2
        return [
            ((one.mean(0) - other.mean(0)) / np.sqrt(within * (1 / len(one) + 1 / len(other)))).tolist()
            for one, other in itertools.pairwise(groups)
        ]

    found = by_hand((0, 1, 2, 3, 4))
    t, differences, _ = group_t(values, sizes, relabelings(sizes))
    assert t[0] == pytest.approx(np.array(found))
    assert differences[0, 0] == pytest.approx(values[:2].mean(0) - values[2:4].mean(0))
    largest = [np.abs(by_hand(order)).max() for order in itertools.permutations(range(5))]
    expected = np.mean(np.array(largest) >= np.abs(found).max() - 1e-12)
    assert step_down(t[0], t[1:]).min() == pytest.approx(expected)


def test_two_kinds_at_the_last_step_with_the_loss_are_a_plain_regression() -> None:
    block = world(2)
    found = [one for one in kind_effects(block, SMALLEST) if one.endpoint == "a"]
    kinds = np.repeat([0, 1, 2], (3, 4, 4))
    design = np.column_stack([np.ones(11), kinds == 1, kinds == 2, block.losses])
    coefficients, squares, *_ = np.linalg.lstsq(design, block.last[:, 0], rcond=None)
    assert found[0].with_loss == pytest.approx(-coefficients[1])
    assert found[1].with_loss == pytest.approx(coefficients[1] - coefficients[2])
    error = math.sqrt(squares[0] / 7 * np.linalg.inv(design.T @ design)[1, 1])
    assert found[0].p_with_loss == pytest.approx(2 * stats.t.sf(abs(coefficients[1]) / error, 7))


def test_flips_are_tested_as_a_plain_loop_does() -> None:
    values = np.random.default_rng(3).normal(0.4, size=(4, 2))
    signs = flips(4, 99, 0)
    assert signs.shape == (16, 4)
    assert signs[0].tolist() == [1.0] * 4
    assert len({tuple(row) for row in signs.tolist()}) == 16
    by_hand = [
        [abs(stats.ttest_1samp(np.array(row) * values[:, place], 0).statistic) for place in range(2)]
        for row in itertools.product((1, -1), repeat=4)
    ]
    t, errors = flipped_t(values, signs)
    assert np.abs(t) == pytest.approx(np.array(by_hand))
    assert errors[0] == pytest.approx(stats.sem(values))
    largest = np.array(by_hand).max(1)
    (first, second) = flip_effects("4", [("x", "a"), ("x", "b")], values, SMALLEST, permutations=99)
    assert min(first.adjusted, second.adjusted) == pytest.approx(np.mean(largest >= largest[0] - 1e-12))
    many = flips(16, 500, 0)
    assert many.shape == (501, 16)
    assert set(np.unique(many)) == {-1.0, 1.0}


def test_six_pairs_reach_what_they_can_and_none_that_are_equal_tell_anything() -> None:
    six = np.array([0.9, 1.0, 1.1, 1.0, 0.8, 1.2])[:, None]
    (found,) = flip_effects("5", [("x", "a")], six, SMALLEST, permutations=99)
    assert (found.adjusted, found.word) == (2 / 64, "higher")
    (found,) = flip_effects("5", [("x", "a")], -six[:5], SMALLEST, permutations=99)
    assert (found.adjusted, found.word) == (2 / 32, "cannot be told")
    for equal in (np.zeros((6, 1)), np.full((6, 1), 0.1)):
        (found,) = flip_effects("5", [("x", "a")], equal, SMALLEST, permutations=99)
        assert (found.word, found.low, found.detectable) == ("cannot be told", None, None)
    assert flip_effects("5", [("x", "a")], six[:1], SMALLEST, permutations=99) == ()


def test_null_worlds_make_no_more_false_claims_than_they_may() -> None:
    worlds, false, claims, covered = 200, np.zeros(3), 0, np.zeros(3)
    for seed in range(worlds):
        generator = np.random.default_rng(seed)
        shared = generator.normal(size=(16, 1))
        pairs = (shared[:6] + generator.normal(size=(6, 4))) / np.sqrt(2)
        cells = shared / np.where(np.arange(16) % 15, 1, np.sqrt(3))[:, None]  # two of them means of three
        names = [("x", one) for one in ENDPOINTS]
        families = (
            kind_effects(world(seed), SMALLEST),
            flip_effects("4", names, pairs, SMALLEST, permutations=0),
            flip_effects("7", names[:1], cells, SMALLEST, permutations=499, seed=seed),
        )
        for place, effects in enumerate(families):
            false[place] += any(one.adjusted <= 0.05 for one in effects)
            claims += any(one.word in ("lower", "higher") for one in effects)
            covered[place] += np.mean([one.low <= 0 <= one.high for one in effects])  # type: ignore[operator]
    assert (false <= 0.05 * worlds + 3 * np.sqrt(worlds * 0.05 * 0.95)).all(), false
    assert claims <= false.sum()
    assert (np.abs(covered / worlds - 0.95) < 0.03).all(), covered


def test_known_effects_are_found_with_their_signs_and_sizes() -> None:
    effects = np.zeros((3, 4))
    effects[0, 0], effects[2, 1] = 5.0, 5.0
    sizes, words = [], []
    for seed in range(30):
        found = {(one.name, one.endpoint): one for one in kind_effects(world(seed, effects), SMALLEST)}
        sizes.append([found["dense - mixture", "a"].value, found["mixture - mamba2", "b"].value])
        words.append((found["dense - mixture", "a"].word, found["mixture - mamba2", "b"].word))
    assert np.mean(sizes, axis=0) == pytest.approx([5.0, -5.0], abs=4 * 0.77 / np.sqrt(30))
    assert words.count(("higher", "lower")) > 24
