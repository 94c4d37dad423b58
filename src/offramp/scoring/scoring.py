"""The suitability score: from a trace to its score card, and one trace held against another reading of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.costs.counting import depth_fractions, head_flops, layer_flops
from offramp.defaults import DRAWS, EAS_ALPHA, SEED
from offramp.errors import InputError
from offramp.heads.described import read_through, reads_exits
from offramp.kit.numbers import Whole, whole_runs
from offramp.scoring import components
from offramp.scoring.calibration import FOLDS_NEED_DOCUMENTS, ConfidenceDiagnostics, confidence_diagnostics
from offramp.scoring.card import (
    COMPONENTS,
    Curve,
    EasVariant,
    LayerCurves,
    Limits,
    PairedReadings,
    ReadScores,
    ScoreCard,
)
from offramp.scoring.components import (
    NO_EARLY_EXIT,
    SIMILARITIES,
    EasInputs,
    initial_information,
    layer_weights,
)
from offramp.scoring.documents import (
    DocumentRows,
    document_rows,
    fact_of,
    fact_sums,
    ids_of,
    name_of,
    of_documents,
)
from offramp.scoring.estimate import DocumentBootstrap, Draws, Estimate, document_bootstrap
from offramp.tracing.trace import Trace, heads_documents

MEAN_FACTS: tuple[str, ...] = (
    "max_prob",
    "margin",
    "entropy",
    "kl_to_final",
    "nll",
    "final_logprob",
    "logit_cosine",
    "centred_logit_cosine",
    "shuffled_logit_cosine",
    "hidden_cosine_to_final",
    "hidden_cosine_to_previous",
    "update_norm",
)

Values = NDArray[np.float64]


def layer_curves(
    trace: Trace,
    depth_fraction: Curve,
    means: Mapping[str, Values],
    diagnostics: ConfidenceDiagnostics,
    bootstrap: DocumentBootstrap,
) -> LayerCurves:
    """All curves of a trace.

    means: curve name -> float64 [1 + draws, exits], the trace and then its bootstrap draws; these get an
    interval. The diagnostics (ECE, AUROC, AURC) and the median rank get none.
    """
    values: dict[str, Curve] = {name: draws[0] for name, draws in means.items()}
    values["final_rank_median"] = np.median(fact_of(trace, "final_rank"), axis=0)
    values["ece_agreement"] = diagnostics.ece_agreement
    values["ece_token"] = diagnostics.ece_token
    values["auroc"] = diagnostics.auroc
    values["aurc"] = diagnostics.aurc
    limits = {name: bootstrap.interval(draws) for name, draws in means.items()}
    return LayerCurves(
        exits=trace.exits,
        depth_fraction=depth_fraction,
        values=values,
        intervals={name: Limits(*limit) for name, limit in limits.items() if limit is not None},
    )


def exit_ranges(exits: NDArray[np.int64]) -> str:
    """A short text for a rising list of exits: [1, 2, 3, 30] -> "exits 1-3, 30", [4] -> "exit 4"."""
    runs = whole_runs(exits.tolist())
    ranges = ", ".join(f"{first}-{last}" if first < last else f"{first}" for first, last in runs)
    return f"exit {ranges}" if len(exits) == 1 else f"exits {ranges}"


def curve_notes(trace: Trace, diagnostics: ConfidenceDiagnostics) -> tuple[str, ...]:
    """Sentences that say at which exits AUROC and AURC are undefined, and why."""
    notes = []
    if diagnostics.few.any():
        exits = exit_ranges(trace.exits[diagnostics.few])
        notes.append(f"AUROC is undefined at {exits}: fewer than 20 tokens agree or fewer than 20 do not")
    if diagnostics.constant.any():
        exits = exit_ranges(trace.exits[diagnostics.constant])
        notes.append(f"AUROC and AURC are undefined at {exits}: the confidence is constant")
    return tuple(notes)


@dataclass(frozen=True)
class _Measured:
    """What the scores are computed from.

    means: curve name -> float64 [1 + draws, exits], the trace and then its draws. initial: R_0, [1 + draws].
    agreement: bool [tokens, exits].
    """

    trace: Trace
    rows: DocumentRows
    bootstrap: DocumentBootstrap
    position: float
    depth_fraction: Values
    means: Mapping[str, Values]
    initial: Values
    agreement: NDArray[np.bool_]
    diagnostics: ConfidenceDiagnostics


@dataclass(frozen=True)
class DrawnFigure:
    """A figure for the trace and its bootstrap draws, float64 [1 + draws], or why it is undefined."""

    values: Values | None
    undefined: str | None = None

    def estimate(self, bootstrap: DocumentBootstrap) -> Estimate:
        """The figure with its 95 % interval."""
        if self.values is None:
            return Estimate(None, undefined=self.undefined)
        return bootstrap.estimate(self.values)


def score(
    trace: Trace, *, beside: Trace | None = None, draws: Draws = DRAWS, seed: Whole = SEED
) -> ScoreCard:
    """Score how suited a model is to early exit on a workload.

    draws: bootstrap draws of documents behind each 95 % interval. seed: of the draws; the same trace and seed
    give the same card, in whatever order the documents come. beside: the same tokens at the same exits, read
    in another way: through fitted heads if the trace is read by the model's own, without them if it is not.
    The card then has both readings; all its other figures are of the trace alone.

    Raises InputError for a trace without tokens or without the last exit, a fact that is missing or not
    finite (named), a document with split rows, fewer than 40 draws, or a trace beside it that is not the
    other reading.

    >>> offramp.score(trace).representation
    Estimate(value=...)
    """
    measured = _measure(trace, draws, seed)
    bootstrap = measured.bootstrap
    estimates = {name: component.estimate(bootstrap) for name, component in _components(measured).items()}
    literal = _literal_calibration(measured.diagnostics)
    skips = {name: bootstrap.estimate(values) for name, values in _oracle_skips(measured).items()}
    eas = _eas_inputs(measured)
    variants = tuple(eas.variant(similarity, EAS_ALPHA) for similarity in SIMILARITIES)
    head = head_flops(trace.shape)
    return ScoreCard(
        **estimates,
        literal_calibration=literal,
        initial_information=bootstrap.estimate(measured.initial),
        **skips,
        ceiling=float(1.0 - measured.depth_fraction[0]),
        head_share=float(head / (head + layer_flops(trace.shape, measured.position).sum())),
        mean_position=measured.position,
        documents=measured.rows.count,
        tokens=trace.token_count,
        curves=layer_curves(trace, measured.depth_fraction, measured.means, measured.diagnostics, bootstrap),
        reliability=measured.diagnostics.reliability,
        eas_variants=variants,
        compute_eas=eas.variant,
        candidates=_candidates(estimates, literal, variants, skips, measured.means),
        notes=_notes(measured),
        reference_agreement=_reference_agreement(measured),
        read_through=read_through(trace.request.get("heads")),
        readings=None if beside is None else compare_readings(trace, beside, draws=draws, seed=seed),
    )


def drawn_figures(
    trace: Trace, *, draws: Draws = DRAWS, seed: Whole = SEED
) -> tuple[DocumentBootstrap, dict[str, DrawnFigure]]:
    """The draws behind the estimates of `score`, by the card's names, and the bootstrap that gave them.

    Names: representation, increment, calibration, composite, first_match_skip, saturation_skip, eas_logit,
    eas_centred_logit, eas_hidden (at the default alpha), nll (of the full model, nats per token). Two
    traces with rows of the same documents have the same draws: draw i holds the same documents in both.

    Raises what `score` raises.
    """
    measured = _measure(trace, draws, seed)
    eas = _eas_inputs(measured)
    figures = {
        **_components(measured),
        **{name: DrawnFigure(values) for name, values in _oracle_skips(measured).items()},
        **{
            f"eas_{similarity}": DrawnFigure(eas.values(similarity, EAS_ALPHA))
            if len(eas.weights)
            else DrawnFigure(None, NO_EARLY_EXIT)
            for similarity in SIMILARITIES
        },
        "nll": DrawnFigure(measured.means["nll"][:, -1]),
    }
    return measured.bootstrap, figures


def _eas_inputs(measured: _Measured) -> EasInputs:
    weights = layer_weights(measured.trace.exits, measured.trace.layers)[:-1]
    return EasInputs(measured.means, weights, measured.bootstrap)


def _measure(trace: Trace, draws: int, seed: int) -> _Measured:
    """Check the trace and reduce its facts to per-document sums, their means and the draws of these."""
    if len(trace.exits) == 0 or trace.exits[-1] != trace.layers or np.any(np.diff(trace.exits) <= 0):
        raise InputError(
            f"the exits must rise and end at layer {trace.layers}, the full model",
            fix="trace with exits that include the last layer",
        )
    rows = document_rows(trace)
    bootstrap = document_bootstrap(rows.count, draws=draws, seed=seed)
    position = float(trace.position.mean())
    sums = {name: fact_sums(trace, rows, name) for name in MEAN_FACTS}
    fact_of(trace, "top1")  # a missing one is named, before `agreement` reads it
    agreement = trace.agreement
    diagnostics = confidence_diagnostics(trace, rows, agreement)
    initial = initial_information(trace.marginal, sums["entropy"][:, -1], rows, bootstrap)
    sums["agreement"] = rows.sums(agreement)
    if trace.reference_agreement is not None:
        sums["reference_agreement"] = rows.sums(trace.reference_agreement)
    sums["brier"] = diagnostics.brier_sums
    if diagnostics.recalibrated_sums is not None:
        sums["recalibrated_brier"] = diagnostics.recalibrated_sums
    means = {name: bootstrap.means(values, rows.tokens) for name, values in sums.items()}
    means["increment"] = components.increments(means["kl_to_final"], initial)
    means["remaining_information"] = components.remaining_share(means["kl_to_final"], initial)
    means["block_influence"] = 1.0 - means["hidden_cosine_to_previous"]
    return _Measured(
        trace=trace,
        rows=rows,
        bootstrap=bootstrap,
        position=position,
        depth_fraction=depth_fractions(trace.shape, trace.exits, position),
        means=means,
        initial=initial,
        agreement=agreement,
        diagnostics=diagnostics,
    )


def _components(measured: _Measured) -> dict[str, DrawnFigure]:
    """Components 1-3 and the composite, for the trace and its draws."""
    figures = {
        "representation": _representation(measured),
        "increment": _increment(measured),
        "calibration": _calibration(measured),
    }
    missing = [name for name, component in figures.items() if component.values is None]
    values = [component.values for component in figures.values() if component.values is not None]
    figures["composite"] = (
        DrawnFigure(None, f"it needs the undefined component {' and '.join(missing)}")
        if missing
        else DrawnFigure(components.geometric_mean(*values))
    )
    return figures


def _representation(measured: _Measured) -> DrawnFigure:
    if len(measured.depth_fraction) == 1:
        return DrawnFigure(None, NO_EARLY_EXIT)
    return DrawnFigure(
        components.representation_quality(measured.means["agreement"], measured.depth_fraction)
    )


def _increment(measured: _Measured) -> DrawnFigure:
    if len(measured.depth_fraction) == 1:
        return DrawnFigure(None, NO_EARLY_EXIT)
    needed = components.INITIAL_INFORMATION_NEEDED
    initial = measured.initial
    if initial[0] < needed:
        below = f"R_0 is {max(initial[0], 0.0):.3f} nat, {needed} is needed"
        return DrawnFigure(None, f"the final distributions hardly differ: {below}")
    remaining = measured.means["kl_to_final"]
    return DrawnFigure(components.information_increment(remaining, initial, measured.depth_fraction))


def _calibration(measured: _Measured) -> DrawnFigure:
    agreement = measured.means["agreement"][:, :-1]
    documents = measured.rows.count
    if agreement.shape[1] == 0:
        return DrawnFigure(None, NO_EARLY_EXIT)
    if "recalibrated_brier" not in measured.means:
        return DrawnFigure(
            None, f"{documents} document; the cross-fitted recalibration needs {FOLDS_NEED_DOCUMENTS}"
        )
    values = components.calibration_skill(measured.means["recalibrated_brier"][:, :-1], agreement)
    if np.isnan(values[0]):
        return DrawnFigure(None, "one class: every exit before the last always agrees or never does")
    return DrawnFigure(values)


def _literal_calibration(diagnostics: ConfidenceDiagnostics) -> Estimate:
    """The study's wording: 1 - ECE against the observed token, mean over exits below L; no interval."""
    early = diagnostics.ece_token[:-1]
    if len(early) == 0:
        return Estimate(None, undefined=NO_EARLY_EXIT)
    return Estimate(
        float(1.0 - early.mean()), no_interval="ECE is biased; a percentile interval would mislead"
    )


def _reference_agreement(measured: _Measured) -> Estimate | None:
    """How often a transformed full model says what the untransformed one says, None without transforms."""
    means = measured.means.get("reference_agreement")
    return None if means is None else measured.bootstrap.estimate(means[:, -1])


def _oracle_skips(measured: _Measured) -> dict[str, Values]:
    """What all-knowing policies skip, for the trace and its draws, each float64 [1 + draws]."""
    chosen = {
        "first_match_skip": components.first_match(measured.agreement),
        "saturation_skip": components.saturation(measured.agreement),
    }
    trace, rows, bootstrap = measured.trace, measured.rows, measured.bootstrap
    skipped = {
        name: rows.sums(components.skip_ratio(columns, trace.exits, trace.layers))
        for name, columns in chosen.items()
    }
    return {name: bootstrap.means(sums, rows.tokens) for name, sums in skipped.items()}


def _candidates(
    estimates: Mapping[str, Estimate],
    literal: Estimate,
    variants: tuple[EasVariant, ...],
    skips: Mapping[str, Estimate],
    means: Mapping[str, Values],
) -> dict[str, float | None]:
    figures = {name: estimate.value for name, estimate in estimates.items()}
    figures["literal_calibration"] = literal.value
    figures.update({f"eas_{variant.similarity}": variant.score.value for variant in variants})
    figures["block_influence"] = float(means["block_influence"][0].mean())
    early = means["kl_to_final"][0, :-1]
    figures["mean_kl"] = float(early.mean()) if len(early) else None
    figures.update({name: estimate.value for name, estimate in skips.items()})
    return figures


def _notes(measured: _Measured) -> tuple[str, ...]:
    notes = ["R_0 grows with the number of tokens: compare models at equal token counts only"]
    left_out = [document for document in measured.trace.documents if not document.valid]
    if left_out:
        named = "; ".join(f"{document.id} ({document.reason})" for document in left_out)
        notes.append(f"{len(left_out)} of {len(measured.trace.documents)} documents were left out: {named}")
    seen = heads_documents(measured.trace) & ids_of(measured.trace)
    if seen and reads_exits(measured.trace.request.get("heads")):
        notes.append(
            f"what reads the exits was fitted on {len(seen)} of the {measured.rows.count} documents, or on "
            "text that they share: it reads these better than others"
        )
    return (*notes, *curve_notes(measured.trace, measured.diagnostics))


SAME_TOKEN = ("token", "next_token", "position", "generated")
"""Columns by which two traces are known to be of the same tokens."""

FIX = "trace one model on one workload with the same --tokens and --exits, with --heads and without"


def compare_readings(one: Trace, other: Trace, *, draws: int = DRAWS, seed: int = SEED) -> PairedReadings:
    """Both readings, in whichever order they are given, with paired intervals over documents.

    Documents that the heads' fitting saw are left out: on these they read better than on other text.

    Raises InputError unless both are of one model, the same tokens and exits, one of them read by the model's
    own head and one through a lens or output heads, which did not see all of the documents; what
    `offramp.score` raises.
    """
    raw, fitted = (one, other) if is_raw(one) else (other, one)
    common = _common_documents(raw, fitted)
    unseen = common - heads_documents(fitted)
    if not unseen:
        raise InputError(
            "the exit heads were fitted on every document of the traces",
            where=name_of(fitted),
            fix="trace other text, or more of it",
        )
    sides = [of_documents(trace, unseen) for trace in (raw, fitted)]
    for name in SAME_TOKEN:
        if not np.array_equal(getattr(sides[0], name), getattr(sides[1], name)):
            raise _unlike(raw, fitted, f"are not of the same tokens ({name} differs)")
    (bootstrap, before), (_, after) = [drawn_figures(side, draws=draws, seed=seed) for side in sides]
    position = float(sides[0].position.mean())
    ceiling = 1.0 - float(depth_fractions(raw.shape, raw.exits, position)[0])
    return PairedReadings(
        raw=_reading(before, bootstrap),
        fitted=_reading(after, bootstrap),
        gained=_reading({name: _less(after[name], before[name]) for name in COMPONENTS}, bootstrap),
        closed=_closed(before["representation"], after["representation"], ceiling).estimate(bootstrap),
        ceiling=ceiling,
        through=read_through(fitted.request["heads"]),
        documents=len(unseen),
        left_out=len(common) - len(unseen),
    )


def is_raw(trace: Trace) -> bool:
    """Whether a trace's exits were read by the model's own norm and head."""
    return not reads_exits(trace.request.get("heads"))


def are_two_readings(one: Trace, other: Trace) -> bool:
    """Whether these are two readings of one thing, as far as is known without reading a fact."""
    raw, fitted = (one, other) if is_raw(one) else (other, one)
    try:
        return bool(_common_documents(raw, fitted) - heads_documents(fitted))
    except InputError:
        return False


def _common_documents(raw: Trace, fitted: Trace) -> set[str]:
    """Ids of the documents that both have. Raises InputError for what is not two readings of one model."""
    if is_raw(fitted) or not is_raw(raw):
        raise _unlike(raw, fitted, "are not one read by the model's own head and one through fitted heads")
    for key in ("model", "workload"):
        first, second = (trace.request.get(key, {}).get("fingerprint") for trace in (raw, fitted))
        if first != second:
            raise _unlike(raw, fitted, f"are of different {key}s")
    if not np.array_equal(raw.exits, fitted.exits):
        raise _unlike(raw, fitted, "are of different exits")
    common = ids_of(raw) & ids_of(fitted)
    if not common:
        raise _unlike(raw, fitted, "have no document in common")
    return common


def _unlike(raw: Trace, fitted: Trace, why: str) -> InputError:
    return InputError(f"the traces {why}", where=f"{name_of(raw)} and {name_of(fitted)}", fix=FIX)


def _reading(figures: Mapping[str, DrawnFigure], bootstrap: DocumentBootstrap) -> ReadScores:
    return ReadScores(*(figures[name].estimate(bootstrap) for name in COMPONENTS))


def _less(first: DrawnFigure, second: DrawnFigure) -> DrawnFigure:
    """The difference, draw by draw: both hold the same documents."""
    if first.values is None or second.values is None:
        return DrawnFigure(None, first.undefined or second.undefined)
    return DrawnFigure(first.values - second.values)


def _closed(raw: DrawnFigure, fitted: DrawnFigure, ceiling: float) -> DrawnFigure:
    """(A_fitted - A_raw) / (1 - x_1 - A_raw), A the representation quality."""
    if raw.values is None or fitted.values is None:
        return DrawnFigure(None, raw.undefined or fitted.undefined)
    left = ceiling - raw.values
    if left[0] <= 0.0:
        return DrawnFigure(None, "the model's own head reads all there is: nothing is left to close")
    return DrawnFigure((fitted.values - raw.values) / np.where(left > 0.0, left, np.nan))
