"""What tests of fitting exit heads share: texts to fit on, states collected by hand, and a plain ridge."""

from __future__ import annotations

import math

import numpy as np
import torch
from tracing_models import workload_of

from offramp.models.model import Model
from offramp.workloads.packing import Context
from offramp.workloads.workload import Workload

DOCUMENTS = 48


def texts(count: int = DOCUMENTS, length: int = 20) -> Workload:
    """Documents of about so many tokens."""
    return workload_of(lengths=[length + number % 3 for number in range(count)])


def states_by_hand(model: Model, contexts: tuple[Context, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Every layer's output [layers, rows, hidden] in float64, and each row's document."""
    rows, documents = [], []
    for context in contexts:
        found: list[torch.Tensor] = []
        model.stack.capture(torch.tensor([context.ids]), lambda *of: found.append(of[2][0]))  # noqa: B023
        rows.append(torch.stack(found)[:, context.first_row :].double().numpy())
        documents += [context.document] * context.rows
    return np.concatenate(rows, axis=1), np.array(documents)


def plain_ridge(
    x: np.ndarray, y: np.ndarray, penalty: float, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A [outputs, hidden] and b of y = A x + b: least squares on the rows themselves, the penalty as extra
    rows, the intercept unpenalised. weights: of the rows."""
    weights = np.ones(len(x)) if weights is None else weights
    share = np.sqrt(weights / weights.sum())[:, None]
    mean_x, mean_y = (np.average(part, axis=0, weights=weights) for part in (x, y))
    rows = np.vstack([share * (x - mean_x), math.sqrt(penalty) * np.eye(x.shape[1])])
    wanted = np.vstack([share * (y - mean_y), np.zeros((x.shape[1], y.shape[1]))])
    weight = np.asarray(np.linalg.lstsq(rows, wanted, rcond=None)[0].T)
    return weight, mean_y - weight @ mean_x
