"""What is shown of trained exits, models and gates: tables, what to do with them in words, and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.cli.heads_shown import heads_notes
from offramp.commands import command_line
from offramp.kit.defaults import DELTA
from offramp.lab.exits.request import ExecutedTraining, RegularisedTraining

if TYPE_CHECKING:
    from offramp.lab.exits.evaluation import Evaluation
    from offramp.lab.exits.gate_record import GateRecord
    from offramp.lab.exits.gate_training import TrainedGates
    from offramp.lab.exits.record import Spent
    from offramp.lab.exits.request import ResumableTraining
    from offramp.lab.exits.train import TrainedExits
    from offramp.report.word_table import WordTable

PROPOSED = (0.95, 0.9, 0.8)
"""Of which the first is proposed that the text's documents can certify."""


def left_to_certify(workload: str, left: int) -> str:
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


def table(trained: TrainedExits) -> WordTable:
    """Every exit before and after, and the share of tokens that could leave there."""
    from offramp.report.formats import decimal
    from offramp.report.word_table import WordTable

    record = trained.record
    if record.kind == ExecutedTraining.kind:
        return _maps_table(trained)
    if record.kind == RegularisedTraining.kind:
        return _model_table(trained)
    rows = record.rows
    read = f"{rows.held_out:,} tokens of {rows.held_out_documents} held-out documents"
    table = WordTable(title=f"[bold]{read}: agreement if all leave[/]")
    for column in ("exit", "logit lens", "ridge lens", "trained", "KL, nats"):
        table.add_column(column, justify="right")
    for floor in record.floors:
        table.add_column(f"leave at {100 * floor:.0f} %", justify="right")
    exits = zip(record.exits, record.logit_lens, record.before, record.trained, strict=True)
    for exit, raw, ridge, one in exits:
        agreements = [decimal(each.agreement) for each in (raw, ridge, one)]
        leaving = [f"{100 * share:.0f} %" for share in one.leaving]
        table.add_row(str(exit), *agreements, decimal(one.loss), *leaving)
    return table


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


def summary(trained: TrainedExits, output: Path | str | None) -> dict[str, Any]:
    """The same as JSON."""
    from offramp.kit.typed import to_json
    from offramp.lab.exits.record import leaving_by_floor

    record = trained.record

    def of(evaluations: tuple[Evaluation, ...]) -> dict[str, Any]:
        places = record.places if evaluations else ()
        return {place: shown(one) for place, one in zip(places, evaluations, strict=True)}

    def shown(one: Evaluation) -> dict[str, Any]:
        if record.kind == ExecutedTraining.kind:
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


def _model_table(trained: TrainedExits) -> WordTable:
    """Every exit and the full depth, before and after, held against the trained model and the original."""
    from offramp.report.formats import decimal
    from offramp.report.word_table import WordTable

    record = trained.record
    rows = record.rows
    read = f"up to {rows.held_out:,} tokens of {rows.held_out_documents} held-out documents"
    table = WordTable(title=f"[bold]{read}: agreement if all leave[/]")
    for column in ("exit", "original", "with own full depth", "with the original", "KL, nats"):
        table.add_column(column, justify="right")
    table.add_column("bits per byte", justify="right")
    for floor in record.floors:
        table.add_column(f"leave at {100 * floor:.0f} %", justify="right")
    for place, before, after in zip(record.places, record.before, record.trained, strict=True):
        leaving = [f"{100 * share:.0f} %" for share in after.leaving] or [""] * len(record.floors)
        table.add_row(
            place,
            decimal(before.agreement),
            decimal(after.agreement),
            decimal(after.reference_agreement or 0.0, 3),
            decimal(after.loss, 3),
            f"{_bits(before)} → {_bits(after)}",
            *leaving,
        )
    return table


def _bits(one: Evaluation) -> str:
    return "?" if one.bits_per_byte is None else f"{one.bits_per_byte:.3f}"


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


def gates_table(record: GateRecord) -> WordTable:
    """The gates beside the best thresholds of networks that predict agreement."""
    from offramp.report.formats import decimal
    from offramp.report.word_table import WordTable

    table = WordTable(
        title=f"[bold]{record.rows[2]:,} held-out tokens, replayed: time saved on {record.machine}[/]"
    )
    for column in ("exits by", "agreement", "saved"):
        table.add_column(column, justify="left" if column == "exits by" else "right")
    named = (("gates", record.gate), ("best thresholds of correctness_network", record.thresholds))
    for name, one in named:
        table.add_row(name, decimal(one.agreement, 3), f"{100 * one.saved:.1f} %")
    return table


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


def gates_summary(trained: TrainedGates, output: Path | str | None) -> dict[str, Any]:
    """The same as JSON."""
    from offramp.kit.typed import to_json

    return {"exits": str(output), "fingerprint": trained.heads.fingerprint, **to_json(trained.record)}
