"""Published values of EAS beside what was measured of the same models: which similarity and α fit."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from offramp.report.data_table import (
    PLACE_COLUMNS,
    DataCell,
    DataColumn,
    DataTable,
    facet_cell,
    number_cell,
    place_cells,
)
from offramp.report.formats import decimal, thousandths
from offramp.report.html import fragment, text
from offramp.report.names import figure_name, heads_name, line_name
from offramp.studies.comparison.eas_fit import EasFit, FittedModel
from offramp.studies.comparison.results import Comparison

FIT_COLUMNS = (
    DataColumn("similarity", "Similarity"),
    *PLACE_COLUMNS[1:],
    DataColumn("conclusion", "Published values"),
    DataColumn("alpha", "α", numeric=True),
    DataColumn("error", "Error", numeric=True),
    DataColumn("left-out", "Error, model left out", numeric=True),
    DataColumn("mean", "Error of the others' mean", numeric=True),
    DataColumn("default", "Error with α = 0.5", numeric=True),
    DataColumn("spearman", "Spearman ρ", numeric=True),
    DataColumn("models", "Models", numeric=True),
)
MODEL_COLUMNS = (
    *PLACE_COLUMNS,
    DataColumn("similarity", "Similarity"),
    DataColumn("published", "Published", numeric=True),
    DataColumn("fitted", "Fitted", numeric=True),
    DataColumn("residual", "Fitted less published", numeric=True),
    DataColumn("left-out", "With the others' α", numeric=True),
)


def published_section(comparison: Comparison) -> Markup:
    """What fits, a table of the fits and one of the models; nothing without published values."""
    fits = comparison.eas
    if not fits:
        return Markup()
    rows = [_model_row(fit, one) for fit in fits for one in fit.models]
    return fragment(
        "comparison",
        "published",
        said=published_claims(fits),
        fits=DataTable(
            "eas-fits", "Each similarity", FIT_COLUMNS, [_fit_row(fit) for fit in fits], "fit"
        ).html(),
        models=DataTable("eas-models", "Each model", MODEL_COLUMNS, rows).html(),
    )


def published_claims(fits: Sequence[EasFit]) -> list[str]:
    """A sentence for each similarity on each text."""
    return [
        f"{figure_name(f'eas_{fit.similarity}')}, on {line_name(fit.workload, fit.heads)}: {fit.claim}."
        for fit in fits
    ]


def _fit_row(fit: EasFit) -> list[DataCell]:
    errors = (fit.error, fit.left_out_error, fit.mean_error, fit.default_error)
    return [
        DataCell(text(figure_name(f"eas_{fit.similarity}"))),
        facet_cell(fit.workload),
        facet_cell(heads_name(fit.heads)),
        DataCell(text(fit.conclusion)),
        number_cell(fit.alpha, thousandths),
        *(number_cell(error, thousandths) for error in errors),
        number_cell(fit.spearman, decimal),
        number_cell(len(fit.models), lambda value: decimal(value, 0)),
    ]


def _model_row(fit: EasFit, one: FittedModel) -> list[DataCell]:
    residual = None if one.fitted is None else one.fitted - one.published
    return [
        *place_cells(one.model, fit.workload, fit.heads),
        DataCell(text(figure_name(f"eas_{fit.similarity}"))),
        number_cell(one.published, decimal),
        number_cell(one.fitted, thousandths),
        number_cell(residual, thousandths),
        number_cell(one.left_out, thousandths),
    ]
