"""The lines of a comparison's tables: plain values by column, None for what is undefined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from offramp.policies.cost_breakdown import GAIN_PARTS
from offramp.scoring.card import ESTIMATES
from offramp.scoring.estimate import Estimate, number
from offramp.studies.comparison.results import Comparison, Row, floor_and_machine, share_saved

Line = Mapping[str, Any]

NATS = frozenset({"kl_to_final", "entropy", "nll", "final_logprob", "increment"})
"""Curves in nats; the component called increment is a share, the curve of that name is not."""

CURVES = (
    "agreement",
    "reference_agreement",
    "remaining_information",
    "increment",
    "kl_to_final",
    "entropy",
    "nll",
    "max_prob",
    "margin",
    "final_logprob",
    "final_rank_median",
    "logit_cosine",
    "centred_logit_cosine",
    "shuffled_logit_cosine",
    "hidden_cosine_to_final",
    "hidden_cosine_to_previous",
    "block_influence",
    "update_norm",
    "brier",
    "recalibrated_brier",
    "ece_agreement",
    "ece_token",
    "auroc",
    "aurc",
)

SCORES = tuple(f"{name}_nats" if name == "initial_information" else name for name in ESTIMATES)
CURVE_COLUMNS = tuple(f"{name}_nats" if name in NATS else name for name in CURVES)
CANDIDATES = {"block_influence": "block_influence", "mean_kl": "mean_kl_nats"}
"""Columns of the scores that are candidates only."""


def leaderboard_lines(comparison: Comparison) -> Iterator[Line]:
    """One line for each row: what the model is, its scores and its text."""
    for row in comparison.rows:
        facts = row.model
        line = {
            **_where(row),
            **{name: getattr(facts, name) for name in ("base", "family", "released", "kind", "stage")},
            "generation": number(facts.generation),
            "parameters": number(facts.parameters),
            "tokens": row.tokens,
            "documents": row.documents,
            "workload_sha256": row.workload_fingerprint,
            "source": row.source,
            "own_text": row.own_text,
        }
        for name, column in zip(ESTIMATES, SCORES, strict=True):
            line |= interval(column, row.scores.get(name))
        for variant in row.eas:
            column = f"eas_{variant['similarity']}"
            line |= interval(column, Estimate(**variant["score"]))
            line |= {f"{column}_{limit}": number(variant[limit]) for limit in ("ceiling", "floor")}
        line |= {column: number(row.candidates.get(name)) for name, column in CANDIDATES.items()}
        names = ("bits_per_byte", "bytes_per_token", "characters_per_token")
        yield line | {name: number(getattr(row, name)) for name in names}


def certified_lines(comparison: Comparison) -> Iterator[Line]:
    """One line for each answer of the tuner."""
    for row in comparison.rows:
        for saving in row.savings:
            names = ("floor", "machine", "policy", "certified", "executed", "lacks", "answer")
            counts = ("documents", "documents_needed", "documents_in_all")
            yield {
                **_where(row),
                **{name: getattr(saving, name) for name in (*names, *counts)},
                **interval("net_speedup", saving.net_speedup),
            }


def trainings_lines(comparison: Comparison) -> Iterator[Line]:
    """One line for each answer of the tuner on trained exits: what they took, save, and when that pays."""
    names = ("model", "workload", "heads", "floor", "machine", "policy", "passed", "basis")
    for one in comparison.trained:
        training = one.training
        yield {
            **{name: getattr(one, name) for name in names},
            "kind": training.kind,
            "exits": "+".join(map(str, training.exits)),
            **{name: getattr(training, name) for name in ("steps", "tokens", "rows")},
            "training_seconds": training.seconds,
            **interval("saved_share_of_time", one.saved),
            "untrained_saved_share_of_time": number(one.untrained),
            "plain_seconds_per_token": number(one.plain_seconds),
            **interval("credit", one.credit),
            "paid_back_after_tokens": number(one.paid_back),
        }


def profiles_lines(comparison: Comparison) -> Iterator[Line]:
    """One line for each exit of each row, with every curve."""
    for row in comparison.rows:
        for place, exit_ in enumerate(row.exits):
            line = {**_where(row), "exit": exit_, "depth_flops_share": number(row.depth_fraction[place])}
            for name, column in zip(CURVES, CURVE_COLUMNS, strict=True):
                if name in row.curves:
                    line[column] = number(row.curves[name][place])
                for limit, values in row.intervals.get(name, {}).items():
                    line[f"{column}_{limit}"] = number(values[place])
            yield line


def strategies_lines(comparison: Comparison) -> Iterator[Line]:
    """One line for each strategy, predicted or measured."""
    texts = ("model", "workload", "heads", "machine", "family", "policy", "kv", "floor", "basis", "answer")
    for strategy in comparison.strategies:
        line = {name: getattr(strategy, name) for name in (*texts, "reachable", "chosen")}
        for name in ("agreement", "skip_ratio", "net_speedup", "credit"):
            line |= interval(name, getattr(strategy, name))
        line["credit_over"] = strategy.credit_over
        for name in ("probe_share", "seconds_per_token", "characters_per_second"):
            line[name] = number(getattr(strategy, name))
        for part in GAIN_PARTS:
            line[f"gain_{part}"] = None if strategy.gain is None else number(getattr(strategy.gain, part))
        yield line


def savings_lines(comparison: Comparison) -> Iterator[Line]:
    """One line for each share of time that a league's choice saves, predicted or measured."""
    for row in comparison.rows:
        for basis, speedups in (("predicted", row.exit_speedup), ("measured", row.measured_speedup)):
            for place, speedup in speedups.items():
                floor, machine = floor_and_machine(place)
                where = {**_where(row), "base": row.model.base, "floor": floor, "machine": machine}
                yield {**where, "basis": basis, "saved_share_of_time": number(share_saved(speedup))}


def validity_lines(comparison: Comparison) -> Iterator[Line]:
    """One line for each candidate score at a floor on a machine."""
    for entry in comparison.validity:
        names = ("score", "floor", "machine", "bases")
        yield {**{name: getattr(entry, name) for name in names}, **interval("kendall", entry.kendall)}


def failures_lines(comparison: Comparison) -> Iterator[Line]:
    """One line for each cell without a result."""
    for cell, reason in comparison.failures.items():
        yield {"cell": cell, "reason": reason}


def _where(row: Row) -> dict[str, Any]:
    return {
        "model": row.model.name,
        "transform": row.model.transform,
        "workload": row.workload,
        "heads": row.heads,
    }


def interval(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    """An estimate as three columns: name, name_low, name_high."""
    values = (None, None, None) if estimate is None else (estimate.value, estimate.low, estimate.high)
    return dict(zip(limits(name), map(number, values), strict=True))


def limits(name: str) -> tuple[str, str, str]:
    """The columns of an estimate."""
    return name, f"{name}_low", f"{name}_high"
