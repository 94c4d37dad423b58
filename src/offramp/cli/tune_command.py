"""`offramp tune`: the fastest policy that keeps a quality floor, certified by what it decodes."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offramp.cli.console import Output
from offramp.cli.options import (
    AsJson,
    Device,
    HeadsFile,
    RemoteCode,
    refuse_idle,
    require_json_file,
    require_placement,
)
from offramp.cli.tuned_tables import candidates_table, front_table, nats
from offramp.commands import NO_MODEL, command_for
from offramp.errors import BusyMachineError, InputError
from offramp.files import require_writable
from offramp.kit.defaults import CERTIFIED_TOKENS, DELTA, LOCAL, METHOD, OPENING_TOKENS, SEED
from offramp.models.devices import AUTO
from offramp.tracing.progress import progress_bar, stage

if TYPE_CHECKING:
    from offramp.decoding.execution.tune import TunedTasks
    from offramp.scoring.estimate import Estimate
    from offramp.tracing.exit_heads import ExitHeads
    from offramp.tracing.trace import Trace
    from offramp.tuning.floor import Floor
    from offramp.tuning.tuned import Tuned

INSTEAD = f"--model {NO_MODEL} still answers with a replay bound"


def tune(
    traces: Annotated[
        list[Path],
        typer.Argument(
            metavar="TRACE...",
            help="A folder that offramp trace or offramp run wrote; heads, timings and what was decoded are "
            "taken from the run. Several, each of another workload: one policy with an entry for each.",
        ),
    ],
    floor: Annotated[
        str,
        typer.Option(
            "--floor",
            help="What to keep: agreement=0.95, nll=0.02 or kl=0.02 (nats); of a transformed model also "
            "reference_agreement=0.95, with the untransformed one, or that of offramp trace --reference. "
            "Only floors on agreement are executed.",
        ),
    ],
    floor_clip: Annotated[
        float | None,
        typer.Option("--floor-clip", help="nll, kl: nats at which a token's loss is cut. By default 1."),
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option(
            "--hardware",
            help="local, a name of offramp list hardware, or a .toml profile. By default local, or bytes "
            "moved while others keep this machine busy.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="The traced model, to decode with: by default where the trace says it came from. none: a "
            "replay bound from the trace alone.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="MODEL",
            help="At a floor of reference_agreement: the model that judges what is decoded; by default from "
            "where the trace says.",
            show_default=False,
        ),
    ] = None,
    heads: HeadsFile = None,
    kv: Annotated[
        str,
        typer.Option(
            "--kv",
            help="Keys and values of skipped layers: auto tries all that the model can; or one of propagate, "
            "recompute, monotone, ...",
        ),
    ] = "auto",
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", help="Of a text's opening. Prompts of a workload are whole.")
    ] = OPENING_TOKENS,
    new_tokens: Annotated[
        int | None,
        typer.Option(
            "--new-tokens",
            help=f"Of each decoded answer, at most. By default {CERTIFIED_TOKENS}; of a run's trace as in "
            "the run.",
            show_default=False,
        ),
    ] = None,
    documents: Annotated[
        int | None,
        typer.Option(
            "--documents",
            help="To decode per candidate, at most. By default four times the fewest that the floor needs.",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option("--seconds", help="For reruns and decoding together, at most.", show_default=False),
    ] = None,
    executions: Annotated[
        Path | None,
        typer.Option(
            "--executions",
            help="Where decoded documents are kept and never decoded again. By default the folder executions "
            "beside the policy file; of a run's trace that of the run.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str, typer.Option("--method", help="wsr, hb or crc; naive gives no guarantee.")
    ] = METHOD,
    delta: Annotated[float, typer.Option("--delta", help="Chance that the certificate is wrong.")] = DELTA,
    batch: Annotated[
        int, typer.Option("--batch", help="Sequences decoded side by side; above 1 with --model none only.")
    ] = 1,
    seed: Annotated[int, typer.Option("--seed", help="Draws the documents of each role.")] = SEED,
    search: Annotated[
        str,
        typer.Option(
            "--search",
            help="families of rules; evolution: besides, a signal and a threshold for each exit.",
        ),
    ] = "families",
    output: Annotated[Path, typer.Option("--output", "-o", help="The policy file to write.")] = Path(
        "policy.json"
    ),
    device: Device = AUTO,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Find the fastest policy that is certified, by decoding, to keep a quality floor."""
    from offramp.cli.local_profile import profile_now
    from offramp.cli.traced_model import load_traced_model, read_traced_heads
    from offramp.cli.tuned_texts import machine_at_hand, texts_at, tuned_together
    from offramp.costs.timings import TimingsProfile
    from offramp.decoding.execution.tune import (
        require_judged,
        require_sizes,
        tune_tasks,
    )
    from offramp.decoding.execution.tune import tune as tune_policy
    from offramp.policies.grammar import is_tuned
    from offramp.tuning.floor import REFERENCE, SHARES, parse_floor
    from offramp.tuning.tune import check_settings, require_search

    out = Output(as_json)
    require_placement(device)
    require_search(search)
    wanted, rule = check_settings(parse_floor(floor, floor_clip), method, delta, None, seed)
    require_sizes(prompt_tokens, CERTIFIED_TOKENS if new_tokens is None else new_tokens, documents, seconds)
    executes = model != NO_MODEL and wanted.kind in SHARES
    idle = {
        "--prompt-tokens": prompt_tokens != OPENING_TOKENS,
        "--new-tokens": new_tokens is not None,
        "--documents": documents is not None,
        "--seconds": seconds is not None,
        "--executions": executions is not None,
    }
    refuse_idle(
        {name: (given and not executes, "where nothing is decoded", "") for name, given in idle.items()}
    )
    require_json_file(output, "a tuned policy", is_tuned)
    beside = output.absolute().parent / "executions"
    require_writable(executions or beside)
    texts = texts_at(traces, heads)
    groups, first = tuned_together(texts), texts[0]
    for place, (text, *_) in enumerate(groups if len(groups) > 1 else (), start=1):
        require_json_file(own_file(output, place, text.name), "a tuned policy", is_tuned)
    require_judged([text.trace for text in texts], reference, wanted, decodes=model != NO_MODEL)
    machine = machine_at_hand(first, hardware or LOCAL, may_time=executes)
    decodes = original = None
    if executes:
        for group in groups:
            needed = rule.needed(wanted.risk, delta / len(group))
            for text in group:
                _require_executable(text.trace, kv, batch)
                fitted = read_traced_heads(text.trace, text.heads)
                _require_documents(text.trace, wanted, needed, documents, fitted, seed)
        load = functools.partial(
            load_traced_model,
            first.trace,
            instead=INSTEAD,
            device=device,
            trust_remote_code=trust_remote_code,
        )
        if wanted.kind == REFERENCE:
            original = load(reference, None, reference=True)
        decodes = load(model, read_traced_heads(first.trace, first.heads))
        if machine is None or (isinstance(machine, TimingsProfile) and machine.name == LOCAL):
            try:
                timed = profile_now(decodes, machine)
                machine, note = timed.profile, f"prices of this machine: {timed.note}"
            except BusyMachineError as error:
                if hardware is not None:
                    raise
                note = f"{error.what}; prices are counted in bytes moved"
            out.console.print(note, markup=False)
    settings: dict[str, Any] = {
        "kv": kv,
        "prompt_tokens": prompt_tokens,
        "documents": documents,
        "seconds": seconds,
        "method": method,
        "delta": delta,
        "batch": batch,
        "seed": seed,
        "search": search,
        "reference": original,
    }
    answers = {}
    for place, group in enumerate(groups, start=1):
        traced, alone, near = [text.trace for text in group], group[0], group[0].contents
        settings["heads"] = alone.heads
        settings["new_tokens"] = new_tokens or (near and near.new_tokens) or CERTIFIED_TOKENS
        settings["folder"] = executions or (len(group) == 1 and near and near.executions) or beside
        title = "tuning" if decodes is None else "tuning: documents of the candidate at hand"
        if len(groups) > 1:
            title = f"{alone.name}, {title}"
        with stage(title) if decodes is None else progress_bar(title) as progress:
            if len(group) > 1:
                several = tune_tasks(traced, wanted, machine, decodes, progress=progress, **settings)
            else:
                tuned = tune_policy(traced[0], wanted, machine, decodes, progress=progress, **settings)
        if len(group) > 1:
            out.finish(show_tasks(out, several, output, alone.heads))
        elif len(groups) == 1:
            out.finish(show_tuned(out, tuned, output, alone.heads))
        else:
            own = own_file(output, place, alone.name)
            out.console.print(f"{alone.name}:", markup=False, style="bold")
            answers[alone.name] = show_tuned(out, tuned, own, alone.heads)
    if answers:
        out.finish({"workloads": answers})


def own_file(output: Path, place: int, workload: str) -> Path:
    """Beside the policy of several texts, or in its place, the file of each one's own."""
    return output.with_name(f"{output.stem}-{place}-{re.sub(r'[^A-Za-z0-9]+', '-', workload)[:40]}.json")


def show_tuned(out: Output, tuned: Tuned, output: Path, heads: Path | None) -> dict[str, Any]:
    """Write a tuned policy and show it; its JSON object."""
    from offramp.tuning.tuned import to_json, write_tuned

    write_tuned(output, tuned, heads)
    _show(out, tuned, output)
    lossless, (decoding, timing) = lossless_command(tuned, heads), next_commands(tuned, output, heads)
    if lossless is not None:  # what takes the fewest seconds comes first
        out.console.print(f"next, the fastest, lossless: {lossless}", markup=False, soft_wrap=True)
    if decoding is not None:
        which = "next" if lossless is None else "next, with the certified policy"
        out.console.print(f"{which}: {decoding}", markup=False, soft_wrap=True)
        out.console.print(f"{which}: {timing}", markup=False, soft_wrap=True)
    commands = {"lossless": lossless, "generate": decoding, "next": timing}
    return {**to_json(tuned), "file": str(output), **commands}


def show_tasks(out: Output, found: TunedTasks, output: Path, heads: Path | None) -> dict[str, Any]:
    """Write the policy of all workloads, and beside it each one's own with its certificate."""
    from offramp.files import write_sealed_json
    from offramp.policies.grammar import is_tuned, policy_to_json

    answers = {}
    files = [own_file(output, place, name) for place, name in enumerate(found.tuned, start=1)]
    for own in files:
        require_json_file(own, "a tuned policy", is_tuned)
    for own, (name, tuned) in zip(files, found.tuned.items(), strict=True):
        out.console.print(f"{name}:", markup=False, style="bold")
        answers[name] = show_tuned(out, tuned, own, heads)
    write_sealed_json(output, policy_to_json(found.policy))
    out.console.print(
        f"written: {output}, one policy with an entry for each of {len(answers)} workloads and the full "
        f"model for all others; each answer is wrong with a chance of {found.delta / len(answers):g}, any "
        f"of them with {found.delta:g}",
        markup=False,
    )
    return {"policy": str(found.policy), "file": str(output), "delta": found.delta, "workloads": answers}


def _require_executable(trace: Trace, kv: str, batch: int) -> None:
    """Refuse, before the model is loaded, what could not be decoded with it. Raises InputError."""
    from offramp.decoding.execution.executor import strategies_of
    from offramp.decoding.openings import traced_workload
    from offramp.tuning.tune import require_single

    strategies_of(kv)
    require_single(batch)
    try:
        traced_workload(trace)
    except InputError as error:
        fix = f"{error.fix}; {INSTEAD}" if error.fix else INSTEAD
        raise InputError(error.what, where=error.where, fix=fix) from error


def _require_documents(
    trace: Trace, floor: Floor, needed: int, allowed: int | None, heads: ExitHeads | None, seed: int
) -> None:
    """Refuse, before the model is loaded, a floor that the documents at hand could not certify at all.

    needed: documents without a loss that the floor needs. allowed: to decode per candidate, None for any.

    Raises InputError.
    """
    from offramp.decoding.openings import further_documents, traced_workload
    from offramp.tuning.splits import split_roles

    roles = split_roles(trace, seed)
    apart = [*roles.search, *roles.report]
    further = further_documents(trace, traced_workload(trace), seed, heads, apart)
    at_hand = len(roles.certify) + len(further)
    where = f"--floor {floor}, for {trace.folder or 'the trace'}"
    if at_hand < needed or not len(roles.search):
        raise InputError(
            f"not enough documents: {at_hand} to certify on, {needed} needed even if nothing is lost on any "
            "of them, and one more at least to search on",
            where=where,
            fix=f"trace a workload of more documents, or ask for a looser floor; {INSTEAD}",
        )
    if allowed is not None and allowed < needed:
        raise InputError(
            f"{allowed} documents to decode cannot certify the floor: {needed} are needed even if nothing is "
            "lost on any of them",
            where=where,
            fix=f"give --documents {needed} or more, or leave it out",
        )


def next_commands(tuned: Tuned, output: Path, heads: Path | None) -> tuple[str | None, str | None]:
    """The commands that decode with what was tuned and that time it; None of the full model."""
    if tuned.policy_text == "never":
        return None, None
    workload = tuned.workload.get("name", "prose")
    decodes = functools.partial(command_for, model=tuned.model, policy=output, heads=heads)
    return decodes("generate", prompt="TEXT"), decodes("bench", workload=workload)


def lossless_command(tuned: Tuned, heads: Path | None) -> str | None:
    """The command that decodes with the drafts that are faster than what was written; None without any."""
    drafts = tuned.faster_lossless
    if drafts is None:
        return None
    options = {"policy": drafts.policy, "kv": drafts.kv, "draft_length": drafts.draft_length}
    return command_for("generate", tuned.model, **options, heads=heads, prompt="TEXT")


def written_words(tuned: Tuned, output: Path) -> str:
    """Which policy the file holds: where something else is faster, that this is not in it."""
    if tuned.faster_lossless is None:
        return f"written: {output}"
    kept = "the full model" if tuned.policy_text == "never" else "the certified policy"
    return f"written: {output}, {kept}; what is faster and lossless needs no file"


def _show(out: Output, tuned: Tuned, output: Path) -> None:
    """The answer, what it rests on, and the candidates, or the front of a replay."""
    from offramp.report.timing import PolicyNames
    from offramp.tuning.answers import meaning_of

    out.console.print(tuned.answer, markup=False)
    for line in (*report_lines(tuned), *certificate_lines(tuned)):
        out.console.print(f"  {line}", markup=False)
    out.console.print(f"  the floor means: {meaning_of(tuned.floor)}", markup=False)
    names = PolicyNames()
    if tuned.candidates:
        out.console.print(candidates_table(tuned, names))
    elif len(tuned.front) > 1:
        out.console.print(front_table(tuned, names))
    for line in names.lines():
        out.console.print(f"  {line}", markup=False, soft_wrap=True)
    out.console.print(written_words(tuned, output), markup=False, soft_wrap=True)


def certificate_lines(tuned: Tuned) -> list[str]:
    """The certificate in plain words."""
    from offramp.tuning.bounds import find_method
    from offramp.tuning.floor import loss_text

    certificate = tuned.certificate
    rule = find_method(certificate.method)
    roles = ", ".join(f"{count} {role}" for role, count in tuned.documents.items() if count)
    lines = [f"documents: {roles}"]
    if certificate.holds or certificate.passed:
        said, count = certificate.guarantee, certificate.stopped_after or certificate.documents
        what = "certificate" if certificate.executed else "replay bound"
        lines.append(said if rule.name == "naive" else f"{what} ({rule.name}): {said}")
        if certificate.empirical_risk is not None:
            lost = loss_text(tuned.floor, certificate.empirical_risk, ".4f")
            lines.append(f"mean loss on {count} documents{certificate.of_tokens}: {lost}")
        lines.append(f"assumed: {certificate.assumption}")
    if rule.name != "naive":
        lines.append(
            f"best floor that {certificate.documents} documents without a loss certify: "
            f"{tuned.floor.kind}={certificate.best_floor:.4f}; {tuned.floor} needs "
            f"{certificate.documents_needed} at least"
        )
    return lines


def report_lines(tuned: Tuned) -> list[str]:
    """Speed and quality on the report documents, with intervals or why there are none."""
    from offramp.report.formats import counted, estimate_text, gain_text, percent, times
    from offramp.tuning.floor import NATS

    def said(estimate: Estimate, number: Callable[[float], str]) -> str:
        why = f" (no interval: {estimate.no_interval})" if estimate.no_interval else ""
        return estimate_text(estimate, number) + why

    how = f", in lockstep at batch {tuned.batch}" if tuned.batch > 1 else ""
    how = ", rerun" if tuned.certificate.executed else f", replayed{how}"
    lines = [f"on {counted(tuned.documents['report'], 'report document')}{how}:"]
    if tuned.floor.kind == "agreement":
        lines.append(f"  agreement {said(tuned.quality, percent)}")
    elif tuned.floor.clip is not None:
        lines.append(f"  {NATS[tuned.floor.kind]}, clipped {said(tuned.quality, nats)}")
    if tuned.reference_agreement is not None:
        lines.append(f"  agreement with the original model {said(tuned.reference_agreement, percent)}")
    lines.append(f"  speed over the full model {said(tuned.net_speedup, times)}")
    saved = gain_text(tuned.gain)
    return [*lines, f"  saved of plain decoding: {saved}"] if saved else lines
