"""What a recipe is compared with: another recipe, or a model that was trained by one."""

from __future__ import annotations

from pathlib import Path

from offramp.errors import InputError
from offramp.lab.text.folder import RECORD as TEXT_RECORD
from offramp.lab.text.folder import RECORD_FILE as TEXT_FILE
from offramp.lab.training.architecture import Architecture, make_architecture, require_matched
from offramp.lab.training.folder import ended_training
from offramp.lab.training.recipe import AnyRecipe, Recipe, read_recipe, require_one_factor


def require_comparable(recipe: Recipe, text: str, ours: Architecture) -> None:
    """Hold a recipe against what it names, if anything. text: fingerprint of its text.

    Raises InputError for one that has another text or tokenizer, or differs in more than the factor, or in
    size by more than one per cent; what reading it raises.
    """
    if recipe.against is None:
        return
    path = Path(recipe.against)
    other, other_text, vocabulary = _named(path)
    if other_text != text:
        raise InputError(
            f"{path.name} is trained on another text, and has another tokenizer: losses and exits of the two "
            "cannot be compared",
            where="against",
            fix=f"train both on one text (here it is {text[:12]}, there {other_text[:12]})",
        )
    require_one_factor(recipe, other, path.name)
    require_matched(ours, make_architecture(other, vocabulary), path.name)


def _named(path: Path) -> tuple[Recipe, str, int]:
    """The recipe in a file, or of a trained model; fingerprint and vocabulary of its text."""
    if path.is_dir():
        record = ended_training(path, "against")
        return _dense(record.recipe, path), record.text, record.vocabulary
    recipe, source = read_recipe(path)
    record_path = Path(recipe.text) / TEXT_FILE
    if not record_path.is_file():
        raise source.refused("no text of a lab lies there", "make one: offramp lab text", "text")
    text = TEXT_RECORD.read(record_path)
    return _dense(recipe, path), text.fingerprint, text.vocabulary


def _dense(recipe: AnyRecipe, path: Path) -> Recipe:
    """Refuse what is no dense model, and so differs in more than a factor. Raises InputError."""
    if not isinstance(recipe, Recipe):
        raise InputError(
            f"{path.name} is {recipe.kind}, and differs in more than one factor",
            where="against",
            fix="name a dense model that was trained from scratch, or leave against and factor out",
        )
    return recipe
