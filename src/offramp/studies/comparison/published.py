"""The published values of EAS that a study's file gives, beside what was measured of the same models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from offramp.scoring.eas import SIMILARITIES, layer_weights
from offramp.studies.comparison.eas_fit import EasFit, PublishedModel, eas_fit
from offramp.studies.comparison.results import Row


def eas_fits(rows: Sequence[Row], published: Mapping[str, float]) -> tuple[EasFit, ...]:
    """A fit for each similarity on each text through each kind of heads; none without published values.

    published: EAS by the name of an untransformed model. Texts on which no such model was measured count only
    where there is no other.
    """
    if not published:
        return ()
    measured = [row for row in rows if not row.model.transform and row.model.name in published]
    places = dict.fromkeys((row.workload, row.heads) for row in measured or rows)
    return tuple(
        _fit(similarity, workload, heads, measured, published)
        for workload, heads in places
        for similarity in SIMILARITIES
    )


def _fit(
    similarity: str, workload: str, heads: str, rows: Sequence[Row], published: Mapping[str, float]
) -> EasFit:
    here = {row.model.name: row for row in rows if (row.workload, row.heads) == (workload, heads)}
    models = list(_models(here, SIMILARITIES[similarity], published))
    found = {one.model for one in models}
    return eas_fit(
        models,
        similarity=similarity,
        workload=workload,
        heads=heads,
        missing=[name for name in published if name not in found],
    )


def _models(rows: Mapping[str, Row], curve: str, published: Mapping[str, float]) -> Iterator[PublishedModel]:
    """Models with the whole curve of a similarity. rows: by the model's name, in the order of `published`."""
    for name, value in published.items():
        row = rows.get(name)
        below = () if row is None else row.curves.get(curve, ())[:-1]
        known = [one for one in below if one is not None]
        if row is None or not known or len(known) < len(below):
            continue
        weights = layer_weights(np.array(row.exits), row.exits[-1])[:-1]
        yield PublishedModel(name, value, np.array(known), weights, row.model.base)
