"""What a linear lens costs and gains: the sums beside tracing, agreement with and without it.

    python benchmarks/heads.py                 smollm2, prose

The sums are added up while the model runs; their extra time is compared with tracing the same tokens with all
facts. Agreement is measured on documents that fitting did not see. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

import offramp
from offramp.heads.exit_heads import ExitHeads
from offramp.models.model import Model
from offramp.tracing.fitting.fit import fit_heads
from offramp.tracing.fitting.fitting_documents import plan_rows
from offramp.tracing.fitting.fitting_inputs import captured_states
from offramp.tracing.fitting.ridge import ExitSums, lens_sums, solve_lens
from offramp.tracing.trace import Trace
from offramp.workloads.packing import Context
from offramp.workloads.workload import Workload


def unseen_by_fitting(name: str, heads: ExitHeads) -> Workload:
    """The documents of a workload that fitting did not read."""
    workload = offramp.load_workload(name)
    seen = set(heads.documents[workload.fingerprint])
    return replace(workload, documents=tuple(one for one in workload.documents if one.id not in seen))


def run_model(model: Model, contexts: tuple[Context, ...], sums: ExitSums | None) -> None:
    """Forward passes that hand every exit's states over, with or without adding them up."""
    layers = range(1, model.layers + 1)
    for rows, states in captured_states(model, contexts, layers):
        if sums is not None:
            sums.add(dict(zip(layers, states, strict=True)), rows.document % 3 == 1)


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def accumulation(
    model: Model, workload: Workload, tokens: int, repeats: int
) -> tuple[dict[str, object], Trace]:
    """Interleaved times of tracing and of forward passes with and without sums, and the trace."""
    contexts = plan_rows(model, [(workload, workload.documents)], tokens, context=None, shown=False).contexts
    sums = lens_sums(model.shape.hidden_size, model.layers, range(1, model.layers))
    traces: list[Trace] = []

    def trace_once() -> None:
        traces[:] = [offramp.trace(model, workload, tokens=tokens, progress=False)]

    run_model(model, contexts, sums)
    trace_once()
    times: dict[str, list[float]] = {"trace": [], "forward": [], "forward_with_sums": []}
    for _ in range(repeats):
        times["trace"].append(seconds(trace_once))
        times["forward"].append(seconds(lambda: run_model(model, contexts, None)))
        times["forward_with_sums"].append(seconds(lambda: run_model(model, contexts, sums)))
    median = {name: statistics.median(samples) for name, samples in times.items()}
    extra = median["forward_with_sums"] - median["forward"]
    found = {
        "accumulation_over_tracing": extra / median["trace"],
        "solve_seconds": seconds(lambda: solve_lens(sums)),
        "seconds": times,
    }
    return found, traces[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--workload", default="prose")
    parser.add_argument("--fit-tokens", type=int, default=16_384)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    model = offramp.load_model(options.model)
    fitted: list[ExitHeads] = []

    def fit() -> None:
        fitted.append(fit_heads(model, options.workload, tokens=options.fit_tokens, classifiers=False))

    fit_seconds = seconds(fit)
    print(f"fitted in {fit_seconds:.0f} s", file=sys.stderr)
    unseen = unseen_by_fitting(options.workload, fitted[0])
    costs, plain = accumulation(model, unseen, options.tokens, options.repeats)
    through = offramp.trace(model, unseen, tokens=options.tokens, heads=fitted[0], progress=False)
    place = round(model.layers * 2 / 3) - 1
    lens = fitted[0].lens
    assert lens is not None, "the benchmark fits a lens"
    assert lens.explained is not None, "known of a lens that was fitted"
    result = {
        "benchmark": "heads",
        **costs,
        "fit_seconds": fit_seconds,
        "two_thirds_exit": place + 1,
        "agreement_at_two_thirds": {
            "logit_lens": float(plain.agreement[:, place].mean()),
            "linear_lens": float(through.agreement[:, place].mean()),
        },
        "agreement": {
            "logit_lens": plain.agreement.mean(0).round(4).tolist(),
            "linear_lens": through.agreement.mean(0).round(4).tolist(),
        },
        "explained": lens.explained.round(4).tolist(),
        "tokens": {"fitted": fitted[0].provenance["lens"]["tokens"], "measured": plain.token_count},
        "machine": {
            "threads": torch.get_num_threads(),
            "load_average_at_start": load,
            "torch": torch.__version__,
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
