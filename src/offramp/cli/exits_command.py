"""`offramp exits`: train exits of a model on what its own last layer says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offramp.cli.console import Output
from offramp.cli.exits_gate import KIND as GATES
from offramp.cli.exits_gate import GateOptions
from offramp.cli.exits_gate import train as train_gates
from offramp.cli.exits_regularised import KIND as REGULARISED
from offramp.cli.exits_regularised import (
    Ahead,
    Curriculum,
    Keep,
    LayerDropout,
    Lora,
    RegularisedOptions,
    Targets,
    next_lines,
)
from offramp.cli.exits_regularised import table as regularised_table
from offramp.cli.exits_shown import earlier_notes
from offramp.cli.heads_shown import heads_notes
from offramp.cli.options import (
    AsJson,
    ContextLength,
    Device,
    ModelName,
    Precision,
    RemoteCode,
    ShortListSize,
    Transforms,
    require_options,
    require_placement,
)
from offramp.errors import InputError
from offramp.kit.defaults import DELTA, LOCAL, SEED
from offramp.models.devices import AUTO
from offramp.tracing.progress import stage
from offramp.tracing.request import FITTING_TOKENS, LOSS_VOCABULARY, TRAINING_TOKENS, parse_exits

if TYPE_CHECKING:
    from offramp.lab.exits.evaluation import Evaluation
    from offramp.lab.exits.train import TrainedExits
    from offramp.report.word_table import WordTable

exits = typer.Typer(help="Train exits of a model, or a copy of the model itself.", no_args_is_help=True)

EXECUTED = "executed"


@exits.callback()
def exits_group() -> None:
    """Train exits of a model, or a copy of the model itself."""


@exits.command("train")
def train(
    model: ModelName,
    workload: Annotated[
        list[str],
        typer.Option(
            "--workload",
            "-w",
            help="What to train on; may be repeated: prose, code, chat, math, txt:PATH, jsonl:PATH#field.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="A folder. What was killed goes on there; gates, which take minutes, begin anew.",
        ),
    ],
    kind: Annotated[
        str,
        typer.Option(
            "--kind",
            help="lens: an affine map. block: a small network behind one. executed: the K,V maps of --from, "
            "by what they do to tokens that stay. gate: what decides who leaves. regularised: the model "
            "itself, whose trained form is the output.",
        ),
    ] = "block",
    at: Annotated[
        str | None,
        typer.Option(
            "--at", help="Exits to train: 12,20, or all; gates, executed: all of --from.", show_default=False
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            help="Of all of it on this machine, by default 20: reading the text, steps, and what goes with "
            "the exits. What there is no time for is left out: tokens, then steps.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            help="Steps in the place of minutes: the same command then gives the same exits. Of gates by "
            "default some 40 passes over their rows.",
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens",
            help=f"Over all workloads, if there are so many. By default {TRAINING_TOKENS:,}, "
            f"for gates {FITTING_TOKENS:,}.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", help="Deals documents and rows out, and starts blocks.")
    ] = SEED,
    units: Annotated[
        int | None,
        typer.Option("--units", help="Of a block. By default 8/3 of the hidden size.", show_default=False),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank",
            help="Of each exit's lens: two thin products in the place of a square one. By default whole.",
            show_default=False,
        ),
    ] = None,
    shared: Annotated[
        bool,
        typer.Option("--shared", help="Blocks: one network for all exits, each behind its own lens."),
    ] = False,
    loss_vocabulary: Annotated[
        int | None,
        typer.Option(
            "--loss-vocabulary",
            help=f"Tokens that the loss looks at: those that the model thinks likely most often. By default "
            f"{LOSS_VOCABULARY}; 0: all.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Gates: exits that get them, by default those of the model. executed: heads with K,V maps.",
            show_default=False,
        ),
    ] = None,
    floor: Annotated[
        float | None,
        typer.Option("--floor", help="Gates: the agreement to keep, as in 0.95.", show_default=False),
    ] = None,
    leave: Annotated[
        float | None,
        typer.Option(
            "--leave",
            help="executed: share of the tokens that leave while it trains, by default 0.3.",
            show_default=False,
        ),
    ] = None,
    lora: Lora = None,
    keep: Keep = None,
    layer_dropout: LayerDropout = None,
    curriculum: Curriculum = None,
    targets: Targets = None,
    ahead: Ahead = None,
    hardware: Annotated[
        str,
        typer.Option("--hardware", help="Gates: local, a name of offramp list hardware, or a .toml profile."),
    ] = LOCAL,
    context: ContextLength = None,
    classifiers: Annotated[
        bool | None,
        typer.Option(
            "--classifiers/--no-classifiers",
            help="Fit classifiers that predict agreement, on other documents, as by default.",
            show_default=False,
        ),
    ] = None,
    kv_maps: Annotated[
        bool | None,
        typer.Option(
            "--kv-maps/--no-kv-maps",
            help="Fit K,V maps for the exits, for --kv mapped, as by default.",
            show_default=False,
        ),
    ] = None,
    short_list: ShortListSize = None,
    device: Device = AUTO,
    dtype: Precision = AUTO,
    transform: Transforms = None,
    trust_remote_code: RemoteCode = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace what is in the folder, finished or another; what was killed of the same goes on.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train exits on the model's own distributions, on the later half of each workload's documents."""
    out = Output(as_json)
    read = TRAINING_TOKENS if tokens is None else tokens
    require_options(tokens=read, context=context, document_tokens=None, exits="all", output=output)
    require_placement(device, dtype)
    if at is not None:
        parse_exits(at, None, "--at")  # before the model is there
    if at is None and kind not in (GATES, EXECUTED):
        raise InputError("no exit is named to train", where="--at", fix="name some, as in 12,20, or all")
    regularised = RegularisedOptions(lora, keep, layer_dropout, curriculum, targets, ahead)
    gates = GateOptions(source, at, floor, hardware, tokens, context, steps, seed, output, overwrite)

    from offramp.lab.exits.folder import require_own
    from offramp.lab.exits.kinds import KINDS, check_kind
    from offramp.lab.exits.recipe import (
        check_leave,
        check_length,
        check_loss_vocabulary,
        check_network,
        refuse_needless,
    )
    from offramp.lab.exits.train import train_exits
    from offramp.models.memory import shown_size
    from offramp.tracing.fitting.documents import left_for_tuning
    from offramp.tracing.loading import find_model, read_transforms
    from offramp.workloads.registry import load_workload

    check_length(steps, minutes, seed)
    if kind == REGULARISED:
        regularised.regularisation()  # refuses what cannot be
    else:
        refuse_needless(kind, regularised.given)
    of_readings = {
        "--loss-vocabulary": loss_vocabulary,
        "--classifiers": classifiers,
        "--kv-maps": kv_maps,
        "--short-list": short_list,
    }
    if kind == GATES:
        gates.require()
        of_blocks = {"--units": units, "--rank": rank, "--shared": shared or None}
        refuse_needless(kind, {"--minutes": minutes, **of_blocks, **of_readings, "--leave": leave})
    else:
        check_kind(kind)
        check_network(kind, units, shared)
        needless: dict[str, object] = {} if kind in KINDS else dict(of_readings)
        if kind != EXECUTED:
            needless |= {"--from": source, "--leave": leave}
        of_gates = {"--floor": floor, "--hardware": None if hardware == LOCAL else hardware}
        refuse_needless(kind, {**needless, **of_gates})
        check_leave(kind, leave)
        check_loss_vocabulary(loss_vocabulary)
        require_own(output)
    if source is not None and not source.exists():
        fix = "give a file or a folder of heads, or leave it out"
        raise InputError("there are no heads", where=f"--from {source}", fix=fix)
    transforms = read_transforms(transform, dtype)
    works = [load_workload(spec) for spec in dict.fromkeys(workload)]
    left = [len(left_for_tuning(work)) for work in works]
    for work, count in zip(works, left, strict=True):
        out.console.print(_left_to_certify(work.name, count), markup=False, soft_wrap=True)
    with stage("loading the model and checking its exits"):
        loaded = find_model(
            model, transforms, dtype=dtype, trust_remote_code=trust_remote_code, device=device
        ).load()

    if kind == GATES:
        train_gates(loaded, works, gates, out)
        return

    def tell(size: int) -> None:
        out.console.print(f"hidden states take {shown_size(size)} on disk while it trains", markup=False)

    trained = train_exits(
        loaded,
        works,
        kind=kind,
        at=at,
        start=source,
        leave=leave,
        minutes=minutes,
        steps=steps,
        tokens=read,
        seed=seed,
        units=units,
        rank=rank,
        shared=shared,
        loss_vocabulary=loss_vocabulary,
        context=context,
        classifiers=classifiers,
        kv_maps=kv_maps,
        short_list=short_list,
        regularisation=regularised.regularisation() if kind == REGULARISED else None,
        output=output,
        overwrite=overwrite,
        progress=True,
        on_size=tell,
    )
    out.console.print(_table(trained))
    more = next_lines(trained, output, model, left[0]) if kind == REGULARISED else heads_notes(trained.heads)
    for line in [*_notes(trained), *more, f"written: {output}"]:
        out.console.print(line, markup=False, soft_wrap=True)
    out.finish(_summary(trained, output))


def _left_to_certify(workload: str, left: int) -> str:
    """What so many documents that no training reads can certify of the trained exits."""
    from offramp.lab.exits.evaluation import FLOORS
    from offramp.tuning.certifiable import certifiable_words

    return (
        f"{workload}: the later half of its documents is trained on; {left:,} others, which share no text "
        f"with it, {certifiable_words(left, FLOORS, DELTA)}"
    )


def _maps_table(trained: TrainedExits) -> WordTable:
    """Tokens that stay, with the K,V maps before and after."""
    from offramp.report.formats import percent
    from offramp.report.word_table import WordTable

    before, after = trained.record.before[0], trained.record.trained[0]
    left = percent(before.leaving[0], 0)
    table = WordTable(title=f"[bold]held-out tokens that stay where {left} leave[/]")
    for column in ("K,V maps", "agreement", "KL, nats"):
        table.add_column(column, justify="right")
    for name, one in (("as they were", before), ("trained", after)):
        table.add_row(name, f"{one.agreement:.3f}", f"{one.loss:.4f}")
    return table


def _table(trained: TrainedExits) -> WordTable:
    """Every exit before and after, and the share of tokens that could leave there."""
    from offramp.report.formats import decimal
    from offramp.report.word_table import WordTable

    record = trained.record
    if record.request.recipe.kind == EXECUTED:
        return _maps_table(trained)
    if record.request.recipe.kind == REGULARISED:
        return regularised_table(trained)
    rows = record.rows
    read = f"{rows.held_out:,} tokens of {rows.held_out_documents} held-out documents"
    table = WordTable(title=f"[bold]{read}: agreement if all leave[/]")
    for column in ("exit", "logit lens", "ridge lens", "trained", "KL, nats"):
        table.add_column(column, justify="right")
    for floor in record.floors:
        table.add_column(f"leave at {100 * floor:.0f} %", justify="right")
    exits = zip(record.request.recipe.at, record.logit_lens, record.before, record.trained, strict=True)
    for exit, raw, ridge, one in exits:
        agreements = [decimal(each.agreement) for each in (raw, ridge, one)]
        leaving = [f"{100 * share:.0f} %" for share in one.leaving]
        table.add_row(str(exit), *agreements, decimal(one.loss), *leaving)
    return table


def _notes(trained: TrainedExits) -> list[str]:
    """What it read, what it took, and why it ended, in words."""
    record = trained.record
    rows, seconds = record.rows, record.seconds
    own = record.request.recipe.kind == REGULARISED
    after, products = ("figures and the model folder", "") if own else ("what goes with the exits", "head ")
    lines = [
        f"trained on {rows.fit:,} tokens, {record.steps:,} steps of {record.request.recipe.batch}: "
        f"{record.stopped}",
        f"{seconds.states:,.0f} s for hidden states, {seconds.training:,.0f} s of training, "
        f"{seconds.heads:,.0f} s for {after} ({record.settings.threads} threads, "
        f"{record.settings.device}, {products}products in {record.settings.precision})",
    ]
    lines += earlier_notes(record.earlier)
    asked, minutes = record.request.recipe.tokens, record.request.recipe.minutes
    if minutes is not None:
        lines.append(f"{seconds.all / 60:.1f} minutes in all, {minutes:g} were asked for")
    if rows.allowed is not None:
        lines.append(f"there was time to read {rows.allowed:,} tokens of {asked:,} that were asked for")
    elif rows.tokens < asked:
        lines.append(f"the text has {rows.tokens:,} tokens for it, and {asked:,} were asked for")
    return lines


def _summary(trained: TrainedExits, output: Path) -> dict[str, Any]:
    """The same as JSON."""
    from offramp.kit.typed import to_json
    from offramp.lab.exits.record import leaving_by_floor

    record = trained.record

    def of(evaluations: tuple[Evaluation, ...]) -> dict[str, Any]:
        places = record.places if evaluations else ()
        return {place: shown(one) for place, one in zip(places, evaluations, strict=True)}

    def shown(one: Evaluation) -> dict[str, Any]:
        if record.request.recipe.kind == EXECUTED:
            return {"loss": one.loss, "agreement": one.agreement, "left": one.leaving[0]}
        found: dict[str, Any] = {"loss": one.loss, "agreement": one.agreement}
        if one.reference_agreement is not None:
            found |= {"reference_agreement": one.reference_agreement, "bits_per_byte": one.bits_per_byte}
        return found | ({"leaving": leaving_by_floor(one)} if one.leaving else {})

    return {
        "exits": str(output),
        "fingerprint": record.heads,
        "recipe": to_json(record.request.recipe),
        "settings": to_json(record.settings),
        "rows": to_json(record.rows),
        "seconds": to_json(record.seconds),
        "earlier": to_json(record.earlier),
        "steps": record.steps,
        "stopped": record.stopped,
        "logit_lens": of(record.logit_lens),
        "before": of(record.before),
        "trained": of(record.trained),
    }
