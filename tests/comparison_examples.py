"""A made-up comparison that looks like a real one, for tests of pages and tables: no trace, no model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from combine_cases import combined_result
from offramp.defaults import WORTH
from offramp.policies.cost_breakdown import Gain
from offramp.policies.figures import PLAIN_DECODING
from offramp.policies.grammar import parse_policy
from offramp.policies.policy import ExitPolicy
from offramp.report.findings import speed_of
from offramp.report.sections.strategies import believed, floor_kept
from offramp.scoring.card import EasVariant, LayerCurves, Limits, ScoreCard
from offramp.scoring.documents import NOTHING, TextSize
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import (
    NOT_TIMED,
    Comparison,
    ModelFacts,
    Place,
    Row,
    ScoreValidity,
    StrategyResult,
    TrainedSaving,
    UnderLoad,
)
from offramp.studies.work.heads import Training
from offramp.tuning.certificate import Certificate
from offramp.tuning.floor import Floor
from offramp.tuning.tuned import Tuned
from offramp.tuning.verdict import Outcome, Verdict, decide

TOKENS, DOCUMENTS = 1920, 60
FLOORS = (0.99, 0.95, 0.90)
MACHINES = ("h100", "local")
FEW = "6 documents; an interval needs 20"
NEARLY_ALWAYS_UNDEFINED = "the final distributions hardly differ: R_0 is 0.031 nat, 0.1 is needed"

SCORES = (
    "representation",
    "increment",
    "calibration",
    "composite",
    "literal_calibration",
    "initial_information",
    "first_match_skip",
    "saturation_skip",
    "time_ceiling_first_match",
    "time_ceiling_saturation",
)
SIMILARITIES = ("logit", "centred_logit", "hidden")
CURVES = {
    "agreement": (0.02, 1.0),
    "kl_to_final": (7.0, 0.0),
    "entropy": (1.0, 2.4),
    "nll": (9.0, 2.6),
    "max_prob": (0.15, 0.55),
    "block_influence": (0.4, 0.1),
    "update_norm": (0.9, 0.4),
    "centred_logit_cosine": (0.1, 1.0),
}
ESTIMATES = tuple(name for name in SCORES if not name.startswith("time_"))
"""Scores that a card keeps; the others follow from them."""

FAMILIES = ("max_prob, all exits", "restricted_margin, 3 exits", "patience", "entropy, 3 exits", "full model")


@dataclass(frozen=True)
class Described:
    """A model of the example with how well it exits, in (0, 1)."""

    facts: ModelFacts
    exits_well: float
    layers: int


def models() -> tuple[Described, ...]:
    """Six bases of five families, one with a tuned variant, one of unknown facts, two transformed."""
    return (
        _described("gpt2", 0.62, 12, family="GPT", generation=2, released="2019-02", parameters=124e6),
        _described("llama2-7b", 0.5, 32, family="Llama", generation=2, released="2023-07", parameters=6.7e9),
        _described("llama3-8b", 0.34, 32, family="Llama", generation=3, released="2024-04", parameters=8e9),
        _described("qwen3-8b", 0.3, 36, **QWEN),
        _described("qwen3-8b-it", 0.22, 36, base="qwen3-8b", **{**QWEN, "stage": "tuned"}),
        _described("qwen3-8b", 0.29, 36, transform="int8", **QWEN),
        _described("mamba-3b", 0.12, 64, family="Mamba", generation=1, released="2023-12", kind="ssm"),
        Described(ModelFacts(MINE, "mine"), 0.4, 8),
        Described(ModelFacts(MINE, "mine", transform="prune:by=angular,layers=2"), 0.2, 6),
    )


MINE = 'mine <&> "yours"'
QWEN: dict[str, Any] = {"family": "Qwen", "generation": 3, "released": "2025-04", "parameters": 8.2e9}


def _described(name: str, exits_well: float, layers: int, **facts: Any) -> Described:
    known = {"base": name, "kind": "dense", "stage": "base", **facts}
    return Described(ModelFacts(name, **known), exits_well, layers)


def more_models(count: int, layers: int = 32) -> tuple[Described, ...]:
    """That many independent models, for large pages."""
    generator = np.random.default_rng(count)
    return tuple(
        Described(
            ModelFacts(f"model-{i:03}", f"model-{i:03}", f"family {i % 5}", i // 5, "2024-05", 1e9 + i * 1e8),
            float(generator.uniform(0.1, 0.7)),
            layers,
        )
        for i in range(count)
    )


def estimate(value: float, width: float = 0.02, *, interval: bool = True) -> Estimate:
    """A value with an interval of that width to each side."""
    if not interval:
        return Estimate(value, no_interval=FEW)
    return Estimate(value, value - width, value + width)


def card(
    *,
    tokens: int = TOKENS,
    documents: int = DOCUMENTS,
    exits: tuple[int, ...] = (1, 2),
    curves: dict[str, Any] | None = None,
    intervals: dict[str, Any] | None = None,
    **fields: Any,
) -> ScoreCard:
    """A score card of made-up figures; what is not given is undefined."""
    depth = np.array(exits) / exits[-1]
    scores = {name: fields.pop(name, Estimate(None, undefined="not scored")) for name in ESTIMATES}
    return ScoreCard(
        **{
            **scores,
            "ceiling": 0.9,
            "head_share": 0.1,
            "mean_position": 16.0,
            "documents": documents,
            "tokens": tokens,
            "curves": LayerCurves(np.array(exits), depth, curves or {}, intervals or {}),
            "reliability": (),
            "eas_variants": (),
            "compute_eas": lambda similarity, alpha: None,
            "candidates": {},
            "notes": (),
            **fields,
        }
    )


def row(described: Described, workload: str, seed: int, heads: str = "") -> Row:
    """One row; code exits a little worse than prose, and the smallest texts have no intervals."""
    generator = np.random.default_rng(seed)
    ease = described.exits_well * (1.0 if workload == "prose" else 0.8)
    known = described.facts.base != "mine"
    scores = {
        name: estimate(float(np.clip(ease * generator.uniform(0.8, 1.1), 0, 1)), interval=known)
        for name in ESTIMATES
    }
    if described.facts.name == "mamba-3b":
        scores["increment"] = Estimate(None, undefined=NEARLY_ALWAYS_UNDEFINED)
        scores["composite"] = Estimate(None, undefined="it needs the undefined component increment")
    scores["literal_calibration"] = Estimate(0.6 + ease / 4, no_interval="ECE is biased")
    exits = tuple(range(1, described.layers + 1))
    curves, intervals = {}, {}
    depth = np.arange(1, described.layers + 1) / described.layers
    for name, (first, last) in CURVES.items():
        curves[name] = first + (last - first) * depth ** (0.5 + 3 * (1 - ease))
        if known:
            width = 0.03 * abs(last - first)
            intervals[name] = Limits(curves[name] - width, curves[name] + width)
    curves["auroc"] = np.array([np.nan, *(0.6 + 0.3 * depth[1:-1]), np.nan])
    speedups = {
        (Floor("agreement", floor), machine): 1.0 + max(0.0, (1 - floor) * ease * 2 - 0.02)
        for floor in FLOORS
        for machine in MACHINES
    }
    characters = 4.6 if workload == "prose" else 3.1
    characters *= 0.9 if described.facts.family == "GPT" else 1.0
    return Row(
        model=described.facts,
        workload=workload,
        heads=heads,
        workload_fingerprint={"prose": "a1", "code": "b2"}.get(workload, workload) * 32,
        card=card(
            documents=DOCUMENTS if known else 6,
            exits=exits,
            curves=curves,
            intervals=intervals,
            eas_variants=tuple(
                EasVariant(
                    similarity,
                    alpha=0.5,
                    score=estimate(0.3 + 0.4 * ease + 0.02 * i, 0.01, interval=known),
                    ceiling=0.67,
                    floor=0.18,
                )
                for i, similarity in enumerate(SIMILARITIES)
            ),
            candidates={name: scores[name].value for name in SCORES[:5]}
            | {
                "eas_logit": 0.3 + 0.4 * ease,
                "mean_kl": 5.0 * (1 - ease),
                "block_influence": 0.3 - 0.1 * ease,
            },
            **scores,
        ),
        text=TextSize(round(1020 * characters), round(1000 * characters), 1000) if known else NOTHING,
        bits_per_byte=1.4 - 0.2 * ease if known else None,
        answers=tuple(example_answer(floor, machine, ease) for floor in FLOORS for machine in MACHINES),
        exit_speedup=speedups,
        measured_speedup={(Floor("agreement", 0.95), "local"): 1.0 + ease / 10},
        trace_folder=f"tasks/trace/{seed:04}",
        source="study example",
        notes=() if known else (FEW,),
        own_text=False,
        documents=(),
        tokens=TOKENS,
        layers=described.layers,
    )


def answer(
    speed: Estimate,
    said: str,
    *,
    floor: float | Floor = 0.95,
    machine: str = "local",
    policy: str = "never",
    lacks: str = "",
    **certificate: Any,
) -> Tuned:
    """The tuner's answer at a floor on agreement. lacks: what a certificate that does not hold lacked.

    certificate: fields of `Certificate`, by default of an executed one that holds.
    """
    documents = {"heads": 0, "search": 20, "certify": 40, "report": 20}
    needed = {"documents": 12, "documents_needed": 230} if lacks == "documents" else {}
    fields: dict[str, Any] = {
        "method": "wsr",
        "guarantee": "made up",
        "holds": not lacks,
        "delta": 0.1,
        "documents": 40,
        "empirical_risk": None,
        "risk_bound": None,
        "best_floor": 0.9,
        "documents_needed": 20,
        "tested": 1 if lacks == "evidence" else 0,
        "passed": 0,
        "assumption": "made up",
        "executed": not lacks,
        **needed,
        **certificate,
    }
    nothing = Estimate(None, undefined="not looked at")
    return Tuned(
        floor=floor if isinstance(floor, Floor) else Floor("agreement", floor),
        policy=parse_policy(policy),
        answer=said,
        certificate=Certificate(**fields),
        quality=nothing,
        agreement=nothing,
        skip_ratio=nothing,
        net_speedup=speed,
        seconds_per_token=nothing,
        plain_seconds_per_token=0.05,
        probe_share=0.0,
        machine=machine,
        batch=1,
        kv="propagate",
        front=(),
        shift=(),
        documents=documents,
        document_digests={},
    )


def verdict(outcome: Outcome, *missing: str) -> Verdict:
    """A made-up verdict, of which a comparison reads the outcome and what is missing."""
    nothing = Estimate(None, undefined="not looked at")
    return Verdict(
        floor=0.95, worth=0.05, outcome=outcome, reason="made up", missing=missing, policy=PLAIN_DECODING,
        kv=None, certificate=None, executed_agreement=None, speed=None, replayed_policy=PLAIN_DECODING,
        agreement=nothing, skip_ratio=nothing, net_speedup=nothing, net_speedup_flops=nothing,
        fit_agreement=1.0, fit_documents=20, report_documents=20, documents_needed=20,
    )  # fmt: skip


def decided(answer: Tuned, measured: StrategyResult | None = None) -> Verdict:
    """The verdict that a study would store: by its certificate and by the stopwatch."""
    missed = measured is not None and floor_kept(replace(measured, floor=answer.floor)) == "missed"
    credit = NOT_TIMED if measured is None else measured.credit
    speed = speed_of(answer.net_speedup, measured=False)
    if measured is not None:
        speed = speed_of(measured.net_speedup, measured=True) or speed
    certificate = answer.certificate
    if not certificate.holds:
        if certificate.documents < certificate.documents_needed:
            needed = f"{certificate.documents_needed} needed if none loses"
            return verdict("data", f"documents: {certificate.documents} at hand, {needed}")
        if certificate.tested:
            return verdict("time", "a certificate")
    if not answer.certificate.holds or answer.plain:
        return verdict("does not pay")
    if credit.value is not None:
        certified = answer.certificate.executed and not missed
        return verdict(decide(worth=WORTH, credit=speed_of(credit, measured=True), certified=certified))
    outcome = decide(worth=WORTH, credit=speed, certified=False)
    return verdict(outcome, *([] if outcome == "does not pay" else [f"its credit: {credit.undefined}"]))


def with_verdicts(comparison: Comparison) -> Comparison:
    """A comparison whose answers are decided by what it measured, where that may be believed."""
    measured = {(one.place, one.policy, one.kv): one for one in believed(comparison.strategies)}

    def verdicts(row: Row) -> dict[tuple[Floor, str], Verdict]:
        return {
            (one.floor, one.machine): decided(one, measured.get((row.on(one.machine), one.policy, one.kv)))
            for one in row.answers
        }

    return replace(comparison, rows=tuple(replace(row, verdicts=verdicts(row)) for row in comparison.rows))


def example_answer(floor: float, machine: str, ease: float) -> Tuned:
    """What the tuner says: nothing is certifiable at the strictest floor, the rest by how well it exits."""
    where: dict[str, Any] = {"floor": floor, "machine": machine}
    plain = estimate(1.0, 0.0)
    if floor == 0.99:
        return answer(plain, "not certifiable: 12 documents, 230 needed", lacks="documents", **where)
    if ease < 0.2:
        return answer(plain, "nothing beats the full model here", holds=False, executed=False, **where)
    gain = 1.0 + (1 - floor) * ease * 2
    policy = "threshold:signal=restricted_margin,value=0.9,exits=10+15+20"
    return answer(estimate(gain, 0.015), f"certified: {gain:.2f} times as fast", policy=policy, **where)


def strategies(described: Described, workload: str, seed: int) -> list[StrategyResult]:
    """Every family at every floor by replay, and some of them decoded, one with a defect."""
    generator = np.random.default_rng(seed)
    known = described.facts.base != "mine"
    ease = described.exits_well
    found = []
    for floor in FLOORS:
        for family in FAMILIES:
            gain = 0.0 if family == "full model" else (1 - floor) * ease * generator.uniform(0.5, 2.0) - 0.02
            found.append(
                _strategy(
                    described, workload, "h100", family, floor, 1.0 + gain, seconds=0.011 if known else None
                )
            )
        found.append(
            _strategy(described, workload, "h100", "oracle: saturation", floor, 1.0 + ease, reachable=False)
        )
    for place, family in enumerate(FAMILIES[:2]):
        found.append(
            _strategy(
                described,
                workload,
                "local",
                family,
                0.95,
                0.97 + 0.06 * place,
                basis="measured",
                seconds=0.06,
                answer="unresolved at ± 2.1 %" if place else "defect: the same decoder twice is unequal",
            )
        )
    return found


def policy_of(family: str, value: float) -> ExitPolicy:
    """A policy that could be of a family."""
    known = {
        "full model": "never",
        "patience": "patience:times=3,exits=all",
        "oracle: saturation": "oracle:which=saturation",
    }
    return parse_policy(
        known.get(family, f"threshold:signal={family.split(',')[0]},value={value:g},exits=all")
    )


def _strategy(
    described: Described,
    workload: str,
    machine: str,
    family: str,
    floor: float,
    speedup: float,
    *,
    basis: str = "predicted",
    seconds: float | None = None,
    reachable: bool = True,
    answer: str = "",
) -> StrategyResult:
    known = described.facts.base != "mine"
    return StrategyResult(
        place=Place(described.facts.shown, workload, "", machine),
        family=family,
        policy=policy_of(family, floor),
        kv="propagate",
        floor=Floor("agreement", floor),
        basis=basis,
        agreement=estimate(min(1.0, floor + 0.004), 0.004, interval=known),
        skip_ratio=estimate(max(0.0, speedup - 1.0) * 1.4, 0.01, interval=known),
        net_speedup=estimate(speedup, 0.02, interval=known),
        probe_share=0.04,
        seconds_per_token=seconds,
        characters_per_second=None if seconds is None else 4.5 / seconds,
        reachable=reachable,
        answer=answer,
        defect=answer.startswith("defect"),
        chosen=family == FAMILIES[1],
        gain=None if basis == "measured" else Gain(0.7 * (1 - 1 / speedup), 0.31 * (1 - 1 / speedup), -0.004),
    )


def validity() -> tuple[ScoreValidity, ...]:
    """Some candidates at two floors: of 14 bases, three of them surely above 0, and of 5."""
    found = []
    for floor, bases in ((Floor("agreement", 0.95), 14), (Floor("agreement", 0.9), 5)):
        names = ("saturation_skip", "composite", "representation", "eas_hidden", "mean_kl")
        for place, name in enumerate(names):
            tau = 0.7 - 0.15 * place
            few = Estimate(tau, no_interval=f"{bases} independently trained models; an interval needs 12")
            kendall = estimate(tau, 0.3) if bases >= 12 else few
            found.append(ScoreValidity(name, floor, "local", kendall, bases))
    return tuple(found)


TRAINING = Training("block", (4, 8), 60_000, 900, 1200.0, rows=172_800)


def trained() -> tuple[TrainedSaving, ...]:
    """gpt2 on prose, its exits trained: nothing at 99 %, certified at 95 %, by a replay bound at 90 %."""
    at_95 = TrainedSaving(
        place=Place("gpt2", "prose", "", "local"),
        floor=Floor("agreement", 0.95),
        training=TRAINING,
        policy="static:exit=8",
        passed="executed",
        open=False,
        basis="measured",
        saved=Estimate(0.2, 0.15, 0.25),
        untrained=0.1,
        plain_seconds=0.05,
        paid_back=240_000.0,
        credit=Estimate(1.11, 1.08, 1.14),
    )
    nothing = Estimate(None, undefined="a faster policy failed")
    untimed = replace(at_95, paid_back=None, credit=NOT_TIMED)
    return (
        replace(untimed, floor=Floor("agreement", 0.99), policy="never", passed="", saved=nothing),
        at_95,
        replace(untimed, floor=Floor("agreement", 0.9), passed="replayed", basis="predicted"),
    )


def example_comparison(
    described: tuple[Described, ...] | None = None, workloads: tuple[str, ...] = ("prose", "code")
) -> Comparison:
    """Everything at once: every kind of row, strategy, score beside savings, failure and note."""
    described = models() if described is None else described
    cells = [(model, workload) for model in described for workload in workloads]
    found = combined_result(
        {"plain": 60.0, "int8": 40.0, "exits": 60.2, "int8 + exits": 40.1}, {"int8": 0.98}
    )
    rows = [row(model, workload, place) for place, (model, workload) in enumerate(cells)]
    rows[0] = replace(rows[0], training=TRAINING)
    comparison = Comparison(
        title="An example of a study",
        description="Made-up figures of made-up models, to see every part of the page at work.",
        rows=tuple(rows),
        strategies=tuple(
            one for place, (model, workload) in enumerate(cells) for one in strategies(model, workload, place)
        ),
        trained=trained(),
        validity=validity(),
        combined=(found,),
        loads=(
            UnderLoad(
                place=rows[0].on("h100"),
                load="bursts",
                answer="pays below 1.4 requests/s: the gain is latency",
                policy="static:exit=2",
                capacity=Estimate(3.0, 2.9, 3.1),
                plain_capacity=Estimate(2.0, 1.9, 2.1),
            ),
        ),
        failures={
            "llama3-8b · code · tune · h100": "the memory is too small: 32 GB needed, 16 GB here",
            "qwen3-32b · prose": "the model is not on this machine: hub id Qwen/Qwen3-32B",
        },
        notes=("gpt2 has another tokenizer than the rest: figures per token mislead, see those per byte.",),
        provenance={
            "offramp": "0.1.0",
            "study": "example",
            "study_fingerprint": "c3" * 32,
            "python": "3.12.1",
            "date": "2026-01-31",
        },
        citation="@misc{offramp,\n  title = {offramp: would early exit pay?},\n  version = {0.1.0}\n}\n",
    )
    return with_verdicts(comparison)
