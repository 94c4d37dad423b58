"""`offramp tune`: the fastest policy that keeps a quality floor, certified by what it decodes."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from offramp.cli.command import Output
from offramp.commands import NO_MODEL, command_for
from offramp.defaults import CERTIFIED_TOKENS, DELTA, LOCAL, METHOD, OPENING_TOKENS, SEED, WORTH
from offramp.errors import BusyMachineError, InputError
from offramp.files import require_writable
from offramp.kit.numbers import Count, Positive, Seconds, Share, Whole
from offramp.kit.output_file import clear_for, require_json_file
from offramp.kit.request import Request, Writes, argument, flags
from offramp.kit.rules import only_if
from offramp.policies.names import StrategyName
from offramp.tracing.asked import OnDevice, ReadThrough
from offramp.tracing.progress import progress_bar, stage
from offramp.tuning.names import MethodName, Search

if TYPE_CHECKING:
    from offramp.costs.machine import Machine
    from offramp.decoding.execution.tune import TunedTasks
    from offramp.models.model import Model
    from offramp.report.table import Table
    from offramp.runs.folder import RunContents
    from offramp.scoring.estimate import Estimate
    from offramp.tracing.trace import Trace
    from offramp.tuning.floor import Floor
    from offramp.tuning.tuned import Tuned


@dataclass(frozen=True)
class TextAtHand:
    """One text."""

    name: str
    trace: Trace
    heads: Path | None
    """The file that its exits were read through."""
    contents: RunContents | None
    """Of its run, None outside one."""


def texts_at(folders: Iterable[Path], heads: Path | None) -> list[TextAtHand]:
    """The texts of traces and runs, each once. heads: given for all of them, None for those of their runs.

    Raises InputError for folders that hold no trace, or one that was read through other heads than are given;
    DamagedFileError for changed ones.
    """
    from offramp.heads.file import read_heads
    from offramp.policies.binding import require_heads
    from offramp.runs.folder import contents_at, find_traces
    from offramp.tracing.trace import Trace

    found = []
    for place in dict.fromkeys(place for folder in folders for place in find_traces(folder)):
        trace, contents = Trace.load(place), contents_at(place)
        own = None if contents is None else contents.heads
        if heads is not None:
            require_heads(trace, read_heads(heads))
        found.append(TextAtHand(str(trace.request["workload"]["name"]), trace, heads or own, contents))
    return found


def tuned_together(texts: Sequence[TextAtHand]) -> list[list[TextAtHand]]:
    """Which texts get one policy: all of them, or each its own, as in a run that fits heads for each text.

    Raises InputError for texts of no one run that were not traced alike.
    """
    from offramp.decoding.execution.tune import by_workload
    from offramp.policies.binding import base_of

    runs = {None if text.contents is None else text.contents.run for text in texts}
    alike = all(base_of(text.trace) == base_of(texts[0].trace) for text in texts)
    if not alike and len(runs) == 1 and None not in runs:
        return [[text] for text in texts]
    if len(texts) > 1:
        by_workload([text.trace for text in texts])
    return [list(texts)]


def machine_at_hand(text: TextAtHand, hardware: str, *, may_time: bool) -> Machine | None:
    """The machine that a text is priced on; None for this machine where it is yet to be timed.

    may_time: whether the model will be loaded. Raises InputError for a machine that is not known.
    """
    from offramp.policies.prices import machine_for
    from offramp.runs.folder import machine_near

    try:
        return machine_for(text.trace, machine_near(text.contents, hardware))
    except InputError:
        if hardware == LOCAL and may_time:
            return None
        raise


T = TypeVar("T")

INSTEAD = f"--model {NO_MODEL} still answers with a replay bound"

executing = only_if(lambda asked: asked.executes, "where nothing is decoded")


@dataclass(frozen=True, kw_only=True)
class Tuning(OnDevice, ReadThrough, Request):
    """Find the fastest policy that is certified, by decoding, to keep a quality floor."""

    traces: Annotated[tuple[Path, ...], argument, flags(metavar="TRACE...")] = field(kw_only=False)
    """A folder that offramp trace or offramp run wrote; heads, timings and what was decoded are taken from
    the run. Several, each of another workload: one policy with an entry for each."""
    floor: str
    """What to keep: agreement=0.95, nll=0.02 or kl=0.02 (nats); of a transformed model also
    reference_agreement=0.95, with the untransformed one, or that of offramp trace --reference. Only floors on
    agreement are executed."""
    floor_clip: Positive | None = None
    """nll, kl: nats at which a token's loss is cut. By default 1."""
    hardware: str | None = None
    """local, a name of offramp list hardware, or a .toml profile. By default local, or bytes moved while
    others keep this machine busy."""
    model: str | None = None
    """The traced model, to decode with: by default where the trace says it came from. none: a replay bound
    from the trace alone."""
    reference: Annotated[str | None, flags(metavar="MODEL")] = None
    """At a floor of reference_agreement: the model that judges what is decoded; by default from where the
    trace says."""
    kv: Literal["auto"] | StrategyName = "auto"
    """Keys and values of skipped layers: auto tries all that the model can; or one of propagate, recompute,
    monotone, ..."""
    prompt_tokens: Annotated[Count, executing] = OPENING_TOKENS
    """Of a text's opening. Prompts of a workload are whole."""
    new_tokens: Annotated[Count | None, executing] = None
    """Of each decoded answer, at most. By default {CERTIFIED_TOKENS}; of a run's trace as in the run."""
    documents: Annotated[Count | None, executing] = None
    """To decode per candidate, at most. By default four times the fewest that the floor needs."""
    seconds: Annotated[Seconds | None, executing] = None
    """For reruns and decoding together, at most."""
    executions: Annotated[Path | None, executing, Writes(lambda asked, path: require_writable(path))] = None
    """Where decoded documents are kept and never decoded again. By default the folder executions beside the
    policy file; of a run's trace that of the run."""
    method: MethodName = METHOD
    """wsr, hb or crc; naive gives no guarantee."""
    delta: Share = DELTA
    """Chance that the certificate is wrong."""
    batch: Count = 1
    """Sequences decoded side by side; above 1 with --model none only."""
    seed: Whole = SEED
    """Draws the documents of each role."""
    search: Search = "families"
    """families of rules; evolution: besides, a signal and a threshold for each exit."""
    output: Annotated[Path, Writes(lambda asked, path: require_policy_file(path))] = Path("policy.json")
    """The policy file to write."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""

    def check(self) -> None:
        """Refuse what is out of range, and files that cannot be written."""
        super().check()
        _ = self.kept
        if self.executions is None:
            require_writable(self.beside)

    @cached_property
    def kept(self) -> Floor:
        """The floor. Raises InputError for a text that is none."""
        from offramp.tuning.floor import parse_floor

        return parse_floor(self.floor, self.floor_clip)

    @property
    def decodes(self) -> bool:
        """Whether there is a model to decode with."""
        return self.model != NO_MODEL

    @property
    def executes(self) -> bool:
        """Whether the floor is certified by decoding."""
        from offramp.tuning.floor import SHARES

        return self.decodes and self.kept.kind in SHARES

    @property
    def resumes(self) -> bool:
        """With documents that were decoded."""
        return self.executes

    @property
    def beside(self) -> Path:
        """The folder of executions beside the policy file."""
        return self.output.absolute().parent / "executions"


def require_policy_file(path: Path) -> None:
    """Refuse a file that is no policy of the tuner. Raises InputError."""
    from offramp.policies.grammar import is_tuned

    require_json_file(path, "a tuned policy", is_tuned)


def tune(asked: Tuning, out: Output) -> None:
    """Tune on the texts, all of them together or each by itself, and write and show what came out."""
    from offramp.decoding.execution.tune import TunedTasks, require_judged
    from offramp.policies.whole_request import request_of
    from offramp.tuning.verdict_words import ceiling_line

    texts = texts_at(asked.traces, asked.heads_file)
    groups = tuned_together(texts)
    for place, (text, *_) in enumerate(groups if len(groups) > 1 else (), start=1):
        require_policy_file(own_file(asked.output, place, text.name))
    require_judged([text.trace for text in texts], asked.reference, asked.kept, decodes=asked.decodes)
    machine = machine_at_hand(texts[0], asked.hardware or LOCAL, may_time=asked.executes)
    model = reference = None
    if asked.executes:
        require_executable(asked, groups)
        model, reference = loaded_models(asked, texts[0])
        machine = machine_of_now(asked, model, machine, out)
    answers = {}
    for text in texts:
        request = request_of(text.trace, machine, asked.batch)
        if request is not None and not request.refuses(WORTH):  # else the answer says it
            out.console.print(ceiling_line(request), markup=False)
    for place, group in enumerate(groups, start=1):
        title = f"{group[0].name}, " if len(groups) > 1 else ""
        tuned, heads = tuned_on(asked, group, machine, model, reference, title), group[0].heads
        if isinstance(tuned, TunedTasks):
            out.finish(show_tasks(out, tuned, asked.output, heads))
        elif len(groups) == 1:
            out.finish(show_tuned(out, tuned, asked.output, heads))
        else:
            own = own_file(asked.output, place, group[0].name)
            out.console.print(f"{group[0].name}:", markup=False, style="bold")
            answers[group[0].name] = show_tuned(out, tuned, own, heads)
    if answers:
        out.finish({"workloads": answers})


def require_executable(asked: Tuning, groups: list[list[TextAtHand]]) -> None:
    """Refuse, before the model is loaded, what could not be decoded with it, or not be certified at all.

    Raises InputError.
    """
    from offramp.decoding.execution.executor import strategies_of
    from offramp.tuning.bounds import METHODS
    from offramp.tuning.tune import require_single

    strategies_of(asked.kv)
    require_single(asked.batch)
    for group in groups:
        needed = METHODS[asked.method].needed(asked.kept.risk, asked.delta / len(group))
        for text in group:
            _require_documents(asked, text, needed)


def _require_documents(asked: Tuning, text: TextAtHand, needed: int) -> None:
    """Refuse a floor that the documents at hand could not certify. needed: those without a loss.

    Raises InputError.
    """
    from offramp.cli.shared_options import read_traced_heads
    from offramp.decoding.openings import further_documents, traced_workload
    from offramp.tuning.splits import split_roles

    trace = text.trace
    try:
        workload = traced_workload(trace)
    except InputError as error:
        fix = f"{error.fix}; {INSTEAD}" if error.fix else INSTEAD
        raise InputError(error.what, where=error.where, fix=fix) from error
    heads, roles = read_traced_heads(trace, text.heads), split_roles(trace, asked.seed)
    further = further_documents(trace, workload, asked.seed, heads, [*roles.search, *roles.report])
    at_hand = len(roles.certify) + len(further)
    where = f"--floor {asked.kept}, for {trace.folder or 'the trace'}"
    if at_hand < needed or not len(roles.search):
        raise InputError(
            f"not enough documents: {at_hand} to certify on, {needed} needed even if nothing is lost on any "
            "of them, and one more at least to search on",
            where=where,
            fix=f"trace a workload of more documents, or ask for a looser floor; {INSTEAD}",
        )
    if asked.documents is not None and asked.documents < needed:
        raise InputError(
            f"{asked.documents} documents to decode cannot certify the floor: {needed} are needed even if "
            "nothing is lost on any of them",
            where=where,
            fix=f"give --documents {needed} or more, or leave it out",
        )


def loaded_models(asked: Tuning, text: TextAtHand) -> tuple[Model, Model | None]:
    """The model that a text was traced with, and the reference where the floor is on agreement with that.

    Raises InputError.
    """
    from offramp.cli.shared_options import load_traced_model, read_traced_heads
    from offramp.tuning.floor import REFERENCE

    load = functools.partial(
        load_traced_model,
        text.trace,
        instead=INSTEAD,
        device=asked.device,
        trust_remote_code=asked.trust_remote_code,
    )
    judges = asked.kept.kind == REFERENCE
    reference = load(asked.reference, None, reference=True) if judges else None
    return load(asked.model, read_traced_heads(text.trace, text.heads)), reference


def machine_of_now(asked: Tuning, model: Model, machine: Machine | None, out: Output) -> Machine | None:
    """The machine, timed or held against a few tokens of now if it is this one; None counts bytes moved.

    Raises BusyMachineError where this machine was asked for, and others keep it busy.
    """
    from offramp.costs.timings import TimingsProfile
    from offramp.timing.local_profile import profile_now

    if machine is not None and not (isinstance(machine, TimingsProfile) and machine.name == LOCAL):
        return machine
    try:
        timed = profile_now(model, machine)
        machine, note = timed.profile, f"prices of this machine: {timed.note}"
    except BusyMachineError as error:
        if asked.hardware is not None:
            raise
        note = f"{error.what}; prices are counted in bytes moved"
    out.console.print(note, markup=False)
    return machine


PASSED_ON = ("kv", "prompt_tokens", "documents", "seconds", "method", "delta", "batch", "seed", "search")
"""Fields that `offramp.tune` takes as they are."""


def tuned_on(
    asked: Tuning,
    group: list[TextAtHand],
    machine: Machine | None,
    model: Model | None,
    reference: Model | None,
    title: str,
) -> Tuned | TunedTasks:
    """What one text gives, or several together. title: before what is said while it goes on.

    Raises InputError.
    """
    from offramp.decoding.execution.tune import tune, tune_tasks

    traces, alone, near = [text.trace for text in group], group[0], group[0].contents
    settings: dict[str, Any] = {
        **{name: getattr(asked, name) for name in PASSED_ON},
        "reference": reference,
        "heads": alone.heads,
        "new_tokens": asked.new_tokens or (near and near.new_tokens) or CERTIFIED_TOKENS,
        "folder": asked.executions or (len(group) == 1 and near and near.executions) or asked.beside,
    }
    title += "tuning" if model is None else "tuning: documents of the candidate at hand"
    with stage(title) if model is None else progress_bar(title) as progress:
        settings["progress"] = progress
        if len(group) > 1:
            return tune_tasks(traces, asked.kept, machine, model, **settings)
        return tune(traces[0], asked.kept, machine, model, **settings)


def own_file(output: Path, place: int, workload: str) -> Path:
    """Beside the policy of several texts, or in its place, the file of each one's own."""
    return output.with_name(f"{output.stem}-{place}-{re.sub(r'[^A-Za-z0-9]+', '-', workload)[:40]}.json")


def show_tuned(out: Output, tuned: Tuned, output: Path, heads: Path | None) -> dict[str, Any]:
    """Write a tuned policy and show it; its JSON object."""
    from offramp.tuning.tuned import to_json, write_tuned

    clear_for(output, require_policy_file)
    write_tuned(output, tuned, heads)
    _show(out, tuned, output)
    lossless, (decoding, timing) = lossless_command(tuned, heads), next_commands(tuned, output, heads)
    if lossless is not None:  # what takes the fewest seconds comes first
        out.say(f"next, the fastest, lossless: {lossless}")
    if decoding is not None:
        which = "next" if lossless is None else "next, with the certified policy"
        out.say(f"{which}: {decoding}", f"{which}: {timing}")
    commands = {"lossless": lossless, "generate": decoding, "next": timing}
    return {**to_json(tuned), "file": str(output), **commands}


def show_tasks(out: Output, found: TunedTasks, output: Path, heads: Path | None) -> dict[str, Any]:
    """Write the policy of all workloads, and beside it each one's own with its certificate."""
    from offramp.files import write_sealed_json
    from offramp.policies.grammar import policy_to_json

    answers = {}
    files = [own_file(output, place, name) for place, name in enumerate(found.tuned, start=1)]
    for own in files:
        require_policy_file(own)
    for own, (name, tuned) in zip(files, found.tuned.items(), strict=True):
        out.console.print(f"{name}:", markup=False, style="bold")
        answers[name] = show_tuned(out, tuned, own, heads)
    clear_for(output, require_policy_file)
    write_sealed_json(output, policy_to_json(found.policy))
    out.console.print(
        f"written: {output}, one policy with an entry for each of {len(answers)} workloads and the full "
        f"model for all others; each answer is wrong with a chance of {found.delta / len(answers):g}, any "
        f"of them with {found.delta:g}",
        markup=False,
    )
    return {"policy": str(found.policy), "file": str(output), "delta": found.delta, "workloads": answers}


def next_commands(tuned: Tuned, output: Path, heads: Path | None) -> tuple[str | None, str | None]:
    """The commands that decode with what was tuned and that time it; None of the full model."""
    if tuned.plain:
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
    kept = "the full model" if tuned.plain else "the certified policy"
    return f"written: {output}, {kept}; what is faster and lossless needs no file"


def _show(out: Output, tuned: Tuned, output: Path) -> None:
    """The answer, what it rests on, and the candidates, or the front of a replay."""
    from offramp.report.sections.tuned import CANDIDATES, front_shown, front_table
    from offramp.tuning.verdict_words import meaning_of

    out.console.print(tuned.answer, markup=False)
    for line in (*report_lines(tuned), *certificate_lines(tuned)):
        out.console.print(f"  {line}", markup=False)
    out.console.print(f"  the floor means: {meaning_of(tuned.floor)}", markup=False)
    if tuned.candidates:
        kept = tuned.floor.kind.replace("_", " ")
        caption = (
            "candidates, from cautious to bold; "
            f"replayed and rerun: {kept} on the search documents, executed: on those decoded"
        )
        candidates = [(tuned, candidate) for candidate in tuned.candidates]
        _show_table(out, replace(CANDIDATES, caption=caption), candidates)
    elif len(tuned.front) > 1:
        _show_table(out, front_table(tuned), front_shown(tuned))
    out.say(written_words(tuned, output))


def _show_table(out: Output, table: Table[T], rows: list[T]) -> None:
    """A table of policies, and below it the texts that their names stand for."""
    out.console.print(table.rich(rows))
    out.say(*(f"  {line}" for line in table.codes(rows)))


def certificate_lines(tuned: Tuned) -> list[str]:
    """The certificate in plain words."""
    from offramp.tuning.bounds import METHODS
    from offramp.tuning.floor import loss_text

    certificate = tuned.certificate
    rule = METHODS[certificate.method]
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
    from offramp.policies.whole_request import of_request
    from offramp.report.answer_words import quality_words
    from offramp.report.formats import counted, estimate_text, gain_text, nats, percent, times
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
    if tuned.request is not None and tuned.net_speedup.value is not None:
        whole = of_request(tuned.request, tuned.net_speedup)
        lines[-1] += f", of a whole request {said(whole, times)}"
    if saved := gain_text(tuned.gain):
        lines.append(f"  saved of plain decoding: {saved}")
    return lines if tuned.text_quality is None else [*lines, quality_words(tuned.text_quality)]
