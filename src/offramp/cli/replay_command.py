"""`offramp replay`: one policy on one trace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from offramp.cli.console import Output
from offramp.cli.leaving import Keeping
from offramp.kit.defaults import DRAFT_LENGTH
from offramp.kit.numbers import Count
from offramp.kit.request import Request, argument, flags
from offramp.kit.rules import Beside, only_if, only_with
from offramp.models.devices import AUTO
from offramp.policies.names import BatchingName, BatchOf, StrategyName
from offramp.tracing.asked import OnDevice, only_speculating
from offramp.tracing.progress import stage

if TYPE_CHECKING:
    from offramp.decoding.rerun.rerunner import RerunResult
    from offramp.tracing.trace import Trace


@dataclass(frozen=True, kw_only=True)
class ReplayCommand(Keeping, OnDevice, Request):
    """Replay an exit policy on a trace: where tokens leave, what it saves and loses. Needs no model."""

    trace: Annotated[Path, argument]
    """A folder that offramp trace or offramp run wrote."""
    policy: Annotated[str, flags("--policy", "-p")]
    """static:exit=20, threshold:signal=...,value=...,exits=... or a .json."""
    hardware: str | None = None
    """Predict seconds on this machine: a name of offramp list hardware, or a .toml profile."""
    kv: StrategyName = "propagate"
    """Skipped layers' K and V: propagate, mapped, recompute, speculate, monotone."""
    batch: Annotated[
        BatchOf, Beside(lambda batch, given: batch == 1 or not given.execute, "1 with --execute")
    ] = 1
    """Sequences decoded together."""
    batching: Annotated[
        BatchingName | None, only_if(lambda asked: asked.batch != 1, "at batch 1", "--batch 2 or more")
    ] = None
    draft_length: Annotated[Count | None, only_speculating] = None
    """Tokens drafted before a verification, with --kv speculate: {DRAFT_LENGTH} by default."""
    explain: bool = False
    """Print every line of the cost breakdown."""
    execute: bool = False
    """Also run the model on the same text, later tokens reading the K and V that the policy leaves: what
    decoding would do."""
    model: Annotated[str | None, only_with("execute")] = None
    """With --execute: the model, by default the trace's."""
    heads: Annotated[Path | None, only_with("execute")] = None
    """With --execute: the exit heads of the trace."""
    device: Annotated[str, only_with("execute")] = AUTO
    """With --execute, where the model computes: auto (an accelerator, if there is one), cpu, cuda, cuda:1,
    mps, xpu."""


def replay(asked: ReplayCommand, out: Output) -> None:
    """Replay, and show what it saves and loses."""
    from offramp.kit.typed import to_json
    from offramp.policies.replay import replay as replay_policy
    from offramp.report.formats import counted
    from offramp.report.replayed import ORACLE, charges, charges_table, replay_facts, total_text
    from offramp.report.table import pairs
    from offramp.runs.contents import contents_at, machine_near, trace_for
    from offramp.tracing.trace import Trace

    batching = asked.batching or "lockstep"
    place = trace_for(asked.trace, asked.policy)
    loaded, contents = Trace.load(place), contents_at(place)
    result = replay_policy(
        loaded,
        asked.policy,
        machine=machine_near(contents, asked.hardware),
        kv=asked.kv,
        batch=asked.batch,
        batching=batching,
        draft_length=DRAFT_LENGTH if asked.draft_length is None else asked.draft_length,
    )
    grouping = f" in {batching}" if asked.batch > 1 else ""
    out.console.print(
        f"{result.policy} on {counted(result.tokens, 'token')} (replayed, batch {asked.batch}{grouping})",
        markup=False,
    )
    out.console.print(pairs("").rich(replay_facts(result).items()))
    if not result.reachable:
        out.console.print(f"  {ORACLE}")
    for note in result.notes:
        out.console.print(f"  note: {note}", markup=False)
    if asked.explain:
        out.console.print(charges_table(result.breakdown).rich(charges(result.breakdown)))
        out.say(total_text(result.breakdown))
    bill = {"bill": result.breakdown} if asked.explain else {}
    heads = contents.heads if asked.heads is None and contents else asked.heads
    rerun = {"rerun": _execute(out, asked, loaded, heads)} if asked.execute else {}
    out.finish({**to_json(result), **bill, **rerun})


def _execute(out: Output, asked: ReplayCommand, trace: Trace, heads: Path | None) -> RerunResult:
    """The same policy with the keys and values that it leaves, shown."""
    from offramp.cli.traced_model import load_traced_model, read_traced_heads

    fitted = read_traced_heads(trace, heads)
    instead = "a replay still answers: leave --execute out"
    model = load_traced_model(trace, asked.model, fitted, instead=instead, device=asked.device)
    from offramp.decoding.rerun.rerunner import rerun
    from offramp.report.formats import percent

    with stage("running the text again"):
        found = rerun(model, trace, asked.policy, asked.kv, heads=fitted)
    out.console.print(f"rerun ({found.how}): K and V as {asked.kv} leaves them", markup=False)
    out.console.print(f"  agreement with the full model  {percent(found.agreement)}", markup=False)
    out.console.print(f"  layers skipped                 {percent(found.skip_ratio)}", markup=False)
    if found.drift is not None:
        out.console.print(
            f"  drift: {percent(found.drift.exits_moved)} of the tokens leave elsewhere than in the replay, "
            f"{percent(found.drift.tokens_changed)} come out as another token",
            markup=False,
        )
    return found
