"""What a predicted speed rests on: bytes moved, or the times of one machine."""

from __future__ import annotations

from offramp.report.formats import decimal, duration, listed, percent
from offramp.report.run_result import RunResult, WorkloadResult
from offramp.tuning.pricing import BYTES
from offramp.tuning.verdict import Verdict

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


def how_obtained(run: RunResult) -> list[str]:
    """Where agreement, skipped layers and speed come from: replayed, predicted, decoded for real."""
    words = listed([basis_words(basis) for basis in bases(run)] or [basis_words(BYTES)])
    replayed = (
        f"agreement and skipped layers are replayed on the measurement, speed is predicted from {words}."
    )
    shown = [verdict for workload in run.workloads for verdict in workload.verdicts]
    exits = any(verdict.policy != "never" or verdict.tried is not None for verdict in shown)
    if not run.decoding:
        when = "in this run" if run.progress is None else "yet"
        notes = [f"No policy was decoded for real {when}: {replayed}"]
        notes += [f"{name} was not decoded: {why}." for name, why in run.not_decoded.items()]
        return notes + [REPAIR_NOTE] * exits
    texts = listed([decoded.workload for decoded in run.decoding])
    notes = [
        "Under “Decoded for real” stand the policies that were decoded and timed, on a few prompts of "
        f"{texts}. Of all others {replayed}"
    ]
    notes += defect_notes(run)
    notes += [f"{name} was not decoded: {why}." for name, why in run.not_decoded.items()]
    return notes + ([repair_note(run)] if exits else [])


def defect_notes(run: RunResult) -> list[str]:
    """Which measurements have a defect, and which one; said once for all texts that share it."""
    by_reason: dict[str, list[str]] = {}
    for decoded in run.decoding:
        if not decoded.sound:
            by_reason.setdefault("; ".join(decoded.bench.defects), []).append(decoded.workload)
    return [
        f"The measurement on {listed(texts)} has a defect and changes no verdict: {why}."
        for why, texts in by_reason.items()
    ]


def repair_note(run: RunResult) -> str:
    """What approximate keys and values change: measured where a policy was decoded, else not known."""
    found = []
    for decoded in run.decoding:
        policy = decoded.chosen
        if policy is None or policy.free_running is None or policy.forecast is None:
            continue
        if policy.forecast.predicted_agreement is not None:
            found.append(
                f"on {decoded.workload} {percent(policy.forecast.predicted_agreement)} replayed and "
                f"{percent(policy.free_running.agreement.value)} of the text that the policy generated"
            )
    if not found:
        return REPAIR_NOTE
    return (
        "A token that leaves early is charged for the keys and values that later tokens need of the layers "
        f"it skipped. What these approximate ones change was measured for the policies decoded: agreement is "
        f"{listed(found)}. For all others it is not in the agreement."
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
