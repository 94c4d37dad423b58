"""Made-up measurements of policies that were decoded, as a bench, a forecast and a judge would give them."""

from __future__ import annotations

from dataclasses import replace

from offramp.policies.figures import FreeRunning
from offramp.policies.grammar import parse_policy
from offramp.report.run_result import Decoded, RunResult
from offramp.scoring.estimate import Estimate
from offramp.studies.work.decode import DecodedChoice
from offramp.timing.results import BenchResult, Cluster, Contender, Counted, Forecast, PartError
from offramp.timing.stopping import answer_of
from offramp.tuning.verdict import Speed

PLAIN = 0.0583
NEVER, GENERATE = "never exit", "generate()"
SHORT = "shortlist:policy=[never],at=all"

CIRCUMSTANCES = {
    "processor": "a processor",
    "cores": 2,
    "threads": 2,
    "governor": None,
    "load_average": [0.4, 0.7],
    "other_load": 0.02,
    "dtype": "float32",
    "versions": {"torch": "2.13.0", "transformers": "5.24.0"},
    "date": "2026-01-31T12:05:00+00:00",
}


def contender(name: str, role: str, seconds: float, half: float = 0.006, **changes) -> Contender:
    """Six samples around a median; the speedup is against plain decoding."""
    samples = tuple(seconds * (1 + half * step / 3) for step in (-3, -2, -1, 1, 2, 3))
    speed = PLAIN / seconds
    fields = {
        "samples": samples,
        "clusters": tuple(Cluster(0, place, 0.01 * place, 4) for place in range(6)),
        "seconds_per_token": Estimate(seconds, seconds * (1 - half), seconds * (1 + half)),
        "ratio": Estimate(speed, speed * (1 - half), speed * (1 + half)),
        "resolution": half,
        "answer": answer_of(Estimate(speed, speed * (1 - half), speed * (1 + half)), 0.05),
        "counted": Counted(30.0, 1.0, 0.0, 1e9, 2e9),
        "first_token_seconds": 0.11,
        "tokens_per_second": 1 / seconds,
        "peak_memory_bytes": 11_000_000,
        "layers_per_token": 30.0,
        "claimed_layers_per_token": 30.0,
        "same_output": 1.0,
    }
    return Contender(name, role, **{**fields, **changes})


def forecast(policy: str, kv: str, predicted: float | None, measured: float, **changes) -> Forecast:
    fields = {
        "dtype": "float32",
        "workload": "prose",
        "priced": measured - 0.0016,
        "plain_predicted": 0.0582,
        "plain_measured": 0.0586,
        "fastest_plain": PLAIN,
        "predicted_skip": 0.10,
        "measured_skip": 0.086,
        "parts": (
            PartError("layers", 0.0402, 0.0413),
            PartError("probes", 0.0010, 0.0014),
            PartError("K,V repair", 0.0007, 0.0006),
            PartError("heads", 0.0083, 0.0084),
            PartError("overhead", 0.0031, 0.0033),
        ),
        "predicted_agreement": 0.954,
        "measured_agreement": 0.938,
    }
    made = Estimate(measured, 0.994 * measured, 1.006 * measured)
    return Forecast(policy, kv, predicted=predicted, measured=made, **{**fields, **changes})


def free_running(agreement: float = 0.938, prompts: int = 2, new_tokens: int = 32) -> FreeRunning:
    return FreeRunning(
        tokens_before_divergence=Estimate(21.5),
        sequence_match=Estimate(0.5),
        agreement=Estimate(agreement),
        nll=Estimate(1.31),
        plain_nll=Estimate(1.22),
        prompts=prompts,
        new_tokens=prompts * new_tokens,
    )


def decoded(
    workload: str,
    policy: str,
    *,
    predicted: float = 0.0553,
    measured: float = 0.0575,
    others: bool = True,
    sound: bool = True,
    agreement: float = 0.938,
) -> Decoded:
    """The main policy of a text, and others beside it."""
    cells = [(policy, "propagate", predicted, measured, 0.10)]
    if others:
        for exit, share in ((15, 0.5), (22, 0.267)):
            base = PLAIN * (1 - 0.83 * share)
            cells += [
                (f"static:exit={exit}", "propagate", base + 0.0021, base + 0.0032, share),
                (f"static:exit={exit}", "recompute", base + 0.0004, base + 0.0005, share),
                (f"static:exit={exit}", "speculate", 1.45 * PLAIN, 1.39 * PLAIN, -0.4),
            ]
    policies, contenders = [], []
    for place, (text, kv, guess, seconds, skip) in enumerate(cells):
        name = f"{text} ({kv})"
        contenders.append(contender(name, "policy", seconds, layers_per_token=30 * (1 - skip)))
        held = forecast(text, kv, guess, seconds, workload=workload, measured_skip=skip)
        if text.startswith("static"):
            held = replace(held, predicted_skip=skip)
        policies.append(
            DecodedChoice(
                family=text.partition(":")[0],
                contender=name,
                policy=parse_policy(text),
                kv=kv,
                why=f"the verdict's policy at {90 if place else 95} % agreement",
                floor=0.9 if place else 0.95,
                forecast=held,
                free_running=free_running(agreement if not place else 1.0 if kv == "speculate" else 0.31),
            )
        )
    contenders += [
        contender(NEVER, "plain", 0.0586),
        contender(GENERATE, "plain", PLAIN),
        contender("generate(static cache)", "plain", 0.061),
        contender("generate() again", "a/a", 0.0587),
        contender(
            SHORT, "short list", 0.0555, executed_agreement=Estimate(0.984), same_output=0.5, full_depth=True
        ),
        Contender("generate(assistant_early_exit=22)", "peer", left_out="this family runs all 30 layers"),
    ]
    if not sound:
        contenders = [replace(one, answer="defect") for one in contenders]
    bench = BenchResult(
        model="smollm2",
        policy=policy,
        kv="propagate",
        batch=1,
        batching="lockstep",
        new_tokens=32,
        prompts=2,
        rounds=3,
        worth=0.05,
        plain=GENERATE,
        contenders=tuple(contenders),
        defects=() if sound else ("the same decoder twice comes out unequal: ratio 1.062 [1.031, 1.09]",),
        a_a=Estimate(1.002, 0.994, 1.009) if sound else Estimate(1.062, 1.031, 1.09),
        stopped="answered",
        seconds_spent=64.0,
        circumstances=CIRCUMSTANCES,
        forecasts=tuple(p.forecast for p in policies if p.forecast is not None),
        notes=("speculate is left out: nothing of the kind",),
    )
    return Decoded(bench, tuple(policies), workload=workload)


def with_decoding(run: RunResult, *decodings: Decoded, **not_decoded: str) -> RunResult:
    return replace(run, decoding=decodings, not_decoded=not_decoded)


def decoded_run(run: RunResult, **options) -> RunResult:
    """The run with the main verdict's policy of its first workload decoded and timed, and others."""
    workload = run.workloads[0]
    speed = Speed(1.014, 1.008, 1.020, "measured", "local", True, 64.0)
    verdicts = tuple(
        replace(v, speed=speed, kv="propagate") if v.floor == 0.95 else v for v in workload.verdicts
    )
    workload = replace(workload, verdicts=verdicts)
    run = replace(run, workloads=(workload, *run.workloads[1:]))
    policy = str(next(v.policy for v in workload.verdicts if v.floor == 0.95))
    if policy == "never":
        policy = "threshold:signal=correctness,value=0.91,exits=20+24+27"
    return with_decoding(
        run,
        decoded(workload.name, policy, **options),
        decoded("code", "threshold:signal=margin,value=0.97,exits=27", others=False, sound=False),
        chat="its layers keep a state in themselves instead of in a cache",
    )
