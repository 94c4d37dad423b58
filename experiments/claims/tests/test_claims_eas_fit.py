"""α fitted to published values of EAS: by hand, against brute force, and where the truth is known."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from claims_tables import Line, tables_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from eas_fit import ALPHAS, PUBLISHED, SIMILARITIES, Measured, eas_fit, eas_fits, fitted_alpha
from offramp.scoring.card import PUBLISHED_EAS
from offramp.scoring.components import adaptability, layer_weights

LAYERS = (32, 32, 32, 28, 36, 24)


def world(seed: int, alpha: float, *, noise: float = 0.0, layers: Sequence[int] = LAYERS) -> list[Measured]:
    """Models whose published values are EAS with this α, and some noise; below 0 at first now and then."""
    generator = np.random.default_rng(seed)
    found = []
    for place, count in enumerate(layers):
        start, bend = generator.uniform(-0.1, 0.6), generator.uniform(0.3, 4.0)
        similarity = start + (1.0 - start) * (np.arange(1, count) / count) ** bend
        one = Measured(f"m{place}", f"m{place}", 0.0, similarity, layer_weights(np.arange(1, count), count))
        found.append(replace(one, published=one.eas(alpha) + noise * generator.normal()))
    return found


def constant(name: str, published: float, similarity: float) -> Measured:
    """Two layers, of which one exit lies below the last: EAS = S^α 0.5^(1-α)."""
    return Measured(name, name, published, np.array([similarity]), np.array([0.5]))


def test_eas_is_the_librarys() -> None:
    for one in world(0, 0.3):
        assert one.eas(0.7) == float(adaptability(one.similarity, one.weights, 0.7))


def test_by_hand() -> None:
    """With S = 1 EAS is 0.5^(1-α), with S = 1/2 it is 1/2 for every α, and with S = 1/8 it is 0.5^(1+2α)."""
    values = (0.5**0.5, 0.5, 0.25)
    fit = eas_fit([constant(*one) for one in zip("abc", values, (1.0, 0.5, 0.125), strict=True)])
    assert fit["alpha"] == pytest.approx(0.5, abs=1e-5)
    for name in ("error", "default_error", "left_out_error"):
        assert fit[name] == pytest.approx(0.0, abs=1e-5)
    # The mean of the two others, for each: (0.5 + 0.25) / 2, ...
    misses = [values[0] - 0.375, values[1] - (values[0] + 0.25) / 2, values[2] - (values[0] + 0.5) / 2]
    assert fit["mean_error"] == pytest.approx(np.sqrt(np.mean(np.square(misses))))
    assert fit["spearman"] == pytest.approx(1.0)
    assert [fit[f"{name}: fitted"] for name in "abc"] == pytest.approx(values, abs=1e-5)
    assert fit["conclusion"] == "fits"


def test_a_model_that_is_left_out_is_told_by_the_others_alone() -> None:
    """a and b want α = 1/2; c wants another, and is judged by theirs."""
    fit = eas_fit([constant("a", 0.5**0.5, 1.0), constant("b", 0.25, 0.125), constant("c", 0.9, 1.0)])
    assert fit["c: left_out"] == pytest.approx(0.5**0.5, abs=1e-5)
    assert fit["c: fitted"] > 0.5**0.5
    assert fit["conclusion"] == "does not fit"


def test_models_of_one_training_are_left_out_together() -> None:
    """b is what a was made into: neither tells the other, and the two are one training."""
    first, second, *others = world(0, 0.3)
    variant = replace(second, training=first.model)
    fit, alone = eas_fit([first, variant, *others]), eas_fit([first, *others])
    assert fit["m0: left_out"] == pytest.approx(first.eas(fitted_alpha(others)), abs=1e-9)
    assert fit["m0: left_out"] == alone["m0: left_out"]
    assert eas_fit([first, variant, others[0]]) == {"models": 3, "conclusion": "cannot be told"}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.02, 1.0), st.integers(3, 6))
def test_alpha_is_recovered_from_values_that_it_made(seed: int, alpha: float, count: int) -> None:
    fit = eas_fit(world(seed, alpha, layers=LAYERS[:count]))
    assert fit["error"] == pytest.approx(0.0, abs=1e-5)
    assert fit["alpha"] == pytest.approx(alpha, abs=1e-3)


def loss_of(models: Sequence[Measured], alpha: float) -> float:
    """Root mean square error, written out."""
    misses = []
    for one in models:
        clipped = [min(max(value, 0.0), 1.0) for value in one.similarity]
        terms = [s**alpha * w ** (1 - alpha) for s, w in zip(clipped, one.weights, strict=True)]
        misses.append(sum(terms) / len(terms) - one.published)
    return float(np.sqrt(sum(miss**2 for miss in misses) / len(misses)))


def test_figures_by_a_slow_reference() -> None:
    models, grid = world(3, 0.4, noise=0.03, layers=LAYERS[:4]), np.linspace(ALPHAS[0], 1.0, 1000)
    fit, published = eas_fit(models), [one.published for one in models]
    losses = [loss_of(models, alpha) for alpha in grid]
    assert fit["error"] <= min(losses) + 1e-9
    assert fit["alpha"] == pytest.approx(grid[np.argmin(losses)], abs=1e-3)
    misses, means = [], []
    for place, one in enumerate(models):
        rest = [other for other in models if other is not one]
        misses.append(loss_of([one], grid[np.argmin([loss_of(rest, alpha) for alpha in grid])]))
        means.append(abs(np.mean(np.delete(published, place)) - published[place]))
    assert fit["left_out_error"] == pytest.approx(np.sqrt(np.mean(np.square(misses))), abs=1e-3)
    assert fit["mean_error"] == pytest.approx(np.sqrt(np.mean(np.square(means))))
    assert fit["error"] == pytest.approx(loss_of(models, fit["alpha"]))
    assert fit["default_error"] == pytest.approx(loss_of(models, 0.5))
    fitted = [fit[f"{one.model}: fitted"] for one in models]
    assert fit["spearman"] == pytest.approx(stats.spearmanr(fitted, published).statistic)


def test_a_second_minimum_is_not_taken() -> None:
    """A value below which EAS falls and above which it rises again is met twice; the others say where."""
    one = Measured("a", "a", 0.0, np.array([1.0, 0.001]), np.array([0.5, 0.5]))
    for alpha in (0.15, 0.9):
        other = constant("b", constant("b", 0.0, 0.9).eas(alpha), 0.9)
        assert fitted_alpha([replace(one, published=one.eas(alpha)), other]) == pytest.approx(alpha, abs=1e-4)


def test_an_alpha_at_the_end_of_its_range_is_shown_as_it_is() -> None:
    fit = eas_fit([constant(name, value, 1.0) for name, value in (("a", 0.3), ("b", 0.35), ("c", 0.4))])
    assert fit["alpha"] == pytest.approx(0.001, abs=1e-4)  # EAS is at least 0.5
    assert np.isnan(fit["spearman"])  # all fitted values are equal
    assert fit["conclusion"] == "does not fit"


def test_noise_of_a_digit_fits_and_values_that_have_nothing_to_do_with_it_do_not() -> None:
    rounded, shuffled = [], []
    for seed in range(6):
        models = world(seed, 0.3, noise=0.003)
        rounded.append(eas_fit(models)["conclusion"])
        values = np.random.default_rng(seed).uniform(0.3, 0.6, len(models))
        other = [replace(one, published=float(value)) for one, value in zip(models, values, strict=True)]
        shuffled.append(eas_fit(other)["conclusion"])
    assert rounded.count("fits") >= 5
    assert shuffled.count("fits") == 0


# --- from the tables of a comparison


def tables(
    models: Sequence[Measured], curve: str, workload: str = "prose"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A leaderboard, and profiles whose curve is the similarity of the models; the two others are noise."""
    generator, profiles = np.random.default_rng(9), []
    for one in models:
        count = len(one.similarity) + 1
        where = {"shown": one.model, "workload": workload, "heads": "", "exit": np.arange(1, count + 1)}
        curves = {name: generator.uniform(0, 1, count) for name in SIMILARITIES.values()}
        profiles.append(pd.DataFrame({**where, **curves, curve: [*one.similarity, 1.0]}))
    board, _ = tables_of([Line(one.model, workload) for one in models])
    return board, pd.concat(profiles)


def published(models: Sequence[Measured]) -> pd.Series:
    return pd.Series({one.model: one.published for one in models})


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_the_similarity_that_made_the_values_is_told_from_the_others(similarity: str) -> None:
    models = world(5, 0.3)
    fits = eas_fits(*tables(models, SIMILARITIES[similarity]), published(models)).set_index("similarity")
    assert list(fits.index) == list(SIMILARITIES)
    assert fits.loc[similarity, "alpha"] == pytest.approx(0.3, abs=1e-3)
    conclusions = {name: "fits" if name == similarity else "does not fit" for name in SIMILARITIES}
    assert fits["conclusion"].to_dict() == conclusions


def test_models_that_are_not_measured_are_named_and_texts_are_fitted_apart() -> None:
    models = world(5, 0.3)
    prose, code = tables(models, "logit_cosine"), tables(models[:3], "logit_cosine", "code")
    board, profiles = (pd.concat(parts, ignore_index=True) for parts in zip(prose, code, strict=True))
    first = (profiles["shown"] == "m0") & (profiles["workload"] == "prose") & (profiles["exit"] == 1)
    profiles.loc[first, "logit_cosine"] = np.nan
    int8, _ = tables_of([Line("m5", transform="int8"), Line("else", "chat")])
    board = pd.concat([board[board["model"] != "m5"], int8])
    profiles = profiles[profiles["shown"] != "m5"]
    fits = eas_fits(board, profiles, published(models)).set_index(["workload", "similarity"])
    assert fits["models"].to_dict() == {
        **{("prose", name): 4 if name == "logit" else 5 for name in SIMILARITIES},
        **{("code", name): 3 for name in SIMILARITIES},
    }
    assert fits.loc[("prose", "logit"), "missing"] == "m0; m5"
    assert fits.loc[("code", "hidden"), "missing"] == "m3; m4; m5"
    (none, *_) = eas_fits(tables_of([Line("else", "chat")])[0], profiles, published(models)).to_dict(
        "records"
    )
    assert (none["workload"], none["models"], none["conclusion"]) == ("chat", 0, "cannot be told")


def test_the_published_values_are_the_studys_and_their_models_those_of_the_study() -> None:
    values = pd.read_csv(PUBLISHED)
    study = Path(__file__).parents[3] / "studies" / "eas.toml"
    models = [model["name"] for model in tomllib.loads(study.read_text(encoding="utf-8"))["models"]]
    assert values["model"].tolist() == models
    assert values["published"].tolist() == list(PUBLISHED_EAS.values())
