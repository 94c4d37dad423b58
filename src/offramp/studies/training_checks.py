"""What is wrong with the trainings of a study: by its file alone, and by the sizes of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from offramp.errors import InputError
from offramp.studies.entries import NONE, TrainingEntry
from offramp.studies.study import placed
from offramp.tracing.exits_folder import names_layers
from offramp.tracing.request import parse_exits

if TYPE_CHECKING:
    from offramp.studies.estimates import Sizes
    from offramp.studies.study import Study

NOWHERE = {"model": "", "workloads": (), "output": None}
"""Of a training whose model and texts are looked at elsewhere."""


def exits_of_training(study: Study, entry: TrainingEntry) -> str | Sequence[int]:
    """Exits as they are asked for: those that are traced unless the entry names some."""
    return study.settings.exits if entry.at is None else entry.at


def check_trainings(study: Study) -> None:
    """Refuse trainings that are neither of a kind, nor there, nor "none", or several of these at once."""
    _check_heads_are_read(study)
    for place, entry in enumerate(study.trainings):
        where = study.where("trainings", place)
        ways = [entry.kind is not None, entry.folder is not None, entry.name == NONE]
        if sum(ways) != 1:
            raise InputError(
                f"the training {entry.name!r} is {'several things at once' if sum(ways) else 'of no kind'}",
                where=where,
                fix=f'give one of kind = "block", folder = "exits", or the name {NONE!r} alone',
            )
        given = entry.model_fields_set - {"name", "folder"}
        if entry.kind is None and given:
            raise InputError(
                f"{min(given)} is of exits that the study trains",
                where=where,
                fix='remove it, or give kind = "block" in the place of a folder',
            )
        if entry.kind is not None:
            _check_kind(study, entry, place)


def _check_heads_are_read(study: Study) -> None:
    """Refuse heads that no row would be read through."""
    unread = [entry.name for entry in study.heads if entry not in study.readers and entry.name != NONE]
    if unread:
        raise InputError(
            f"trained exits bring heads of their own: nothing is read through the heads {unread[0]!r}",
            where=study.where("trainings"),
            fix=f"add {NONE!r} to trainings, or remove the heads",
        )


def _check_kind(study: Study, entry: TrainingEntry, place: int) -> None:
    """Refuse kinds that are unknown or begin from other exits, and models that stay on disk."""
    from offramp.lab.exits.request import LensTraining
    from offramp.lab.exits.trainings import TRAININGS

    with placed(study, "trainings", place, "kind"):
        asked = TRAININGS.named(str(entry.kind))
    if not issubclass(asked, LensTraining):
        raise InputError(
            f"exits of the kind {entry.kind} begin from others, which a study does not train first",
            where=study.where("trainings", place, "kind"),
            fix="train them with offramp exits train --from, and give folder = in the place of kind",
        )
    if study.streamed:
        raise InputError(
            "exits are trained on a model in memory, and these models stay on disk",
            where=study.where("trainings", place),
            fix="remove the training, or the table [large]",
        )
    if isinstance(entry.at, str) and not names_layers(entry.at):
        raise InputError(
            f"the exits {entry.at!r} are not a list of layers",
            where=study.where("trainings", place, "at"),
            fix="write at = [12, 20]",
        )


def check_training_sizes(
    study: Study, entry: TrainingEntry, place: int, sizes: Sizes, vocabulary: int
) -> None:
    """Refuse what does not fit a model: exits, steps, units, lists; and exits that are not those traced.

    sizes: of a model whose layers and hidden size are known. vocabulary: its tokens.
    """
    from offramp.lab.exits.recipe import make_recipe
    from offramp.lab.exits.trainings import TRAININGS
    from offramp.tracing.fitting.fit import check_short_list

    assert sizes.layers is not None
    assert sizes.hidden is not None
    with placed(study, "trainings", place):
        given = {
            "at": exits_of_training(study, entry),
            "tokens": entry.tokens,
            "steps": entry.steps,
            "minutes": entry.minutes,
            "seed": study.settings.seed,
            "units": entry.units,
            "loss_vocabulary": entry.loss_vocabulary,
            "precision": entry.precision,
        }
        given = {name: value for name, value in given.items() if value is not None}
        asked = TRAININGS.request(str(entry.kind), {**NOWHERE, **given})
        recipe = make_recipe(asked, layers=sizes.layers, hidden=sizes.hidden, vocabulary=vocabulary)
        check_short_list(entry.short_list, vocabulary)
    traced = parse_exits(study.settings.exits, sizes.layers)[:-1]
    if recipe.at != traced:
        raise InputError(
            f"the exits {_listed(recipe.at)} are trained, and {_listed(traced)} are traced",
            where=study.where("trainings", place, "at"),
            fix=f"write exits = {list(recipe.at)} in [study], so that all rows are of the same exits",
        )


def _listed(exits: Sequence[int]) -> str:
    return ", ".join(map(str, exits)) or "none"
