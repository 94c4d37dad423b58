"""What one folder gives to a comparison, and the parts of it that both kinds of folders have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from offramp.decoding.measurement.results import TOO_FEW_PROMPTS
from offramp.policies.cost_breakdown import Gain
from offramp.scoring.card import ESTIMATES
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import (
    Lacks,
    Row,
    Saving,
    Strategy,
    floor_text,
    place_text,
)
from offramp.tuning.bounds import OUT_OF_TIME
from offramp.tuning.certificate import certified_lengths
from offramp.tuning.splits import fewest_documents
from offramp.tuning.verdict import DECIDED, Decision

APART = 0.005
"""Mean token lengths of one text that differ by less than this share are called equal."""


def characters_per_second(
    characters_per_token: float | None, seconds_per_token: float | None
) -> float | None:
    """Speed in text instead of tokens; None where one of the two is not known."""
    if characters_per_token is None or not seconds_per_token:
        return None
    return characters_per_token / seconds_per_token


def per_byte_notes(rows: Sequence[Row]) -> tuple[str, ...]:
    """A sentence for each workload whose text the models cut into tokens of different lengths.

    Answers that each model wrote itself are no text that they share.
    """
    notes = []
    for workload in dict.fromkeys(row.workload for row in rows):
        lengths = {
            row.model.shown: row.bytes_per_token
            for row in rows
            if row.workload == workload and row.bytes_per_token is not None and not row.own_text
        }
        if not lengths:
            continue
        shortest, longest = min(lengths, key=lengths.__getitem__), max(lengths, key=lengths.__getitem__)
        if lengths[longest] > (1.0 + APART) * lengths[shortest]:
            notes.append(
                f"On {workload} a token of {shortest} is {lengths[shortest]:.2f} bytes of text, one of "
                f"{longest} {lengths[longest]:.2f}: nats per token and seconds per token mislead between "
                "them, bits per byte and characters per second do not. Equally many tokens are then "
                "not equally much text."
            )
    return tuple(notes)


PROPAGATE = "propagate"
"""How the league charges keys and values of skipped layers."""

DEFECT = "defect"
"""What stands instead of an answer of a timing where something is wrong with it."""


@dataclass(frozen=True)
class Content:
    """What one folder holds, as in `Comparison`.

    machines: what each machine's name stands for, in words that differ where machines do, as
    `machine_words` gives them; without the names of which that is not known.
    """

    title: str
    description: str
    rows: tuple[Row, ...]
    strategies: tuple[Strategy, ...] = ()
    combined: tuple[Mapping[str, Any], ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    machines: Mapping[str, str] = field(default_factory=dict)


def machine_words(machine: Mapping[str, Any] | str) -> str:
    """A machine in words, as a task's recipe holds it: the facts of one that is timed, with processor and
    torch's threads; or, of one that is priced by a profile, SHA-256 of the profile's figures."""
    if isinstance(machine, str):
        return f"profile {machine[:12]}"
    threads = machine["threads"]
    return f"{machine['processor']}, {threads} thread{'' if threads == 1 else 's'}"


def card_fields(card: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a row that `ScoreCard.to_json()` gives."""
    curves = card["curves"]
    return {
        "tokens": card["tokens"],
        "documents": card["documents"],
        "scores": {name: Estimate(**card[name]) for name in ESTIMATES},
        "eas": tuple(card["eas_variants"]),
        "candidates": dict(card["candidates"]),
        "exits": tuple(curves["exits"]),
        "depth_fraction": tuple(curves["depth_fraction"]),
        "curves": {name: tuple(values) for name, values in curves["values"].items()},
        "intervals": {
            name: {limit: tuple(values) for limit, values in limits.items()}
            for name, limits in curves["intervals"].items()
        },
    }


def saving_of(tuned: Mapping[str, Any], machine: str) -> Saving:
    """What the tuner says at one floor. tuned: a `Tuned` as JSON."""
    certificate, floor = tuned["certificate"], tuned["floor"]
    needed = certificate["documents_needed"]
    return Saving(
        floor=f"{floor['kind']}={floor['value']:g}",
        machine=machine,
        policy=tuned["policy"],
        net_speedup=Estimate(**tuned["net_speedup"]),
        certified=certificate["holds"],
        answer=tuned["answer"],
        kv=tuned["kv"],
        lacks=_lacks(tuned),
        documents=certificate["documents"],
        documents_needed=needed,
        documents_in_all=fewest_documents(needed) + tuned["documents"]["heads"],
        executed=certificate["executed"],
        of_tokens=certified_lengths(certificate.get("document_tokens"), certificate.get("new_tokens")),
    )


def _lacks(tuned: Mapping[str, Any]) -> Lacks:
    """Why there is no certificate: as the floor stands after decoding; of a replay bound, which has no such
    standing, by its test. A search that found nothing faster had nothing to certify."""
    certificate = tuned["certificate"]
    if certificate["holds"]:
        return ""
    if certificate["executed"] and tuned.get("grounds") is not None:
        return LACKS[DECIDED[tuned["grounds"]["standing"]]]
    if certificate["documents"] < certificate["documents_needed"] or not tuned["documents"]["search"]:
        return "documents"
    if not certificate["tested"]:
        return ""
    out_of_time = any(one["outcome"] == OUT_OF_TIME for one in tuned["candidates"])
    return "time" if out_of_time else "evidence"


LACKS: Mapping[Decision | None, Lacks] = {
    None: "",
    "does not pay": "",
    "not enough documents": "documents",
    "not settled": "time",
}
"""What a certificate lacked, by what the verdict says of how the floor stands."""


def league_speedups(entries: Sequence[Mapping[str, Any]], machine: str) -> dict[str, float]:
    """Net speedup of what the league chose at each floor, by floor and machine. entries: `RankedPolicy`s."""
    return {
        place_text(floor_text(entry["floor"]), machine): entry["net_speedup"]["value"]
        for entry in entries
        if entry["chosen"] and entry["net_speedup"]["value"] is not None
    }


def league_strategy(
    entry: Mapping[str, Any],
    where: Mapping[str, Any],
    *,
    in_seconds: bool,
    characters_per_token: float | None,
) -> Strategy:
    """One entry of a league. where: model, workload, heads, machine. in_seconds: else bytes are counted."""
    seconds = entry["seconds_per_token"] if in_seconds else None
    return Strategy(
        **where,
        family=entry["family"],
        policy=entry["policy"],
        kv=PROPAGATE,
        floor=floor_text(entry["floor"]),
        basis="predicted",
        agreement=Estimate(**entry["agreement"]),
        skip_ratio=Estimate(**entry["skip_ratio"]),
        net_speedup=Estimate(**entry["net_speedup"]),
        probe_share=entry["probe_share"],
        seconds_per_token=seconds,
        characters_per_second=characters_per_second(characters_per_token, seconds),
        reachable=entry["reachable"],
        chosen=entry["chosen"],
        gain=gain_of(entry["gain"]),
    )


def gain_of(value: Mapping[str, float] | None) -> Gain | None:
    """Where a gain comes from, as results write it."""
    return None if value is None else Gain(**value)


def interval_estimate(interval: Mapping[str, float | None] | None, undefined: str = "") -> Estimate:
    """An estimate of a measurement, as results write it. undefined: why there is none."""
    if interval is None or interval["value"] is None:
        return Estimate(None, undefined=undefined or "not measured")
    low, high = interval["low"], interval["high"]
    return Estimate(interval["value"], low, high, no_interval=TOO_FEW_PROMPTS if low is None else None)


def skipped(layers_per_token: float | None, layers: int) -> Estimate:
    """Share of layers not executed, of those that hooks counted per new token."""
    if layers_per_token is None:
        return Estimate(None, undefined="layers were not counted")
    return Estimate(1.0 - layers_per_token / layers, no_interval="counted, not resampled")


def answer_text(
    answer: str, resolution: float | None, defects: Sequence[str], left_out: str | None = None
) -> str:
    """What a timing answers, in words: "faster", "unresolved at ± 3.4 %", "defect: ...", "left out: ...".

    resolution: half-width of the ratio's interval, as a share.
    """
    if left_out is not None:
        return f"left out: {left_out}"
    if answer == DEFECT:
        return f"{DEFECT}: {'; '.join(defects)}" if defects else DEFECT
    if answer == "unresolved" and resolution is not None:
        return f"{answer} at ± {100 * resolution:.1f} %"
    return answer
