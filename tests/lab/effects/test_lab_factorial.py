"""Families 1 and 2: the design, the fit, recovery of known worlds and no claims in null ones."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lab_worlds import make_runs
from offramp.errors import InputError
from offramp.lab.effects.effect import step_down
from offramp.lab.effects.factorial import (
    Cells,
    fit,
    largest_by_chance,
    main_effects,
    pair_effects,
    seed_errors,
    tells_apart,
    untested,
)
from offramp.lab.effects.factors import FACTORS, LEVELS, half_fraction, pairs
from offramp.lab.effects.matching import Block

Values = NDArray[np.float64]
ROOT = Path(__file__).parents[3]
CELLS = np.array([[2 * LEVELS[one].index(cell[one]) - 1 for one in FACTORS] for cell in half_fraction()])
SIGNS = np.concatenate([CELLS, CELLS[[0, 0, 15, 15]]])
"""The 20 runs of docs/lab/preregistered.md: 16 cells, the two corners with three seeds."""

ENDPOINTS = ("a", "b", "c", "d")
SMALLEST = dict.fromkeys(ENDPOINTS, 0.5)


def world(seed: int, effects: Values | None = None) -> Block:
    """20 runs with errors of size 1 that endpoints half share. effects: [factors, endpoints]."""
    generator = np.random.default_rng(seed)
    shared, own = generator.normal(size=(20, 1)), generator.normal(size=(20, 4))
    values = (shared + own) / np.sqrt(2) + (0 if effects is None else SIGNS @ effects / 2)
    last = values + 0.2 * generator.normal(size=values.shape)
    runs = make_runs(["dense"] * 20, generator.normal(4.0, 0.05, 20), SIGNS)
    return Block(ENDPOINTS, runs, 4.0, values, last, {})


def test_the_design_is_the_one_that_was_written_down_before() -> None:
    page = (ROOT / "docs/lab/preregistered.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()]
    written = {int(row[0]): tuple(row[1:6]) for row in rows if len(row) == 6 and row[0].isdecimal()}
    assert written == {run: tuple(cell.values()) for run, cell in enumerate(half_fraction(), start=1)}


def test_main_effects_and_pairs_are_at_right_angles() -> None:
    columns = np.concatenate([CELLS, pairs(CELLS)[1]], axis=1)
    assert np.array_equal(columns.T @ columns, 16 * np.eye(15))


def test_a_fit_is_that_of_a_plain_calculation() -> None:
    block = world(3)
    cells = Cells.of(block.signs, block.matched, block.losses)
    by_hand: dict[tuple[int, ...], list[Values]] = {tuple(signs): [] for signs in CELLS.tolist()}
    for signs, row in zip(SIGNS.tolist(), block.matched, strict=True):
        by_hand[tuple(signs)].append(row)
    spread = sum(((np.array(rows) - np.mean(rows, axis=0)) ** 2).sum(0) for rows in by_hand.values())
    assert cells.freedom == 4
    assert cells.variance == pytest.approx(spread / 4)
    found = fit(cells.signs.astype(np.float64), cells.values)
    for place, endpoint in itertools.product(range(5), range(4)):
        means = {signs: np.mean(rows, axis=0)[endpoint] for signs, rows in by_hand.items()}
        high = np.mean([mean for signs, mean in means.items() if signs[place] == 1])
        low = np.mean([mean for signs, mean in means.items() if signs[place] == -1])
        assert found.effects[place, endpoint] == pytest.approx(high - low)
    errors = seed_errors(cells.signs.astype(np.float64), cells)
    expected = 2 * np.sqrt(cells.variance) * np.sqrt(14 + 2 / 3) / 16  # docs/lab/preregistered.md, family 1
    assert errors == pytest.approx(np.tile(expected, (5, 1)))


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


def test_permuted_residuals_give_the_t_of_a_fit_to_them() -> None:
    block = world(1)
    cells = Cells.of(block.signs, block.matched, block.losses)
    columns = cells.signs.astype(np.float64)
    found = fit(columns, cells.values)
    chance = largest_by_chance(columns, found, 3, seed=0)
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(16), (3, 1)), axis=1)
    for row, order in zip(chance, orders, strict=True):
        assert row == pytest.approx(fit(columns, found.residuals[order]).t)


def test_an_endpoint_on_which_seeds_do_not_differ_gives_no_indications() -> None:
    block = world(2)
    floor = np.where(np.arange(4) == 1, 0.0, block.matched)  # no layer is skipped anywhere, say
    plain = {(one.name, one.endpoint): one for one in pair_effects(block, permutations=199)}
    found = {
        (one.name, one.endpoint): one for one in pair_effects(replace(block, matched=floor), permutations=199)
    }
    assert found.keys() == plain.keys()
    for (name, endpoint), one in found.items():
        if endpoint == "b":
            assert (one.value, one.adjusted, one.low, one.word) == (0.0, 1.0, None, "cannot be told")
        else:
            assert 0.01 < one.adjusted <= plain[name, endpoint].adjusted, "fewer are tested together"


def test_a_null_world_makes_no_more_false_claims_than_it_may() -> None:
    worlds, tests, claims, covered, of_pairs, of_corners = 300, 0, 0, 0, 0, 0
    for seed in range(worlds):
        block = world(seed)
        found = main_effects(block, SMALLEST, permutations=199, seed=seed)
        tests += any(one.adjusted <= 0.05 for one in found if one.family == "1")
        claims += any(one.word in ("higher", "lower") for one in found if one.family == "1")
        of_corners += any(one.adjusted <= 0.05 for one in found if one.family == "corners")
        covered += sum(
            one.low is not None and one.high is not None and one.low <= 0 <= one.high for one in found
        )
        of_pairs += any(one.word == "indication" for one in pair_effects(block, permutations=199))
    chance = 0.05 * worlds + 3 * np.sqrt(worlds * 0.05 * 0.95)  # 3 standard errors above 5 %
    assert max(tests, of_pairs, of_corners) <= chance
    assert claims <= tests
    assert 0.93 <= covered / (24 * worlds) <= 0.97


def test_effects_of_a_known_world_are_found_with_their_signs_and_sizes() -> None:
    effects = np.zeros((5, 4))
    effects[0], effects[3, 1] = 3.0, -4.0
    found: dict[tuple[str, str], list[float]] = {}
    words: dict[tuple[str, str], list[str]] = {}
    for seed in range(60):
        for one in main_effects(world(seed, effects), SMALLEST, permutations=199, seed=seed):
            found.setdefault((one.name, one.endpoint), []).append(one.value)
            words.setdefault((one.name, one.endpoint), []).append(one.word)
    corners = [np.mean(found.pop(("Llama-like - GPT-2-like", endpoint))) for endpoint in ENDPOINTS]
    assert corners == pytest.approx(effects[:4].sum(0), abs=4 * 0.82 / np.sqrt(60))
    for (factor, endpoint), values in found.items():
        expected = effects[FACTORS.index(factor), ENDPOINTS.index(endpoint)]
        assert np.mean(values) == pytest.approx(expected, abs=4 * 0.48 / np.sqrt(60))
    assert words["norm", "a"].count("higher") > 48
    assert words["heads", "b"].count("lower") > 54
    assert "lower" not in words["norm", "a"]


def test_missing_cells_and_factors_of_one_level_are_named() -> None:
    assert untested(SIGNS) == []
    (few,) = untested(SIGNS[1:16])
    assert few.startswith("15 of 16 cells are there")
    without = SIGNS[SIGNS[:, 1] == -1]
    assert untested(without)[0] == "mlp is gelu in every run that counts, and is not tested"
    assert tells_apart(without)
    assert not tells_apart(SIGNS[:6])
    block = world(5)
    kept = SIGNS[:, 1] == -1
    runs = tuple(run for run, one in zip(block.runs, kept, strict=True) if one)
    found = main_effects(
        replace(block, runs=runs, matched=block.matched[kept], last=block.last[kept]),
        SMALLEST,
        permutations=99,
    )
    assert {one.name for one in found} == {"norm", "positions", "heads", "residual"}
    with pytest.raises(InputError, match="6 cells do not tell 5 factors apart"):
        fit(CELLS[:6].astype(np.float64), block.matched[:6])


def test_without_an_error_of_a_seed_nothing_is_told() -> None:
    block = world(4, np.full((5, 4), 3.0))
    alike = replace(block, matched=np.concatenate([block.matched[:16], block.matched[[0, 0, 15, 15]]]))
    one_seed = replace(block, runs=block.runs[:16], matched=block.matched[:16], last=block.last[:16])
    for one in (alike, one_seed):
        found = main_effects(one, SMALLEST, permutations=99)
        assert {(effect.word, effect.low, effect.detectable) for effect in found} == {
            ("cannot be told", None, None)
        }
