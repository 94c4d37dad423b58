"""Going on from a model that was trained from scratch: what it starts from, and what is done to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from offramp.errors import InputError
from offramp.lab.text.folder import LabText
from offramp.lab.training.batches import Batches
from offramp.lab.training.early_exit import FIRST_EXIT, early_exit_loss
from offramp.lab.training.folder import ended_training
from offramp.lab.training.instructions import answers_loss, instruction_batches
from offramp.lab.training.loop import LossOf, text_loss
from offramp.lab.training.recipe import ContinuedRecipe, FromScratch
from offramp.models.quiet import quiet_transformers
from offramp.models.source import folder_source


@dataclass(frozen=True)
class Base:
    """A model to go on from. recipe: its own. fingerprint: of its files."""

    folder: Path
    recipe: FromScratch
    fingerprint: str


def read_base(recipe: ContinuedRecipe, text: LabText) -> Base:
    """The model that a recipe goes on from.

    Raises InputError where no training has ended or one diverged, for one that itself goes on from another,
    has another text or context, or too few layers; ModelError for other weights than it was left with;
    DamagedFileError.
    """
    folder = Path(recipe.base)
    record = ended_training(folder, "from")

    def refused(what: str, fix: str) -> InputError:
        return InputError(what, where=f"from: {folder}", fix=fix)

    if isinstance(record.recipe, ContinuedRecipe):
        raise refused("the model itself goes on from another", "name one that was trained from scratch")
    if record.diverged:
        raise refused(f"its training diverged: {record.stopped}", "train it with another seed")
    if record.text != text.fingerprint:
        raise refused(
            "the model was trained on another text, and has another tokenizer",
            f"name its text (it is {record.text[:12]}, and this one {text.fingerprint[:12]})",
        )
    if record.recipe.context != recipe.context:
        raise refused(
            f"it was trained on {record.recipe.context} tokens at once, and now on {recipe.context}",
            f"write context = {record.recipe.context}",
        )
    if recipe.arm == "early_exit_loss" and record.recipe.layers <= FIRST_EXIT:
        raise refused(
            f"a model of {record.recipe.layers} layers has no exit with a weight in the loss of early exits",
            f"name one of {FIRST_EXIT + 1} layers or more",
        )
    folder_source(folder)  # as its training left it
    return Base(folder, record.recipe, record.model)


def start_of(folder: Path) -> Any:
    """The model of a folder in float32, its weights lying as those of a new one do."""
    from transformers import AutoModelForCausalLM

    from offramp.models import lab_family

    lab_family.register()
    made: Any = AutoModelForCausalLM
    with quiet_transformers():
        model = made.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    for weight in model.parameters():
        weight.data = weight.data.clone()  # they may lie in the file
    return model


def continued_loss(recipe: ContinuedRecipe, text: LabText) -> Callable[[Any], LossOf]:
    """Of a model the loss of a step: what is done to it. Raises InputError for too little text."""
    if recipe.arm == "tuned":
        tuned = instruction_batches(text, recipe)
        return lambda model: answers_loss(model, *tuned)
    batches = Batches.of(text, recipe.context, recipe.batch, recipe.seed)
    if recipe.arm == "early_exit_loss":
        return lambda model: early_exit_loss(model, batches, recipe)
    return lambda model: text_loss(model, batches)
