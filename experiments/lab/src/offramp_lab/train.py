"""Training a recipe in its folder: one loop, the models it leaves, and where it goes on after a kill.

AdamW (arXiv 1711.05101, algorithm 2), a learning rate that rises along a line and falls along a cosine (arXiv
1608.03983, equation 5), gradients clipped by their norm.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils.logging import disable_progress_bar

from offramp import InputError, record_training
from offramp_lab import family
from offramp_lab.batches import HeldOut
from offramp_lab.generated import MOST_STEPS
from offramp_lab.objectives import LossOf, objective_of
from offramp_lab.recipes import Continued, FromScratch, Reading, recipe_of
from offramp_lab.state_space import made_fast
from offramp_lab.text import GENERATED, NATURAL_TOKENS, LabText

WARM_UP, LAST_RATE = 0.02, 0.1
"""Shares of the steps in which the rate rises, and of the largest rate that it falls to."""
BETAS, WEIGHT_DECAY, CLIPPED_NORM = (0.9, 0.95), 0.1, 1.0

VALIDATION_TOKENS, GENERATED_VALIDATION_TOKENS, AT_ONCE = 65_536, 16_384, 16
"""Held out, at most; sequences that are read at once."""

RECORD_FILE = "training.json"
"""As offramp names it (`offramp.record_training`)."""

CHECKPOINT_SECONDS = 30.0
"""Between two that are written on the way to a kept model."""

PLACES = {"text", "against", "factor", "base"}
"""What of a recipe says where other things lie, or what it is compared with."""

LIBRARIES = ("torch", "transformers", "numpy")


@dataclass
class Progress:
    """Where a training stands, but for its tensors.

    losses: sum of the steps' losses since the last evaluation. stopped: why no further step is taken, ""
    while there are some. seconds: of training so far. history: how each kept model stands.
    """

    step: int = 0
    losses: float = 0.0
    stopped: str = ""
    diverged: bool = False
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


def train(
    recipe: Reading, text: LabText, folder: str | Path, *, device: str = "cpu", threads: int = 1
) -> dict[str, Any]:
    """Train a recipe, go on with it where it was stopped, or give the record of one that has ended.

    The folder becomes a model, those of earlier steps lie beside it, NAME@STEP; each appears when it is
    whole. On a processor the same recipe, seed and number of threads give the same weights, also after kills.

    Raises InputError for a recipe that cannot be or cannot go on from its base, for the folder of something
    else, and for too little text.
    """
    folder = Path(folder)
    base = read_base(recipe, text) if isinstance(recipe, Continued) else None
    scratch = recipe if base is None else recipe_of(base["recipe"], recipe.text)
    assert isinstance(scratch, FromScratch), "a base is trained from scratch"
    request = {
        "kind": recipe.kind,
        "recipe": recipe.model_dump(mode="json", exclude=PLACES),
        "text": text.fingerprint,
        "base": None if base is None else base["model"],
        "device": device,
        "threads": threads,
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }
    if folder.exists():
        return _same(folder, request)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        loss = objective_of(recipe, text)
        held_out = (
            HeldOut.of(text, "validation", NATURAL_TOKENS, recipe.context, VALIDATION_TOKENS),
            HeldOut.of(text, "validation", GENERATED, recipe.context, GENERATED_VALIDATION_TOKENS),
        )
        torch.manual_seed(recipe.seed)
        model = (
            start_of(recipe.base) if isinstance(recipe, Continued) else scratch.make_model(text.vocabulary)
        )
        model = made_fast(model).to(device).train()
        return _run(recipe, scratch, text, folder, request, model, loss(model), held_out)
    finally:
        torch.set_num_threads(before)


def _run(
    recipe: Reading,
    scratch: FromScratch,
    text: LabText,
    folder: Path,
    request: dict[str, Any],
    model: Any,
    loss_of: LossOf,
    held_out: tuple[HeldOut, HeldOut],
) -> dict[str, Any]:
    """The loop."""
    optimiser = make_optimiser(model)
    checkpoint = folder.with_name(f"{folder.name}.checkpoint")
    progress = _read(checkpoint, request, model, optimiser) or Progress()
    written = time.monotonic()
    while not progress.stopped:
        began = time.perf_counter()
        loss = take_step(model, optimiser, loss_of, recipe, progress.step)
        progress.seconds += time.perf_counter() - began
        if loss is None:
            progress.diverged, progress.stopped = True, f"the loss was not finite at step {progress.step + 1}"
            break
        progress.losses += loss
        progress.step += 1
        kept = progress.step in recipe.schedule
        if kept:
            evaluate(model, held_out, progress, recipe.batch * recipe.context)
        if progress.step == recipe.steps and not progress.stopped:
            progress.stopped = "the steps are done"
        if kept and not progress.stopped:
            _keep(model, progress, scratch, text, request, folder.with_name(f"{folder.name}@{progress.step}"))
        if not progress.stopped and (kept or time.monotonic() - written > CHECKPOINT_SECONDS):
            _write(checkpoint, request, model, optimiser, progress)
            written = time.monotonic()
    record = _keep(model, progress, scratch, text, request, folder)
    checkpoint.unlink(missing_ok=True)
    return record


def learning_rate(recipe: Reading, step: int) -> float:
    """Of a step from 0."""
    rising = max(1, round(WARM_UP * recipe.steps))
    if step < rising:
        return recipe.rate * (step + 1) / rising
    along = (step - rising) / max(1, recipe.steps - rising)
    return recipe.rate * (LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * along)) / 2)


def make_optimiser(model: nn.Module) -> torch.optim.AdamW:
    """AdamW that lets matrices decay, and no norms."""
    weights = list(model.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in weights if weight.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [weight for weight in weights if weight.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=BETAS, fused=weights[0].device.type in ("cpu", "cuda"))


def take_step(
    model: Any, optimiser: torch.optim.Optimizer, loss_of: LossOf, recipe: Reading, step: int
) -> float | None:
    """The loss of one step, which changes the weights; None, and nothing is changed, if it is not finite."""
    with torch.autocast(model.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
        loss = loss_of(step)
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIPPED_NORM)
    found = float(loss.detach())
    if not math.isfinite(found + float(norm)):
        return None
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(recipe, step)
    optimiser.step()
    return found


def evaluate(model: Any, held_out: tuple[HeldOut, HeldOut], progress: Progress, step_tokens: int) -> None:
    """Note losses on held-out text, natural and generated, and answers right by the steps that they take.

    Nats a token, in float32 whatever it is trained in; the same tokens for every model of a text and context.
    The end of the training where one is not finite.
    """
    model.eval()
    (natural, _), (generated, accuracy) = (read(model, sequences) for sequences in held_out)
    model.train()
    if not math.isfinite(natural + generated):
        progress.diverged = True
        progress.stopped = f"a held-out loss was not finite after step {progress.step}"
        return
    before = progress.history[-1]["step"] if progress.history else 0
    trained = progress.losses / (progress.step - before)
    progress.losses = 0.0
    progress.history.append(
        {
            "step": progress.step,
            "tokens": progress.step * step_tokens,
            "seconds": progress.seconds,
            "trained": trained,
            "natural": natural,
            "generated": generated,
            "accuracy": accuracy,
        }
    )


@torch.no_grad()
def read(model: Any, held_out: HeldOut) -> tuple[float, list[float | None]]:
    """Mean loss in nats a token, and the share of answers that are right for each number of steps."""
    total, rows = 0.0, 0
    right, asked = np.zeros(MOST_STEPS + 1), np.zeros(MOST_STEPS + 1)
    for first in range(0, len(held_out.sequences), AT_ONCE):
        sequences = torch.from_numpy(held_out.sequences[first : first + AT_ONCE])
        logits = model(input_ids=sequences[:, :-1].to(model.device), use_cache=False).logits.float()
        targets = sequences[:, 1:].to(logits.device)
        total += float(F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
        rows += targets.numel()
        if held_out.steps is not None:
            steps = held_out.steps[first : first + AT_ONCE, 1:].ravel()
            hit = (logits.argmax(-1) == targets).flatten().cpu().numpy()
            right += np.bincount(steps, weights=hit, minlength=MOST_STEPS + 1)
            asked += np.bincount(steps, minlength=MOST_STEPS + 1)
    shares = [float(hit / of) if of else None for hit, of in zip(right[1:], asked[1:], strict=True)]
    return total / rows, shares


def read_base(recipe: Continued, text: LabText) -> dict[str, Any]:
    """The record of the model that a recipe goes on from.

    Raises InputError where no training has ended or one diverged, and for one that itself goes on from
    another, or has another text or context.
    """
    folder = Path(recipe.base)
    record = read_record(folder, "from")
    for wrong, fix in (
        (record["kind"] == Continued.kind, "it goes on from another itself: name one trained from scratch"),
        (record["diverged"], f"its training diverged ({record['stopped']}): train it with another seed"),
        (record["text"] != text.fingerprint, "it was trained on another text: name that"),
        (record["recipe"]["context"] != recipe.context, f"write context = {record['recipe']['context']}"),
    ):
        if wrong:
            raise InputError("the model cannot be gone on from", where=f"from: {folder}", fix=fix)
    record["recipe"] = {**record["recipe"], "kind": record["kind"], "text": recipe.text}
    return record


def read_record(folder: Path, where: str) -> dict[str, Any]:
    """The record of a model. where: what names it. Raises InputError where no training of the lab's ended."""
    file = folder / RECORD_FILE
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if "lab" not in record:
        raise InputError(
            f"no training of the lab has ended there: {RECORD_FILE} is missing, or of another program",
            where=f"{where}: {folder}",
            fix="name a folder that offramp-lab train wrote",
        )
    found: dict[str, Any] = record["lab"] | {"model": record["model"]}
    return found


def start_of(folder: str | Path) -> Any:
    """The model of a folder in float32, its weights lying as those of a new one do."""
    from transformers import AutoModelForCausalLM

    family.register()
    made: Any = AutoModelForCausalLM
    model = made.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    for weight in model.parameters():
        weight.data = weight.data.clone()  # they may lie in the file
    return model


def _same(folder: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """The record in a folder, if it is of this request. Raises InputError that says in what it is another."""
    record = read_record(folder, "-o")
    theirs, ours = ({**one, **one["recipe"]} for one in (record, request))
    if different := [key for key in ours if key != "recipe" and theirs.get(key) != ours[key]]:
        said = ", ".join(f"{key} ({theirs.get(key)}, now {ours[key]})" for key in different[:3])
        raise InputError(
            f"the folder holds another training: {said}",
            where=str(folder),
            fix="choose another folder, or remove this one",
        )
    return record


def _keep(
    model: Any,
    progress: Progress,
    scratch: FromScratch,
    text: LabText,
    request: Mapping[str, Any],
    folder: Path,
) -> dict[str, Any]:
    """Leave the model as it is now in a folder of its own, with its record, which is given."""
    made = folder.with_name(f"{folder.name}.making")
    shutil.rmtree(made, ignore_errors=True)
    model.save_pretrained(made)
    text.tokenizer.save_pretrained(made)
    sources = [f"- {one['name']} {one['version']}: {one['licence']}" for one in text.record["sources"]]
    begin = "A small model, trained by `offramp-lab train`: see `training.json`. Its text:"
    (made / "README.md").write_text("\n".join([begin, "", *sources, ""]), encoding="utf-8")
    width = scratch.sized(text.vocabulary)
    record = {
        **request,
        "vocabulary": text.vocabulary,
        "width": width,
        "parameters": scratch.weights(text.vocabulary, width),
        "active": scratch.active(text.vocabulary, width),
        "step": progress.step,
        "seconds": progress.seconds,
        "stopped": progress.stopped,
        "diverged": progress.diverged,
        "history": progress.history,
    }
    record_training(made, text.record["seen"], lab=record)
    shutil.rmtree(folder, ignore_errors=True)  # of a kept model that is kept again after a kill
    os.replace(made, folder)
    if progress.history:
        last = progress.history[-1]
        print(f"{folder.name}: held out {last['natural']:.3f} nat a token", file=sys.stderr, flush=True)
    return read_record(folder, "-o")


def _write(
    path: Path,
    request: Mapping[str, Any],
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    progress: Progress,
) -> None:
    """Write where a training stands, in one step."""
    kept = {"request": dict(request), "progress": vars(progress)}
    tensors = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
    made = path.with_name(f"{path.name}.making")
    torch.save({**kept, **tensors}, made)
    os.replace(made, path)


def _read(
    path: Path, request: Mapping[str, Any], model: nn.Module, optimiser: torch.optim.Optimizer
) -> Progress | None:
    """Put back what was written of this training; None where there is nothing of it."""
    if not path.is_file():
        return None
    kept = torch.load(path, map_location="cpu", weights_only=True)
    if kept["request"] != dict(request):
        return None
    model.load_state_dict(kept["model"])
    optimiser.load_state_dict(kept["optimiser"])
    return Progress(**kept["progress"])
