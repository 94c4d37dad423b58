"""What a transform itself costs, and agreement with the model as it was before: in words."""

from __future__ import annotations

from offramp.report.formats import estimate_text, interval_text, listed, percent
from offramp.report.run_result import RunResult, WorkloadResult
from offramp.scoring.estimate import Estimate


def transform_sentence(run: RunResult) -> str | None:
    """What the transforms of the model cost before any early exit; None for a model without transforms."""
    costs = [cost for workload in run.workloads if (cost := transform_cost(workload)) is not None]
    if not costs:
        return None
    return (
        "What the transform itself costs: the full model, as transformed, says what the untransformed one "
        f"says on {listed(costs)}. Agreement is with the transformed full model wherever “untransformed” is "
        "not said."
    )


def transform_cost(workload: WorkloadResult) -> str | None:
    """Agreement of the transformed full model with the untransformed one on one workload."""
    kept = workload.card.reference_agreement
    if kept is None or kept.value is None:
        return None
    limits = interval_text(kept.low, kept.high, percent)
    why = f"95 % interval {limits}" if limits else f"no interval: {kept.no_interval}"
    return f"{percent(kept.value)} of the tokens of {workload.name} ({why})"


def reference_line(reference: Estimate | None) -> str:
    """Agreement with the untransformed model, to stand below an agreement; "" without transforms."""
    if reference is None:
        return ""
    if reference.value is None:
        return "untransformed: undefined"
    return f"untransformed: {estimate_text(reference, percent)}"
