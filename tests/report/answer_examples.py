"""Made-up answers of league, tuner, machines and break-even that look like real ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from offramp.costs.token import TokenCosts
from offramp.policies.cost_breakdown import Gain
from offramp.policies.figures import PLAIN_DECODING
from offramp.policies.grammar import parse_policy
from offramp.report.run_result import ClassifierQuality, HeadsSummary, PriceList
from offramp.scoring.estimate import Estimate
from offramp.tuning.break_even import BreakEven
from offramp.tuning.certificate import Certificate
from offramp.tuning.floor import Floor
from offramp.tuning.ranking import MachineAnswer, RankedPolicy
from offramp.tuning.tuned import FrontPoint, Tuned

PLAIN = 0.0583

COSTS = TokenCosts(
    unit="seconds",
    layers=np.full(30, 0.00156),
    head=0.0083,
    exit_head=0.0083,
    probes={
        "full head": 0.0088,
        "restricted head": 0.00041,
        "candidates": 0.00019,
        "cosine": 0.000021,
        "classifier": 0.000017,
        "network": 0.000038,
    },
    key_value=np.full(30, 0.00024),
    overhead=0.0031,
)

HARDWARE = PriceList(
    "local",
    "measured by offramp on smollm2, float32",
    COSTS,
    self_check_ratio=0.998,
    threads=2,
    load=0.42,
)

HEADS = HeadsSummary(
    documents=40,
    exits=29,
    reading=("a linear lens",),
    lens_explained=0.61,
    classifiers={
        "correctness": ClassifierQuality(29, 24, 0.81),
        "correctness_network": ClassifierQuality(29, 22, 0.79),
        "adainfer": ClassifierQuality(29, 27, 0.84),
        "candidate_score": ClassifierQuality(29, 19, 0.74),
        "convergence": ClassifierQuality(29, 0, None),
    },
)


def threshold(signal: str, value: float, exits: str) -> str:
    """A policy that leaves where one signal is sure."""
    return f"threshold:signal={signal},value={value:g},exits={exits}"


THREE, FOUR, MANY = "20+24+27", "15+20+24+27", "1+2+3+4+5+6+7+8+9+10"
ALL = "+".join(map(str, range(1, 30)))
# Family, policy, skipped layers at 95 %, seconds of probes.
FAMILIES = (
    ("restricted_margin, 3 exits", threshold("restricted_margin", 0.83, THREE), 0.11, 1.0e-3),
    ("correctness, 3 exits", threshold("correctness", 0.91, THREE), 0.10, 5.1e-5),
    ("candidate_score, 4 exits", threshold("candidate_score", 0.9, FOUR), 0.08, 1.02e-2),
    ("static", "static:exit=29", 0.033, 0.0),
    ("never", "never", 0.0, 0.0),
    ("convergence, all exits", threshold("convergence", 0.98, MANY), 0.004, 4.9e-4),
    ("max_prob, one exit", threshold("max_prob", 0.94, "27"), 0.05, 8.6e-3),
    ("margin, 3 exits", threshold("margin", 0.88, THREE), 0.09, 2.4e-2),
    (
        "decaying max_prob, 3 exits",
        "decaying:signal=max_prob,value=0.95,decay=4,length=64,exits=20+24+27",
        0.085,
        2.4e-2,
    ),
    ("entropy, 3 exits", threshold("entropy", 0.41, THREE), 0.08, 2.5e-2),
    ("patience", "patience:times=2,exits=15+20+24+27", 0.07, 3.3e-2),
    ("per class", f"tasks:names=prose,policies=[{threshold('margin', 0.9, '27')}]", 0.04, 8.7e-3),
    ("max_prob, all exits", threshold("max_prob", 0.97, ALL), 0.12, 0.232),
)
ORACLES = (
    ("first-match oracle", "oracle:which=first_match", 0.25),
    ("saturation oracle", "oracle:which=saturation", 0.13),
)


def around(value: float, half: float) -> Estimate:
    return Estimate(value, value - half, value + half)


def league_entry(
    family: str, policy: str, floor: float, skip: float, probes: float, reachable: bool = True
) -> RankedPolicy:
    skip *= {0.99: 0.45, 0.95: 1.0, 0.9: 1.6}.get(floor, 1.0)
    parts = {
        "layers": 30 * (1 - skip) * HARDWARE.layer_seconds,
        "probe": probes,
        "final head": HARDWARE.head_seconds,
        "K,V projection": 30 * skip * HARDWARE.key_value_seconds,
        "overhead": HARDWARE.overhead_seconds,
    }
    seconds = sum(parts.values())
    speed = HARDWARE.plain_seconds_per_token / seconds
    layers = 30 * HARDWARE.layer_seconds - parts["layers"] - parts["K,V projection"]
    plain = HARDWARE.plain_seconds_per_token
    return RankedPolicy(
        family=family,
        policy=parse_policy(policy),
        kv="propagate",
        reachable=reachable,
        gain=Gain(layers / plain, 0.0, -probes / plain),
        full_depth=policy == "never",
        floor=floor,
        quality=around(1.0 if not reachable or policy == "never" else floor + 0.004, 0.005),
        agreement=around(1.0 if not reachable or policy == "never" else floor + 0.004, 0.005),
        skip_ratio=around(skip, 0.1 * skip),
        net_speedup=around(speed, 0.012 * speed * (policy != "never")),
        seconds_per_token=Estimate(seconds),
        plain_seconds_per_token=plain,
        probe_share=probes / seconds,
        probe_seconds=probes,
        parts=parts,
    )


def league(extra: float = 0.0) -> tuple[RankedPolicy, ...]:
    """extra: share of layers that this text lets policies skip beside."""
    entries = []
    for floor in (0.99, 0.95, 0.9):
        families = [league_entry(f, p, floor, s + (extra if s else 0.0), t) for f, p, s, t in FAMILIES]
        families.sort(key=lambda entry: entry.seconds_per_token.value)
        entries += [replace(entry, rank=rank) for rank, entry in enumerate(families, start=1)]
        entries += [league_entry(f, p, floor, s + extra, 0.0, reachable=False) for f, p, s in ORACLES]
    return tuple(entries)


def certificate(holds: bool, documents: int, needed: int, **changes) -> Certificate:
    fields = {
        "method": "wsr",
        "guarantee": "with 90 % confidence, documents like these lose at most 1 % of tokens on average",
        "holds": holds,
        "delta": 0.1,
        "documents": documents,
        "empirical_risk": 0.0042 if holds else None,
        "risk_bound": 0.0088 if holds else None,
        "best_floor": 0.1 ** (1 / documents),
        "documents_needed": needed,
        "tested": 24 if documents >= needed else 0,
        "passed": 7 if holds else 0,
        "assumption": "documents are drawn independently from one source; the text itself "
        "stands before every token (teacher-forced)",
    }
    return Certificate(**{**fields, **changes})


def front() -> tuple[FrontPoint, ...]:
    points = [FrontPoint(PLAIN_DECODING, 0.0, 1.0, PLAIN, 1.0, 0.0)]
    for step in range(1, 12):
        policy = f"threshold:signal=correctness,value={0.99 - 0.01 * step:.2f},exits=20+24+27"
        risk, seconds = 0.0011 * step**1.7, PLAIN * (1 - 0.012 * step**0.9)
        points.append(FrontPoint(parse_policy(policy), risk, 1 - risk, seconds, PLAIN / seconds, 0.02 * step))
    return tuple(points)


CERTIFIED = "threshold:signal=correctness,value=0.94,exits=20+24+27"


def tuned(floor: Floor, made: Certificate, **changes) -> Tuned:
    fields = {
        "floor": floor,
        "policy": parse_policy(CERTIFIED if made.holds else "never"),
        "answer": "certified, 3.4 % faster than the full model" if made.holds else "not certifiable",
        "certificate": made,
        "quality": around(0.9951 if made.holds else 1.0, 0.002 * made.holds),
        "agreement": around(0.9951 if made.holds else 1.0, 0.002 * made.holds),
        "skip_ratio": around(0.047 if made.holds else 0.0, 0.004 * made.holds),
        "net_speedup": around(1.034 if made.holds else 1.0, 0.006 * made.holds),
        "seconds_per_token": around(PLAIN / 1.034 if made.holds else PLAIN, 0.0004 * made.holds),
        "plain_seconds_per_token": PLAIN,
        "probe_share": 0.001 if made.holds else 0.0,
        "machine": "local",
        "batch": 1,
        "kv": "propagate",
        "front": front(),
        "shift": (),
        "documents": {"heads": 40, "search": 60, "certify": made.documents, "report": 60},
        "gain": Gain(0.034, 0.0, -0.001) if made.holds else Gain(0.0, 0.0, 0.0),
        "document_digests": {"search": ("ab" * 32,), "certify": ("cd" * 32,)},
    }
    return Tuned(**{**fields, **changes})


def machines(gain: float = 1.0) -> tuple[MachineAnswer, ...]:
    speeds = {
        ("local", "measured by offramp on smollm2"): (1.013, 0.991, 0.982),
        ("a100", "NVIDIA A100 80GB SXM data sheet: 2039 GB/s, 312 TFLOP/s bf16"): (1.088, 1.04, 0.97),
        ("h100", "NVIDIA H100 SXM data sheet: 3350 GB/s, 989 TFLOP/s bf16"): (1.11, 1.06, 0.98),
        ("rtx4090", "NVIDIA Ada whitepaper: 1008 GB/s, 165 TFLOP/s bf16"): (1.07, 1.03, 0.99),
    }
    plain = {"local": PLAIN, "a100": 0.00093, "h100": 0.00078, "rtx4090": 0.0012}
    answers = []
    for (machine, source), row in speeds.items():
        for batch, value in zip((1, 8, 32), row, strict=True):
            for floor in (0.99, 0.95):
                speed = 1 + (value * gain - 1) * (1.0 if floor == 0.95 else 0.3)
                low, high = speed - 0.02, speed + 0.02
                decision = "pays" if low > 1.05 else "does not pay" if high < 1.05 else "inconclusive"
                policy = "threshold:signal=correctness,value=0.9,exits=20+24+27" if speed > 1 else "never"
                estimate = Estimate(speed, low, high) if speed > 1 else Estimate(1.0, 1.0, 1.0)
                answers.append(
                    MachineAnswer(
                        policy=parse_policy(policy),
                        kv="propagate",
                        quality=around(floor + 0.003, 0.004),
                        agreement=around(floor + 0.003, 0.004),
                        skip_ratio=Estimate(0.1),
                        net_speedup=estimate,
                        probe_share=0.01,
                        seconds_per_token=Estimate(plain[machine] * (1 + 0.04 * batch) / speed),
                        plain_seconds_per_token=plain[machine] * (1 + 0.04 * batch),
                        machine=machine,
                        source=source,
                        batch=batch,
                        floor=floor,
                        decision=decision,
                    )
                )
    return tuple(answers)


def break_even() -> tuple[BreakEven, ...]:
    policy = "threshold:signal=margin,value=0.88,exits=20+24+27"
    goal = "1.05 times as fast as the full model"
    rows = (
        ("probe", 0.0088, 0.00071, f"A check costs 8.8 ms; at 710 µs or less, the policy would be {goal}."),
        ("head", 0.0083, None, f"No price of the output head would make the policy {goal}."),
        ("layer", 0.00156, 0.0092, f"A layer costs 1.56 ms; at 9.2 ms or more the policy would be {goal}."),
        ("key and value repair", 0.00024, None, f"No price of K,V repair would make the policy {goal}."),
    )
    return tuple(
        BreakEven(policy, lever, now, needed, None if needed is None else needed / now, 1.05, sentence)
        for lever, now, needed, sentence in rows
    )
