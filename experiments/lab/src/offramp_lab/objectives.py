"""The loss of each step of a training: on the text as it is, with early exits, or on instructions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from offramp import InputError, Regularisation
from offramp_lab.batches import BEGINNING_ID, Batches, generated_starts
from offramp_lab.generated import Problem
from offramp_lab.recipes import Continued, Reading
from offramp_lab.text import LabText

LossOf = Callable[[int], Tensor]
"""Of a step from 0: its loss, a differentiable scalar."""


def objective_of(recipe: Reading, text: LabText) -> Callable[[Any], LossOf]:
    """Of a model the loss of its steps. Raises InputError for too little text."""
    arm = recipe.arm if isinstance(recipe, Continued) else recipe.kind
    if arm == "tuned":
        tuned = instruction_batches(text, recipe)
        return lambda model: answers_loss(model, *tuned)
    batches = Batches.of(text, recipe.context, recipe.batch, recipe.seed)
    if arm == "early_exit_loss":
        return lambda model: early_exit_loss(model, batches, recipe)
    made = router_loss if arm == "mixture" else text_loss
    return lambda model: made(model, batches)


def text_loss(model: Any, batches: Batches) -> LossOf:
    """Mean over all tokens of a step's sequences, nats."""

    def loss_of(step: int) -> Tensor:
        sequences = torch.from_numpy(batches.sequences(step)).to(model.device)
        logits = model(input_ids=sequences[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.float().flatten(0, 1), sequences[:, 1:].flatten())

    return loss_of


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


LAYER_SKIP = Regularisation(lora=0, keep=0.0, targets="text")
"""LayerSkip's terms and schedules as `offramp exits train --kind regularised` has them: all weights, no term
that keeps what the model says, and the text as what exits learn."""

FIRST_EXIT = 2
"""Exit 1 has no weight in the loss."""


def early_exit_loss(model: Any, batches: Batches, recipe: Reading) -> LossOf:
    """LayerSkip's loss (arXiv 2404.16710, section 4.1) of a model with attention, nats.

    Weighted mean over a step's exits and the last one; each sequence has its own layers left out. Raises
    InputError for a model without a list of layers and a norm after them, and for one of two layers or fewer.
    """
    body: Any = getattr(model, "model", None)
    count = len(getattr(body, "layers", ()))
    if count <= FIRST_EXIT:
        raise InputError(
            "a loss of early exits takes a model with attention, of three layers or more",
            where="from",
            fix="go on from a dense model or a mixture",
        )

    def loss_of(step: int) -> Tensor:
        sequences = torch.from_numpy(batches.sequences(step)).to(model.device)
        chances = LAYER_SKIP.dropout(count, step, recipe.steps)
        drawn = np.random.default_rng((recipe.seed, step)).random((len(sequences), count))
        weights = LAYER_SKIP.weights(range(FIRST_EXIT, count), count, step, recipe.steps)
        found = [
            states_after(body, ids, weights, np.flatnonzero(row < chances) + 1)
            for ids, row in zip(sequences[:, :-1], drawn, strict=True)
        ]
        total = torch.zeros((), device=model.device)
        for exit, weight in weights.items():
            states = torch.cat([states[exit] for states in found])
            logits = model.lm_head(body.norm(states)).float()
            total = total + weight * F.cross_entropy(logits, sequences[:, 1:].flatten())
        return total

    return loss_of


def states_after(
    body: Any, ids: Tensor, wanted: Sequence[int] | dict[int, float], left_out: NDArray[np.int64]
) -> dict[int, Tensor]:
    """States [positions, hidden] after some layers, 1 .. L, of one sequence int64 [positions].

    left_out: layers that hand on what they are given, as if they added nothing.
    """
    found: dict[int, Tensor] = {}

    def hook(layer: int) -> Callable[..., Any]:
        def after(module: Any, arguments: tuple[Any, ...], output: Any) -> Any:
            given = arguments[0] if layer in left_out else output
            if layer in wanted:
                found[layer] = given[0]
            return given

        return after

    hooks = [layer.register_forward_hook(hook(place)) for place, layer in enumerate(body.layers, start=1)]
    try:
        body(input_ids=ids[None], use_cache=False)
    finally:
        for handle in hooks:
            handle.remove()
    return found


USER, ASSISTANT = "User: ", "\nAssistant:"
UNCOUNTED = -100
"""In the place of a token that the loss does not count."""

SHOWN, ANSWERED = 240, 120
"""Characters of a passage of prose, and of its continuation."""

CODE_SHOWN, MOST_NAMES = 400, 4
TRIES = 8
"""Places of a text that are looked at for something to ask."""

DEFINED = re.compile(r"^[ \t]*(?:async def|def|class) (\w+)", re.MULTILINE)
LONG_WORD = re.compile(r"(?<![\w-])[A-Za-z]{5,12}(?![\w-])")


@dataclass(frozen=True)
class Instruction:
    """What is asked, and what is to be answered."""

    question: str
    answer: str

    @property
    def text(self) -> str:
        """As a model reads it; a space in front of the answer, as tokens begin with it."""
        return f"{USER}{self.question}{ASSISTANT} {self.answer}\n"


def instructions(text: LabText, seed: int) -> Iterator[Instruction]:
    """Without end, of every form in turns, from documents of the part that is trained on.

    The forms: what follows a passage, which word it lacks, what a piece of code defines, and one question of
    a generated problem. Raises InputError for a text that has none of it.
    """
    prose = [one.text for kind in ("prose", "manual") for one in text.documents("train", kind)]
    code = [document.text for document in text.documents("train", "code")]
    forms: list[tuple[Sequence[Any], Callable[[Any, np.random.Generator], Instruction | None]]] = [
        (prose, _continuation),
        (prose, _missing_word),
        (code, _definitions),
        (text.problems("train"), _problem),
    ]
    forms = [(sources, make) for sources, make in forms if sources]
    number = made = 0
    while number < TRIES * len(forms) or made:  # text that nothing can be asked about is not asked for ever
        sources, make = forms[number % len(forms)]
        generator = np.random.default_rng((seed, number))
        found = make(sources[int(generator.integers(len(sources)))], generator)
        number += 1
        if found is not None:
            made += 1
            yield found
    raise InputError("no instruction can be made from the text", where=str(text.folder), fix="add text")


def _passage(document: str, generator: np.random.Generator, characters: int) -> str:
    """Words of a document from a random place on, for so many characters at most."""
    start = int(generator.integers(max(1, len(document) - characters)))
    words = document[start : start + characters].split()
    return " ".join(words[1:-1])  # whole ones


def _continuation(document: str, generator: np.random.Generator) -> Instruction | None:
    passage = _passage(document, generator, SHOWN + ANSWERED)
    cut = passage.find(" ", len(passage) * SHOWN // (SHOWN + ANSWERED))
    if cut < 0:
        return None
    return Instruction(f"Continue this.\n{passage[:cut]}", passage[cut + 1 :])


def _missing_word(document: str, generator: np.random.Generator) -> Instruction | None:
    passage = _passage(document, generator, SHOWN)
    words = list(LONG_WORD.finditer(passage))
    if not words:
        return None
    word = words[generator.integers(len(words))]
    shown = f"{passage[: word.start()]}___{passage[word.end() :]}"
    return Instruction(f"Which word is missing?\n{shown}", word[0])


def _definitions(document: str, generator: np.random.Generator) -> Instruction | None:
    for _ in range(TRIES):
        start = document.rfind("\n", 0, int(generator.integers(len(document)))) + 1
        shown = document[start : start + CODE_SHOWN].rpartition("\n")[0]
        if names := DEFINED.findall(shown)[:MOST_NAMES]:
            return Instruction(f"What is defined here?\n{shown}", ", ".join(names))
    return None


def _problem(problem: Problem, generator: np.random.Generator) -> Instruction:
    text = problem.document.text
    given = text[: text.rfind("\n", 0, problem.answers[0].start)]
    answer = problem.answers[generator.integers(len(problem.answers))]
    question = text[text.rfind("\n", 0, answer.start) + 1 : answer.start]
    return Instruction(f"{given}\n{question}", text[answer.start + 1 : answer.end])


def encoded_instructions(
    tokenizer: Any, made: Sequence[Instruction]
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Tokens of all in a row, each begun as a document and the last one ended, and 1 for each that answers.

    What ends a document, the beginning of the next, belongs to its answer. Both uint16 [tokens].
    """
    ids, answers = [np.array([BEGINNING_ID])], [np.array([0])]
    texts = [instruction.text for instruction in made]
    for one, instruction in zip(tokenizer.backend_tokenizer.encode_batch(texts), made, strict=True):
        begins = np.array([start for start, _ in one.offsets[1:]])
        start = len(USER) + len(instruction.question) + len(ASSISTANT)
        ids.append(np.array([*one.ids[1:], BEGINNING_ID]))
        answers.append(np.array([*(begins >= start), 1]))
    return np.concatenate(ids).astype(np.uint16), np.concatenate(answers).astype(np.uint16)


def instruction_batches(text: LabText, recipe: Reading) -> tuple[Batches, Batches]:
    """Sequences of instructions for so many tokens as a recipe reads, and of 1 where a token answers.

    Each begins with an instruction. Raises InputError for a text that gives none.
    """
    wanted, count, made = recipe.steps * recipe.batch * recipe.context, 0, []
    for instruction in instructions(text, recipe.seed):
        made.append(instruction)
        count += len(instruction.text) // 4  # a token is 2 to 3 characters: this is enough
        if count > wanted:
            break
    tokens, answers = encoded_instructions(text.tokenizer, made)
    starts = generated_starts(tokens, recipe.context)
    found = Batches(tokens, starts, recipe.context, recipe.batch, recipe.seed)
    return found, Batches(answers, starts, recipe.context, recipe.batch, recipe.seed)


def answers_loss(model: Any, batches: Batches, answers: Batches) -> LossOf:
    """Mean over the tokens of a step's answers, nats; 0 where there is none."""

    def loss_of(step: int) -> Tensor:
        sequences = torch.from_numpy(batches.sequences(step)).to(model.device)
        counted = torch.from_numpy(answers.sequences(step)[:, 1:] == 1).to(model.device)
        logits = model(input_ids=sequences[:, :-1], use_cache=False).logits.float()
        targets = sequences[:, 1:].masked_fill(~counted, UNCOUNTED)
        total = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=UNCOUNTED, reduction="sum"
        )
        return total / max(1, int(counted.sum()))

    return loss_of
