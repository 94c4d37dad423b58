"""Where a run's numbers come from: versions, fingerprints, machine."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Iterable, Mapping
from typing import Any

import psutil
import torch

import offramp
from offramp.costs.hardware import processor_name
from offramp.models.model import Model
from offramp.models.source import weights_note
from offramp.tracing.request import code_fingerprint, library_versions
from offramp.tracing.trace import Trace


def describe_run(model: Model) -> dict[str, Any]:
    """Versions, fingerprints and the machine, as JSON values."""
    about_weights = weights_note(model.identity.weights)
    return {
        "offramp": offramp.__version__,
        "code_fingerprint": code_fingerprint(),
        "model_source": model.identity.source,
        "model_licence": model.identity.licence,
        **({} if about_weights is None else {"model_weights": about_weights}),
        "model_fingerprint": model.identity.fingerprint,
        "transforms": list(model.identity.transforms),
        "tokenizer_fingerprint": model.identity.tokenizer,
        "dtype": model.dtype,
        "bos": model.bos_policy.source,
        "readout": model.stack.readout_kind,
        **describe_software(model.identity.transforms),
        **describe_machine(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def describe_request(traces: Mapping[str, Trace]) -> dict[str, Any]:
    """What was asked for, and the text each trace was measured on: licence, source and fingerprints.

    traces: by the workload's name.
    """
    described = {}
    for name, trace in traces.items():
        request = trace.request
        described[name] = {
            **{key: request["workload"][key] for key in ("licence", "source", "fingerprint")},
            **{key: request[key] for key in ("tokens", "context", "document_tokens", "exits", "reductions")},
            "request_fingerprint": trace.provenance["request_fingerprint"],
        }
    return {"traced": described}


def describe_software(transforms: Iterable[str]) -> dict[str, Any]:
    """Versions of Python and of the libraries that compute. transforms: of the model, as texts."""
    versions = library_versions(transforms) | {"pyarrow": importlib.metadata.version("pyarrow")}
    return {"python": platform.python_version()} | versions


def describe_machine() -> dict[str, Any]:
    """Processor, cores, threads, memory and load."""
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "not set"),
    }
