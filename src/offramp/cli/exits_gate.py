"""What `offramp exits train --kind gate` does: gates for exits, a machine and a floor, and what they save."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.cli.console import Output
from offramp.cli.exits_shown import earlier_notes
from offramp.cli.heads_shown import heads_notes
from offramp.errors import InputError
from offramp.kit.defaults import LOCAL
from offramp.tracing.exits_folder import EXITS_FILE, TRAINING_FILE
from offramp.tracing.request import FITTING_TOKENS

if TYPE_CHECKING:
    from offramp.kit.output_folder import OutputFolder
    from offramp.lab.exits.gate_record import GateRecord
    from offramp.lab.exits.gate_training import TrainedGates
    from offramp.models.model import Model
    from offramp.report.word_table import WordTable
    from offramp.workloads.workload import Workload

KIND = "gate"


@dataclass(frozen=True)
class GateOptions:
    """As on the command line. source: a file or a folder of exits, None for the logit lens."""

    source: Path | None
    at: str | None
    floor: float | None
    hardware: str
    tokens: int | None
    context: int | None
    steps: int | None
    seed: int
    output: Path
    overwrite: bool

    def require(self) -> float:
        """The floor, if everything is there that must be. Raises InputError."""
        if self.floor is None:
            raise InputError(
                "gates are trained for a floor on agreement", where="--floor", fix="name it, as in 0.95"
            )
        if self.source is None and self.at is None:
            raise InputError(
                "no exit is named that gets a gate",
                where="--at",
                fix="name some, as in 12,20, or exits that are trained, with --from DIR",
            )
        from offramp.costs.hardware import find_machine
        from offramp.tuning.floor import make_floor

        make_floor({"agreement": self.floor})
        if self.hardware != LOCAL:  # that of a model is looked up when it is there
            find_machine(self.hardware)

        self.owned()
        return self.floor

    def owned(self) -> OutputFolder:
        """The folder, in which nothing lies but gates that are to be overwritten. Raises InputError."""
        from offramp.kit.output_folder import UNKNOWN, OutputFolder
        from offramp.lab.exits.gate_record import GATE_RECORD

        if os.path.lexists(self.output) and not self.output.is_dir():
            raise InputError(
                "the output is a file, not a folder", where=str(self.output), fix="choose another with -o"
            )
        ended = GATE_RECORD.is_of(self.output / TRAINING_FILE)
        owned = OutputFolder(
            self.output, dict.fromkeys((EXITS_FILE, TRAINING_FILE), UNKNOWN) if ended else {}
        )
        if foreign := (owned.foreign() if ended else owned.entries()):
            raise InputError(
                f"the output holds something else than exits with gates: {', '.join(foreign[:3])}",
                where=str(self.output),
                fix="choose another folder with -o",
            )
        if ended and not self.overwrite:
            raise InputError(
                "the output is there already",
                where=str(self.output),
                fix="choose another folder with -o, or give --overwrite",
            )
        return owned


def train(model: Model, works: Sequence[Workload], options: GateOptions, out: Output) -> None:
    """Train, write the exits with their gates, and say what they save."""
    from offramp.files import locked_folder, sweep_temporary_files
    from offramp.lab.exits.gate_record import GATE_RECORD
    from offramp.lab.exits.gate_training import train_gates
    from offramp.tracing.heads_file import write_heads

    floor = options.require()
    with locked_folder(options.output):
        sweep_temporary_files(options.output)
        options.owned().finish_replacing(TRAINING_FILE)
        with options.owned().replaced(TRAINING_FILE) as made:
            trained = train_gates(
                model,
                works,
                machine=options.hardware,
                floor=floor,
                heads=options.source,
                at=options.at,
                tokens=FITTING_TOKENS if options.tokens is None else options.tokens,
                context=options.context,
                seed=options.seed,
                steps=options.steps,
                progress=True,
            )
            write_heads(trained.heads, made / EXITS_FILE)
            GATE_RECORD.write(made / TRAINING_FILE, trained.record)
    out.console.print(_table(trained.record))
    for line in [*_notes(trained), f"written: {options.output}"]:
        out.console.print(line, markup=False, soft_wrap=True)
    out.finish(_summary(trained, options.output))


def _table(record: GateRecord) -> WordTable:
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


def _notes(trained: TrainedGates) -> list[str]:
    """What it read, and what to do with it."""
    record = trained.record
    fit, apart, held_out = record.rows
    return [
        f"trained on {fit:,} tokens, lambda and threshold by {apart:,} others, judged on {held_out:,}: "
        f"{record.took[0]:,.0f} s of reading exits, {record.took[1]:,.0f} s of training",
        *earlier_notes(record.earlier),
        f"best thresholds: {record.thresholds.policy}",
        f"the policy of the gates: {record.gate.policy}",
        *heads_notes(trained.heads)[-1:],
    ]


def _summary(trained: TrainedGates, output: Path) -> dict[str, Any]:
    """The same as JSON."""
    from offramp.kit.typed import to_json

    return {"exits": str(output), "fingerprint": trained.heads.fingerprint, **to_json(trained.record)}
