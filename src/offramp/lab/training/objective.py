"""What a training is of: a model with its first weights, and the loss of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.lab.text.folder import LabText
from offramp.lab.training.architecture import make_architecture
from offramp.lab.training.batches import Batches
from offramp.lab.training.comparison import require_comparable
from offramp.lab.training.going_on import continued_loss, read_base, start_of
from offramp.lab.training.kinds import AnyArchitecture, architecture_of
from offramp.lab.training.loop import LossOf, text_loss
from offramp.lab.training.recipe import AnyRecipe, ContinuedRecipe, Recipe
from offramp.lab.training.state_space import made_fast


@dataclass(frozen=True)
class Objective:
    """make_model: with the weights before the first step, drawn from torch's generator where they are random.
    loss: of a model, then of a step. base: fingerprint of the model that it goes on from, None for none."""

    architecture: AnyArchitecture
    make_model: Callable[[], Any]
    loss: Callable[[Any], LossOf]
    base: str | None = None


def objective_of(recipe: AnyRecipe, text: LabText) -> Objective:
    """Of a recipe and its text.

    Raises InputError for sizes that cannot be, for a recipe that is not comparable with what it names, for
    too little text, and for a base that cannot be gone on from; DamagedFileError.
    """
    if isinstance(recipe, ContinuedRecipe):
        base = read_base(recipe, text)
        architecture = architecture_of(base.recipe, text.record.vocabulary)
        loss = continued_loss(recipe, text)
        return Objective(architecture, lambda: made_fast(start_of(base.folder)), loss, base.fingerprint)
    architecture = architecture_of(recipe, text.record.vocabulary)
    if isinstance(recipe, Recipe):
        require_comparable(recipe, text.fingerprint, make_architecture(recipe, text.record.vocabulary))
    batches = Batches.of(text, recipe.context, recipe.batch, recipe.seed)
    of_kind = router_loss if recipe.kind == "mixture" else text_loss
    return Objective(
        architecture, lambda: made_fast(architecture.make_model()), lambda model: of_kind(model, batches)
    )


def router_loss(model: Any, batches: Batches) -> LossOf:
    """Mean over all tokens of a step's sequences, nats, and what transformers adds for uneven use of experts.

    That is `router_aux_loss_coef` (0.001) times the loss of arXiv 2101.03961, equations 4 to 6: 2 for two
    active experts of which all are used alike.
    """

    def loss_of(step: int) -> Tensor:
        sequences = torch.from_numpy(batches.sequences(step)).to(model.device)
        found = model(input_ids=sequences[:, :-1], use_cache=False, output_router_logits=True)
        loss = F.cross_entropy(found.logits.float().flatten(0, 1), sequences[:, 1:].flatten())
        uneven: Tensor = model.router_aux_loss_coef * found.aux_loss
        return loss + uneven

    return loss_of
