"""How exit heads were fitted, as JSON values."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from offramp.tracing.fitting.documents import FittingRows
from offramp.tracing.request import code_fingerprint, library_versions
from offramp.workloads.workload import Workload


def describe_fitting(workloads: Sequence[Workload], rows: Mapping[str, FittingRows | None]) -> dict[str, Any]:
    """Tokens, documents and workloads that fitting read; code, threads and libraries that it ran with.

    rows: that each part was fitted on, by its name; None for a part that is not there.
    """
    keys = ("name", "fingerprint", "mode", "licence", "source")
    return {
        **{part: _describe_rows(of_part) for part, of_part in rows.items()},
        "workloads": [{key: getattr(work, key) for key in keys} for work in workloads],
        "threads": torch.get_num_threads(),
        "code": code_fingerprint(),
        "versions": library_versions()
        | {name: importlib.metadata.version(name) for name in ("scikit-learn", "scipy")},
    }


def _describe_rows(rows: FittingRows | None) -> dict[str, int] | None:
    if rows is None:
        return None
    return {
        "tokens": rows.tokens,
        "documents": len(rows.held_out),
        "held_out_documents": int(rows.held_out.sum()),
    }
