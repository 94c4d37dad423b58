"""`offramp replay`: one policy on one trace."""

from __future__ import annotations

from typing import Annotated

import typer

from offramp.cli.console import Output
from offramp.cli.options import AsJson, TraceFolder


def replay(
    trace: TraceFolder,
    policy: Annotated[
        str,
        typer.Option(
            "--policy", "-p", help="static:exit=20, threshold:signal=...,value=...,exits=... or a .json."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Replay an exit policy on a trace: where tokens leave, what it saves and loses. Needs no model."""
    from offramp.policies.grammar import parse_policy
    from offramp.policies.replay import replay as replay_policy
    from offramp.tracing.trace import Trace

    out = Output(as_json)
    parsed = parse_policy(policy)
    result = replay_policy(Trace.load(trace), parsed)
    out.console.print(f"{result.policy} on {len(result.exits):,} tokens (replayed, batch 1)")
    lines = {
        "agreement with the full model": f"{result.agreement:.2%}",
        "layers skipped": f"{result.skip_ratio:.2%}",
        "predicted net speedup (bytes moved)": f"{result.predicted_speedup:.3f} x",
        "predicted net speedup (FLOPs)": f"{result.predicted_speedup_flops:.3f} x",
        "speedup if probes were free": f"{result.speedup_without_probes:.3f} x",
        "probes per token": f"{result.probes.mean():.2f}",
        "NLL increase": f"{result.nll_increase:.4f} nats",
        "KL to the full model": f"{result.kl:.4f} nats",
    }
    for name, value in lines.items():
        out.console.print(f"  {name:<36} {value}")
    layers, counts = exit_counts(result.exits.tolist())
    out.finish(
        {
            "policy": result.policy,
            "tokens": len(result.exits),
            "agreement": result.agreement,
            "skip_ratio": result.skip_ratio,
            "predicted_speedup": result.predicted_speedup,
            "predicted_speedup_flops": result.predicted_speedup_flops,
            "speedup_without_probes": result.speedup_without_probes,
            "probe_share": result.probe_share,
            "probes_per_token": float(result.probes.mean()),
            "nll_increase": result.nll_increase,
            "kl": result.kl,
            "tokens_by_exit": dict(zip(map(str, layers), counts, strict=True)),
        }
    )


def exit_counts(exits: list[int]) -> tuple[list[int], list[int]]:
    """The exits that were taken, ascending, and how many tokens took each."""
    layers = sorted(set(exits))
    return layers, [exits.count(layer) for layer in layers]
