"""What a predicted speed rests on: bytes moved, or the times of one machine."""

from __future__ import annotations

from offramp.report.formats import decimal, duration, listed
from offramp.report.run_result import RunResult, WorkloadResult
from offramp.tuning.pricing import BYTES
from offramp.tuning.results import Verdict

LOCAL = "local"

REPAIR_NOTE = (
    "A token that leaves early is charged for the keys and values that later tokens need of the layers it "
    "skipped; how much these approximate ones change later predictions is not in the agreement."
)


def machine_name(name: str) -> str:
    """A machine as it stands in a sentence."""
    return "this machine" if name == LOCAL else name


def cost_text(machine: str, cost: float) -> str:
    """A token's cost: time on a machine, megabytes where bytes are counted."""
    return f"{decimal(cost / 1e6, 1)} MB" if machine == BYTES else duration(cost)


def bases(run: RunResult) -> list[str]:
    """What the run's verdicts rest on, each once."""
    return list(dict.fromkeys(verdict.basis for workload in run.workloads for verdict in workload.verdicts))


def basis_words(basis: str) -> str:
    """What a speed is predicted from, to follow "predicted from"."""
    if basis == BYTES:
        return "the bytes each token moves through memory"
    if basis == LOCAL:
        return "the times of layers, probes and head measured on this machine"
    return f"the times of layers, probes and head that the profile of {basis} gives"


def not_decoded(run: RunResult) -> str:
    """How the figures were obtained, and that none was timed while decoding."""
    words = listed([basis_words(basis) for basis in bases(run)] or [basis_words(BYTES)])
    return (
        "No policy was decoded for real in this version: agreement and skipped layers are replayed on the "
        f"measurement, speed is predicted from {words}."
    )


def cheaper(basis: str) -> str:
    """What a policy that beats the full model does: "moves fewer bytes per token"."""
    if basis == BYTES:
        return "moves fewer bytes per token"
    where = "" if basis == LOCAL else f" on {basis}"
    return f"is predicted to take less time per token{where}"


def plain_seconds(run: RunResult, workload: WorkloadResult, basis: str) -> float | None:
    """Seconds per token of plain decoding, at batch size 1, that a speed refers to; None if unknown.

    Of the basis machine's own profile where that is known, so that prediction and reference have the same
    source; else the stopwatch's, which holds for this machine only.
    """
    if basis != BYTES:
        if run.hardware is not None and run.hardware["name"] == basis:
            return float(run.hardware["plain_seconds_per_token"])
        known = [a.plain_seconds_per_token for a in workload.machines if (a.machine, a.batch) == (basis, 1)]
        known += [t.plain_seconds_per_token for t in workload.tuned if (t.machine, t.batch) == (basis, 1)]
        if known:
            return known[0]
    measured = run.plain_seconds_per_token
    return measured.value if measured is not None and basis in (BYTES, LOCAL) else None


def predicted_seconds(run: RunResult, workload: WorkloadResult, verdict: Verdict) -> float | None:
    """Plain seconds per token over the predicted net speedup; None if either is missing."""
    plain, speedup = plain_seconds(run, workload, verdict.basis), verdict.net_speedup.value
    return plain / speedup if plain is not None and speedup else None
