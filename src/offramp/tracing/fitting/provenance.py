"""How exit heads were fitted, as JSON values."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any

import torch

from offramp.tracing.fitting.documents import FittingRows
from offramp.tracing.request import code_fingerprint, library_versions
from offramp.workloads.workload import Workload


def describe_fitting(
    workloads: Sequence[Workload], lens: FittingRows | None, classifiers: FittingRows | None
) -> dict[str, Any]:
    """Tokens, documents and workloads that fitting read; code, threads and libraries that it ran with."""
    keys = ("name", "fingerprint", "mode", "licence", "source")
    return {
        "lens": _describe_rows(lens),
        "classifiers": _describe_rows(classifiers),
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
