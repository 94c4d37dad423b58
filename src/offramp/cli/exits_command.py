"""`offramp exits`: train exits of a model on what its own last layer says, or a copy of the model itself."""

from __future__ import annotations

from dataclasses import replace

import typer

from offramp.cli.command import command
from offramp.cli.console import Output
from offramp.training.gate_request import GateTraining
from offramp.training.request import ResumableTraining
from offramp.training.trainings import TRAININGS

TRAIN = "Train exits on the model's own distributions, on the later half of each workload's documents."

exits = typer.Typer(help="Train exits of a model, or a copy of the model itself.", no_args_is_help=True)


@exits.callback()
def exits_group() -> None:
    """Train exits of a model, or a copy of the model itself."""


def train(asked: ResumableTraining | GateTraining, out: Output) -> None:
    """Train, and say what came of it."""
    works = asked.texts()

    from offramp.cli import exits_shown
    from offramp.kit.typed import to_json
    from offramp.tracing.fitting.documents import left_for_tuning

    left = [len(left_for_tuning(work)) for work in works]
    out.say(*(exits_shown.left_to_certify(work.name, count) for work, count in zip(works, left, strict=True)))
    model = asked.load()
    if isinstance(asked, GateTraining):
        from offramp.training import gate_training

        gates = gate_training.train(model, works, asked, progress=True)
        exits_shown.show_gates(out.console, gates.record)
        out.say(*exits_shown.gates_notes(gates), f"written: {asked.output}")
        told = {"folder": str(asked.output), "fingerprint": gates.heads.fingerprint}
        out.finish({**told, **to_json(gates.record)})
        return

    from offramp.kit.numbers import shown_size
    from offramp.training import train as training

    def tell(size: int) -> None:
        out.say(f"hidden states take {shown_size(size)} on disk while it trains")

    trained = training.train(model, works, asked, progress=True, on_size=tell)
    exits_shown.show_trained(out.console, trained)
    out.say(*exits_shown.notes(trained, asked, left[0]), f"written: {asked.output}")
    # What it read is long, and goes with the heads.
    record = replace(trained.record, documents={}, texts=())
    told = {"folder": str(asked.output), "fingerprint": record.heads}
    out.finish({**told, "places": record.places, **to_json(record)})


command(exits, "train", TRAININGS, train, doc=TRAIN)
