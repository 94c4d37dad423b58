"""Effects of factors: the design, the matched loss, recovery of known worlds and none in a null world."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from command_line import run_offramp
from offramp.errors import InputError
from offramp.lab.effects.analysis import (
    Cells,
    fit,
    largest_by_chance,
    main_effects,
    pair_effects,
    seed_errors,
    step_down,
)
from offramp.lab.effects.factors import FACTORS, LEVELS, half_fraction, pairs
from offramp.lab.effects.runs import Block, Run, at_loss, make_block

Values = NDArray[np.float64]
ROOT = Path(__file__).parents[3]
CELLS = np.array([[2 * LEVELS[one].index(cell[one]) - 1 for one in FACTORS] for cell in half_fraction()])
SIGNS = np.concatenate([CELLS, CELLS[[0, 0, 15, 15]]])
"""The 20 runs of docs/lab/preregistered.md: 16 cells, the two corners with three seeds."""

ENDPOINTS = ("a", "b", "c", "d")
SMALLEST = np.full(4, 0.5)


def world(seed: int, effects: Values | None = None) -> Block:
    """20 runs with errors of size 1 that endpoints half share. effects: [factors, endpoints]."""
    generator = np.random.default_rng(seed)
    shared, own = generator.normal(size=(20, 1)), generator.normal(size=(20, 4))
    values = (shared + own) / np.sqrt(2) + (0 if effects is None else SIGNS @ effects / 2)
    last = values + 0.2 * generator.normal(size=values.shape)
    names = tuple(str(place + 1) for place in range(20))
    return Block(ENDPOINTS, names, 4.0, SIGNS, values, last, generator.normal(4.0, 0.05, 20), {})


def test_the_design_is_the_one_that_was_written_down_before() -> None:
    page = (ROOT / "docs/lab/preregistered.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()]
    written = {int(row[0]): tuple(row[1:6]) for row in rows if len(row) == 6 and row[0].isdecimal()}
    assert written == {run: tuple(cell.values()) for run, cell in enumerate(half_fraction(), start=1)}


def test_main_effects_and_pairs_are_at_right_angles() -> None:
    columns = np.concatenate([CELLS, pairs(CELLS)[1]], axis=1)
    assert np.array_equal(columns.T @ columns, 16 * np.eye(15))


def test_values_at_a_loss_lie_between_the_checkpoints_around_it() -> None:
    losses, values = np.array([6.0, 5.0, 4.0, 4.2, 3.0]), np.array([[0.0], [1.0], [2.0], [3.0], [4.0]])
    assert at_loss(losses, values, 5.5) == pytest.approx([0.5])
    # 4.1 is reached, lost and reached again: from the fourth checkpoint's 4.2 to the fifth's 3.0.
    assert at_loss(losses, values, 4.1) == pytest.approx([3 + 0.1 / 1.2])
    assert at_loss(losses, values, 3.0) == pytest.approx([4.0])
    assert at_loss(losses, values, 7.0) == pytest.approx([0.0])


def run_of(name: str, losses: list[float]) -> Run:
    levels = dict(half_fraction()[0])
    values = np.arange(len(losses), dtype=np.float64)[:, None]
    return Run(name, levels, tuple(range(len(losses))), np.array(losses), values)


def test_runs_are_compared_at_the_loss_that_all_reach_and_diverged_ones_are_left_out() -> None:
    runs = [run_of("a", [6, 5, 4]), run_of("b", [6, 5, 4.2]), run_of("c", [6, 5, 4.1])]
    runs += [run_of("bad", [6, np.nan]), run_of("stuck", [6, 5, 4.5])]
    block = make_block(runs, ["x"])
    assert (block.names, block.loss) == (("a", "b", "c"), 4.2)
    assert block.matched[:, 0] == pytest.approx([1.8, 2.0, 1 + 0.8 / 0.9])
    assert block.left_out == {
        "bad": "a loss is not finite",
        "stuck": "its last loss is 0.35 nat above the median",
    }
    with pytest.raises(InputError, match="no run of the table has ended"):
        make_block(runs[3:4], ["x"])
    runs = [run_of("a", [6, 5, 4]), run_of("b", [3.9, 3.9, 3.8]), run_of("c", [np.nan, 5, 4])]
    early = make_block(runs, ["x"])
    assert (early.names, early.below) == (("a", "b"), ("b",))
    assert early.matched[:, 0] == pytest.approx([2.0, 0.0])
    with pytest.raises(InputError, match="the run b ends after step 1, and others after 2"):
        make_block([run_of("a", [6, 5, 4]), run_of("b", [6, 4.1])], ["x"])


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
        assert row == pytest.approx(np.abs(fit(columns, found.residuals[order]).t))


def test_an_endpoint_on_which_seeds_do_not_differ_gives_no_indications() -> None:
    block = world(2)
    floor = np.where(np.arange(4) == 1, 0.0, block.matched)  # no layer is skipped anywhere, say
    plain = pair_effects(block, permutations=199)
    found = pair_effects(replace(block, matched=floor), permutations=199)
    assert found.keys() == plain.keys()
    for name, values in found.items():
        assert values[:, 1].tolist() == [0.0, 1.0]
        assert (values[1, [0, 2, 3]] <= plain[name][1, [0, 2, 3]]).all(), "fewer are tested together"
        assert (values[1, [0, 2, 3]] > 0.01).all()


def test_a_null_world_makes_no_more_false_claims_than_it_may() -> None:
    worlds, tests, claims, covered, of_pairs = 400, 0, 0, 0, 0
    for seed in range(worlds):
        block = world(seed)
        found = main_effects(block, SMALLEST, permutations=199, seed=seed)
        tests += any(one.adjusted <= 0.05 for one in found)
        claims += any(one.word in ("higher", "lower") for one in found)
        covered += sum(
            one.low is not None and one.high is not None and one.low <= 0 <= one.high for one in found
        )
        of_pairs += any(
            (values[1] <= 0.05).any() for values in pair_effects(block, permutations=199).values()
        )
    chance = 0.05 * worlds + 3 * np.sqrt(worlds * 0.05 * 0.95)  # 3 standard errors above 5 %
    assert max(tests, of_pairs) <= chance
    assert claims <= tests
    assert 0.93 <= covered / (20 * worlds) <= 0.97


def test_effects_of_a_known_world_are_found_with_their_signs_and_sizes() -> None:
    effects = np.zeros((5, 4))
    effects[0], effects[3, 1] = 3.0, -4.0
    found: dict[tuple[str, str], list[float]] = {}
    words: dict[tuple[str, str], list[str]] = {}
    for seed in range(60):
        for one in main_effects(world(seed, effects), SMALLEST, permutations=199, seed=seed):
            found.setdefault((one.factor, one.endpoint), []).append(one.value)
            words.setdefault((one.factor, one.endpoint), []).append(one.word)
    for (factor, endpoint), values in found.items():
        expected = effects[FACTORS.index(factor), ENDPOINTS.index(endpoint)]
        assert np.mean(values) == pytest.approx(expected, abs=4 * 0.48 / np.sqrt(60))
    assert words["norm", "a"].count("higher") > 48
    assert words["heads", "b"].count("lower") > 54
    assert "lower" not in words["norm", "a"]


def write_table(path: Path, seeds: bool = True, effect: float = 0.2) -> Path:
    """Runs of which rmsnorm lowers x, two checkpoints each."""
    generator = np.random.default_rng(0)
    lines = ["run," + ",".join(FACTORS) + ",step,loss,x,y"]
    cells = list(
        enumerate((*half_fraction(), *([half_fraction()[place] for place in (0, 0, 15, 15)] * seeds)))
    )
    for run, cell in cells:
        x = 0.6 - effect * (cell["norm"] == "rmsnorm") + 0.01 * generator.normal()
        y = 0.5 + 0.001 * generator.normal()
        last = 4 + 0.02 * generator.normal()
        for step, loss, less in ((1, 6.0, 0.1), (2, last, 0.0)):
            entries = (f"r{run + 1}", *cell.values(), step, loss, x - less, y)
            lines.append(",".join(map(str, entries)))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_command_says_what_each_factor_does(tmp_path: Path) -> None:
    outcome = run_offramp(
        "lab",
        "effects",
        write_table(tmp_path / "runs.csv"),
        "--permutations",
        999,
        "--smallest",
        "y=0.01",
        "--json",
    ).require(0)
    found = {(one["factor"], one["endpoint"]): one for one in outcome.json["effects"]}
    assert found["norm", "x"]["value"] == pytest.approx(-0.2, abs=0.03)
    assert found["norm", "x"]["word"] == "lower"
    assert {one["word"] for (_, endpoint), one in found.items() if endpoint == "y"} == {"no difference"}
    assert "effects are rmsnorm minus layernorm, swiglu minus gelu" in outcome.err
    without = run_offramp("lab", "effects", write_table(tmp_path / "one.csv", seeds=False), "--json").require(
        0
    )
    assert "nothing is claimed" in without.err
    assert "pairs of factors are not tested" in without.err
    assert {one["word"] for one in without.json["effects"]} == {"cannot be told"}


@pytest.mark.parametrize(
    ("change", "line", "what"),
    [
        (lambda text: text.replace("norm,mlp", "nrom,mlp"), 1, "no column 'norm'"),
        (lambda text: text.replace("layernorm", "layernom", 1), 2, "did you mean 'layernorm'"),
        (lambda text: text.replace(",1,6.0,", ",1,six,", 1), 2, "loss is 'six'"),
        (lambda text: text.replace("r1,layernorm", "r1,rmsnorm", 1), 3, "two levels of norm"),
        (lambda text: text.replace(",x,y", ",x,x"), 1, "two columns have one name"),
        (lambda text: "\n".join(text.splitlines()[:9]), 0, "4 cells do not tell 6 effects apart"),
        (lambda text: text.replace(",1,6.0,", ",1,", 1), 2, "a line has 9 entries"),
        (lambda text: text.replace(",1,6.0,", ",nan,6.0,", 1), 2, "step is 'nan', which is no whole number"),
        (lambda text: text.replace(",1,6.0,", ",2,6.0,", 1), 3, "the run r1 has two lines of step 2"),
        (lambda text: re.sub(r",[\d.]+\n", ",nan\n", text, count=1), 2, "y is 'nan'"),
    ],
)
def test_a_wrong_table_is_refused_by_its_line(tmp_path: Path, change: object, line: int, what: str) -> None:
    path = write_table(tmp_path / "runs.csv")
    path.write_text(change(path.read_text()))  # type: ignore[operator]
    outcome = run_offramp("lab", "effects", path).require(2)
    assert what in outcome.err
    assert f"line {line}" in outcome.err or not line
