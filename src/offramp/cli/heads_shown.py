"""What is shown of exit heads, trained exits, models and gates: tables, and what to do with them in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from offramp.commands import command_line
from offramp.defaults import DELTA
from offramp.report.formats import decimal, percent, thousandths
from offramp.report.table import Column, Table
from offramp.training.request import ExecutedTraining, RegularisedTraining

if TYPE_CHECKING:
    from rich.console import Console

    from offramp.heads.exit_heads import ExitHeads
    from offramp.heads.parts import Classifier, ExitMaps, Weights
    from offramp.training.gate_training import TrainedGates
    from offramp.training.record import Evaluation, GateRecord, Judged, Spent
    from offramp.training.request import ResumableTraining
    from offramp.training.train import TrainedExits


def heads_table(fitted: ExitHeads) -> Table[int]:
    """Explained variance and each classifier's AUROC; a row is a place among the exits."""

    def explained(place: int) -> str:
        values = None if fitted.lens is None else fitted.lens.explained
        return "?" if values is None else decimal(float(values[place]))

    def auroc(classifier: Classifier[Weights]) -> Callable[[int], str]:
        def text(place: int) -> str:
            value = float(classifier.auroc[place])
            shown = "rare" if math.isnan(value) else decimal(value)
            return shown if classifier.better_than_chance[place] else f"({shown})"

        return text

    return Table(
        (
            Column("Exit", lambda place: fitted.exits[place]),
            *([] if fitted.lens is None else [Column("Lens", explained)]),
            *(
                Column(name.replace("_", " "), auroc(classifier))
                for name, classifier in fitted.classifiers.items()
            ),
        ),
        caption="Held-out documents: variance explained by the lens, AUROC of the classifiers"
        + ("; (0.70): not shown to beat the base rate; rare: too few of a class" * bool(fitted.classifiers)),
        words=0,
    )


def _explained(place: int | None) -> Callable[[tuple[int, ExitMaps[Weights]]], float]:
    """Explained variance of the maps into one of the deeper layers; None: the mean of all."""

    def value(row: tuple[int, ExitMaps[Weights]]) -> float:
        explained = row[1].explained_by_all
        return float(explained.mean() if place is None else explained[place])

    return value


MAPS: Table[tuple[int, ExitMaps[Weights]]] = Table(
    (
        Column("Exit", lambda row: row[0]),
        Column("Rank", lambda row: "full" if row[1].rank is None else str(row[1].rank)),
        Column("Layers", lambda row: len(row[1].explained_by_all)),
        Column("MB", lambda row: f"{row[1].bytes / 1e6:,.1f}"),
        Column("Explained", _explained(None), decimal),
        Column("Next layer", _explained(0), decimal),
        Column("Last layer", _explained(-1), decimal),
    ),
    caption="K,V maps, held-out documents: variance explained of what deeper layers add to the exit's state",
    words=0,
)
"""Each exit's K,V maps over its deeper layers."""


def heads_notes(fitted: ExitHeads) -> list[str]:
    """What each classifier is worth, in words."""
    lines = []
    for name, classifier in fitted.classifiers.items():
        worse = [
            exit
            for exit, better in zip(fitted.exits, classifier.better_than_chance, strict=True)
            if not better
        ]
        if len(worse) == len(fitted.exits):
            lines.append(
                f"{name} is not shown to beat the base rate at any exit: do not build a policy on it"
            )
        elif worse:
            listed = ", ".join(str(exit) for exit in worse)
            lines.append(f"{name} is not shown to beat the base rate at exits {listed}")
    seen = sum(len(ids) for ids in fitted.seen_documents.values())
    lines.append(f"fitting read {seen} documents; tuning on a trace made with these heads leaves them out")
    return lines


T = TypeVar("T")

PROPOSED = (0.95, 0.9, 0.8)
"""Of which the first is proposed that the text's documents can certify."""


def left_to_certify(workload: str, left: int) -> str:
    """What so many documents that no training reads can certify of the trained exits."""
    from offramp.training.record import FLOORS
    from offramp.tuning.verdict_words import certifiable_words

    return (
        f"{workload}: the later half of its documents is trained on; {left:,} others, which share no text "
        f"with it, {certifiable_words(left, FLOORS, DELTA)}"
    )


def show_trained(console: Console, trained: TrainedExits) -> None:
    """Print every exit before and after, and the share of tokens that could leave there."""
    record = trained.record
    read = f"{record.rows.held_out:,} tokens of {record.rows.held_out_documents} held-out documents"
    if record.kind == ExecutedTraining.kind:
        before, after = record.before[0], record.trained[0]
        left = percent(before.leaving[0], 0)
        rows = [("as they were", before), ("trained", after)]
        console.print(TRAINED_MAPS.rich(rows, caption=f"held-out tokens that stay where {left} leave"))
    elif record.kind == RegularisedTraining.kind:
        models = zip(record.places, record.before, record.trained, strict=True)
        table = model_table(record.floors)
        console.print(table.rich(models, caption=f"up to {read}: agreement if all leave"))
    else:
        exits = zip(record.exits, record.logit_lens, record.before, record.trained, strict=True)
        console.print(exits_table(record.floors).rich(exits, caption=f"{read}: agreement if all leave"))


TRAINED_MAPS: Table[tuple[str, Evaluation]] = Table(
    (
        Column("K,V maps", lambda row: row[0]),
        Column("Agreement", lambda row: row[1].agreement, thousandths),
        Column("KL, nats", lambda row: row[1].loss, partial(decimal, digits=4)),
    ),
    words=0,
)
"""Tokens that stay, with the K,V maps before and after."""

Trained: TypeAlias = "tuple[int, Evaluation, Evaluation, Evaluation]"
"""An exit, read through the model's own head, through a ridge lens, and as trained."""

OfModel: TypeAlias = "tuple[str, Evaluation, Evaluation]"
"""An exit or the full depth, of the original model and of the trained one."""


def exits_table(floors: Sequence[float]) -> Table[Trained]:
    """Trained exits of a frozen model. floors: at which tokens could leave."""
    return Table(
        (
            Column("Exit", lambda row: row[0]),
            Column("Logit lens", lambda row: row[1].agreement, decimal),
            Column("Ridge lens", lambda row: row[2].agreement, decimal),
            Column("Trained", lambda row: row[3].agreement, decimal),
            Column("KL, nats", lambda row: row[3].loss, decimal),
            *leaving_columns(floors, lambda row: row[3]),
        ),
        words=0,
    )


def model_table(floors: Sequence[float]) -> Table[OfModel]:
    """Every exit and the full depth of a trained model, held against itself and the original."""
    return Table(
        (
            Column("Exit", lambda row: row[0]),
            Column("Original", lambda row: row[1].agreement, decimal),
            Column("With own full depth", lambda row: row[2].agreement, decimal),
            Column("With the original", lambda row: row[2].reference_agreement or 0.0, thousandths),
            Column("KL, nats", lambda row: row[2].loss, thousandths),
            Column("Bits per byte", lambda row: f"{_bits(row[1])} → {_bits(row[2])}"),
            *leaving_columns(floors, lambda row: row[2]),
        ),
        words=0,
    )


def leaving_columns(floors: Sequence[float], of: Callable[[T], Evaluation]) -> list[Column[T]]:
    """The share of tokens that could leave at each floor; nothing where no exit is."""

    def leaving(place: int) -> Callable[[T], str]:
        return lambda row: percent(of(row).leaving[place], 0) if of(row).leaving else ""

    return [Column(f"leave at {percent(floor, 0)}", leaving(place)) for place, floor in enumerate(floors)]


def notes(trained: TrainedExits, asked: ResumableTraining, left: int) -> list[str]:
    """What it read, what it took, why it ended, and what to do next, in words.

    left: documents of the first text that training did not read.
    """
    record = trained.record
    rows, seconds = record.rows, record.seconds
    own = record.kind == RegularisedTraining.kind
    after, products = ("figures and the model folder", "") if own else ("what goes with the exits", "head ")
    lines = [
        f"trained on {rows.fit:,} tokens, {record.steps:,} steps of {record.request.recipe.batch}: "
        f"{record.stopped}",
        f"{seconds.states:,.0f} s for hidden states, {seconds.training:,.0f} s of training, "
        f"{seconds.heads:,.0f} s for {after} ({record.settings.threads} threads, "
        f"{record.settings.device}, {products}products in {record.settings.precision})",
    ]
    lines += _earlier_notes(record.earlier)
    tokens, minutes = record.request.recipe.tokens, record.request.recipe.minutes
    if minutes is not None:
        lines.append(f"{seconds.all / 60:.1f} minutes in all, {minutes:g} were asked for")
    if rows.allowed is not None:
        lines.append(f"there was time to read {rows.allowed:,} tokens of {tokens:,} that were asked for")
    elif rows.tokens < tokens:
        lines.append(f"the text has {rows.tokens:,} tokens for it, and {tokens:,} were asked for")
    more = next_lines(trained, str(asked.output), asked.model, left) if own else heads_notes(trained.heads)
    return [*lines, *more]


def _bits(evaluation: Evaluation) -> str:
    bits = evaluation.bits_per_byte
    return "?" if bits is None else f"{bits:.3f}"


def next_lines(trained: TrainedExits, output: Path | str, original: str, left: int) -> list[str]:
    """What counts, and how it is had. original: the model, as the command line named it. left: documents of
    the first text that training did not read: those of a trace, a part of which certify."""
    from offramp.tuning import bounds, splits

    def needed(floor: float) -> int:
        return splits.fewest_documents(bounds.fewest_documents(1.0 - floor, DELTA))

    floor = next((floor for floor in PROPOSED if needed(floor) <= left), None)
    tuning = f"no floor can be certified on {left} documents: trace and tune on a text of more"
    traced, text = f"{output}-trace", trained.record.request.workloads[0]["name"]
    return [
        "what leaves is counted at floors of agreement with the original model, not with the trained one",
        f"next: {command_line('trace', output, reference=original, workload=text, output=traced)}",
        tuning
        if floor is None
        else f"then: {command_line('tune', traced, floor=f'reference_agreement={floor}')}",
    ]


def _earlier_notes(earlier: Spent | None) -> list[str]:
    """What the trainings took that one began from; no line where there were none."""
    if earlier is None:
        return [
            "what the trainings took that it began from is not known: no record lies beside what they gave"
        ]
    if not earlier.seconds:
        return []
    before = f"{earlier.seconds:,.0f} s and {earlier.tokens:,} tokens"
    return [f"before that the trained model or exits that it began from took {before}"]


GATES: Table[tuple[str, Judged]] = Table(
    (
        Column("Exits by", lambda row: row[0]),
        Column("Agreement", lambda row: row[1].agreement, thousandths),
        Column("Saved", lambda row: row[1].saved, percent),
    ),
    words=1,
)


def show_gates(console: Console, record: GateRecord) -> None:
    """Print the gates beside the best thresholds of networks that predict agreement."""
    rows = [("gates", record.gate), ("best thresholds of correctness_network", record.thresholds)]
    caption = f"{record.rows[2]:,} held-out tokens, replayed: time saved on {record.machine}"
    console.print(GATES.rich(rows, caption=caption))


def gates_notes(trained: TrainedGates) -> list[str]:
    """What it read, and what to do with it."""
    record = trained.record
    fit, apart, held_out = record.rows
    return [
        f"trained on {fit:,} tokens, lambda and threshold by {apart:,} others, judged on {held_out:,}: "
        f"{record.took[0]:,.0f} s of reading exits, {record.took[1]:,.0f} s of training",
        *_earlier_notes(record.earlier),
        f"best thresholds: {record.thresholds.policy}",
        f"the policy of the gates: {record.gate.policy}",
        *heads_notes(trained.heads)[-1:],
    ]
