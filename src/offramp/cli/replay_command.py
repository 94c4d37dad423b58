"""`offramp replay`: one policy on one trace."""

from __future__ import annotations

from typing import Annotated

import typer

from offramp.cli.console import Output
from offramp.cli.options import AsJson, TraceFolder
from offramp.cli.run_folder import find_trace


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
    from rich.table import Table

    from offramp.policies.grammar import parse_policy
    from offramp.policies.replay import replay as replay_policy
    from offramp.report.formats import counted, decimal, percent, times
    from offramp.tracing.trace import Trace

    out = Output(as_json)
    parsed = parse_policy(policy)
    result = replay_policy(Trace.load(find_trace(trace)), parsed)
    layers, counts = exit_counts(result.exits.tolist())
    shares = [
        f"{percent(count / len(result.exits))} at exit {layer}"
        for layer, count in zip(layers, counts, strict=True)
    ]
    out.console.print(
        f"{result.policy} on {counted(len(result.exits), 'token')} (replayed, batch 1)", markup=False
    )
    table = Table.grid(padding=(0, 2))
    for name, value in {
        "tokens leave": ", ".join(shares),
        "agreement with the full model": percent(result.agreement),
        "layers skipped": percent(result.skip_ratio),
        "predicted speed (bytes moved)": times(result.predicted_speedup),
        "predicted speed (FLOPs)": times(result.predicted_speedup_flops),
        "speed if probes were free": times(result.speedup_without_probes),
        "probes per token": decimal(float(result.probes.mean())),
        "NLL increase": f"{decimal(result.nll_increase, 4)} nats",
        "KL to the full model": f"{decimal(result.kl, 4)} nats",
    }.items():
        table.add_row(f"  {name}", value)
    out.console.print(table)
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
