"""`offramp trace`, `score`, `replay` and `predict`: a trace is made, scored, and asked what policies do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from offramp.cli.command import Output
from offramp.cli.shared_options import Keeping
from offramp.defaults import DRAFT_LENGTH, SEED
from offramp.errors import InputError
from offramp.files import require_writable
from offramp.kit.numbers import Count, Whole
from offramp.kit.request import Request, Writes, argument, flags
from offramp.kit.rules import Beside, Must, only_if, only_with
from offramp.models.devices import AUTO
from offramp.policies.names import BatchingName, BatchOf, StrategyName
from offramp.tracing.asked import Executing, Made, Measuring, OnDevice, OnModel, Streamed, only_speculating
from offramp.tracing.progress import stage

if TYPE_CHECKING:
    from offramp.decoding.rerun.rerunner import RerunResult
    from offramp.heads.exit_heads import ExitHeads
    from offramp.models.model import Model
    from offramp.report.table import Table
    from offramp.scoring.card import ScoreCard
    from offramp.tracing.trace import Trace
    from offramp.tuning.predict import Prediction
    from offramp.tuning.tuned import Shift
    from offramp.workloads.workload import Workload


@dataclass(frozen=True, kw_only=True)
class TraceCommand(Measuring, OnModel, Streamed, Made, Request):
    """Measure a model at every exit on one workload. Stopped? Run it again: it resumes."""

    workload: Annotated[
        tuple[str, ...],
        flags("--workload", "-w"),
        Must(
            lambda names: len(names) == 1,
            "one, as a trace is of one text",
            "trace each into a folder of its own, or all at once with offramp run",
        ),
    ]
    """prose, code, chat, math (prose:short, code:short, math:short: many short items), txt:PATH,
    jsonl:PATH#field, hf:dataset#split#field, continued:N:WORKLOAD (the model goes on after N tokens)."""
    output: Annotated[Path, Writes(TraceCommand.require_own)]
    """Folder for the trace."""
    signals: str = ""
    """What to record beyond the facts of every trace: restricted,kl_to_previous or all."""
    reference: Annotated[str | None, flags(metavar="MODEL")] = None
    """Another model of the same vocabulary, whose choice at every token is kept: what a trained model was
    before."""

    def require_own(self, output: Path) -> None:
        """Refuse a folder of something else."""
        require_writable(output)
        if output.is_dir():
            from offramp.tracing.folder import TRACE_FOLDER  # torch comes with it

            TRACE_FOLDER.require(output, overwrite=True)

    @property
    def resumes(self) -> bool:
        """With every part."""
        return True


def trace(asked: TraceCommand, out: Output) -> None:
    """Trace, and say what the trace holds."""
    from offramp.tracing.request import parse_signals
    from offramp.workloads.registry import load_workload

    work = load_workload(asked.workload[0])
    recorded = parse_signals(asked.signals, work.mode)

    from offramp.heads.file import read_heads
    from offramp.tracing.tracer import trace as trace_model

    heads = None if asked.heads_file is None else read_heads(asked.heads_file)
    model, reference = _models(asked, work, heads)
    made = trace_model(
        model,
        work,
        tokens=asked.tokens,
        exits=asked.layers,
        signals=recorded,
        heads=heads,
        context=asked.context,
        document_tokens=asked.document_tokens,
        reference=reference,
        output=asked.output,
        overwrite=asked.overwrite,
        repair=asked.repair,
        progress=True,
    )
    out.say(*_lines(made, asked.output))
    out.finish(_summary(made, asked.output, streamed=model.streamed is not None))


def _models(asked: TraceCommand, work: Workload, heads: ExitHeads | None) -> tuple[Model, Model | None]:
    """The model, and the one whose choices are kept beside its own."""
    from offramp.heads.at_work import require_exits
    from offramp.tracing.loading import find_model, load_for_tracing
    from offramp.tracing.request import parse_exits

    with stage("loading the model and checking its exits"):
        found = asked.find(asked.model)
        if heads is not None:
            found.require_heads(heads, str(asked.heads))
            require_exits(heads, parse_exits(asked.layers, heads.model["layers"]))
        judge = None
        if asked.reference is not None:
            judge = find_model(
                asked.reference,
                (),
                dtype=found.dtype,
                trust_remote_code=asked.trust_remote_code,
                device=asked.device,
            )
        model = load_for_tracing(found, [work], stream=asked.stream, memory=asked.memory_bytes)
        return model, None if judge is None else judge.load()


def _lines(trace: Trace, output: Path) -> list[str]:
    """How much was traced, what was left out, and what is to be said of it."""
    from offramp.report.formats import counted

    valid = [document for document in trace.documents if document.valid]
    left_out = [document for document in trace.documents if not document.valid]
    return [
        f"{counted(trace.token_count, 'token')} of {counted(len(valid), 'document')} at "
        f"{counted(len(trace.exits), 'exit')}: {output}",
        *[f"document {document.id} is left out: {document.reason}" for document in left_out],
        *trace.provenance["notes"],
    ]


def _summary(trace: Trace, output: Path, *, streamed: bool) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "trace": str(output),
        "tokens": trace.token_count,
        "documents": sum(document.valid for document in trace.documents),
        "left_out": [
            {"id": document.id, "reason": document.reason}
            for document in trace.documents
            if not document.valid
        ],
        "exits": trace.exits.tolist(),
        "facts": list(trace.fact_names),
        "streamed": streamed,
        "notes": trace.provenance["notes"],
        "request_fingerprint": trace.provenance["request_fingerprint"],
    }


@dataclass(frozen=True, kw_only=True)
class ScoreCommand(Request):
    """Score how suited a model is to early exit, from its traces. Needs no model.

    Of a trace made with --heads and one without, of the same tokens and exits, both readings are held against
    each other; a run with exit heads has both.
    """

    traces: Annotated[tuple[Path, ...], argument]
    """Folders that offramp trace or offramp run wrote."""


def score(asked: ScoreCommand, out: Output) -> None:
    """Score every trace, and show the cards."""
    from offramp.report.sections.potential import (
        FIGURES,
        TITLE,
        card_figures,
        gained_figures,
        readings_figures,
        readings_sentence,
    )
    from offramp.runs.folder import find_raw_traces, find_traces
    from offramp.scoring.scoring import score as score_trace
    from offramp.tracing.trace import Trace

    given = dict.fromkeys(asked.traces)
    loaded = {folder: Trace.load(folder) for path in given for folder in find_traces(path)}
    aside = [Trace.load(folder) for path in given for folder in find_raw_traces(path)]
    cards = []
    for folder, trace in loaded.items():
        card = score_trace(trace, beside=_raw_reading(trace, [*loaded.values(), *aside]))
        cards.append((folder, card))
        out.console.print(FIGURES.rich(card_figures(card), caption=_title(folder, trace, card)))
        if card.readings is not None:
            figures = [*readings_figures(card.readings), *gained_figures(card.readings)]
            out.console.print(FIGURES.rich(figures, caption=TITLE))
            out.console.print(readings_sentence(card.readings), markup=False)
        for note in _notes(card):
            out.console.print(note, markup=False)
        out.console.print()
    out.finish({"scores": [{"trace": str(folder), **card.to_json()} for folder, card in cards]})


def _raw_reading(trace: Trace, others: Iterable[Trace]) -> Trace | None:
    """Of a trace read through fitted heads the one of the same tokens that the model's own head read."""
    from offramp.scoring.scoring import are_two_readings, is_raw

    raw = (other for other in others if not is_raw(trace) and are_two_readings(other, trace))
    return next(raw, None)


def _notes(card: ScoreCard) -> list[str]:
    """What to bear in mind, why there are no intervals among it."""
    why = card.representation.no_interval
    return [*([f"no intervals: {why}"] if why else []), *card.notes]


def _title(folder: Path, trace: Trace, card: ScoreCard) -> str:
    from offramp.heads.described import RAW
    from offramp.report.formats import counted

    request = trace.request
    through = "" if card.read_through == RAW else f", exits are read through {card.read_through}"
    return (
        f"{request['model']['name']} on {request['workload']['name']}: {counted(card.tokens, 'token')} of "
        f"{counted(card.documents, 'document')} at {counted(len(trace.exits), 'exit')}{through}\n{folder}"
    )


@dataclass(frozen=True, kw_only=True)
class ReplayCommand(Keeping, Executing, OnDevice, Request):
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
    from offramp.runs.folder import contents_at, machine_near, trace_for
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
    from offramp.cli.shared_options import load_traced_model, read_traced_heads

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


@dataclass(frozen=True, kw_only=True)
class PredictCommand(Request):
    """Predict a policy's speed and quality on another trace or machine, and whether its floor holds."""

    trace: Path
    """The trace to predict for: its folder, or that of a run."""
    policy: Annotated[str, argument]
    """What offramp tune wrote, or any policy: a .json or a text."""
    hardware: str | None = None
    """local, a name of offramp list hardware, or a .toml profile. Without it: bytes moved."""
    batch: Count | None = None
    """Sequences decoded side by side, in lockstep. By default as tuned, or 1."""
    kv: str | None = None
    """Keys and values of skipped layers: propagate, mapped or recompute. By default as tuned."""
    unseen: bool = False
    """Judge on the documents only that tuning did not use."""
    seed: Whole = SEED
    """Draws the documents behind the intervals."""


def predict(asked: PredictCommand, out: Output) -> None:
    """Predict, and show it."""
    from offramp.runs.folder import contents_at, find_trace, machine_near
    from offramp.tracing.trace import Trace
    from offramp.tuning.predict import named_policy
    from offramp.tuning.predict import predict as predict_policy
    from offramp.tuning.tuned import Tuned

    policy = named_policy(asked.policy)
    if asked.unseen and not isinstance(policy, Tuned):
        raise InputError(
            "--unseen means nothing with a policy that was not tuned",
            where="--unseen",
            fix="leave --unseen out",
        )
    place = find_trace(asked.trace)
    loaded, machine = Trace.load(place), machine_near(contents_at(place), asked.hardware)
    with stage("predicting"):
        prediction = predict_policy(
            policy,
            loaded,
            hardware=machine,
            batch=asked.batch,
            kv=asked.kv,
            seed=asked.seed,
            unseen=asked.unseen,
        )
    _show(out, prediction)
    out.finish(_to_json(prediction))


def _show(out: Output, found: Prediction) -> None:
    from offramp.defaults import BYTES
    from offramp.report.formats import counted, decimal, duration, estimate_text, gain_text, percent, times
    from offramp.report.table import pairs
    from offramp.scoring.documents import lengths_text
    from offramp.tuning.floor import NATS, loss_text
    from offramp.tuning.verdict_words import ceiling_line

    def cost(value: float) -> str:
        return f"{value / 1e6:,.1f} MB" if found.machine == BYTES else duration(value)

    def nats(value: float) -> str:
        return decimal(value, 4)

    if found.request is not None:
        out.console.print(ceiling_line(found.request), markup=False)
    plain = cost(found.plain_seconds_per_token)
    batching = f" in {found.batching}" if found.batching else ""
    out.console.print(
        f"{found.policy} on {found.workload}, {counted(found.documents, 'document')}"
        f"{lengths_text(found.document_tokens)} (replayed, {found.machine}, batch {found.batch}{batching})",
        markup=False,
    )
    whole = found.request_speedup
    rows = {
        **({} if whole is None else {"speed of a whole request": estimate_text(whole, times)}),
        f"speed over the full model{'' if whole is None else ', decoding'}": estimate_text(
            found.net_speedup, times
        ),
        **(
            {}
            if found.as_measured is None
            else {"as such were measured": estimate_text(found.as_measured, times)}
        ),
        **({} if found.gain is None else {"saved of plain decoding": gain_text(found.gain)}),
        "a token takes": f"{estimate_text(found.seconds_per_token, cost)}, full model {plain}",
        "probes' share of it": percent(found.probe_share),
        "layers skipped": estimate_text(found.skip_ratio, percent),
        "agreement with the full model": estimate_text(found.agreement, percent),
    }
    if found.reference_agreement is not None:
        rows["agreement with the original one"] = estimate_text(found.reference_agreement, percent)
    if found.floor is not None and found.floor.clip is not None:
        rows[f"{NATS[found.floor.kind]}, clipped"] = f"{estimate_text(found.quality, nats)} nats"
    if found.floor is not None and found.risk_low is not None and found.risk_high is not None:
        rows[f"the floor {found.floor}"] = (
            f"{found.floor_answer}: mean loss between {loss_text(found.floor, found.risk_low, '.4f')} and "
            f"{loss_text(found.floor, found.risk_high, '.4f')} (delta {found.delta:g}), allowed "
            f"{loss_text(found.floor, found.floor.risk)}"
        )
    out.console.print(pairs("").rich(rows.items()))
    if found.shift:
        out.console.print(_shift_table().rich(_readings(found)))
    for note in found.notes:
        out.console.print(f"note: {note}", markup=False)


Reading = tuple[str, "Shift", bool]
"""What a policy reads at a check: of which texts, and whether the check is named."""


def _readings(found: Prediction) -> Iterator[Reading]:
    """Of every check the tuning documents above, these below."""
    for row in found.shift:
        yield "tuned on", row.tuned, True
        yield "here", row.other, False


def _shift_table() -> Table[Reading]:
    from offramp.report.formats import decimal, percent
    from offramp.report.table import Column, Table

    def quantile(place: int) -> Callable[[Reading], str]:
        return lambda row: decimal(row[1].quantiles[place], 3) if row[1].quantiles else ""

    def calibration(row: Reading) -> str:
        return "" if row[1].calibration is None else decimal(row[1].calibration, 3)

    return Table(
        (
            Column("Exit", lambda row: str(row[1].exit) if row[2] else ""),
            Column("Fact", lambda row: (row[1].fact or "top1") if row[2] else ""),
            Column("Texts", lambda row: row[0]),
            Column("5 %", quantile(0)),
            Column("median", quantile(2)),
            Column("95 %", quantile(4)),
            Column("Agreement", lambda row: row[1].agreement, percent),
            Column("max_prob less it", calibration),
        ),
        caption="What its checks read",
        words=3,
    )


def _to_json(found: Prediction) -> dict[str, Any]:
    from offramp.kit.typed import to_json

    return {**to_json(found), "floor": None if found.floor is None else str(found.floor)}
