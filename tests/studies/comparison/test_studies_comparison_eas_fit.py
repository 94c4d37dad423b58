"""α fitted to published values of EAS: by hand, against brute force, and where the truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from comparison_traces import bare_row
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from offramp.scoring.eas import SIMILARITIES, layer_weights
from offramp.studies.comparison import eas_fit as module
from offramp.studies.comparison.eas_fit import EasFit, PublishedModel, eas_fit, fitted_alpha
from offramp.studies.comparison.published import eas_fits
from offramp.studies.comparison.results import Row

LAYERS = (32, 32, 32, 28, 36, 24)
WHERE = {"similarity": "logit", "workload": "prose"}


def rising(generator: np.random.Generator, layers: int) -> np.ndarray:
    """A similarity that rises over depth, somewhere below 0 at first now and then."""
    start, bend = generator.uniform(-0.1, 0.6), generator.uniform(0.3, 4.0)
    return start + (1.0 - start) * (np.arange(1, layers) / layers) ** bend


def world(
    seed: int, alpha: float, *, noise: float = 0.0, layers: Sequence[int] = LAYERS
) -> list[PublishedModel]:
    """Models whose published values are EAS with this α, and some noise."""
    generator = np.random.default_rng(seed)
    found = []
    for place, count in enumerate(layers):
        weights = layer_weights(np.arange(1, count), count)
        one = PublishedModel(f"m{place}", 0.0, rising(generator, count), weights)
        value = one.eas(alpha) + noise * generator.normal()
        found.append(PublishedModel(one.model, value, one.similarity, weights))
    return found


def constant(name: str, published: float, similarity: float) -> PublishedModel:
    """Two layers, of which one exit lies below the last: EAS = S^α 0.5^(1-α)."""
    return PublishedModel(name, published, np.array([similarity]), np.array([0.5]))


def test_by_hand() -> None:
    """With S = 1 EAS is 0.5^(1-α), with S = 1/2 it is 1/2 for every α, and with S = 1/8 it is 0.5^(1+2α)."""
    values = (0.5**0.5, 0.5, 0.25)
    models = [constant(*one) for one in zip("abc", values, (1.0, 0.5, 0.125), strict=True)]
    fit = eas_fit(models, **WHERE)
    assert fit.alpha == pytest.approx(0.5, abs=1e-5)
    assert fit.error == pytest.approx(0.0, abs=1e-5)
    assert fit.default_error == pytest.approx(0.0, abs=1e-12)
    assert fit.left_out_error == pytest.approx(0.0, abs=1e-5)
    # The mean of the two others, for each: (0.5 + 0.25) / 2, ...
    misses = [values[0] - 0.375, values[1] - (values[0] + 0.25) / 2, values[2] - (values[0] + 0.5) / 2]
    assert fit.mean_error == pytest.approx(np.sqrt(np.mean(np.square(misses))))
    assert fit.spearman == pytest.approx(1.0)
    assert [one.fitted for one in fit.models] == pytest.approx(values, abs=1e-5)
    assert fit.conclusion == "fits"
    assert fit.claim == (
        "fits; α = 0.50, and with the α of the others a model's value is off by 0.000, better than the "
        "mean of the others (0.280), and below 0.02 (3 models)"
    )


def test_a_model_that_is_left_out_is_told_by_the_others_alone() -> None:
    """a and b want α = 1/2; c wants another, and is judged by theirs."""
    models = [constant("a", 0.5**0.5, 1.0), constant("b", 0.25, 0.125), constant("c", 0.9, 1.0)]
    fit = eas_fit(models, **WHERE)
    assert fit.models[2].left_out == pytest.approx(0.5**0.5, abs=1e-5)
    assert fit.models[2].fitted is not None
    assert fit.models[2].fitted > 0.5**0.5
    assert fit.conclusion == "does not fit"


def test_models_of_one_training_are_left_out_together() -> None:
    """b is what a was made into: neither tells the other, and the two are one training."""
    first, second, *others = world(0, 0.3)
    variant = replace(second, base=first.model)
    fit = eas_fit([first, variant, *others], **WHERE)
    alone = eas_fit([first, *others], **WHERE)
    assert fit.models[0].left_out == pytest.approx(first.eas(fitted_alpha(others)), abs=1e-9)
    assert fit.models[0].left_out == alone.models[0].left_out
    few = eas_fit([first, variant, others[0]], **WHERE)
    assert few.claim.startswith("cannot be told; 2 trainings have both")


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_models_cannot_be_told(count: int) -> None:
    fit = eas_fit(world(0, 0.3)[:count], **WHERE, missing=["x", "y"])
    assert (fit.conclusion, fit.alpha, fit.error, fit.spearman) == ("cannot be told", None, None, None)
    have = "training has" if count == 1 else "trainings have"
    assert fit.claim == (
        f"cannot be told; {count} {have} both a published value and a measurement, 3 needed; "
        "without x, y, not measured"
    )
    assert [(one.fitted, one.left_out) for one in fit.models] == [(None, None)] * count


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.02, 1.0), st.integers(3, 6))
def test_alpha_is_recovered_from_values_that_it_made(seed: int, alpha: float, count: int) -> None:
    models = world(seed, alpha, layers=LAYERS[:count])
    fit = eas_fit(models, **WHERE)
    assert fit.error == pytest.approx(0.0, abs=1e-5)
    assert fit.alpha == pytest.approx(alpha, abs=1e-3)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_finer_grid_finds_nothing_better(seed: int) -> None:
    """Brute force: 1,000 values of α, with published values that are no EAS at all."""
    generator = np.random.default_rng(seed)
    models = [
        PublishedModel(one.model, float(generator.uniform(0.2, 0.8)), one.similarity, one.weights)
        for one in world(seed, 0.5, layers=LAYERS[:4])
    ]
    losses = {alpha: loss_of(models, alpha) for alpha in np.linspace(module.LEAST_ALPHA, 1.0, 1000)}
    assert loss_of(models, fitted_alpha(models)) <= min(losses.values()) + 1e-9


def loss_of(models: Sequence[PublishedModel], alpha: float) -> float:
    """Root mean square error, written out."""
    misses = []
    for one in models:
        clipped = [min(max(value, 0.0), 1.0) for value in one.similarity]
        terms = [s**alpha * w ** (1 - alpha) for s, w in zip(clipped, one.weights, strict=True)]
        misses.append(sum(terms) / len(terms) - one.published)
    return float(np.sqrt(sum(miss**2 for miss in misses) / len(misses)))


def test_figures_by_a_slow_reference() -> None:
    models = world(3, 0.4, noise=0.03)
    fit = eas_fit(models, **WHERE)
    grid = np.linspace(module.LEAST_ALPHA, 1.0, 1000)
    published = [one.published for one in models]
    assert fit.alpha is not None
    assert fit.alpha == pytest.approx(grid[np.argmin([loss_of(models, alpha) for alpha in grid])], abs=1e-3)
    misses, means = [], []
    for place, one in enumerate(models):
        rest = [other for other in models if other is not one]
        alpha = grid[np.argmin([loss_of(rest, alpha) for alpha in grid])]
        misses.append(loss_of([one], alpha))
        means.append(abs(np.mean(np.delete(published, place)) - published[place]))
    assert fit.left_out_error == pytest.approx(np.sqrt(np.mean(np.square(misses))), abs=1e-3)
    assert fit.mean_error == pytest.approx(np.sqrt(np.mean(np.square(means))))
    assert fit.error == pytest.approx(loss_of(models, fit.alpha))
    assert fit.default_error == pytest.approx(loss_of(models, 0.5))
    fitted = [one.fitted for one in fit.models]
    assert fit.spearman == pytest.approx(stats.spearmanr(fitted, published).statistic)


def test_a_second_minimum_is_not_taken() -> None:
    """A value below which EAS falls and above which it rises again is met twice; the others say where."""
    one = PublishedModel("a", 0.0, np.array([1.0, 0.001]), np.array([0.5, 0.5]))
    alphas = (0.15, 0.9)
    values = {alpha: one.eas(alpha) for alpha in np.linspace(0.01, 1, 500)}
    assert min(values, key=values.__getitem__) == pytest.approx(0.4, abs=0.2)  # convex, with its least inside
    for alpha in alphas:
        others = [constant("b", constant("b", 0.0, 0.9).eas(alpha), 0.9)]
        models = [PublishedModel("a", one.eas(alpha), one.similarity, one.weights), *others]
        assert fitted_alpha(models) == pytest.approx(alpha, abs=1e-4)


def test_an_alpha_at_the_end_of_its_range_is_said() -> None:
    models = [constant(name, value, 1.0) for name, value in (("a", 0.3), ("b", 0.35), ("c", 0.4))]
    fit = eas_fit(models, **WHERE)  # EAS is at least 0.5
    assert fit.alpha == pytest.approx(module.LEAST_ALPHA, abs=1e-4)
    assert "α = 0.001, where its range ends" in fit.claim
    assert fit.spearman is None  # all fitted values are equal
    assert fit.claim.startswith("does not fit")


def test_noise_of_a_digit_fits_and_values_that_have_nothing_to_do_with_it_do_not() -> None:
    rounded, shuffled = [], []
    for seed in range(8):
        models = world(seed, 0.3, noise=0.003)
        rounded.append(eas_fit(models, **WHERE).conclusion)
        values = np.random.default_rng(seed).uniform(0.3, 0.6, len(models))
        other = [
            PublishedModel(one.model, float(value), one.similarity, one.weights)
            for one, value in zip(models, values, strict=True)
        ]
        shuffled.append(eas_fit(other, **WHERE).conclusion)
    assert rounded.count("fits") >= 7
    assert shuffled.count("fits") == 0


# --- from the rows of a comparison


def rows_of(models: Sequence[PublishedModel], *, curve: str, workload: str = "prose") -> list[Row]:
    """Rows whose curve is the similarity of the models; the two others are noise."""
    generator = np.random.default_rng(9)
    found = []
    for one in models:
        count = len(one.similarity) + 1
        curves = {name: tuple(generator.uniform(0, 1, count)) for name in SIMILARITIES.values()}
        row = bare_row(one.model, workload)
        curves[curve] = (*map(float, one.similarity), 1.0)
        found.append(replace_curves(row, curves, count))
    return found


def replace_curves(row: Row, curves: dict[str, tuple[float | None, ...]], count: int) -> Row:
    return replace(row, curves=curves, exits=tuple(range(1, count + 1)))


def by_similarity(fits: Sequence[EasFit], workload: str = "prose") -> dict[str, EasFit]:
    return {fit.similarity: fit for fit in fits if fit.workload == workload}


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_the_similarity_that_made_the_values_is_told_from_the_others(similarity: str) -> None:
    models = world(5, 0.3)
    rows = rows_of(models, curve=SIMILARITIES[similarity])
    fits = by_similarity(eas_fits(rows, {one.model: one.published for one in models}))
    assert list(fits) == list(SIMILARITIES)
    assert fits[similarity].alpha == pytest.approx(0.3, abs=1e-3)
    assert fits[similarity].conclusion == "fits"
    for name in SIMILARITIES.keys() - {similarity}:
        assert fits[name].conclusion == "does not fit"


def test_models_that_are_not_measured_are_named() -> None:
    models = world(5, 0.3)
    published = {one.model: one.published for one in models}
    rows = rows_of(models, curve="logit_cosine")
    incomplete = replace_curves(rows[0], {"logit_cosine": (None, 0.5, 1.0)}, 3)
    transformed = [bare_row("m5", "prose", transform="int8"), bare_row("else", "prose")]
    fits = by_similarity(eas_fits([incomplete, *rows[1:5], *transformed], published))
    assert fits["logit"].missing == ("m0", "m5")
    assert [one.model for one in fits["logit"].models] == ["m1", "m2", "m3", "m4"]
    assert fits["logit"].claim.endswith("(4 models; without m0, m5, not measured)")
    assert fits["hidden"].missing == ("m0", "m5")  # a curve that is not there at all


def test_texts_and_heads_are_fitted_apart_and_nothing_is_without_published_values() -> None:
    models = world(5, 0.3)
    published = {one.model: one.published for one in models}
    rows = rows_of(models, curve="logit_cosine")
    rows += rows_of(models[:3], curve="logit_cosine", workload="code")
    fits = eas_fits([*rows, bare_row("else", "chat")], published)
    assert [(fit.workload, len(fit.models)) for fit in fits] == [("prose", 6)] * 3 + [("code", 3)] * 3
    assert eas_fits(rows, {}) == ()
    (first, *_) = eas_fits([bare_row("else", "chat")], published)
    assert (first.workload, first.conclusion, first.missing) == ("chat", "cannot be told", tuple(published))
