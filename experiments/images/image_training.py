"""A small image-text model: `python experiments/images/image_training.py FOLDER --minutes 30`.

The vision part learns to tell colours and shapes, and is frozen; then the projector learns what a frozen
smollm2 has to read to answer. Both go by offramp's training loop: killed, the same command goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call

import offramp
from image_model import (
    IMAGE_TOKENS,
    SIDE,
    SQUARE,
    around_picture,
    assemble,
    processor_of,
    read_ahead,
    transformers,
)
from offramp.tracing.progress import step_bar
from offramp.training.loop import (
    Descent,
    LossOf,
    Parameters,
    Problem,
    TrainingLoop,
    batch_rows,
    learning_rate,
)
from offramp.training.record import Evaluation, Settings
from offramp.training.request import Effort
from questions import COLOURS, SHAPES, kinds_of, read_questions

SEEING_SHARE = 0.15
"""Of the minutes, for the vision part."""
HELD_OUT, JUDGED = 20, 96
"""One picture of so many is held out; at most so many rows of these are judged by."""
IGNORED = -100
"""In the place of a token that does not count."""
FURTHEST = 4
"""Half pixels of the vision part's by which pictures are moved about."""
SEEING_RATE, ANSWERING_RATE, SEED = 1.5e-3, 1e-3, 0

Answers = Callable[[Parameters, Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""Of parameters, rows, and two random shares or None: logits [rows, places, classes], and which class is
right, int64 [rows, places]."""


@dataclass(frozen=True)
class Learner(Problem):
    """A module that learns to answer rows."""

    name: str
    module: nn.Module
    answers: Answers
    pictures: Tensor
    """Which one each row is about, int64 [rows]."""
    rate: float
    batch: int
    device = torch.device("cpu")

    @property
    def descent(self) -> Descent:
        """To its last step."""
        return Descent(partial(learning_rate, self.rate), patience=None)

    def initial(self) -> list[dict[str, Tensor]]:
        """The module as it is."""
        return [{name: tensor.detach().clone() for name, tensor in self.module.named_parameters()}]

    def rows(self, held_out: bool, most: int, step: int) -> Tensor:
        """Some, drawn for a step, of those to learn from or of those that are held out."""
        rows = ((self.pictures % HELD_OUT == 0) == held_out).nonzero()[:, 0]
        return rows[batch_rows(len(rows), min(most, len(rows)), SEED, step)]

    def losses(self, settings: Settings, vocabulary: Tensor | None) -> Callable[[int], LossOf]:
        """Of the rows of each step."""

        def loss(step: int, part: int, parameters: Parameters) -> Tensor:
            drawn = torch.rand(2, generator=torch.Generator().manual_seed(SEED + step))
            return cross_entropy(*self.answers(parameters, self.rows(False, self.batch, step), drawn))

        return lambda step: partial(loss, step)

    @torch.no_grad()
    def evaluate(self, parts: Sequence[Parameters]) -> list[Evaluation]:
        """The loss, and the share of rows that are right in every place."""
        logits, targets = self.answers(parts[0], self.rows(True, JUDGED, 0), None)
        right = ((logits.argmax(-1) == targets) | (targets == IGNORED)).all(1)
        return [Evaluation(float(cross_entropy(logits, targets)), float(right.double().mean()), ())]

    def in_words(self, evaluations: Sequence[Evaluation]) -> str:
        """Both."""
        return f"held out: loss {evaluations[0].loss:.3f}, {evaluations[0].agreement:.1%} right"

    def learn(self, effort: Effort, folder: Path) -> dict[str, Any]:
        """Train, leave the best parameters in the module, and say how it went, before and at its best."""
        path, key = folder / f"checkpoints/{self.name}.safetensors", str((effort, self.rate, self.batch))
        loop = TrainingLoop(self, effort, self.name, path, key)
        with ExitStack() as bars:
            progress = loop.run(
                lambda begun: bars.enter_context(
                    step_bar(self.name, begun.settings.steps, shown=True, done=begun.step)
                )
            )
        self.module.load_state_dict(progress.weights[0].best)
        judged = [evaluated.exits[0] for evaluated in progress.history]
        kept = (judged[0], min(judged, key=lambda evaluation: evaluation.loss))
        course = {"steps": progress.step, "seconds": progress.seconds, "threads": progress.settings.threads}
        figures = {"loss": [step.loss for step in kept], "right": [step.agreement for step in kept]}
        return course | {"rows": progress.step * len(self.rows(False, self.batch, 0))} | figures


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the places that count, nats."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def see(tower: nn.Module, pixels: Tensor, kinds: Tensor, reading: Tensor) -> Answers:
    """Every token of the vision part is to show of which kind the picture is, which is moved about.

    pixels: float32 [pictures, channels, rows, columns], several for each pixel that the vision part sees.
    reading: of a token's state, float32 [width, kinds], drawn at random and fixed.
    """

    def answers(parameters: Parameters, rows: Tensor, drawn: Tensor | None) -> tuple[Tensor, Tensor]:
        picture, side = pixels[rows], int(pixels.shape[-1])
        if drawn is not None:
            down, right = (drawn * (2 * FURTHEST + 1)).long().tolist()
            wider = F.pad(picture, [FURTHEST] * 4, "replicate")
            picture = wider[:, :, down : down + side, right : right + side]
        coarse = F.avg_pool2d(picture, side // SIDE)
        logits = functional_call(tower, dict(parameters), (coarse,)).last_hidden_state @ reading
        return logits, kinds[rows, None].expand(-1, logits.shape[1])

    return answers


def say(
    model: Any, seen: Tensor, prompts: tuple[Tensor, Tensor], end: Tensor, asked: Tensor, targets: Tensor
) -> Answers:
    """The language model, given the projector's image tokens, is to say the answers and their ends.

    seen: float32 [pictures, image tokens, width]. prompts: those of `read_ahead`. end: int64 tokens of every
    prompt after the picture. asked: int64 [rows, (picture, prompt)]. targets: int64 tokens [rows, longest].
    """

    def answers(parameters: Parameters, rows: Tensor, drawn: Tensor | None) -> tuple[Tensor, Tensor]:
        picture, prompt = asked[rows].unbind(1)
        images = functional_call(model.model.multi_modal_projector, dict(parameters), (seen[picture],))
        written = torch.cat([end.expand(len(rows), -1), targets[rows, :-1].clamp(min=0)], 1)
        embedded = torch.cat([images, model.get_input_embeddings()(written)], 1)
        states, there = (part[prompt] for part in prompts)
        ones = torch.ones(embedded.shape[:2], dtype=torch.int64)
        read = model.model.language_model(
            inputs_embeds=embedded,
            attention_mask=torch.cat([there, ones], 1),
            position_ids=there.sum(1, keepdim=True) + ones.cumsum(1) - 1,
            cache=transformers.DynamicCache([tuple(layer.unbind(1)) for layer in states.unbind(1)]),
            use_cache=True,
        )
        # The head is large: it reads the answer's places alone.
        return model.lm_head(read.last_hidden_state[:, -targets.shape[1] :]), targets[rows]

    return answers


@torch.no_grad()
def begin_with_words(model: Any, tokenizer: Any, seen: Tensor, kinds: Sequence[tuple[str, str]]) -> None:
    """Set the projector so that its image tokens read as "blue rectangle. Answer:", as far as it can.

    By ridge regression of the words' embeddings on features that its first layer draws at random.
    """
    projector, rows = model.model.multi_modal_projector, seen.flatten(0, 1)

    @cache
    def embedded(text: str) -> Tensor:
        ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
        mean: Tensor = model.get_input_embeddings()(ids).mean(0)
        return mean

    said = [embedded(part) for hue, shape in kinds for part in (f" {hue}", f" {shape}", ".", " Answer", ":")]
    projector.linear_1.weight.normal_(std=1 / (float(rows.std()) * rows.shape[1] ** 0.5))
    features = projector.act(projector.linear_1(rows)).double()
    features = torch.cat([features, torch.ones(len(rows), 1)], 1)
    squares = features.T @ features
    ridge = 1e-3 * squares.diagonal().mean() * torch.eye(len(squares))
    solved = torch.linalg.solve(squares + ridge, features.T @ torch.stack(said).double())
    projector.linear_2.weight.copy_(solved[:-1].T)
    projector.linear_2.bias.copy_(solved[-1])


def train(folder: Path, text: Any, tokenizer: Any, efforts: Sequence[Effort]) -> dict[str, Any]:
    """Write the model's folder, and say what came of it. efforts: for the vision part, and for the projector.

    text: a causal LM in float32. Raises InputError without easy-VQA, or for a tokenizer with no spare token.
    """
    questions, processor = read_questions("train"), processor_of(tokenizer)
    tokenizer, kinds = processor.tokenizer, kinds_of(questions)
    questions = [question for question in questions if question.picture in kinds]
    pictures = {picture: place for place, picture in enumerate(kinds)}
    torch.manual_seed(SEED)
    model = assemble(text, processor.image_token_id)
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)

    # 1. The vision part.
    images = [Image.open(picture).convert("RGB") for picture in pictures]
    fine, coarse = (
        processor.image_processor(images, size=size, crop_size=size, return_tensors="pt")["pixel_values"]
        for size in (dict.fromkeys(SQUARE, 2 * SIDE), SQUARE)
    )
    numbers = [COLOURS.index(hue) * len(SHAPES) + SHAPES.index(shape) for hue, shape in kinds.values()]
    width = tower.config.hidden_size
    reading = torch.randn(width, len(COLOURS) * len(SHAPES)) / width**0.5
    answers = see(tower, fine, torch.tensor(numbers), reading)
    learner = Learner("seeing", tower, answers, torch.arange(len(images)), SEEING_RATE, 128)
    record = {"seeing": learner.learn(efforts[0], folder)}

    # 2. The projector.
    with torch.no_grad():
        seen = torch.cat([tower(part).last_hidden_state for part in coarse.split(256)])
    begin_with_words(model, tokenizer, seen, [*kinds.values()])
    prompts = sorted({question.prompt for question in questions})
    places = {prompt: place for place, prompt in enumerate(prompts)}
    before, after = zip(*(around_picture(processor, prompt) for prompt in prompts), strict=True)
    read = read_ahead(model.model.language_model, before)
    asked = torch.tensor([[pictures[question.picture], places[question.prompt]] for question in questions])
    ids = [tokenizer(question.answer, add_special_tokens=False)["input_ids"] for question in questions]
    longest = max(map(len, ids)) + 1
    ends = [[*answer, tokenizer.eos_token_id, *[IGNORED] * longest][:longest] for answer in ids]
    answers = say(model, seen, read, torch.tensor(after[0]), asked, torch.tensor(ends))
    learner = Learner("answering", projector, answers, asked[:, 0], ANSWERING_RATE, 16)
    course = learner.learn(efforts[1], folder)
    tokens = course["rows"] * (IMAGE_TOKENS + len(after[0]) + longest - 1)
    record["answering"] = course | {"tokens": tokens}

    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    offramp.record_training(folder, {}, image_text=record)
    return record


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a small image-text model on smollm2.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    chosen = parser.parse_args()
    smollm2 = offramp.load_model("smollm2", dtype="float32", device="cpu")
    shares = (SEEING_SHARE, 1 - SEEING_SHARE)
    efforts = [Effort(minutes=share * chosen.minutes, precision="float32") for share in shares]
    print(train(chosen.folder, smollm2.hf, smollm2.tokenizer, efforts))
