"""A trace read by the model's own head held against one read through fitted heads."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from offramp.costs.counting import depth_fractions
from offramp.errors import InputError
from offramp.heads.described import read_through, reads_exits
from offramp.kit.defaults import DRAWS, SEED
from offramp.scoring.documents import ids_of, name_of, of_documents
from offramp.scoring.estimate import DocumentBootstrap
from offramp.scoring.readings import COMPONENTS, Reading, Readings
from offramp.scoring.scoring import DrawnFigure, drawn_figures
from offramp.tracing.heads_of_trace import heads_documents
from offramp.tracing.trace import Trace

SAME_TOKEN = ("token", "next_token", "position", "generated")
"""Columns by which two traces are known to be of the same tokens."""

FIX = "trace one model on one workload with the same --tokens and --exits, with --heads and without"


def compare_readings(one: Trace, other: Trace, *, draws: int = DRAWS, seed: int = SEED) -> Readings:
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
    return Readings(
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


def _reading(figures: Mapping[str, DrawnFigure], bootstrap: DocumentBootstrap) -> Reading:
    return Reading(*(figures[name].estimate(bootstrap) for name in COMPONENTS))


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
